"""Text as outlines: its width, and SVG that looks the same wherever it is opened, because it needs no font.

The outlines are in glyphs.json, which `scripts/make_glyphs.py` writes.
"""

import json
from collections.abc import Iterable
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

Glyphs = dict[str, tuple[float, str]]
"""Advance width and SVG path of each character, in font units."""


def text_width(text: str, size: float, is_bold: bool = False) -> float:
    """Return the width of `text` at a font size, in the units of `size`; an unknown character counts as an M."""
    glyphs = _glyphs(is_bold)
    return sum(glyphs.get(character, glyphs["M"])[0] for character in text) * size / _units()


def is_known(text: str) -> bool:
    """Return whether there is an outline for each character."""
    return all(character in _glyphs(False) for character in text)


def outline(text: str, start: tuple[float, float], size: float, css: str, is_bold: bool = False) -> str:
    """Return SVG that draws `text` from `start` on its baseline; the page has to hold the `definitions` of it."""
    x, parts = 0.0, []
    for character in text:
        advance, path = _glyphs(is_bold)[character]
        if path:
            parts.append(f'<use xlink:href="#{_name(character, is_bold)}" x="{x:g}"/>')
        x += advance
    scale = size / _units()
    place = f"translate({start[0]:.1f},{start[1]:.1f}) scale({scale:.6f},{-scale:.6f})"
    return f'<g class="outline {css}" transform="{place}" aria-label="{escape(text)}">{"".join(parts)}</g>'


def definitions(texts: Iterable[tuple[str, bool]]) -> str:
    """Return the SVG definitions of all characters in texts, each with whether it is bold."""
    used = sorted({(character, is_bold) for text, is_bold in texts for character in text})
    paths = ((_name(character, is_bold), _glyphs(is_bold)[character][1]) for character, is_bold in used)
    return "<defs>" + "".join(f'<path id="{name}" d="{path}"/>' for name, path in paths if path) + "</defs>"


def _name(character: str, is_bold: bool) -> str:
    """Return the id of a character's outline."""
    return f"{'b' if is_bold else 'g'}{ord(character):x}"


@cache
def _table() -> dict[str, Any]:
    """Return the content of glyphs.json."""
    table: dict[str, Any] = json.loads((Path(__file__).parent / "glyphs.json").read_text(encoding="utf-8"))
    return table


def _glyphs(is_bold: bool) -> Glyphs:
    """Return the outlines of one weight."""
    glyphs: Glyphs = _table()["bold" if is_bold else "regular"]
    return glyphs


def _units() -> int:
    """Return the number of font units per font size."""
    return int(_table()["units"])
