"""Draws figures as SVG text: scales, ticks and marks. Colours are CSS variables of the page.

All text is escaped here and nowhere else. Everything else in a figure is numbers and fixed strings.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

WIDTH = 720
"""Usual width of a figure, in SVG units; heights vary."""

PHONE = 372
"""Width of a figure for a phone, in SVG units."""

SERIES = 6
"""Number of series colours, which colour-blind readers can distinguish too (Okabe and Ito 2008)."""


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


@dataclass
class Figure:
    """Marks of one figure, in drawing order."""

    title: str
    """Description of the figure, also for screen readers."""
    height: float
    """Height in SVG units."""
    width: float = WIDTH
    """Width in SVG units."""
    parts: list[str] = field(default_factory=list)
    """SVG elements drawn so far."""

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str = "grid") -> None:
        """Draw a straight line."""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{css}"/>')

    def path(self, points: Sequence[tuple[float, float]], css: str, label: str = "") -> None:
        """Draw a line through `points`, with the tooltip `label`."""
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
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>')

    def x_axis(
        self, x: Scale, top: float, bottom: float, name: str, show: Callable[[float], str], ticks: Sequence[float] = ()
    ) -> None:
        """Draw vertical grid lines with their values, and the title `name`, below."""
        for value in ticks or x.ticks():
            self.line(x(value), top, x(value), bottom)
            self.text(x(value), bottom + 17, show(value), "tick", "middle")
        self.text((x.start + x.end) / 2, bottom + 36, name, "axis", "middle")

    def y_axis(
        self, y: Scale, left: float, right: float, name: str, show: Callable[[float], str], ticks: Sequence[float] = ()
    ) -> None:
        """Draw horizontal grid lines with their values on the left, and the title `name` above."""
        for value in ticks or y.ticks():
            self.line(left, y(value), right, y(value))
            self.text(left - 8, y(value) + 4, show(value), "tick", "end")
        self.text(0, min(y.start, y.end) - 12, name, "axis")

    def svg(self, style: str = "") -> str:
        """Return the figure as SVG; with a `style`, as the content of a standalone file."""
        attributes = (
            f' xmlns="http://www.w3.org/2000/svg" width="{self.width:g}" height="{self.height:g}"' if style else ""
        )
        styled = f"<style>{style}</style>" if style else ""
        box = f'viewBox="0 0 {self.width:g} {self.height:g}"'
        return (
            f'<svg{attributes} {box} role="img" aria-label="{escape(self.title)}">{styled}{"".join(self.parts)}</svg>'
        )


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


def _title(label: str) -> str:
    """Return the SVG tooltip of a mark; empty for an empty text."""
    return f"<title>{escape(label)}</title>" if label else ""
