"""How many further seeds would separate two architectures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from march_search.analysis.comparison import CONFIDENCE, difference_variance, pooled_variance
from march_search.analysis.noise import DataNoise, SeedNoise

POWER = 0.8
"""Probability that the test detects the difference."""

INSIDE = 0.5
"""Probability that the true difference lies in the interval behind the range of further seeds."""

MOST = 1000
"""Largest number of further seeds that is reported."""


@dataclass(frozen=True, kw_only=True)
class FurtherSeeds:
    """Further seeds per architecture; None if more than `MOST`, or if no number of seeds suffices."""

    low: int | None
    """If the true difference lies at the far end of its interval."""
    point: int | None
    """If the present difference is the true one."""
    high: int | None
    """If the true difference lies at the near end of its interval."""


def further_seeds(
    i: int, k: int, difference: float, counts: Sequence[int], seeds: SeedNoise, data: DataNoise | None
) -> FurtherSeeds:
    """Return the fewest further seeds per architecture with which a t-test at 5% detects the difference with `POWER`.

    The test is two-sided and covers this pair only; its power follows the noncentral t distribution (Cohen 1988). The
    difference is not known: the range is that of the interval in which the true one lies with probability `INSIDE`.

    Args:
        i: Index of the first architecture.
        k: Index of the second one.
        difference: Difference of the two mean losses, in nats.
        counts: Present number of seeds of each architecture.
        seeds: Training noise of each architecture.
        data: Data noise, which further seeds do not reduce; None if it was not measured.
    """
    from scipy.special import stdtrit

    variance, degrees = difference_variance(i, k, counts, seeds, data)
    half = float(stdtrit(degrees, (1 + INSIDE) / 2)) * math.sqrt(variance)
    gaps = (abs(difference) + half, abs(difference), max(0.0, abs(difference) - half))
    low, point, high = (seeds_needed(gap, i, k, counts, seeds, data) for gap in gaps)
    return FurtherSeeds(low=low, point=point, high=high)


def seeds_needed(
    gap: float, i: int, k: int, counts: Sequence[int], seeds: SeedNoise, data: DataNoise | None
) -> int | None:
    """Return the fewest further seeds that detect a true difference of `gap` nats."""
    own = [(seeds.deviations[n], seeds.degrees[n], counts[n]) for n in (i, k)]
    fixed = [(data.variance(i, k), data.degrees)] if data else []

    def suffices(added: int) -> bool:
        parts = [(deviation**2 / (count + added), degrees + added) for deviation, degrees, count in own]
        variance, degrees = pooled_variance([*parts, *fixed])
        return _power(gap, float(variance), float(degrees)) >= POWER

    if gap == 0 or not suffices(MOST):
        return None
    low, high = -1, MOST  # power increases with every seed
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def _power(difference: float, variance: float, degrees: float) -> float:
    """Return the probability that a two-sided t-test detects the difference."""
    from scipy.special import nctdtr, stdtrit

    if variance <= 0:
        return 1.0
    limit, shift = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)), min(abs(difference) / math.sqrt(variance), 30.0)
    wrong_side = float(nctdtr(degrees, shift, -limit))  # scipy 1.17 returns NaN for some values below 1e-13
    return float(1 - nctdtr(degrees, shift, limit)) + (0.0 if math.isnan(wrong_side) else wrong_side)
