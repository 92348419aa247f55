"""Fit the prior of the variance over seeds to the arms of studies/results that have several seeds.

    python benchmarks/seed_prior.py

One row per kind of model: arms, pooled deviation, and the deviation and degrees of freedom of a scaled inverse χ²
prior, by maximum likelihood and by the moments of Smyth (2004). The last columns are the pooled deviation at earlier
evaluations. The constants of march_search/analysis/seed_prior.py are from here.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import polygamma, psi
from scipy.stats import f

from march_search.architecture.architecture import Architecture

RESULTS = Path(__file__).parent.parent / "studies" / "results"

KINDS = ("gated or absolute", "other", "decoder-only")


def kind(architecture: Architecture) -> str:
    """Return the kind of a model, as `seed_prior` distinguishes small models."""
    if architecture.structure == "decoder-only":
        return "decoder-only"
    return "gated or absolute" if architecture.is_gated or architecture.position == "absolute" else "other"


def recorded_variances() -> dict[str, np.ndarray]:
    """Return the variances over two seeds of each kind: one row per arm, one column per evaluation, the end last.

    An arm that several studies trained with the same seed counts once.
    """
    arms: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(dict)
    for path in sorted(RESULTS.glob("*.csv")):
        for row in csv.DictReader(path.read_text().splitlines()):
            if row["state"] == "complete":
                curve = [float(row[column]) for column in row if column.startswith("loss@") and row[column]]
                arms[row["name"], row["learning_rate"]][row["seed"]] = curve
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for (name, _), seeds in arms.items():
        if len(seeds) > 1:
            found[kind(Architecture.parse(name))].append(np.var(list(seeds.values()), axis=0, ddof=1))
    return {name: np.array(found[name]) for name in KINDS}


def likelihood_fit(variances: np.ndarray, degrees: float | None = None) -> tuple[float, float, float]:
    """Return deviation, degrees of freedom and log likelihood; s² has one degree of freedom and follows s0² F(1, d)."""

    def negative(point: Sequence[float]) -> float:
        known = degrees or math.exp(min(point[1], 12.0))
        return -float(np.sum(f.logpdf(variances / math.exp(2 * point[0]), 1, known) - 2 * point[0]))

    starts = [(0.5 * math.log(variances.mean()), start) for start in (1.0, 3.0)]
    best = min((minimize(negative, start, method="Nelder-Mead") for start in starts), key=lambda fit: float(fit.fun))
    return math.exp(best.x[0]), degrees or math.exp(min(best.x[1], 12.0)), -float(best.fun)


def moment_fit(variances: np.ndarray) -> tuple[float, float]:
    """Return deviation and degrees of freedom by Smyth (2004), section 6.2; infinite if variances vary too little."""
    values = np.log(variances) - psi(0.5) + math.log(0.5)
    rest = float(values.var(ddof=1) - polygamma(1, 0.5))
    if rest <= 0:
        return math.exp(values.mean() / 2), math.inf
    half = float(brentq(lambda d: polygamma(1, d) - rest, 1e-3, 1e6))
    return math.exp((values.mean() + psi(half) - math.log(half)) / 2), 2 * half


def main() -> None:
    """Print one row per kind."""
    heading = f"{'kind':18s} {'arms':>4s} {'pooled':>7s} {'likelihood':>15s} {'moments':>15s} {'3 degrees':>10s}"
    print(heading, "  pooled at 20, 40, 60, 80% of the tokens")
    for name, variances in recorded_variances().items():
        end = variances[:, -1]
        deviation, degrees, best = likelihood_fit(end)
        by_moments = moment_fit(end)
        fixed, _, value = likelihood_fit(end, 3.0)
        earlier = " ".join(f"{math.sqrt(column.mean()):.4f}" for column in variances.T[:-1])
        print(
            f"{name:18s} {len(end):4d} {math.sqrt(end.mean()):7.4f} {deviation:7.4f} ({_degrees(degrees)}) "
            f"{by_moments[0]:7.4f} ({_degrees(by_moments[1])}) {fixed:7.4f} {value - best:+.1f}   {earlier}"
        )


def _degrees(value: float) -> str:
    """Return degrees of freedom in five characters."""
    return "  inf" if value > 1000 else f"{value:5.1f}"


if __name__ == "__main__":
    main()
