"""How many further seeds would separate two architectures, and which architectures a race trains again."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from march_search.analysis.comparison import CONFIDENCE
from march_search.analysis.noise import seed_noise

POWER = 0.8
"""Probability that the test detects the difference."""

MOST = 1000
"""Largest number of further seeds that is reported."""


def further_seeds(
    difference: float, deviation: float, counts: tuple[int, int], degrees: float, data_variance: float = 0.0
) -> int | None:
    """Return the fewest further seeds per architecture with which a t-test at 5% detects `difference` with `POWER`.

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


def next_seeds(losses: Mapping[str, Sequence[float]], confidence: float = 0.95) -> tuple[str, ...]:
    """Return the leader and the architectures not separated from it, by mean loss; empty once the leader is separated.

    Call it once after each round of seeds. An architecture leaves the race when a one-sided t-test (variance pooled
    over all) finds it worse than the leader. The error is spread over rounds and rivals: if n is the largest number of
    seeds of an architecture, the level is `(1 - confidence) / (rivals * n * (n - 1))`. Over all rivals and rounds this
    sums to `1 - confidence`, however long the race. The truly best architecture is therefore dropped with at most that
    probability (union bound; seed noise normal and equal for all). Noise from validation documents is not covered.

    Args:
        losses: Final losses of each architecture, one per seed; architectures without any are ignored.
        confidence: Probability that the truly best architecture is never dropped.
    """
    from scipy.special import stdtr

    known = {name: values for name, values in losses.items() if len(values)}
    if len(known) < 2:
        return ()
    means = {name: fmean(values) for name, values in known.items()}
    order = sorted(known, key=lambda name: means[name])
    noise = seed_noise(list(known.values()), None)
    if noise is None:  # noise cannot be estimated from one seed each
        return tuple(order)
    leader, most = order[0], max(map(len, known.values()))
    level = (1 - confidence) / ((len(known) - 1) * most * (most - 1))
    left = [leader]
    for name in order[1:]:
        error = noise.deviation * math.sqrt(1 / len(known[name]) + 1 / len(known[leader]))
        gap = means[name] - means[leader]
        chance = float(gap == 0) if error == 0 else float(stdtr(noise.degrees, -gap / error))
        if chance >= level:
            left.append(name)
    return tuple(left) if len(left) > 1 else ()
