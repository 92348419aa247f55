"""Write a ladder's forecast down before its size is trained: sealed, dated and never overwritten."""

from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from march_search.errors import UsageError
from march_search.files.atomic import lock, make_folder
from march_search.files.json_tables import sealed, write_json
from march_search.ladders.kept_forecast import FORECASTS
from march_search.ladders.ladder import LadderEvidence
from march_search.ladders.ladder_record import LadderRecord, arm_trials, size_study
from march_search.ladders.size_law import trained_intervals


def refuse_trained(ladder: LadderRecord, root: Path, parameters: int) -> None:
    """Refuse a forecast of a size whose trials already have losses.

    Raises:
        StorageError: If the study of the size is damaged.
        UsageError: If a trial of the size has been evaluated.
    """
    for size in ladder.sizes:
        study = size_study(ladder, size, root) if size.parameters == parameters else None
        if study and any(trial.evaluations or trial.loss is not None for trial in study.trials):
            raise UsageError(
                f"--at {size.size}: trials of {size.study} already have losses, so this would not be a forecast: use a "
                f"size that has not been trained."
            )


def forecast_table(found: LadderEvidence, size: str) -> dict[str, Any]:
    """Return the forecast as the sealed table that is written.

    Args:
        found: Results of the ladder, with the forecast.
        size: Name of the size.

    Raises:
        UsageError: If the results have no forecast.
    """
    from march_search import __version__

    forecast = found.forecast
    if forecast is None:
        raise UsageError(f"{found.ladder.name}: {found.no_forecast[0].lower()}{found.no_forecast[1:]}")
    trained = trained_intervals(forecast, found.losses[-1])
    order = np.argsort(forecast.losses_A, kind="stable").tolist()
    return sealed(
        {
            "schema_version": 1,
            "ladder": found.ladder.name,
            "size": size,
            "parameters": forecast.parameters,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": __version__,
            "exponent": forecast.exponent,
            "exponent_interval": [forecast.exponent_interval.low, forecast.exponent_interval.high],
            "arms": [
                {
                    "arm": found.arms[a],
                    "loss": float(forecast.losses_A[a]),
                    "interval": [forecast.intervals[a].low, forecast.intervals[a].high],
                    "interval_trained": [trained[a].low, trained[a].high],
                    "seeds": int(found.counts_SA[-1, a]),
                    "probability_best": float(forecast.best_A[a]),
                }
                for a in order
            ],
            "pairs": [
                {"better": found.arms[a], "worse": found.arms[b], "probability": forecast.probability(a, b)}
                for a, b in combinations(order, 2)
            ],
            "made_from": _inputs(found),
        }
    )


def _inputs(found: LadderEvidence) -> dict[str, Any]:
    """Return the trials behind a forecast, with their own hash."""
    assert found.rate is not None
    sizes = []
    for record, study in zip(found.records, found.studies, strict=True):
        trials = arm_trials(study, record.architectures, found.rate)
        rows = [
            {"arm": arm, "name": shape.name, "trial": trial.number, "seed": trial.seed, "loss": trial.loss}
            for arm, shape in zip(found.arms, found.shapes(record), strict=True)
            for trial in trials[shape.name]
        ]
        sizes.append(
            {
                "size": record.size,
                "study": record.study,
                "parameters": record.parameters,
                "tokens": record.tokens,
                "trials": rows,
            }
        )
    return sealed({"learning_rate": found.rate, "sizes": sizes})


def keep_forecast(folder: Path, table: dict[str, Any]) -> Path:
    """Write a forecast into a ladder's folder under the next free number, and return its path.

    Raises:
        StorageError: If the folder cannot be written.
    """
    kept = make_folder(folder / FORECASTS)
    with lock(kept / ".lock"):
        number = 1 + max((_number(path) for path in kept.glob(f"{table['size']}-*.json")), default=0)
        path = kept / f"{table['size']}-{number}.json"
        write_json(path, table)
    return path


def _number(path: Path) -> int:
    """Return the number at the end of a forecast's name; 0 if it has none."""
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isascii() and digits.isdigit() else 0
