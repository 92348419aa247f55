"""Figures of a report. Each function draws one figure from the evidence, or returns None if there is no data."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from march_search.analysis.evidence import Evidence
from march_search.analysis.study_record import TrialRecord
from march_search.display.sentences import loss_unit
from march_search.display.wording import short_names
from march_search.report.interval_figures import effects, predicted
from march_search.report.ranking_figure import ranking_figure
from march_search.report.svg import HALF, SERIES, WIDTH, Figure, Scale, label_room, scale, spread_apart
from march_search.units import si

LEFT, TOP = 50, 40
"""Space for the values of the vertical axis, and for its title."""


def figures(evidence: Evidence, width: float = 0) -> dict[str, Figure]:
    """Return all figures of the study, by name, in page order.

    Args:
        evidence: Results of a study.
        width: Width of every figure, in SVG units; 0 for that of the page.
    """
    half = width or HALF
    drawn = {
        "ranking": ranking_figure(evidence, width or WIDTH),
        "curves": curves(evidence, half),
        "front": front(evidence, half),
        "depth": against(evidence, "num_layers", "layers per stack", half),
        "width": against(evidence, "d_model", "width, d_model", half),
        "map": heat_map(evidence, half),
        "effects": effects(evidence, half),
        "horizon": predicted(evidence, half),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def curves(evidence: Evidence, width: float = HALF) -> Figure | None:
    """Draw validation loss over tokens: the leaders in colour, all others in grey, and the n-gram reference losses.

    The tokens have a logarithmic axis if they span a decade. A reference far outside the curves is named at the edge,
    so that it does not squeeze them. A narrow figure has the names of the leaders below, a wide one at their ends.
    """
    leaders = [(number, pooled) for number, pooled in enumerate(evidence.ranking.pooled[:SERIES]) if pooled.curve]
    known = {trial.number for _, pooled in leaders for trial in pooled.trials}
    others = [t for t in evidence.study.trials if t.number not in known and len(t.evaluations) > 1]
    lines = [pooled.curve for _, pooled in leaders if len(pooled.curve) > 1]
    if not lines and not others:
        return None
    short, is_narrow = short_names(evidence), width < 500
    names = [short[pooled.architecture.name] for _, pooled in leaders]
    per_row = 1 if label_room(names) > width / 2 - 44 else 2
    legend = 18 * math.ceil(len(names) / per_row) if is_narrow else 0
    bottom = 262 if is_narrow else 332
    figure = Figure("Validation loss over training tokens", bottom + 48 + legend, width)
    right = width - (12 if is_narrow else min(14 + label_room(names), 0.46 * width))
    points = [point for line in lines for point in line] + [p for t in others for p in _curve(t)]
    tokens = [seen for seen, _ in points]
    kind: Literal["linear", "log"] = "log" if max(tokens) >= 10 * min(tokens) > 0 else "linear"
    x = scale(tokens, LEFT, right, kind, room=0.02)
    losses = [loss for _, loss in points]
    near = 0.15 * (max(losses) - min(losses))
    references = _references(evidence)
    inside = [value for _, value in references if min(losses) - near <= value <= max(losses) + near]
    y = scale([*losses, *inside], bottom, TOP)
    figure.y_axis(y, LEFT, right, f"validation loss, nats per {loss_unit(evidence.study)}", "{:.2f}".format)
    figure.x_axis(x, TOP, bottom, "training tokens" + " (log scale)" * (kind == "log"), si)
    _draw_references(figure, references, y, (TOP, bottom, LEFT, right), inside)
    for trial in others:
        tooltip = f"{short[trial.architecture.name]}: {trial.state}"
        figure.path([(x(t), y(v)) for t, v in _curve(trial)], "rest curve", tooltip)
    heights = spread_apart([y(p.curve[-1][1]) for _, p in leaders], 15, TOP, bottom)
    for index, ((number, pooled), height) in enumerate(zip(leaders, heights, strict=True)):
        name, (seen, loss) = names[index], pooled.curve[-1]
        if len(pooled.curve) > 1:
            figure.path([(x(t), y(v)) for t, v in pooled.curve], f"s{number} curve", f"{name}: {loss:.4f}")
        if is_narrow:
            left, base = index % per_row * width / 2, bottom + 60 + 18 * (index // per_row)
            figure.path([(left, base - 4), (left + 30, base - 4)], f"s{number} curve")
            figure.text(left + 36, base, name, f"name t{number}")
        else:
            figure.path([(x(seen) + 2, y(loss)), (right + 8, height)], f"s{number} leader")
            figure.text(right + 11, height + 4, name, f"name t{number}")
    return figure


def against(evidence: Evidence, axis: str, name: str, width: float = HALF) -> Figure | None:
    """Draw the loss against one dimension, with one point per architecture."""
    rows = [row for row in evidence.ranking.first_rows if row.get(axis)]
    if len({row[axis] for row in rows}) < 2:
        return None
    short, bottom, right = short_names(evidence), 262, width - 16
    figure = Figure(f"Validation loss against {name}", bottom + 48, width)
    x = scale([row[axis] for row in rows], LEFT, right, "log")
    y = scale([row["loss"] for row in rows], bottom, TOP)
    figure.y_axis(y, LEFT, right, f"validation loss, nats per {loss_unit(evidence.study)}", "{:.3f}".format)
    figure.x_axis(x, TOP, bottom, f"{name} (log scale)", "{:,.0f}".format, sorted({row[axis] for row in rows}))
    for index, row in reversed(list(enumerate(rows))):
        css = f"s{index}" if index < SERIES else "rest"
        gated = " hollow" if row["feed_forward_proj"].startswith("gated") else ""
        tooltip = f"{short[row['name']]}: {row['loss']:.4f}"
        figure.dot(x(row[axis]), y(row["loss"]), f"{css} mark{gated}", tooltip, 6)
    if len({row["feed_forward_proj"].startswith("gated") for row in rows}) > 1:
        figure.text(right, TOP - 28, "hollow: gated feed-forward layers", "tick", "end")
    return figure


def heat_map(evidence: Evidence, width: float = HALF) -> Figure | None:
    """Draw the lowest loss for each depth and width."""
    cells: dict[tuple[int, int], dict[str, Any]] = {}
    for row in evidence.ranking.first_rows:
        cells.setdefault((row["num_layers"], row["d_model"]), row)
    depths, widths = sorted({d for d, _ in cells}), sorted({w for _, w in cells})
    if len(depths) < 2 or len(widths) < 2 or len(depths) * len(widths) > 240:
        return None
    high = 30
    wide = (width - LEFT - 16) / len(widths)
    figure = Figure("Lowest validation loss for each depth and width", TOP + high * len(depths) + 44, width)
    short = short_names(evidence)
    low, span = (
        evidence.ranking.first_rows[0]["loss"],
        max(evidence.ranking.first_rows[-1]["loss"] - evidence.ranking.first_rows[0]["loss"], 1e-9),
    )
    figure.text(0, TOP - 12, "layers per stack", "axis")
    for (depth, d_model), row in cells.items():
        left, top = LEFT + wide * widths.index(d_model), TOP + high * depths.index(depth)
        share = 1 - (row["loss"] - low) / span
        tooltip = f"{short[row['name']]}: {row['loss']:.4f}"
        figure.box(left + 1, top + 1, wide - 2, high - 2, "cell", tooltip, 0.08 + 0.82 * share)
        if wide > 42:
            css = "cell-text strong" if share > 0.55 else "cell-text"
            figure.text(left + wide / 2, top + high / 2 + 4, f"{row['loss']:.{3 if wide > 52 else 2}f}", css, "middle")
    for depth in depths:
        figure.text(LEFT - 8, TOP + high * (depths.index(depth) + 0.5) + 4, str(depth), "tick", "end")
    end = -math.inf
    for d_model in widths:
        middle, half = LEFT + wide * (widths.index(d_model) + 0.5), label_room([str(d_model)]) / 2
        if middle - half > end:
            figure.text(middle, TOP + high * len(depths) + 17, str(d_model), "tick", "middle")
            end = middle + half + 4
    figure.text(
        (LEFT + width) / 2,
        TOP + high * len(depths) + 36,
        "width, d_model; stronger colour: lower loss",
        "axis",
        "middle",
    )
    return figure


def front(evidence: Evidence, width: float = HALF) -> Figure | None:
    """Draw the loss against speed, with a line through the Pareto front."""
    rows = [row for row in evidence.ranking.first_rows if row["tokens_per_second"]]
    if len(rows) < 2:
        return None
    short, bottom, right = short_names(evidence), 262 if width < 500 else 332, width - 16
    figure = Figure("Validation loss against training speed, and the Pareto front", bottom + 48, width)
    x = scale([row["tokens_per_second"] for row in rows], LEFT, right)
    y = scale([row["loss"] for row in rows], bottom, TOP, room=0.1)
    figure.y_axis(y, LEFT, right, f"validation loss, nats per {loss_unit(evidence.study)}", "{:.3f}".format)
    figure.x_axis(x, TOP, bottom, "training speed, tokens per second", si)
    best = pareto_rows(rows)
    corners = [(x(row["tokens_per_second"]), y(row["loss"])) for row in best]
    if len(corners) > 1:
        figure.path(corners, "front")
    for index, row in reversed(list(enumerate(rows))):
        css = f"s{index}" if index < SERIES else "rest"
        tooltip = f"{short[row['name']]}: {row['loss']:.4f} at {row['tokens_per_second']:,.0f} tokens/s"
        rough = " hollow" if row["speed_is_rough"] else ""
        figure.dot(x(row["tokens_per_second"]), y(row["loss"]), f"{css} mark{rough}", tooltip, 6)
    lowest = -math.inf
    for row, (at, height) in zip(best, corners, strict=True):
        base = height - 10
        if lowest - 14 < base < lowest + 14:
            continue  # it would overlap the label before it; the tooltip has the name
        figure.text_inside(at + 9, base, short[row["name"]], "name")
        lowest = base
    return figure


def pareto_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, best first, that are faster than every row with a lower loss."""
    best: list[dict[str, Any]] = []
    for row in rows:
        if not best or row["tokens_per_second"] > best[-1]["tokens_per_second"]:
            best.append(row)
    return best


def _curve(trial: TrialRecord) -> list[tuple[int, float]]:
    """Return the (tokens, loss) pairs of a trial."""
    return sorted(trial.curve.items())


def _references(evidence: Evidence) -> list[tuple[str, float]]:
    """Return the n-gram reference losses of the study, by name."""
    regime = evidence.regime
    losses = [("token frequencies", regime.unigram), ("token pairs", regime.bigram)] if regime else []
    return [(name, value) for name, value in losses if value is not None]


def _draw_references(
    figure: Figure, references: Sequence[tuple[str, float]], y: Scale, box: tuple[float, ...], inside: Sequence[float]
) -> None:
    """Draw the n-gram losses that are `inside` the plot as lines; name those outside at the edge, without overlap."""
    top, bottom, left, right = box
    high, low = top + 14.0, bottom - 6.0
    for value in inside:
        figure.line(left, y(value), right, y(value), "reference")
        high, low = (
            max(high, y(value) + 16 if y(value) < top + 34 else high),
            min(low, y(value) - 22 if y(value) > bottom - 30 else low),
        )
    for name, value in references:
        text = f"n-gram model, {name} {value:.3f}"
        if value in inside:
            figure.text(right - 4, y(value) - 5, text, "tick", "end")
        elif value > y.high:
            figure.text(right - 4, high, f"{text} ↑", "tick", "end")
            high += 16
        else:
            figure.text(right - 4, low, f"{text} ↓", "tick", "end")
            low -= 16
