"""Estimate how many further seeds would separate two architectures if the observed difference is the true one."""

import math

from march_search.evidence.comparison import CONFIDENCE

POWER = 0.8
"""Probability that the test detects the difference."""
MOST = 1000
"""Largest number of further seeds that is reported."""


def further_seeds(
    difference: float, deviation: float, counts: tuple[int, int], degrees: float, data_variance: float = 0.0
) -> int | None:
    """Return the fewest further seeds per architecture with which a t-test at 5 % detects `difference` with `POWER`.

    The test is two-sided and covers this pair only; its power follows the noncentral t distribution (Cohen 1988). The
    result is 0 if the present seeds suffice. It is None if more than `MOST` are needed, or if no number of seeds
    suffices because there are too few validation documents.

    Args:
        difference: Difference of the two true mean losses, in nats.
        deviation: Standard deviation over seeds, in nats.
        counts: Present number of seeds of each architecture.
        degrees: Degrees of freedom of `deviation`, including other architectures; each further seed adds one.
        data_variance: Variance of the difference over validation documents, in nats²; seeds do not reduce it.
    """
    if difference == 0 or _power(difference, deviation, (MOST, MOST), MOST, data_variance) < POWER:
        return None
    low, high = -1, MOST  # power increases with every seed
    while high - low > 1:
        middle = (low + high) // 2
        own = (counts[0] + middle, counts[1] + middle)
        known = degrees + 2 * middle if math.isfinite(degrees) else max(1, sum(own) - 2)
        low, high = (
            (low, middle) if _power(difference, deviation, own, known, data_variance) >= POWER else (middle, high)
        )
    return high


def _power(difference: float, deviation: float, counts: tuple[int, int], degrees: float, data_variance: float) -> float:
    """Return the probability that a two-sided t-test detects the difference."""
    from scipy.special import nctdtr, stdtrit

    error = math.sqrt(deviation**2 * (1 / counts[0] + 1 / counts[1]) + data_variance)
    if error == 0:
        return 1.0
    if degrees < 1:
        return 0.0
    limit, shift = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)), min(abs(difference) / error, 30.0)
    wrong_side = float(nctdtr(degrees, shift, -limit))  # scipy 1.17 returns NaN for some values below 1e-13
    return float(1 - nctdtr(degrees, shift, limit)) + (0.0 if math.isnan(wrong_side) else wrong_side)
