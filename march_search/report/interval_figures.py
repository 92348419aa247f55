"""Figures with one interval per line: effects of dimensions, and differences to the leader at a longer budget."""

from collections.abc import Sequence
from dataclasses import dataclass

from march_search.analysis.effects import GATED
from march_search.analysis.evidence import Evidence
from march_search.display.wording import short_names
from march_search.report.ranking_figure import SHOWN, cut
from march_search.report.svg import HALF, SERIES, Figure, label_room, scale
from march_search.units import si


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One line of the figure."""

    name: str
    """Text on the left; in a narrow figure above the interval."""
    point: float
    low: float
    high: float
    css: str
    """Class of the colour."""
    tooltip: str
    mark: str = ""
    """Further class of the dot."""


def interval_figure(
    title: str, axis: str, bars: Sequence[Bar], width: float, keys: Sequence[tuple[str, str]] = ()
) -> Figure:
    """Draw one dot and its interval per line, with a line at 0.

    Args:
        title: Description of the figure.
        axis: Name and unit of the axis.
        bars: Lines, from above.
        width: Width of the figure; below 500, each name stands above its interval.
        keys: Class and meaning of the marks, above the plot.
    """
    is_narrow = width < 500
    step, top = (42, 6) if is_narrow else (28, 6)
    top += 20 * len(keys)
    bottom = top + step * len(bars)
    figure = Figure(title, bottom + 44, width)
    for index, (css, text) in enumerate(keys):
        y = 14 + 20 * index
        if "mark" in css:
            figure.dot(15, y - 4, css, radius=4)
        else:
            figure.path([(2, y - 4), (28, y - 4)], css)
        figure.text(38, y, text, "tick")
    left = 8.0 if is_narrow else label_room(bar.name for bar in bars)
    ends = [end for bar in bars for end in (bar.low, bar.high, bar.point)]
    x = scale([0.0, *ends], left + (4 if is_narrow else 24), width - 16)
    figure.x_axis(x, top, bottom, axis, "{:+.3f}".format)
    figure.line(x(0), top, x(0), bottom, "zero")
    for number, bar in enumerate(bars):
        height = top + step * (number + 0.5) + (9 if is_narrow else 0)
        if is_narrow:
            figure.box(0, height - 25, label_room([bar.name]) + 6, 15, "behind")
            figure.text(0, height - 14, bar.name, "name")
        else:
            figure.text(left, height + 4, bar.name, "name", "end")
        figure.path([(x(bar.low), height), (x(bar.high), height)], f"{bar.css} interval", bar.tooltip)
        figure.dot(x(bar.point), height, f"{bar.css} mark{bar.mark}", bar.tooltip, 4 if bar.mark else 5)
    return figure


def effects(evidence: Evidence, width: float = HALF) -> Figure | None:
    """Draw the effect of doubling each dimension, and of gating, on the loss; grey if the interval contains 0."""
    bars = [
        Bar(
            name=effect.axis,
            point=effect.nats,
            low=held.low,
            high=held.high,
            css="s0" if held.low > 0 or held.high < 0 else "rest",
            tooltip=f"{effect.axis}: {effect.nats:+.4f}, 95% interval {held.low:+.4f} to {held.high:+.4f}",
        )
        for effect in (evidence.effects.effects if evidence.effects else ())
        if (held := effect.interval) and effect.nats is not None
    ]
    axis = "change in loss, nats per doubling; left is better"
    if any(bar.name == GATED for bar in bars):
        axis = "loss, nats per doubling or by gating; left is better"
    return interval_figure("Change in loss when a dimension doubles", axis, bars, width) if bars else None


def predicted(evidence: Evidence, width: float = HALF) -> Figure | None:
    """Draw present differences to the leader, and their intervals at a longer budget; None if nothing is claimed."""
    found, short = evidence.horizon, short_names(evidence)
    bars = [
        Bar(
            name=short[row["name"]],
            point=row["difference"],
            low=row["difference_low"],
            high=row["difference_high"],
            css=f"s{number}" if number < SERIES else "rest",
            tooltip=f"{short[row['name']]}: now {row['difference']:+.4f}, then {row['difference_low']:+.3f} to "
            f"{row['difference_high']:+.3f}",
            mark=" hollow",
        )
        for number, row in enumerate(found.rows[:SHOWN] if found else ())
        if row["difference_low"] is not None
    ]
    if not found or not bars:
        return None
    keys = [("rest mark hollow", "difference now"), ("rest interval", f"95% interval after {si(found.tokens)} tokens")]
    axis = f"loss minus that of today's leader, nats{cut(found.rows)}"
    return interval_figure(f"Predicted differences after {found.tokens:,} tokens", axis, bars, width, keys)
