"""Racing: which architectures need one more seed before the best of them can be told from the others."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from march_search.evidence.noise import seed_noise


def next_seeds(losses: Mapping[str, Sequence[float]], confidence: float = 0.95) -> tuple[str, ...]:
    """The leader and those not separated from it, by mean loss; empty once the leader stands alone.

    To be asked once after each round of seeds. An architecture leaves the race when a one-sided t-test (variance pooled
    over all) says that it is worse than the leader. The error is spent over rounds and rivals: where the most seeds of
    an architecture are n, the level is `(1 - confidence) / (rivals * n * (n - 1))`; over all rivals and rounds that
    sums to `1 - confidence`, however long the race. So the truly best leaves with at most that chance (union bound;
    seed noise normal and alike for all). It says nothing about other validation documents.

    Args:
        losses: final losses of each architecture, one a seed; one without any takes no part.
        confidence: chance that the truly best is never dropped.
    """
    from scipy.special import stdtr

    known = {name: own for name, own in losses.items() if len(own)}
    if len(known) < 2:
        return ()
    means = {name: fmean(own) for name, own in known.items()}
    order = sorted(known, key=lambda name: means[name])
    noise = seed_noise(list(known.values()), None)
    if noise is None:  # one seed tells nothing
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
