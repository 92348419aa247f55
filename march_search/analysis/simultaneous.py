"""Correct the comparisons of all pairs for their number, by the distribution of the largest difference.

Holm's method (1979) allows for any dependence between the tests. The pairs of a ranking depend strongly: each
architecture is in many of them, and one whose seeds vary more than assumed makes all of its differences large at once.
Draws of the noise show how large the largest difference becomes by chance (Westfall and Young 1993): for 20
architectures with one seed each, about half of what Holm's method requires. The studentized range does the same for
variances that are known up to their seeds (Tukey 1949; Games and Howell 1976).

Shape suffixes: A architectures, B draws, P pairs.
"""

from collections.abc import Sequence

import numpy as np

from march_search.analysis.noise import Array, DataNoise, SeedNoise

DRAWS, FEWEST_DRAWS = 5000, 1000
"""Number of draws of the noise, and of those with very many architectures."""

CAUTION = 2.0
"""Factor on p-values. Without it, the error is 5% if variances follow their priors, but more if every second
architecture varies ten times as much as the others (`benchmarks/ranking_errors.py`)."""

LARGEST_ARRAY = 2_000_000
"""Number of differences that are held in memory at once."""


def adjusted_p_values(
    difference_AA: Array,
    variance_AA: Array,
    degrees_AA: Array,
    counts: Sequence[int],
    seeds: SeedNoise | None,
    data: DataNoise | None,
    draws: int = DRAWS,
) -> Array:
    """Return `CAUTION` times the share of draws in which the largest difference is at least as significant; 1 if i = k.

    Args:
        difference_AA: Differences of the mean losses.
        variance_AA: Variance of each difference.
        degrees_AA: Degrees of freedom of each variance.
        counts: Number of seeds behind each mean.
        seeds: Training noise of each architecture; its variances are drawn (scaled inverse χ²).
        data: Data noise, jointly Student's t.
        draws: Number of draws of the noise.
    """
    many = len(counts)
    adjusted_AA, rows, columns = np.ones((many, many)), *np.triu_indices(many, 1)
    if many < 2:
        return adjusted_AA
    rng, largest = np.random.default_rng(0), []
    draws = min(draws, max(FEWEST_DRAWS, 4 * LARGEST_ARRAY // len(rows)))
    size = max(1, min(draws, LARGEST_ARRAY // len(rows)))
    variance_P, degrees_P = variance_AA[rows, columns], degrees_AA[rows, columns]
    for _ in range(-(-draws // size)):
        noise_BA = np.zeros((size, many))
        if seeds is not None:
            degrees_A = np.array(seeds.degrees, float)
            scale_BA = np.sqrt(degrees_A / rng.chisquare(degrees_A, (size, many)) / np.asarray(counts, float))
            noise_BA += np.array(seeds.deviations) * scale_BA * rng.standard_normal((size, many))
        if data is not None:
            own_BA = rng.multivariate_normal(np.zeros(many), data.covariance_AA, size, method="eigh")
            noise_BA += own_BA * np.sqrt(data.degrees / rng.chisquare(data.degrees, (size, 1)))
        found_BP = _normal_score(noise_BA[:, rows] - noise_BA[:, columns], variance_P, degrees_P)
        largest.append(found_BP.max(axis=1))
    sorted_B = np.sort(np.concatenate(largest))
    score_P = _normal_score(difference_AA[rows, columns], variance_P, degrees_P)
    above_P = len(sorted_B) - np.searchsorted(sorted_B, score_P)
    adjusted_AA[rows, columns] = np.minimum(1.0, CAUTION * (above_P + 1) / (len(sorted_B) + 1))
    return np.minimum(adjusted_AA, adjusted_AA.T)


def _normal_score(difference: Array, variance: Array, degrees: Array) -> Array:
    """Return the normal deviate that is about as unlikely as Student's t of a difference (Wallace 1959)."""
    known = np.minimum(degrees, 1e9)
    with np.errstate(divide="ignore", invalid="ignore"):
        square = np.where(difference == 0, 0.0, np.square(difference) / variance)
    return np.asarray(np.sqrt(known * np.log1p(square / known)) * (8 * known + 1) / (8 * known + 3), float)
