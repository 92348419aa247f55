"""Compare predicted with recorded minutes of the 25 runs of the 2023 study, for runs that the fit has not seen.

    python benchmarks/pricing.py

The fit has two parameters, `layer_seconds` and `score_seconds` of `march_search.cost.devices.Device`. Matrix products
are assumed to run at half of the A5000's peak. Runs are held out in two ways: every second run, and one family of
shapes at a time. The second way corresponds to pricing shapes that nobody has trained.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.reference import march_architecture, march_runs

from march_search.cost import speed
from march_search.cost.setup import STUDY_DEVICES, Setup

SETUP = Setup(device=STUDY_DEVICES, sequence_length=1024)
"""Data budget and devices of the study. It had 1,024 positions; its log does not record how many an example used."""


def minutes(run: dict[str, Any], layer_seconds: float, score_seconds: float) -> float:
    """Return the predicted minutes of a run."""
    device = replace(SETUP.device, layer_seconds=layer_seconds, score_seconds=score_seconds)
    return 60 * speed.hours(march_architecture(run), replace(SETUP, device=device))


def fit(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the non-negative (layer_seconds, score_seconds) with the least squared relative error over these runs."""
    products = np.array([minutes(run, 0, 0) for run in runs])
    effects = np.stack([[minutes(run, 1, 0), minutes(run, 0, 1)] for run in runs]) - products[:, None]
    recorded = np.array([run["minutes"] for run in runs])
    size = effects.mean(axis=0)
    scaled, _ = nnls(effects / size / recorded[:, None], (recorded - products) / recorded)
    return tuple((scaled / size).tolist())


def held_out(runs: list[dict[str, Any]], fold: Callable[[int], Any]) -> list[float]:
    """Return the predicted minutes of each run, from a fit on the runs of all other folds."""
    folds = [fold(index) for index in range(len(runs))]
    fits = {name: fit([run for run, other in zip(runs, folds, strict=True) if other != name]) for name in set(folds)}
    return [minutes(run, *fits[name]) for run, name in zip(runs, folds, strict=True)]


def errors(runs: list[dict[str, Any]], predicted: list[float]) -> list[float]:
    """Return the relative errors of predicted minutes."""
    return [minutes_predicted / run["minutes"] - 1 for run, minutes_predicted in zip(runs, predicted, strict=True)]


def main() -> None:
    """Print recorded and predicted minutes of each run, and the errors of each way of holding out."""
    runs = march_runs()
    everything, family = fit(runs), held_out(runs, lambda index: runs[index]["family"])
    print(f"{'run':24}{'family':18}{'recorded':>9}{'predicted':>10}{'error':>7}")
    for run, minutes_predicted in zip(runs, family, strict=True):
        error = minutes_predicted / run["minutes"] - 1
        print(f"{run['name']:24}{run['family']:18}{run['minutes']:9.1f}{minutes_predicted:10.1f}{error:+7.0%}")
    for name, predicted in (
        ("fit on all 25", [minutes(run, *everything) for run in runs]),
        ("every second run held out", held_out(runs, lambda index: index % 2)),
        ("one family at a time held out (the table)", family),
    ):
        size = [abs(error) for error in errors(runs, predicted)]
        print(f"median absolute error, {name}: {statistics.median(size):.1%} (largest {max(size):.0%})")
    print(f"layer_seconds={everything[0]:.2e}, score_seconds={everything[1]:.2e}")


if __name__ == "__main__":
    main()
