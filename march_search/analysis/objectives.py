"""Find the Pareto front of a study's complete architectures, and its knee."""

from collections.abc import Sequence
from typing import Any

from march_search.analysis.level import complete_architectures
from march_search.analysis.measured_speed import measured_speed
from march_search.analysis.pooling import Pooled
from march_search.analysis.study_record import StudyRecord
from march_search.config import OBJECTIVES, StudyConfig
from march_search.cost.measures import objective_value
from march_search.errors import UsageError, nearest
from march_search.space.pareto import front, knee, signed_columns


def pareto_rows(study: StudyRecord, by: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return one row per architecture with a complete trial, lowest loss first.

    `pareto` and `knee` mark the front and its knee. The loss is that of the ranking, and the speed is the median
    measured in those trials. Parameters, FLOPs, depth and memory are computed from the architecture.

    Args:
        study: The study.
        by: Objectives as in `[search]`; empty for those of the study.

    Raises:
        UsageError: If an objective is unknown or there are fewer than two.
    """
    config = study.config
    by = tuple(by or config.search.objectives)
    for name in by:
        if name.removeprefix("-") not in OBJECTIVES:
            raise UsageError(f'unknown objective "{name}". {nearest(name.removeprefix("-"), OBJECTIVES)}')
    if len(by) < 2:
        raise UsageError(
            f"{study.name}: a Pareto front needs at least two objectives; use --by loss,flops or "
            "--by loss,-tokens_per_second."
        )
    rows = [_row(pooled, by, config) for pooled in complete_architectures(study)]
    rows = sorted((row for row in rows if None not in [row[name.removeprefix("-")] for name in by]), key=_loss)
    points = signed_columns([[row[name.removeprefix("-")] for name in by] for row in rows], by)
    best = front(points)
    for index, row in enumerate(rows):
        row["pareto"], row["knee"] = index in best, False
    if rows:
        rows[int(best[knee(points[best])])]["knee"] = True
    return rows


def _row(pooled: Pooled, by: Sequence[str], config: StudyConfig) -> dict[str, Any]:
    """Return the row of one architecture, with one key per objective."""
    a, speed = pooled.architecture, measured_speed(pooled.trials)
    row = a.row() | {"loss": pooled.loss, "num_seeds": len(pooled.trials), "speed_is_rough": speed.is_rough}
    for name in (n.removeprefix("-") for n in by if n != "loss"):
        row[name] = speed.tokens_per_second if name == "tokens_per_second" else objective_value(name, a, config)
    return row


def _loss(row: dict[str, Any]) -> float:
    """Return the loss of a row, as a sort key."""
    return float(row["loss"])
