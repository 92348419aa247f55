"""Race architectures: decide which ones need one more seed to separate the best from the others."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from march_search.evidence.noise import seed_noise


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
