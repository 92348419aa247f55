"""Simulate the confirmation of finalists: how often an elimination is wrong, and how often the best is found.

    python benchmarks/racing_errors.py [--replicates 4000] [--json]

Four rules decide after every seed which architectures get another one:

- moderated: the one that studies use (`march_search/analysis/separation.py`).
- e-process: the t-test martingale on differences by seed with a right-Haar prior on the variance and a normal mixture
  over the effect (Lai 1976; Wang and Ramdas 2024), against `A (A - 1) / error`. It is valid for every variance.
- Welch: the looks and levels of the first rule, with each architecture's own sample variance alone.
- pooled: one variance for all and levels that fall with the number of seeds (the rule before 2026-11-27).

The error is the share of studies in which an architecture is eliminated that is as good as any. All are equally good
there, so that every elimination is wrong. The prior is that of T5: 0.006 nats. `selected`: the finalists are the best
three of 24 equal ones by their first seed, and the baseline.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

sys.path.insert(0, str(Path(__file__).parents[1]))
from march_search.analysis.seed_prior import SeedPrior
from march_search.analysis.separation import in_question, share

Array = NDArray[np.float64]
Rule = Callable[[Array, float], NDArray[np.bool_]]

PRIOR = SeedPrior(deviation=0.006, degrees=4.0, source="T5 with 223M parameters")

DEVIATIONS: dict[str, Callable[[int], list[float]]] = {
    "0.0015": lambda many: [0.0015] * many,
    "0.015": lambda many: [0.015] * many,
    "one 0.015, others 0.0015": lambda many: [0.015] + [0.0015] * (many - 1),
    "one 0.0015, others 0.015": lambda many: [0.0015] + [0.015] * (many - 1),
    "0.0015 and 0.015": lambda many: ([0.0015, 0.015] * many)[:many],
}

SHAPES = ("normal", "t3", "jumps")

LOOKS = (2, 3, 5, 10)

GAPS = (0.012, 0.02, 0.03)
"""Distance of the runner-up from the best of four, in nats; the others are 1.5 and 2 times as far."""


def noise(shape: str, deviations: Sequence[float], replicates: int, seeds: int, rng: np.random.Generator) -> Array:
    """Return losses_RAS with mean 0 and the given standard deviations; in a tenth of the seeds there is a `jump`."""
    size = (replicates, len(deviations), seeds)
    unit = rng.standard_t(3, size) / np.sqrt(3) if shape == "t3" else rng.normal(size=size)
    if shape == "jumps":
        unit = (unit + 5 * (rng.random(size) < 0.1) - 0.5) / np.sqrt(1 + 25 * 0.09)
    return unit * np.array(deviations)[None, :, None]


def moderated(losses_RAS: Array, confidence: float = 0.95) -> NDArray[np.bool_]:
    """Return which architectures are in question under the rule that studies use."""
    return in_question(losses_RAS, [PRIOR] * losses_RAS.shape[1], confidence)


def welch(losses_RAS: Array, confidence: float = 0.95) -> NDArray[np.bool_]:
    """Return which architectures are in question if each variance is that of its own seeds."""

    def p_values(first_RAS: Array, better: Array, worse: Array) -> Array:
        m = first_RAS.shape[2]
        variance_RA = np.maximum(first_RAS.var(axis=2, ddof=1), 1e-18) / m
        error_RP = variance_RA[:, better] + variance_RA[:, worse]
        degrees_RP = (m - 1) * error_RP**2 / (variance_RA[:, better] ** 2 + variance_RA[:, worse] ** 2)
        gap_RP = first_RAS.mean(axis=2)[:, better] - first_RAS.mean(axis=2)[:, worse]
        return np.asarray(stdtr(degrees_RP, gap_RP / np.sqrt(error_RP)))

    pairs = losses_RAS.shape[1] * (losses_RAS.shape[1] - 1)
    return _eliminate(losses_RAS, p_values, lambda m: (1 - confidence) * share(m) / pairs)


def pooled(losses_RAS: Array, confidence: float = 0.95) -> NDArray[np.bool_]:
    """Return which architectures are in question if all share one variance."""
    many = losses_RAS.shape[1]

    def p_values(first_RAS: Array, better: Array, worse: Array) -> Array:
        m = first_RAS.shape[2]
        deviation_R1 = np.sqrt(first_RAS.var(axis=2, ddof=1).mean(axis=1, keepdims=True) * 2 / m)
        gap_RP = first_RAS.mean(axis=2)[:, better] - first_RAS.mean(axis=2)[:, worse]
        return np.asarray(stdtr(many * (m - 1), gap_RP / deviation_R1))

    return _eliminate(losses_RAS, p_values, lambda m: (1 - confidence) / ((many - 1) * m * (m - 1)))


def e_process(losses_RAS: Array, confidence: float = 0.95, mixture: float = 1.0) -> NDArray[np.bool_]:
    """Return which architectures are in question under the t-test martingale, by its running maximum (`1 / e`)."""

    def p_values(first_RAS: Array, better: Array, worse: Array) -> Array:
        m = first_RAS.shape[2]
        difference_RPS = first_RAS[:, better] - first_RAS[:, worse]
        sums, squares = difference_RPS.sum(axis=2), np.square(difference_RPS).sum(axis=2)
        shrunk = squares - mixture * sums**2 / (1 + m * mixture)
        log_e = -0.5 * np.log1p(m * mixture) + m / 2 * np.log(squares / np.maximum(shrunk, 1e-300))
        return np.where(sums < 0, np.exp(-log_e), 1.0)

    return _eliminate(
        losses_RAS, p_values, lambda m: (1 - confidence) / (losses_RAS.shape[1] * (losses_RAS.shape[1] - 1))
    )


def _eliminate(
    losses_RAS: Array, p_values: Callable[[Array, Any, Any], Array], level: Callable[[int], float]
) -> NDArray[np.bool_]:
    """Return which architectures are in question after an elimination at each look from the second seed on."""
    better, worse = np.array([*permutations(range(losses_RAS.shape[1]), 2)]).T
    left_RA = np.ones(losses_RAS.shape[:2], bool)
    for m in range(2, losses_RAS.shape[2] + 1):
        beats_RP = p_values(losses_RAS[:, :, :m], better, worse) < level(m)
        beats_RP &= left_RA[:, better] & left_RA[:, worse]
        for k in range(losses_RAS.shape[1]):
            left_RA[:, k] &= ~beats_RP[:, worse == k].any(axis=1)
    return left_RA


RULES: dict[str, Rule] = {"moderated": moderated, "e-process": e_process, "Welch": welch, "pooled": pooled}


def errors(rule: Rule, replicates: int, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Return the share of wrong studies for each number of looks, by scenario."""
    found: dict[str, dict[str, float]] = {}
    for many in (3, 6):
        for title, deviations in DEVIATIONS.items():
            for shape in SHAPES:
                losses_RAS = noise(shape, deviations(many), replicates, max(LOOKS), rng)
                found[f"{many} architectures, {title}, {shape}"] = {
                    str(looks): float((~rule(losses_RAS[:, :, :looks], 0.95)).any(axis=1).mean()) for looks in LOOKS
                }
    return found


def selected(rule: Rule, replicates: int, rng: np.random.Generator) -> dict[str, float]:
    """Return the share of wrong studies if the finalists were the best three of 24 by their first seed."""
    found = {}
    for deviation in (0.0015, 0.006, 0.015):
        losses_RAS = noise("normal", [deviation] * 24, replicates, 5, rng)
        order_RA = np.argsort(losses_RAS[:, :, 0], axis=1)
        has_baseline_R = (order_RA[:, :3] == 0).any(axis=1)
        finalists_RA = np.column_stack([order_RA[:, :3], np.where(has_baseline_R, order_RA[:, 3], 0)])
        own_RAS = np.take_along_axis(losses_RAS, finalists_RA[:, :, None], axis=1)
        found[f"{deviation:g}"] = float((~rule(own_RAS, 0.95)).any(axis=1).mean())
    return found


def power(rule: Rule, replicates: int, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Return the share of studies of four in which only the best is left, by its lead and the number of seeds."""
    found: dict[str, dict[str, float]] = {}
    for gap in GAPS:
        losses_RAS = noise("normal", [0.006] * 4, replicates, 5, rng) + np.array([0, gap, 1.5 * gap, 2 * gap])[:, None]
        found[f"{gap:g}"] = {
            str(m): float((rule(losses_RAS[:, :, :m], 0.95) == [True, False, False, False]).all(axis=1).mean())
            for m in (2, 3, 4, 5)
        }
    return found


def main() -> None:
    """Print the errors and the power of every rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=4000, help="simulated studies per figure (default: 4000)")
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")
    options = parser.parse_args()
    results = {
        name: {
            "errors": errors(rule, options.replicates, np.random.default_rng(1)),
            "selected": selected(rule, options.replicates, np.random.default_rng(2)),
            "power": power(rule, options.replicates, np.random.default_rng(3)),
        }
        for name, rule in RULES.items()
    }
    if options.json:
        print(json.dumps(results, indent=1))
        return
    for name, result in results.items():
        worst = max(result["errors"], key=lambda case: max(result["errors"][case].values()))
        print(f"{name}: largest error {max(result['errors'][worst].values()):.3f} ({worst})")
        for shape in SHAPES:
            own = {case: by for case, by in result["errors"].items() if case.endswith(shape)}
            print(f"  {shape}: " + ", ".join(f"{max(by[str(n)] for by in own.values()):.3f} at {n}" for n in LOOKS))
        print("  selected: " + ", ".join(f"{error:.3f} at {sd}" for sd, error in result["selected"].items()))
        for gap, by_seeds in result["power"].items():
            print(f"  lead {gap}: " + ", ".join(f"{found:.2f} with {m} seeds" for m, found in by_seeds.items()))


if __name__ == "__main__":
    main()
