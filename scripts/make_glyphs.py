"""Write march_search/report/glyphs.json: the outlines with which a figure for a paper draws its text.

    pip install fonttools
    python scripts/make_glyphs.py LiberationSans-Regular.ttf LiberationSans-Bold.ttf

The fonts are Liberation Sans 2.1 (https://github.com/liberationfonts, SIL Open Font License 1.1), which has the widths
of Arial. The outlines are of printable ASCII and of the signs in figures.
"""

import json
import string
import sys
from pathlib import Path

from fontTools.pens.svgPathPen import SVGPathPen
from fontTools.ttLib import TTFont

SIGNS = "−×±–—…·≥≤→↑↓°"
"""Characters beside printable ASCII."""

LICENCE = (
    "Outlines of Liberation Sans 2.1. Digitized data copyright (c) 2010 Google Corporation with Reserved Font Arimo, "
    "Tinos and Cousine. Copyright (c) 2012 Red Hat, Inc. with Reserved Font Name Liberation. Licensed under the SIL "
    "Open Font License 1.1, see glyphs.LICENSE. Written by scripts/make_glyphs.py."
)


def outlines(path: str) -> dict[str, list[object]]:
    """Return the advance width and the SVG path of each character, in font units."""
    font = TTFont(path)
    glyphs, names = font.getGlyphSet(), font.getBestCmap()
    found: dict[str, list[object]] = {}
    for character in string.ascii_letters + string.digits + string.punctuation + " " + SIGNS:
        pen = SVGPathPen(glyphs, ntos=lambda value: str(round(value)))
        glyph = glyphs[names[ord(character)]]
        glyph.draw(pen)
        found[character] = [glyph.width, pen.getCommands()]
    return found


if __name__ == "__main__":
    regular, bold = sys.argv[1:]
    units = TTFont(regular)["head"].unitsPerEm
    table = {"licence": LICENCE, "units": units, "regular": outlines(regular), "bold": outlines(bold)}
    folder = Path(__file__).parent.parent / "march_search" / "report"
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).replace('"],"', '"],\n"')
    (folder / "glyphs.json").write_text(text + "\n", encoding="utf-8")
