"""Correct the lowest of the losses at several learning rates, which noise alone makes too low.

The best of `K` noisy means is chosen because its noise is low: with five equally good rates by 1.16 standard
deviations. The correction is the expected noise of the chosen mean, by simulation around estimates of the true means.
Taking the means themselves for these would double the noise and correct too little. Means within `NEAR` deviations of
the lowest are therefore first shrunk towards their common mean (James and Stein 1961, positive part); means farther off
stay, and are hardly ever chosen.

An estimate of one architecture's bias is noisy, and among architectures with equally many rates it would only add noise
to their order. Each correction is therefore the mean, in deviations, over all architectures with as many rates.
Seeds that were trained at the chosen rate alone had no part in choosing it, and need no correction.
`benchmarks/rate_bias.py` measures the bias that is left.

Shape suffixes: D draws, K learning rates.
"""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from march_search.analysis.noise import Array

NEAR = 3.0
"""Standard deviations above the lowest mean up to which means are shrunk."""

DRAWS = 2000
"""Number of draws."""


def rate_corrections(means: Sequence[Sequence[float]], deviations: Sequence[float]) -> list[float]:
    """Return by how much the lowest mean of each architecture is too low, in nats; at least 0.

    Args:
        means: Mean losses of each architecture, one per learning rate.
        deviations: Standard deviation of one of these means, in nats, for each architecture.
    """
    known = [d > 0 and len(own) > 1 for own, d in zip(means, deviations, strict=True)]
    scores: dict[int, list[float]] = defaultdict(list)
    for own, deviation, is_known in zip(means, deviations, known, strict=True):
        if is_known:
            scores[len(own)].append(winner_noise(np.asarray(own) / deviation))
    return [
        max(0.0, -deviation * fmean(scores[len(own)])) if is_known else 0.0
        for own, deviation, is_known in zip(means, deviations, known, strict=True)
    ]


def winner_noise(scores_K: Array) -> float:
    """Return the expected noise of the lowest of several means, all in units of their standard deviation."""
    true_K = _shrunk(np.asarray(scores_K, np.float64))
    noise_DK = np.random.default_rng(0).standard_normal((DRAWS, len(true_K)))
    chosen_D = (true_K + noise_DK).argmin(axis=1)
    return float(noise_DK[np.arange(DRAWS), chosen_D].mean())


def _shrunk(scores_K: Array) -> Array:
    """Return the means with those near the lowest shrunk towards their common mean."""
    near_K = scores_K - scores_K.min() < NEAR
    common = scores_K[near_K].mean()
    squares = float(np.square(scores_K[near_K] - common).sum())
    share = max(0.0, 1 - (near_K.sum() - 1) / squares) if squares > 0 else 0.0
    return np.where(near_K, common + share * (scores_K - common), scores_K)
