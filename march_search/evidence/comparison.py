"""Which differences between mean losses are more than noise, and which architecture is probably the best.

Pairs are compared by Welch's t: the variance of a difference is what seeds add (pooled) plus what documents add
(paired), with Satterthwaite's degrees of freedom. Over all pairs the error is controlled by Holm's method (1979): the
chance that any true tie is split is at most `1 - CONFIDENCE`, whatever the dependence between the tests.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from march_search.evidence.letters import letters
from march_search.evidence.noise import Array, DataNoise, SeedNoise

CONFIDENCE = 0.95
"""Of intervals and of tie groups."""
DRAWS = 20_000
"""Draws for the probability of being the best."""


@dataclass(frozen=True)
class Interval:
    """A range that holds the truth with `CONFIDENCE`."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Architectures in order of their mean loss, compared with each other."""

    p_AA: Array
    """Two-sided p-value of each pair by itself; 1 on the diagonal."""
    adjusted_AA: Array
    """The same after Holm's correction over all pairs."""
    letters: tuple[str, ...]
    """Tie groups."""
    best: tuple[float, ...]
    """Probability of having the lowest loss, over new seeds and documents."""


def compare(
    means: Sequence[float], counts: Sequence[int], seeds: SeedNoise | None, data: DataNoise | None
) -> Comparison | None:
    """Compares architectures, best first; None where neither noise is known.

    Args:
        means: their mean losses, ascending.
        counts: seeds behind each mean.
        seeds: training noise; None to leave it out.
        data: data noise; None where it was not measured.
    """
    if seeds is None and data is None:
        return None
    p_AA = pair_p_values(means, counts, seeds, data)
    upper = np.triu_indices(len(means), 1)
    adjusted_AA = np.ones_like(p_AA)
    adjusted_AA[upper] = holm(p_AA[upper])
    adjusted_AA = np.minimum(adjusted_AA, adjusted_AA.T)
    named = letters(len(means), np.argwhere(np.triu(adjusted_AA < 1 - CONFIDENCE, 1)).tolist())
    return Comparison(p_AA, adjusted_AA, named, probability_best(means, counts, seeds, data))


def pair_p_values(
    means: Sequence[float], counts: Sequence[int], seeds: SeedNoise | None, data: DataNoise | None
) -> Array:
    """Two-sided p-value of each pair by itself; 1 on the diagonal."""
    p_AA = np.ones((len(means), len(means)))
    for i, k in itertools.combinations(range(len(means)), 2):
        variance, degrees = difference_variance(i, k, counts, seeds, data)
        p_AA[i, k] = p_AA[k, i] = two_sided(means[k] - means[i], variance, degrees)
    return p_AA


def difference_variance(
    i: int, k: int, counts: Sequence[int], seeds: SeedNoise | None, data: DataNoise | None
) -> tuple[float, float]:
    """Variance of the difference of two means and its degrees of freedom (Satterthwaite 1946)."""
    parts = []
    if seeds is not None:
        parts.append((seeds.deviation**2 * (1 / counts[i] + 1 / counts[k]), seeds.degrees))
    if data is not None:
        parts.append((data.variance(i, k), data.degrees))
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / degrees for variance, degrees in parts)
    return total, total**2 / spread if spread else math.inf


def two_sided(difference: float, variance: float, degrees: float) -> float:
    """p-value of a difference under Student's t; without any variance every difference is certain."""
    from scipy.special import stdtr

    if variance <= 0:
        return float(difference == 0)
    return float(min(1.0, 2 * stdtr(degrees, -abs(difference) / math.sqrt(variance))))


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values adjusted by Holm's step-down method (1979), in the given order."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return np.asarray(adjusted[np.argsort(order, kind="stable")], np.float64)


def mean_interval(mean: float, count: int, seeds: SeedNoise | None) -> Interval | None:
    """Where the mean of very many seeds lies, on these validation examples; None if seed noise was not measured."""
    from scipy.special import stdtrit

    if seeds is None or not seeds.is_measured:
        return None
    half = float(stdtrit(seeds.degrees, (1 + CONFIDENCE) / 2)) * seeds.deviation / math.sqrt(count)
    return Interval(mean - half, mean + half)


def probability_best(
    means: Sequence[float], counts: Sequence[int], seeds: SeedNoise | None, data: DataNoise | None, seed: int = 0
) -> tuple[float, ...]:
    """How often each architecture is the best in `DRAWS` draws of what the true losses may be (flat prior).

    Seed noise: independent for each, its variance drawn from its own uncertainty (scaled inverse χ²). Data noise:
    jointly normal, as paired losses vary together.
    """
    rng, many = np.random.default_rng(seed), len(means)
    draws = np.tile(np.asarray(means, float), (DRAWS, 1))
    if seeds is not None:
        scale = np.full(DRAWS, seeds.deviation)
        if math.isfinite(seeds.degrees):
            scale *= np.sqrt(seeds.degrees / rng.chisquare(seeds.degrees, DRAWS))
        draws += rng.standard_normal((DRAWS, many)) * scale[:, None] / np.sqrt(counts)
    if data is not None:
        draws += rng.multivariate_normal(np.zeros(many), data.covariance_AA, DRAWS, method="eigh")
    won = np.bincount(draws.argmin(axis=1), minlength=many) / DRAWS
    return tuple(float(share) for share in won)
