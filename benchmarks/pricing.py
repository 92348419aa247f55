"""Predicted against recorded minutes of the 2023 study's 25 runs, each priced by a fit that has not seen it.

python benchmarks/pricing.py

The fit has two numbers, the `layer_seconds` and `score_seconds` of `march_search.cost.devices.Device`; matrix products
are set at half of the A5000's peak. Two ways of holding out: every second run, and a whole family of shapes at a time,
which is what pricing shapes nobody has trained means.
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
from reference import march_architecture, march_runs

from march_search.cost import speed
from march_search.cost.setup import STUDY_DEVICES, Setup

SETUP = Setup(device=STUDY_DEVICES, sequence_length=1024)
"""The study's data budget and devices; it had 1,024 positions, and its log does not say how many an example filled."""


def minutes(run: dict[str, Any], layer_seconds: float, score_seconds: float) -> float:
    """Predicted minutes of a run."""
    device = replace(SETUP.device, layer_seconds=layer_seconds, score_seconds=score_seconds)
    return 60 * speed.hours(march_architecture(run), replace(SETUP, device=device))


def fit(runs: list[dict[str, Any]]) -> tuple[float, float]:
    """(layer_seconds, score_seconds), neither negative, with the least squared relative error over these runs."""
    products = np.array([minutes(run, 0, 0) for run in runs])
    effects = np.stack([[minutes(run, 1, 0), minutes(run, 0, 1)] for run in runs]) - products[:, None]
    recorded = np.array([run["minutes"] for run in runs])
    size = effects.mean(axis=0)
    scaled, _ = nnls(effects / size / recorded[:, None], (recorded - products) / recorded)
    return tuple((scaled / size).tolist())


def held_out(runs: list[dict[str, Any]], fold: Callable[[int], Any]) -> list[float]:
    """Predicted minutes of each run, by a fit on the runs of all other folds."""
    folds = [fold(place) for place in range(len(runs))]
    fits = {name: fit([run for run, other in zip(runs, folds, strict=True) if other != name]) for name in set(folds)}
    return [minutes(run, *fits[name]) for run, name in zip(runs, folds, strict=True)]


def errors(runs: list[dict[str, Any]], predicted: list[float]) -> list[float]:
    """Relative errors of predicted minutes."""
    return [guess / run["minutes"] - 1 for run, guess in zip(runs, predicted, strict=True)]


def main() -> None:
    runs = march_runs()
    everything, family = fit(runs), held_out(runs, lambda place: runs[place]["family"])
    print(f"{'run':24}{'family':18}{'recorded':>9}{'predicted':>10}{'error':>7}")
    for run, guess in zip(runs, family, strict=True):
        error = guess / run["minutes"] - 1
        print(f"{run['name']:24}{run['family']:18}{run['minutes']:9.1f}{guess:10.1f}{error:+7.0%}")
    for name, predicted in (
        ("fit on all 25", [minutes(run, *everything) for run in runs]),
        ("every second run held out", held_out(runs, lambda place: place % 2)),
        ("a family at a time held out (the table)", family),
    ):
        size = [abs(error) for error in errors(runs, predicted)]
        print(f"median absolute error, {name}: {statistics.median(size):.1%} (largest {max(size):.0%})")
    print(f"layer_seconds={everything[0]:.2e}, score_seconds={everything[1]:.2e}")


if __name__ == "__main__":
    main()
