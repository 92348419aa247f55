"""Figures of a ladder's page: losses over sizes with the fitted law, and effects against the baseline."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from march_search.analysis.comparison import CONFIDENCE
from march_search.display.sentences import loss_unit
from march_search.ladders.ladder import LadderEvidence
from march_search.ladders.size_draws import SizeLosses
from march_search.ladders.size_law import forecast
from march_search.report.figures import LEFT, TOP
from march_search.report.interval_figures import Bar, interval_figure
from march_search.report.svg import COLUMN, SERIES, WIDTH, Figure, Scale, label_room, scale, spread_apart
from march_search.units import si

PLACES = 9
"""Number of sizes at which the law is drawn."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One coloured line of a figure, with its points."""

    name: str
    points: tuple[tuple[float, float, float], ...]
    """Position, loss and half the interval of each point."""
    line: tuple[tuple[float, float], ...] = ()
    """Fitted curve."""
    target: tuple[float, float, float, float] | None = None
    """Position, estimate and ends of the interval of what is forecast or estimated; drawn hollow."""
    tooltip: str = ""
    """Text of the target."""


def half_width(error: float, degrees: float) -> float:
    """Return half the 95% interval of a mean with a standard error and its degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error


def ladder_figures(found: LadderEvidence, width: float = 0) -> dict[str, Figure]:
    """Return the figures of a ladder by name, in page order.

    Args:
        found: Results of the ladder.
        width: Width of every figure, in SVG units; 0 for that of the page.
    """
    drawn = {"losses": losses_figure(found, width or WIDTH), "effects": effects_figure(found)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def losses_figure(found: LadderEvidence, width: float = WIDTH) -> Figure:
    """Draw the loss of each arm over the sizes, its law up to the forecast size, and the forecast with its interval."""
    counts = [size.parameters for size in found.losses]
    laws = _laws(found)
    series = []
    for a, arm in enumerate(found.arms):
        target, tooltip = None, ""
        if found.forecast:
            held = found.forecast.intervals[a]
            target = (float(found.forecast.parameters), float(found.forecast.losses_A[a]), held.low, held.high)
            tooltip = f"{arm}, forecast: {target[1]:.4f}, 95% interval {held.low:.4f} to {held.high:.4f}"
        series.append(
            Series(
                name=arm,
                points=tuple(
                    (float(n), float(size.means_A[a]), half_width(float(size.errors_A[a]), float(size.degrees_A[a])))
                    for n, size in zip(counts, found.losses, strict=True)
                ),
                line=tuple((n, float(losses_A[a])) for n, losses_A in laws),
                target=target,
                tooltip=tooltip,
            )
        )
    ticks = [float(n) for n in counts] + ([float(found.forecast.parameters)] if found.forecast else [])
    return series_figure(
        "Validation loss over parameters, with the fitted law",
        "parameters (log scale)",
        f"validation loss, nats per {loss_unit(found.studies[0])} (log scale)",
        series,
        width,
        ticks,
        is_side_by_side=True,
    )


def _laws(found: LadderEvidence) -> list[tuple[float, np.ndarray]]:
    """Return the losses of all arms by the law, at sizes from the smallest to the forecast one."""
    if not found.forecast:
        return []
    sizes: list[SizeLosses] = list(found.losses)
    places = np.geomspace(sizes[0].parameters, found.forecast.parameters, PLACES)
    return [(float(round(n)), forecast(sizes, round(n)).losses_A) for n in places]


def series_figure(
    title: str,
    x_name: str,
    y_name: str,
    series: Sequence[Series],
    width: float,
    ticks: Sequence[float] = (),
    is_side_by_side: bool = False,
) -> Figure:
    """Draw points with intervals, curves and targets on logarithmic axes.

    A narrow figure has the names below, a wide one at the ends of the lines. Colours repeat after `SERIES`.

    Args:
        title: Description of the figure.
        x_name: Name of the horizontal axis.
        y_name: Name and unit of the vertical axis.
        series: Lines, with their points.
        width: Width of the figure.
        ticks: Values on the horizontal axis; by default round ones.
        is_side_by_side: Whether points of different series at one position are moved apart.
    """
    is_narrow = width < 500
    names = [one.name for one in series]
    per_row = 1 if label_room(names) > width / 2 - 44 else 2
    legend = 18 * math.ceil(len(names) / per_row) if is_narrow else 0
    bottom = 300 if is_narrow else 380
    figure = Figure(title, bottom + 48 + legend, width)
    right = width - (16 if is_narrow else min(28 + label_room(names), 0.4 * width))
    xs = [p[0] for one in series for p in (*one.points, *one.line)] + [one.target[0] for one in series if one.target]
    ys = [y for one in series for _, mean, half in one.points for y in (mean - half, mean + half)]
    ys += [y for one in series for _, y in one.line] + [y for one in series if one.target for y in one.target[1:]]
    x = scale(xs, LEFT, right, "log", room=0.05)
    y = scale([value for value in ys if value > 0], bottom, TOP, "log")
    figure.y_axis(y, LEFT, right, y_name, _label(y))
    figure.x_axis(x, TOP, bottom, x_name, si, ticks)
    step = min(7.0, 36 / len(series)) if is_side_by_side else 0.0
    for number, one in reversed(list(enumerate(series))):
        css, shift = f"s{number % SERIES}", step * (number - (len(series) - 1) / 2)
        if one.line:
            figure.path([(x(n), y(v)) for n, v in one.line], f"{css} curve", one.name)
        for n, mean, half in one.points:
            tooltip, at = f"{one.name} at {si(n)}: {mean:.4f} ± {half:.4f}", x(n) + shift
            low = max(mean - half, y.low)
            figure.path([(at, y(low)), (at, y(mean + half))], f"{css} interval", tooltip)
            figure.dot(at, y(mean), f"{css} mark", tooltip, 4)
        if one.target:
            n, value, low, high = one.target
            at = x(n) + shift
            figure.path([(at, y(max(low, y.low))), (at, y(high))], f"{css} interval", one.tooltip)
            figure.dot(at, y(value), f"{css} mark hollow", one.tooltip, 4)
    _names(figure, series, x, y, (right, bottom, per_row))
    return figure


def _names(figure: Figure, series: Sequence[Series], x: Scale, y: Scale, place: tuple[float, float, int]) -> None:
    """Write the names of the series at the ends of their lines, or below a narrow figure."""
    right, bottom, per_row = place
    ends = [one.line[-1] if one.line else one.points[-1][:2] for one in series]
    heights = spread_apart([y(value) for _, value in ends], 15, TOP, bottom)
    for number, (one, (n, value), height) in enumerate(zip(series, ends, heights, strict=True)):
        css = number % SERIES
        if figure.is_narrow:
            left, base = number % per_row * figure.width / 2, bottom + 60 + 18 * (number // per_row)
            figure.path([(left, base - 4), (left + 30, base - 4)], f"s{css} curve")
            figure.text(left + 36, base, one.name, f"name t{css}")
        else:
            figure.path([(x(n) + 2, y(value)), (right + 14, height)], f"s{css} leader")
            figure.text(right + 17, height + 4, one.name, f"name t{css}")


def _label(y: Scale) -> Callable[[float], str]:
    """Return how values of an axis are written: with as many decimals as its ticks need."""
    ticks = y.ticks()
    steps = [after - before for before, after in pairwise(ticks)] or [1.0]
    decimals = max(1, min(4, math.ceil(-math.log10(min(steps)) - 1e-9)))
    return lambda value: f"{value:.{decimals}f}"


def effects_figure(found: LadderEvidence, width: float = COLUMN) -> Figure | None:
    """Draw the effect of each arm against the baseline at the smallest and the largest size; None for one size.

    The figure stands beside another one, so it has the width of a column.
    """
    sides = ((0, found.records[0].size, "rest"), (1, found.records[-1].size, "s0"))
    bars = [
        Bar(
            name=f"{arm}, {size}",
            point=effect,
            low=effect - half,
            high=effect + half,
            css=css,
            tooltip=f"{arm} at {size}: {effect:+.4f} ± {half:.4f}",
        )
        for change in found.changes
        for arm in (found.arms[change.arms[0]],)
        for side, size, css in sides
        for effect, half in ((change.effects[side], change.half_widths[side]),)
    ]
    if not bars:
        return None
    axis = f"loss minus that of {found.arms[0]}, nats; left is better"
    return interval_figure(f"Effects against {found.arms[0]} at two sizes", axis, bars, width)
