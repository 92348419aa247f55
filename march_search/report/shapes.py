"""The figure of a feasible set: how many architectures it has at every depth and width."""

import math

from march_search.report.svg import WIDTH, Figure, Scale, scale
from march_search.space.census import census
from march_search.space.feasible_set import Selection
from march_search.units import count

LEFT, TOP, BOTTOM = 64, 56, 392
"""Edges of the plot."""

LARGEST = 11
"""Radius of the dot with the most architectures."""


def shapes(found: Selection) -> Figure:
    """Draw one dot per depth and width; its area is the number of architectures there."""
    depths, widths, numbers = (column.tolist() for column in census(found))
    budget, largest = found.source.condition, max(numbers)
    figure = Figure(f"Architectures with {budget}, by depth and width", BOTTOM + 48)
    right = WIDTH - 24
    x = scale(depths, LEFT, right, "log", room=0.03)
    y = scale(widths, BOTTOM, TOP, "log", room=0.03)
    figure.y_axis(y, LEFT, right, "d_model", count, _powers(y))
    figure.x_axis(x, TOP, BOTTOM, "layers per stack", count, _powers(x))
    figure.text(right, TOP - 36, f"{len(found):,} architectures with {budget}", "axis", "end")
    figure.text(right, TOP - 18, f"dot area: architectures, at most {largest:,}", "tick", "end")
    for depth, width, number in zip(depths, widths, numbers, strict=True):
        radius = max(0.8, LARGEST * math.sqrt(number / largest))
        label = f"{depth} layers, d_model {width}: {number:,} architectures"
        figure.dot(x(depth), y(width), "shapes", label, round(radius, 2))
    return figure


def _powers(axis: Scale) -> list[int]:
    """Return the powers of two on an axis, as its ticks."""
    return [2**power for power in range(24) if axis.low <= 2**power <= axis.high]
