"""Replays synchronous rungs (`march_search.strategy.Rungs`) on recorded curves."""

from collections.abc import Sequence

from march_search.replay.curves import Curves, Replayed, schedule
from march_search.strategy import Rungs


def replay_rungs(curves: Curves, order: Sequence[int], workers: int, rungs: Rungs) -> Replayed:
    """Train the runs in the given order, rung by rung; promoted runs resume where they stopped.

    Idle workers wait until the rung is decided.
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
