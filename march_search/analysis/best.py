"""Estimate the probability of each architecture to be the best."""

from collections.abc import Sequence

import numpy as np

from march_search.analysis.noise import Array, DataNoise, SeedNoise

DRAWS = 20_000
"""Number of draws for the probability of being the best."""


def probability_best(
    means: Sequence[float],
    counts: Sequence[int],
    seeds: SeedNoise | None,
    data: DataNoise | None,
    separated_A: Array,
    seed: int = 0,
) -> tuple[float, ...]:
    """Return the share of `DRAWS` draws of the true losses in which each architecture is the best."""
    rng, many = np.random.default_rng(seed), len(means)
    draws = np.tile(np.asarray(means, float), (DRAWS, 1))
    if seeds is not None:
        degrees = np.array(seeds.degrees)
        scale = np.array(seeds.deviations) * np.sqrt(degrees / rng.chisquare(degrees, (DRAWS, many)) / np.array(counts))
        draws += rng.standard_normal((DRAWS, many)) * scale
    if data is not None:
        draws += rng.multivariate_normal(np.zeros(many), data.covariance_AA, DRAWS, method="eigh")
    won = np.bincount(draws.argmin(axis=1), minlength=many) / DRAWS
    return tuple(float(share) for share in won)
