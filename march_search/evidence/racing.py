"""Racing: which architectures need one more seed before the best of them can be told from the others."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, variance


def next_seeds(losses: Mapping[str, Sequence[float]], confidence: float) -> tuple[str, ...]:
    """Architectures to train with one more seed next; empty when the best is separated from all others.

    An architecture is out of the race when its mean loss is above the leader's by Welch's t test, one-sided, at a level
    that is divided by the number of comparisons (Bonferroni). One seed tells nothing: two are the least.

    Args:
        losses: losses of each architecture, one a seed.
        confidence: of all comparisons together, between 0.5 and 1.
    """
    known = {name: list(values) for name, values in losses.items() if values}
    if len(known) < 2:
        return ()
    leader = min(known, key=lambda name: fmean(known[name]))
    level = (1 - confidence) / (len(known) - 1)
    rivals = [name for name in known if name != leader and not _above(known[name], known[leader], level)]
    return (leader, *sorted(rivals, key=lambda name: fmean(known[name]))) if rivals else ()


def _above(a: Sequence[float], b: Sequence[float], level: float) -> bool:
    """Whether the mean of `a` is above that of `b` at this level."""
    from scipy.stats import t

    if min(len(a), len(b)) < 2:
        return False
    parts = [variance(a) / len(a), variance(b) / len(b)]
    error = sum(parts)
    if error == 0:
        return fmean(a) > fmean(b)
    freedom = error**2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (a, b), strict=True))
    return bool(t.sf((fmean(a) - fmean(b)) / math.sqrt(error), freedom) < level)
