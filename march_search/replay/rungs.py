"""Our own strategy on recorded curves: rungs, each decided when all its candidates are there."""

from collections.abc import Sequence

from march_search.replay.curves import Curves, Replayed, schedule
from march_search.strategy import Rungs


def replay_rungs(curves: Curves, order: Sequence[int], workers: int, rungs: Rungs) -> Replayed:
    """Trains the runs in this order, rung by rung; promoted ones go on from where they stopped.

    Workers without work wait until the rung is decided.
    """
    going, reached = tuple(order), dict.fromkeys(order, 0.0)
    tokens = busy = makespan = 0.0
    losses: dict[int, float] = {}
    for number, fraction in enumerate(rungs.fractions):
        if number:
            going = rungs.promoted(losses)
        losses, times = {}, []
        for run in going:
            evaluation = curves.at(run, fraction)
            trained = curves.tokens[run][evaluation] - reached[run]
            reached[run] += trained
            tokens += trained
            times.append(trained * curves.rates[run])
            losses[run] = curves.losses[run][evaluation]
        busy += sum(times)
        makespan += schedule(times, workers)
    best = min(going, key=lambda run: losses[run])
    return Replayed(best, tokens, busy, makespan)
