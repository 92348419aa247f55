"""Draws figures as SVG text: scales, ticks and marks. Colours are CSS variables of the page.

All text is escaped here and nowhere else. Everything else in a figure is numbers and fixed strings.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from march_search.report.outlines import definitions, is_known, outline, text_width

WIDTH = 720
"""Width of a figure that stands alone, in SVG units; heights vary."""

HALF = 560
"""Width of one of two figures side by side."""

COLUMN = 372
"""Width of a figure for a phone, and for one column of a paper."""

COLUMN_INCHES = 3.3
"""Width of a column of a paper; 12 units of text become 7.7 points."""

SMALL, NORMAL = 12, 13
"""Font sizes: of ticks and cells, and of all other text."""

ROOM = 1.18
"""Factor on the width of a text, for readers whose font is wider than that of the outlines."""

BOLD_ROOM = 1.26
"""The same for bold text; digits of DejaVu Sans Bold, which browsers on Linux show, are a quarter wider."""

SERIES = 6
"""Number of series colours, which readers with any kind of dichromacy can distinguish, too."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Mapping from values to coordinates."""

    low: float
    """Lowest value."""
    high: float
    """Highest value."""
    start: float
    """Coordinate of `low`."""
    end: float
    """Coordinate of `high`."""
    kind: Literal["linear", "log"] = "linear"
    """Whether coordinates are linear in the value or in its logarithm."""

    def __call__(self, value: float) -> float:
        """Return the coordinate of `value`."""
        low, high, at = self.low, self.high, value
        if self.kind == "log":
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (at - low) / (high - low)

    def ticks(self, number: int = 5) -> list[float]:
        """Return about `number` round values within the scale."""
        if self.kind == "log" and self.high / self.low > 8:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if self.high / self.low > 1000 else (1, 2, 5)
            found = [m * 10.0**p for p in powers for m in steps]
        else:
            rough = (self.high - self.low) / number
            power = 10.0 ** math.floor(math.log10(rough))
            step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
            first = math.ceil(self.low / step - 1e-9)
            found = [step * n for n in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [value for value in found if self.low <= value <= self.high]


def scale(
    values: Sequence[float], start: float, end: float, kind: Literal["linear", "log"] = "linear", room: float = 0.06
) -> Scale:
    """Return a scale that covers `values`, with a margin of the fraction `room` on either side."""
    low, high = min(values), max(values)
    if kind == "log":
        if high / low < 1.01:
            low, high = low / 1.5, high * 1.5
        wide = math.log(high / low) * room
        return Scale(low=low / math.exp(wide), high=high * math.exp(wide), start=start, end=end, kind=kind)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    wide = (high - low) * room
    return Scale(low=low - wide, high=high + wide, start=start, end=end)


@dataclass(frozen=True, kw_only=True)
class Label:
    """Text of a figure, with its baseline at `y`."""

    x: float
    y: float
    text: str
    css: str
    anchor: str

    @property
    def size(self) -> int:
        """Font size."""
        return SMALL if {"tick", "cell-text"} & {*self.css.split()} else NORMAL

    @property
    def is_bold(self) -> bool:
        """Whether the text is bold."""
        return "strong" in self.css.split()

    def svg(self) -> str:
        """Return the text as SVG."""
        place = f'x="{self.x:.1f}" y="{self.y:.1f}" font-size="{self.size}" text-anchor="{self.anchor}"'
        return f'<text {place} class="{self.css}">{escape(self.text)}</text>'

    def outline(self) -> str:
        """Return the text as outlines; a text with other characters stays a text."""
        if not is_known(self.text):
            return self.svg()
        share = {"start": 0.0, "middle": 0.5, "end": 1.0}[self.anchor]
        start = self.x - share * text_width(self.text, self.size, self.is_bold)
        return outline(self.text, (start, self.y), self.size, self.css, self.is_bold)


@dataclass
class Figure:
    """Marks of one figure, in drawing order."""

    title: str
    """Description of the figure, also for screen readers."""
    height: float
    """Height in SVG units."""
    width: float = WIDTH
    """Width in SVG units."""
    parts: list[str | Label] = field(default_factory=list)
    """SVG elements and texts drawn so far."""

    @property
    def is_narrow(self) -> bool:
        """Whether the figure has the width of a column."""
        return self.width < 500

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str = "grid") -> None:
        """Draw a straight line."""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>')

    def path(self, points: Sequence[tuple[float, float]], css: str, label: str = "") -> None:
        """Draw a line through `points`, with the tooltip `label`; nothing without points."""
        if not points:
            return
        drawn = "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<path d="M{drawn}" class="{css}">{_title(label)}</path>')

    def dot(self, x: float, y: float, css: str, label: str = "", radius: float = 5) -> None:
        """Draw a circle with the tooltip `label`."""
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{css}">{_title(label)}</circle>')

    def box(self, x: float, y: float, wide: float, high: float, css: str, label: str = "", opacity: float = 1) -> None:
        """Draw a rectangle with the tooltip `label`."""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}" class="{css}" '
            f'fill-opacity="{opacity:.3f}">{_title(label)}</rect>'
        )

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        """Draw text with its baseline at `y`."""
        self.parts.append(Label(x=x, y=y, text=text, css=css, anchor=anchor))

    def text_inside(self, x: float, y: float, text: str, css: str = "") -> None:
        """Draw text that starts at `x`, or as far left of it as the figure's right edge needs."""
        self.text(max(0.0, min(x, self.width - ROOM * text_width(text, NORMAL))), y, text, css)

    def x_axis(
        self, x: Scale, top: float, bottom: float, name: str, show: Callable[[float], str], ticks: Sequence[float] = ()
    ) -> None:
        """Draw vertical grid lines with their values, and the title `name`, below; values that overlap are left out."""
        end = -math.inf
        for value in ticks or x.ticks(4 if self.is_narrow else 5):
            half = ROOM * text_width(show(value), SMALL) / 2
            self.line(x(value), top, x(value), bottom)
            if x(value) - half > end:
                self.text(x(value), bottom + 17, show(value), "tick", "middle")
                end = x(value) + half + 6
        half = ROOM * text_width(name, NORMAL) / 2
        self.text(max(half, min((x.start + x.end) / 2, self.width - half)), bottom + 36, name, "axis", "middle")

    def y_axis(
        self, y: Scale, left: float, right: float, name: str, show: Callable[[float], str], ticks: Sequence[float] = ()
    ) -> None:
        """Draw horizontal grid lines with their values on the left, and the title `name` above."""
        for value in ticks or y.ticks():
            self.line(left, y(value), right, y(value))
            self.text(left - 8, y(value) + 4, show(value), "tick", "end")
        self.text(0, min(y.start, y.end) - 12, name, "axis")

    def svg(self) -> str:
        """Return the figure as SVG for the page, which has the style sheet."""
        return self._element("", "".join(part if isinstance(part, str) else part.svg() for part in self.parts))

    def file(self, style: str) -> str:
        """Return the figure as the text of an SVG file with its own style sheet, and with text as outlines.

        A figure with the width of a column is `COLUMN_INCHES` wide.
        """
        texts = [part for part in self.parts if isinstance(part, Label)]
        drawn = "".join(part if isinstance(part, str) else part.outline() for part in self.parts)
        unit, scale = ("in", COLUMN_INCHES / COLUMN) if self.is_narrow else ("", 1.0)
        size = f'width="{self.width * scale:.5g}{unit}" height="{self.height * scale:.5g}{unit}"'
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        known = definitions((label.text, label.is_bold) for label in texts if is_known(label.text))
        return self._element(f"{spaces} {size} ", f"<style>{style}</style>{known}{drawn}")

    def _element(self, attributes: str, content: str) -> str:
        """Return the SVG element."""
        box = f'viewBox="0 0 {self.width:g} {self.height:g}"'
        return f'<svg {attributes}{box} role="img" aria-label="{escape(self.title)}">{content}</svg>'


def spread_apart(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return `positions` shifted so that neighbours are at least `gap` apart, between `low` and `high`."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    gap = min(gap, (high - low) / max(1, len(positions) - 1))
    moved: list[float] = []
    for at in order:
        moved.append(max(positions[at], moved[-1] + gap if moved else low))
    for back in range(len(moved) - 1, -1, -1):
        moved[back] = min(moved[back], high if back == len(moved) - 1 else moved[back + 1] - gap)
    result = [0.0] * len(positions)
    for place, at in zip(moved, order, strict=True):
        result[at] = place
    return result


def label_room(texts: Iterable[str], is_bold: bool = False) -> float:
    """Return the width that the longest of several labels needs."""
    factor = BOLD_ROOM if is_bold else ROOM
    return factor * max((text_width(text, NORMAL, is_bold) for text in texts), default=0.0)


def _title(label: str) -> str:
    """Return the SVG tooltip of a mark; empty for an empty text."""
    return f"<title>{escape(label)}</title>" if label else ""
