"""Which architectures get one more seed: the leader, and those that the seeds so far do not separate from it."""

import math
from collections.abc import Mapping, Sequence

from march_search.evidence.noise import seed_noise


def next_seeds(losses: Mapping[str, Sequence[float]], confidence: float = 0.95) -> tuple[str, ...]:
    """Architectures to train with one more seed, in the mapping's order; none once the leader stands alone.

    To be asked once after each round of seeds. An architecture leaves the race when a one-sided t-test (variance pooled
    over all) says that it is worse than the leader. The error is spent over rounds and rivals: the test of a round in
    which an architecture has at most n seeds has level `(1 - confidence) / (rivals * n * (n - 1))`, and those levels
    sum to `1 - confidence` over all rivals and rounds however long the race. So the truly best leaves a race with a
    chance of at most `1 - confidence` (union bound; seed noise normal and alike for all). Says nothing about other
    validation documents.

    Args:
        losses: final losses of each architecture's seeds; one without any is asked for first.
        confidence: chance that the truly best is never dropped.
    """
    from scipy.special import stdtr

    fewest = min(map(len, losses.values()), default=0)
    if len(losses) < 2:
        return tuple(name for name, own in losses.items() if not own)
    if fewest < 2:
        return tuple(name for name, own in losses.items() if len(own) == fewest)
    noise = seed_noise(list(losses.values()), None)
    assert noise is not None
    most, means = max(map(len, losses.values())), {name: sum(own) / len(own) for name, own in losses.items()}
    level = (1 - confidence) / ((len(losses) - 1) * most * (most - 1))
    leader = min(means, key=lambda name: means[name])
    left = []
    for name, own in losses.items():
        error = noise.deviation * math.sqrt(1 / len(own) + 1 / len(losses[leader]))
        gap = means[name] - means[leader]
        chance = float(gap == 0) if error == 0 else stdtr(noise.degrees, -gap / error)
        if name == leader or chance >= level:
            left.append(name)
    return tuple(left) if len(left) > 1 else ()
