"""Figures of compute budgets: losses over sizes with the fitted curve and its minimum, and how the optimum grows."""

from collections.abc import Sequence

from march_search.ladders.isoflop import IsoflopEvidence, Optimum, PointLoss
from march_search.report.figures import LEFT, TOP
from march_search.report.ladder_figures import Series, half_width, series_figure
from march_search.report.svg import COLUMN, HALF, SERIES, WIDTH, Figure, scale
from march_search.units import si

STEP = 8
"""Every how many points of a curve are drawn."""


def isoflop_figures(found: IsoflopEvidence, width: float = 0) -> dict[str, Figure]:
    """Return the figures of compute budgets by name, in page order.

    One arm has all budgets in one figure; several arms have one figure per budget.

    Args:
        found: Results of the ladder.
        width: Width of every figure, in SVG units; 0 for that of the page.
    """
    ladder = found.ladder
    if len(ladder.arms) == 1:
        series = [_series(found, ladder.arms[0], budget, f"{budget} FLOPs") for budget in ladder.budgets]
        drawn = {"isoflop": _figure("Validation loss over parameters at equal training FLOPs", series, width or WIDTH)}
    else:
        drawn = {
            f"isoflop-{number}": _figure(
                f"Validation loss over parameters at {budget} training FLOPs",
                [_series(found, arm, budget, arm) for arm in ladder.arms],
                width or (WIDTH if len(ladder.budgets) == 1 else HALF),
            )
            for number, budget in enumerate(ladder.budgets, 1)
        }
    drawn["growth"] = growth_figure(found)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _figure(title: str, series: Sequence[Series | None], width: float) -> Figure | None:
    """Draw the curves that have points; None without any."""
    shown = [one for one in series if one]
    if not shown:
        return None
    y_name = "validation loss, nats (log scale)"
    return series_figure(title, "parameters (log scale)", y_name, shown, width)


def _series(found: IsoflopEvidence, arm: str, budget: str, name: str) -> Series | None:
    """Return the points of one arm and budget with the curve, and the optimum if it is inside the sizes."""
    own: list[PointLoss] = [one for one in found.losses if (one.point.arm, one.point.budget) == (arm, budget)]
    if not own:
        return None
    best = _optimum(found, arm, budget)
    line: tuple[tuple[float, float], ...] = ()
    if best:
        parameters, losses = best.draws.parameters_X, best.draws.curves_3X[1]
        shown = [*range(0, len(parameters) - 1, STEP), -1]
        line = tuple((float(parameters[k]), float(losses[k])) for k in shown)
    inside = best if best and best.is_inside else None
    return Series(
        name=name,
        points=tuple((float(o.point.parameters), o.loss, half_width(o.error, o.degrees)) for o in own),
        line=line,
        target=(inside.parameters.value, inside.loss.value, inside.loss.interval.low, inside.loss.interval.high)
        if inside
        else None,
        tooltip=f"{name}: lowest at {si(inside.parameters.value)} parameters, {inside.loss.value:.4f}"
        if inside
        else "",
    )


def _optimum(found: IsoflopEvidence, arm: str, budget: str) -> Optimum | None:
    """Return the optimum of an arm at a budget; None without a fit."""
    return next((one for one in found.optima if (one.arm, one.budget) == (arm, budget)), None)


def growth_figure(found: IsoflopEvidence, width: float = COLUMN) -> Figure | None:
    """Draw the optimal parameters of each arm over the training FLOPs, with intervals.

    None with fewer than two budgets whose optimum is inside the sizes. The figure stands beside another one, so it has
    the width of a column.
    """
    inside = [one for one in found.optima if one.is_inside]
    if len({one.flops for one in inside}) < 2:
        return None
    bottom, right = 262, width - 16
    figure = Figure("Optimal parameters over training FLOPs", bottom + 48, width)
    x = scale([one.flops for one in inside], LEFT + 8, right, "log", room=0.1)
    ends = [end for one in inside for end in (one.parameters.interval.low, one.parameters.interval.high)]
    y = scale(ends, bottom, TOP, "log")
    figure.y_axis(y, LEFT + 8, right, "optimal parameters (log scale)", si)
    names = {one.flops: one.budget for one in inside}
    figure.x_axis(x, TOP, bottom, "training FLOPs (log scale)", lambda flops: names[flops], sorted(names))
    for number, arm in enumerate(found.ladder.arms):
        css, own = f"s{number % SERIES}", [one for one in inside if one.arm == arm]
        shift = 7 * (number - (len(found.ladder.arms) - 1) / 2)
        figure.path([(x(o.flops) + shift, y(o.parameters.value)) for o in own], f"{css} curve", arm)
        for one in own:
            held, at = one.parameters.interval, x(one.flops) + shift
            tooltip = (
                f"{arm} at {one.budget}: {si(one.parameters.value)}, 95% interval {si(held.low)} to {si(held.high)}"
            )
            figure.path([(at, y(held.low)), (at, y(held.high))], f"{css} interval", tooltip)
            figure.dot(at, y(one.parameters.value), f"{css} mark", tooltip, 4)
    return figure
