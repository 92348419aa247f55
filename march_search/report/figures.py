"""Figures of a report. Each function draws one figure from the evidence, or returns None if there is no data."""

import math
from collections.abc import Sequence
from typing import Any

from march_search.analysis.evidence import Evidence
from march_search.analysis.study_record import TrialRecord
from march_search.display.tables import si
from march_search.display.wording import short_names
from march_search.report.ranking_figure import SHOWN, cut, ranking_figure
from march_search.report.svg import SERIES, WIDTH, Figure, Scale, scale, spread_apart

LEFT, TOP = 64, 40
"""Space for the values of the vertical axis, and for its title."""


def figures(evidence: Evidence) -> dict[str, Figure]:
    """Return all figures of the study, by name, in page order."""
    drawn = {
        "ranking": ranking_figure(evidence),
        "curves": curves(evidence),
        "depth": against(evidence, "num_layers", "layers per stack"),
        "width": against(evidence, "d_model", "d_model"),
        "map": heat_map(evidence),
        "front": front(evidence),
        "effects": effects(evidence),
        "horizon": predicted(evidence),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def curves(evidence: Evidence) -> Figure | None:
    """Draw validation loss over tokens: the leaders in colour, all others in grey, and the n-gram reference losses."""
    leaders = [(number, pooled) for number, pooled in enumerate(evidence.ranking.pooled[:SERIES]) if pooled.curve]
    known = {trial.number for _, pooled in leaders for trial in pooled.trials}
    others = [t for t in evidence.study.trials if t.number not in known and len(t.evaluations) > 1]
    lines = [pooled.curve for _, pooled in leaders if len(pooled.curve) > 1]
    if not lines and not others:
        return None
    short = short_names(evidence)
    room = 14 + 8 * max((len(short[p.architecture.name]) for _, p in leaders), default=0)
    figure = Figure("Validation loss over tokens", 420)
    right, bottom = WIDTH - min(room, 330), 372
    points = [point for line in lines for point in line] + [p for t in others for p in _curve(t)]
    references = _references(evidence)
    x = scale([tokens for tokens, _ in points], LEFT, right, room=0.02)
    losses = [loss for _, loss in points]
    near = [v for _, v in references if min(losses) - 1.5 < v < max(losses) + 0.5]
    y = scale([*losses, *near], bottom, TOP)
    figure.y_axis(y, LEFT, right, "validation loss, nats", _two)
    figure.x_axis(x, TOP, bottom, "tokens", si)
    for name, value in references:
        if value in near:
            figure.line(LEFT, y(value), right, y(value), "reference")
            figure.text(right - 4, y(value) - 5, f"{name} {value:.3f}", "tick", "end")
    for trial in others:
        tooltip = f"{short[trial.architecture.name]}: {trial.state}"
        figure.path([(x(t), y(v)) for t, v in _curve(trial)], "rest curve", tooltip)
    heights = spread_apart([y(p.curve[-1][1]) for _, p in leaders], 15, TOP, bottom)
    for (number, pooled), height in zip(leaders, heights, strict=True):
        name, (tokens, loss) = short[pooled.architecture.name], pooled.curve[-1]
        if len(pooled.curve) > 1:
            figure.path([(x(t), y(v)) for t, v in pooled.curve], f"s{number} curve", f"{name}: {loss:.4f}")
        figure.path([(x(tokens) + 2, y(loss)), (right + 8, height)], f"s{number} leader")
        figure.text(right + 11, height + 4, name, f"name t{number}")
    return figure


def against(evidence: Evidence, axis: str, name: str) -> Figure | None:
    """Draw the loss against one dimension, with one point per architecture."""
    rows = [row for row in evidence.ranking.first_rows if row.get(axis)]
    if len({row[axis] for row in rows}) < 2:
        return None
    figure = Figure(f"Validation loss against {name}", 330)
    short, bottom = short_names(evidence), 282
    x = scale([row[axis] for row in rows], LEFT, WIDTH - 24, "log")
    y = scale([row["loss"] for row in rows], bottom, TOP)
    figure.y_axis(y, LEFT, WIDTH - 24, "validation loss, nats", _three)
    figure.x_axis(x, TOP, bottom, f"{name} (log scale)", _whole, _few(rows, axis, x))
    for index, row in reversed(list(enumerate(rows))):
        css = f"s{index}" if index < SERIES else "rest"
        gated = " hollow" if row["feed_forward_proj"].startswith("gated") else ""
        tooltip = f"{short[row['name']]}: {row['loss']:.4f}"
        figure.dot(x(row[axis]), y(row["loss"]), f"{css} mark{gated}", tooltip, 6)
    if len({row["feed_forward_proj"].startswith("gated") for row in rows}) > 1:
        figure.text(WIDTH - 24, TOP - 12, "hollow: gated feed-forward layers", "tick", "end")
    return figure


def heat_map(evidence: Evidence) -> Figure | None:
    """Draw the lowest loss for each depth and width."""
    cells: dict[tuple[int, int], dict[str, Any]] = {}
    for row in evidence.ranking.first_rows:
        cells.setdefault((row["num_layers"], row["d_model"]), row)
    depths, widths = sorted({d for d, _ in cells}), sorted({w for _, w in cells})
    if len(depths) < 2 or len(widths) < 2 or len(depths) * len(widths) > 240:
        return None
    high = 30
    wide = (WIDTH - LEFT - 24) / len(widths)
    figure = Figure("Lowest validation loss for each depth and width", TOP + high * len(depths) + 44)
    short = short_names(evidence)
    low, span = (
        evidence.ranking.first_rows[0]["loss"],
        max(evidence.ranking.first_rows[-1]["loss"] - evidence.ranking.first_rows[0]["loss"], 1e-9),
    )
    figure.text(0, TOP - 12, "layers", "axis")
    for (depth, width), row in cells.items():
        left, top = LEFT + wide * widths.index(width), TOP + high * depths.index(depth)
        share = 1 - (row["loss"] - low) / span
        tooltip = f"{short[row['name']]}: {row['loss']:.4f}"
        figure.box(left + 1, top + 1, wide - 2, high - 2, "cell", tooltip, 0.08 + 0.82 * share)
        if wide > 42:
            css = "cell-text strong" if share > 0.55 else "cell-text"
            figure.text(left + wide / 2, top + high / 2 + 4, f"{row['loss']:.{3 if wide > 52 else 2}f}", css, "middle")
    for depth in depths:
        figure.text(LEFT - 8, TOP + high * (depths.index(depth) + 0.5) + 4, str(depth), "tick", "end")
    for width in widths[:: math.ceil(len(widths) * 36 / (WIDTH - LEFT))]:
        middle = LEFT + wide * (widths.index(width) + 0.5)
        figure.text(middle, TOP + high * len(depths) + 17, str(width), "tick", "middle")
    figure.text((LEFT + WIDTH) / 2, TOP + high * len(depths) + 36, "d_model (darker: lower loss)", "axis", "middle")
    return figure


def front(evidence: Evidence) -> Figure | None:
    """Draw the loss against speed, with a line through the Pareto front."""
    rows = [row for row in evidence.ranking.first_rows if row["tokens_per_second"]]
    if len(rows) < 2:
        return None
    figure = Figure("Validation loss against training speed, and the Pareto front", 330)
    short, bottom = short_names(evidence), 282
    x = scale([row["tokens_per_second"] for row in rows], LEFT, WIDTH - 24)
    y = scale([row["loss"] for row in rows], bottom, TOP)
    figure.y_axis(y, LEFT, WIDTH - 24, "validation loss, nats", _three)
    figure.x_axis(x, TOP, bottom, "tokens per second, median over log lines and seeds", si)
    best: list[dict[str, Any]] = []  # rows are sorted by ascending loss
    for row in rows:
        if not best or row["tokens_per_second"] > best[-1]["tokens_per_second"]:
            best.append(row)
    corners = [(x(row["tokens_per_second"]), y(row["loss"])) for row in best]
    if len(corners) > 1:
        figure.path(corners, "front")
    for index, row in reversed(list(enumerate(rows))):
        css = f"s{index}" if index < SERIES else "rest"
        tooltip = f"{short[row['name']]}: {row['loss']:.4f} at {row['tokens_per_second']:,.0f} tokens/s"
        rough = " hollow" if row["speed_is_rough"] else ""
        figure.dot(x(row["tokens_per_second"]), y(row["loss"]), f"{css} mark{rough}", tooltip, 6)
    for row, (at, height) in zip(best, corners, strict=True):
        end = at > WIDTH - 220
        figure.text(at + (-9 if end else 9), height - 8, short[row["name"]], "name", "end" if end else "start")
    return figure


def effects(evidence: Evidence) -> Figure | None:
    """Draw the effect of doubling each dimension, and of gating, on the loss."""
    known = evidence.effects.effects if evidence.effects else ()
    rows = [
        (effect.axis, effect.nats, effect.interval) for effect in known if effect.interval and effect.nats is not None
    ]
    if not rows:
        return None
    step, label = 32, 150
    bottom = TOP - 12 + step * len(rows)
    figure = Figure("Change in loss when a dimension doubles", bottom + 44)
    x = scale([0.0, *(end for _, _, held in rows for end in (held.low, held.high))], label + 16, WIDTH - 16)
    figure.x_axis(x, TOP - 12, bottom, "nats per doubling, or for gating (left is better)", _signed)
    figure.line(x(0), TOP - 12, x(0), bottom, "zero")
    for index, (axis, nats, held) in enumerate(rows):
        y, css = TOP - 12 + step * (index + 0.5), "s0" if held.low > 0 or held.high < 0 else "rest"
        tooltip = f"{axis}: {nats:+.4f}, 95% interval {held.low:+.4f} to {held.high:+.4f}"
        figure.text(label, y + 4, axis, "name", "end")
        figure.path([(x(held.low), y), (x(held.high), y)], f"{css} interval", tooltip)
        figure.dot(x(nats), y, f"{css} mark", tooltip)
    return figure


def predicted(evidence: Evidence) -> Figure | None:
    """Draw present differences to the leader, and their intervals at a longer budget; None if nothing is claimed."""
    found = evidence.horizon
    rows = [row for row in found.rows[:SHOWN] if row["difference_low"] is not None] if found else []
    if not found or not rows:
        return None
    short, step = short_names(evidence), 28
    label = 8 + 7.4 * max(len(short[row["name"]]) for row in rows)
    bottom = TOP - 12 + step * len(rows)
    figure = Figure(f"Predicted differences after {found.tokens:,} tokens", bottom + 44)
    x = scale(
        [0.0, *(row[k] for row in rows for k in ("difference", "difference_low", "difference_high"))],
        label + 24,
        WIDTH - 16,
    )
    figure.x_axis(
        x,
        TOP - 12,
        bottom,
        f"nats above the leader of today: now (hollow) and after {si(found.tokens)} tokens (95% interval)"
        f"{cut(found.rows)}",
        _two,
    )
    for index, row in enumerate(rows):
        y = TOP - 12 + step * (index + 0.5)
        css = f"s{index + 1}" if index + 1 < SERIES else "rest"
        tooltip = f"{short[row['name']]}: {row['difference_low']:+.3f} to {row['difference_high']:+.3f}"
        figure.text(label, y + 4, short[row["name"]], "name", "end")
        figure.path([(x(row["difference_low"]), y), (x(row["difference_high"]), y)], f"{css} interval", tooltip)
        figure.dot(x(row["difference"]), y, f"{css} mark hollow", f"now {row['difference']:+.4f}", 4)
    return figure


def _curve(trial: TrialRecord) -> list[tuple[int, float]]:
    """Return the (tokens, loss) pairs of a trial's evaluations."""
    return [(line["tokens"], line["loss"]) for line in trial.evaluations]


def _references(evidence: Evidence) -> list[tuple[str, float]]:
    """Return the n-gram reference losses of the study, by name."""
    regime = evidence.regime
    losses = [("token frequencies", regime.unigram), ("token pairs", regime.bigram)] if regime else []
    return [(name, value) for name, value in losses if value is not None]


def _few(rows: Sequence[dict[str, Any]], axis: str, x: Scale) -> list[float]:
    """Return the tick values of an axis: the values that occur, skipping labels that would overlap."""
    ticks: list[float] = []
    for value in sorted({row[axis] for row in rows}):
        if not ticks or x(value) - x(ticks[-1]) > 36:
            ticks.append(value)
    return ticks


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _two(value: float) -> str:
    return f"{value:.2f}"


def _three(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"
