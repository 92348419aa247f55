"""The figure of the ranking: losses with intervals, one panel per level, and the leader's ties marked."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from march_search.analysis.evidence import Evidence
from march_search.display.answer import shares_letter
from march_search.display.sentences import loss_unit
from march_search.display.wording import level_title, short_names
from march_search.report.svg import SERIES, WIDTH, Figure, label_room, scale

SHOWN = 60
"""Maximum number of architectures in a figure with one line each; the axis label gives the total if there are more."""

LETTERS = 52
"""Width of the column of tie groups, at the right edge."""

Row = dict[str, Any]


def ranking_figure(evidence: Evidence, width: float = WIDTH) -> Figure | None:
    """Draw the loss of each architecture: one dot per seed, the mean, and its interval.

    Architectures that were compared after different numbers of tokens stand in separate panels, each with its own axis.
    Below a width of 500, each name stands above its interval instead of on its left.
    """
    rows = evidence.ranking.rows[:SHOWN]
    if not rows:
        return None
    names, stacked = short_names(evidence), width < 500
    levels = [list(level) for _, level in groupby(rows, key=lambda row: (row["is_final"], row["level_tokens"]))]
    step = 42 if stacked else 26
    keys = _legend(rows)
    head = 20 * (len(keys) if stacked else (len(keys) + 1) // 2) + 8 if keys else 0
    title = 24 if len(levels) > 1 or not rows[0]["is_final"] else 4
    heights = [title + step * len(level) + 46 for level in levels]
    figure = Figure("Validation loss of each architecture, with one dot per seed", head + sum(heights), width)
    for index, (css, text) in enumerate(keys):
        at = (0.0, 14 + 20 * index) if stacked else (index % 2 * width / 2, 14 + 20 * (index // 2))
        _key(figure, *at, css, text)
    left = 8.0 if stacked else 8 + label_room((names[row["name"]] for row in rows), is_bold=True)
    top, first = float(head), 0
    for level, height in zip(levels, heights, strict=True):
        if title > 4:
            figure.text(0, top + 15, level_title(level), "axis strong")
        _panel(figure, level, first, names, (top + title, left, step), evidence)
        top, first = top + height, first + len(level)
    return figure


def cut(rows: Sequence[Any]) -> str:
    """Return a note on how many architectures a figure shows, empty if it shows all."""
    return f"; the best {SHOWN} of {len(rows)}" if len(rows) > SHOWN else ""


def _panel(
    figure: Figure,
    level: Sequence[Row],
    first: int,
    names: dict[str, str],
    place: tuple[float, float, int],
    evidence: Evidence,
) -> None:
    """Draw the architectures of one level below `top`, with their own axis; `first` is the index of the best one."""
    (top, left, step), stacked = place, figure.is_narrow
    bottom, right = top + step * len(level), figure.width - (12 if stacked else LETTERS)
    leader, coloured = evidence.ranking.rows[0], min(SERIES, len(evidence.ranking.first_rows))
    ends = [row[k] for row in level for k in ("interval_low", "interval_high") if row[k] is not None]
    start = left + 4 if stacked else left + 24
    x = scale([*ends, *(loss for row in level for loss in row["losses"])], start, right)
    for index, row in enumerate(level):
        if row is not leader and shares_letter(row, leader):
            figure.box(0, top + step * index, figure.width, step, "tied-band")
    if len(level) > 1:
        figure.line(x(level[0]["loss"]), top, x(level[0]["loss"]), bottom, "leader-line")
    unit = f"validation loss, nats per {loss_unit(evidence.study)}"
    figure.x_axis(
        x, top, bottom, unit + (cut(evidence.ranking.rows) if level[0] is leader else ""), "{:.3f}".format, x.ticks(4)
    )
    for index, row in enumerate(level):
        y, number, name = top + step * (index + 0.5), first + index, names[row["name"]]
        css, strong = f"s{number}" if number < coloured else "rest", " strong" * (row is leader)
        if stacked:
            y += 9
            css_behind = "tied-band" if row is not leader and shares_letter(row, leader) else "behind"
            figure.box(left - 3, y - 25, label_room([name], bool(strong)) + 6, 15, css_behind)
            figure.text(left, y - 14, name, f"name{strong}")
        else:
            figure.text(left, y + 4, name, f"name{strong}", "end")
        if row["letters"]:
            at = (figure.width - 4, y - 14 if stacked else y + 4)
            figure.text(*at, row["letters"] if len(row["letters"]) < 6 else f"{row['letters'][:5]}…", "tick", "end")
        if row["interval_low"] is not None:
            kind = " assumed" * (row["interval_kind"] == "assumed")
            words = "assumed" if kind else "95%"
            tooltip = f"{words} interval: {row['interval_low']:.4f} to {row['interval_high']:.4f}"
            figure.path([(x(row["interval_low"]), y), (x(row["interval_high"]), y)], f"{css} interval{kind}", tooltip)
        for loss in row["losses"] if len(row["losses"]) > 1 else ():
            figure.dot(x(loss), y, f"{css} seed", f"{name}, one seed: {loss:.4f}", 3)
        bits = "" if row["bits_per_byte"] is None else f" ({row['bits_per_byte']:.4f} bits/byte)"
        tooltip = f"{name}: {row['loss']:.4f}{bits}, {len(row['losses'])} seed{'s' * (len(row['losses']) > 1)}"
        figure.dot(x(row["loss"]), y, f"{css} mark", tooltip)


def _legend(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the class and the meaning of each kind of mark in the figure."""
    kinds, leader = {row["interval_kind"] for row in rows}, rows[0]
    keys = []
    if "measured" in kinds:
        keys.append(("interval", "95% interval, measured over seeds"))
    if "assumed" in kinds:
        keys.append(("interval assumed", "95% interval, assumed (one seed)"))
    if any(len(row["losses"]) > 1 for row in rows):
        keys.append(("seed", "one seed"))
    if any(shares_letter(row, leader) for row in rows[1:]):
        keys.append(("tied-band", "tied with the leader (letters)"))
    return keys


def _key(figure: Figure, x: float, y: float, css: str, text: str) -> None:
    """Draw one entry of the legend."""
    if css == "tied-band":
        figure.box(x, y - 11, 30, 14, "tied-band")
    elif css == "seed":
        figure.dot(x + 15, y - 4, "s0 seed", radius=3)
    else:
        figure.path([(x + 2, y - 4), (x + 28, y - 4)], f"s0 {css}")
    figure.text(x + 38, y, text, "tick")
