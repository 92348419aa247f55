"""How many further seeds would separate two architectures, if the difference that was seen is the true one."""

import math

from march_search.evidence.comparison import CONFIDENCE

POWER = 0.8
"""Chance that the test finds the difference."""
MOST = 1000
"""More further seeds than this are no plan."""


def further_seeds(
    difference: float, deviation: float, counts: tuple[int, int], degrees: float, data_variance: float = 0.0
) -> int | None:
    """Fewest further seeds for each of two architectures with which a t-test at 5 % finds `difference` with `POWER`.

    The test is that of this pair alone, two-sided, its power from the noncentral t distribution (Cohen 1988). 0: the
    seeds there are would do. None: more than `MOST`, or never, because the validation documents are too few.

    Args:
        difference: of the two true mean losses, in nats.
        deviation: over seeds, in nats.
        counts: seeds that each has.
        degrees: of freedom of `deviation`, those of other architectures included; each further seed adds one.
        data_variance: of the difference over validation documents, in nats²; seeds do not lower it.
    """
    if difference == 0 or _power(difference, deviation, (MOST, MOST), MOST, data_variance) < POWER:
        return None
    low, high = -1, MOST  # power rises with every seed
    while high - low > 1:
        middle = (low + high) // 2
        own = (counts[0] + middle, counts[1] + middle)
        known = degrees + 2 * middle if math.isfinite(degrees) else max(1, sum(own) - 2)
        low, high = (
            (low, middle) if _power(difference, deviation, own, known, data_variance) >= POWER else (middle, high)
        )
    return high


def _power(difference: float, deviation: float, counts: tuple[int, int], degrees: float, data_variance: float) -> float:
    """Chance that a two-sided t-test finds the difference."""
    from scipy.special import nctdtr, stdtrit

    error = math.sqrt(deviation**2 * (1 / counts[0] + 1 / counts[1]) + data_variance)
    if error == 0:
        return 1.0
    if degrees < 1:
        return 0.0
    limit, shift = float(stdtrit(degrees, (1 + CONFIDENCE) / 2)), min(abs(difference) / error, 30.0)
    wrong_side = float(nctdtr(degrees, shift, -limit))  # scipy 1.17 has no number for some that are below 1e-13
    return float(1 - nctdtr(degrees, shift, limit)) + (0.0 if math.isnan(wrong_side) else wrong_side)
