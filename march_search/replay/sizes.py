"""Successive halving over the sizes of a ladder, replayed: a smaller size is the first rung of a larger one."""

from collections.abc import Sequence

from march_search.config.halving import SizeHalving
from march_search.errors import UsageError
from march_search.replay.learning_curves import Curves, Replayed, schedule


def replay_sizes(curves: Curves, order: Sequence[int], workers: int, rule: SizeHalving) -> Replayed:
    """Train all arms to the end at the smallest size that is used, and the best of them at each larger one.

    The losses at a size decide which arms train at the next. Idle workers wait until a size is decided. The cost is
    that of all sizes.

    Raises:
        UsageError: If the rule has more shares than there are sizes.
    """
    sizes = (*curves.smaller, curves)
    if len(rule.keep) > len(sizes):
        shares = "/".join(f"{share:g}" for share in rule.keep)
        raise UsageError(f"sizes:keep={shares} is for {len(rule.keep)} sizes; these curves have {len(sizes)}.")
    going = tuple(order)
    losses: dict[int, float] = {}
    cost = busy = makespan = 0.0
    for index, size in enumerate(sizes[-len(rule.keep) :]):
        if not rule.keep[index]:
            continue
        if losses:
            going = tuple(sorted(losses, key=losses.__getitem__)[: rule.count(len(order), index)])
        times = [size.tokens[run][-1] * size.rates[run] for run in going]
        cost += sum(size.cost(run, size.tokens[run][-1]) for run in going)
        busy += sum(times)
        makespan += schedule(times, workers)
        losses = {run: size.losses[run][-1] for run in going}
    return Replayed(min(losses, key=losses.__getitem__), cost, busy, makespan)
