"""Optuna's pruners on recorded curves: its real ask and tell, in memory, several workers on a simulated clock."""

import heapq
from collections.abc import Callable, Sequence

import optuna
from optuna.pruners import BasePruner
from optuna.trial import Trial, TrialState

from march_search.replay.curves import Curves, Replayed

Proposals = Callable[[optuna.Study, Trial, Sequence[int]], int]
"""Which of the runs not yet tried, given in a random order, a trial takes."""

RUN = "run"
"""User attribute of a trial: the number of its run."""


def in_order(study: optuna.Study, trial: Trial, left: Sequence[int]) -> int:
    """The first run that is left."""
    return left[0]


def replay_optuna(
    curves: Curves,
    order: Sequence[int],
    workers: int,
    pruner: BasePruner,
    proposals: Proposals = in_order,
    name: str = "replay",
    step: int = 1,
) -> Replayed:
    """Runs a study whose trials read their losses from the curves.

    A free worker asks for the next trial at once. Pruned trials are not taken up again, as in Optuna.

    Args:
        curves: what the trials read.
        order: the runs, in the order in which they are offered.
        workers: how many train at once.
        pruner: decides after every evaluation.
        proposals: chooses among the runs that are left.
        name: of the study; Hyperband draws a trial's bracket from it and the trial's number.
        step: Optuna's steps between two evaluations: the nth is reported as step n times this.
    """
    study = optuna.create_study(study_name=name, sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
    left, free, reached = list(order), [0.0] * workers, dict.fromkeys(order, 0)
    events: list[tuple[float, int, int, Trial]] = []  # when an evaluation is there, of which trial, which run
    ended: list[float] = []
    while left or events:
        while left and free and (not events or free[0] <= events[0][0]):
            trial = study.ask()
            run = proposals(study, trial, left)
            left.remove(run)
            trial.set_user_attr(RUN, run)
            start = heapq.heappop(free)
            heapq.heappush(events, (start + curves.tokens[run][0] * curves.rates[run], trial.number, run, trial))
        now, number, run, trial = heapq.heappop(events)
        at = reached[run]
        reached[run] += 1
        loss = curves.losses[run][at]
        trial.report(loss, (at + 1) * step)
        if at + 1 == len(curves.tokens[run]):
            study.tell(trial, loss)
        elif trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
        else:
            time = (curves.tokens[run][at + 1] - curves.tokens[run][at]) * curves.rates[run]
            heapq.heappush(events, (now + time, number, run, trial))
            continue
        heapq.heappush(free, now)
        ended.append(now)
    return _summary(curves, reached, max(ended))


def _summary(curves: Curves, reached: dict[int, int], makespan: float) -> Replayed:
    """The run trained furthest wins, of those the one with the lowest loss there."""
    shares = {run: curves.tokens[run][n - 1] / curves.tokens[run][-1] for run, n in reached.items()}
    best = min(reached, key=lambda run: (-shares[run], curves.losses[run][reached[run] - 1]))
    spent = {run: curves.tokens[run][n - 1] for run, n in reached.items()}
    busy = sum(tokens * curves.rates[run] for run, tokens in spent.items())
    return Replayed(best, sum(spent.values()), busy, makespan)
