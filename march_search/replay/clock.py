"""Replays Optuna's pruners on recorded curves, through ask and tell, with several workers on a simulated clock."""

import heapq
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.pruners import BasePruner
from optuna.trial import Trial, TrialState

from march_search.replay.learning_curves import Curves, Replayed

Proposals = Callable[[optuna.Study, Trial, Sequence[int]], int]
"""Chooses the run that a trial takes, from the runs not yet tried in random order."""

RUN = "run"
"""User attribute of a trial that holds the number of its run."""


def in_order(study: optuna.Study, trial: Trial, left: Sequence[int]) -> int:
    """Return the first of the remaining runs."""
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
    """Run a study whose trials read their losses from the curves.

    A free worker asks for the next trial immediately. As in Optuna, pruned trials are not resumed.

    Args:
        curves: curves from which the trials read.
        order: numbers of the runs, in the order in which they are offered.
        workers: number of trials that train at the same time.
        pruner: pruner, called after every evaluation.
        proposals: function that chooses among the remaining runs.
        name: name of the study; Hyperband draws a trial's bracket from it and the trial's number.
        step: Optuna steps between two evaluations: evaluation n is reported as step `n * step`.
    """
    study = optuna.create_study(study_name=name, sampler=optuna.samplers.RandomSampler(seed=0), pruner=pruner)
    left, free, reached = list(order), [0.0] * workers, dict.fromkeys(order, 0)
    events: list[tuple[float, int, int, Trial]] = []  # time of an evaluation, trial number, run, trial
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
    return summary(curves, reached, max(ended))


def summary(curves: Curves, reached: Mapping[int, int], makespan: float) -> Replayed:
    """Summarise a replay; the choice is the run trained furthest, with the lowest loss among equals.

    Args:
        curves: curves from which the runs read.
        reached: number of evaluations that each run reached, at least 1.
        makespan: time at which the last worker ended.
    """
    shares = {run: curves.tokens[run][n - 1] / curves.tokens[run][-1] for run, n in reached.items()}
    best = min(reached, key=lambda run: (-shares[run], curves.losses[run][reached[run] - 1]))
    trained = {run: curves.tokens[run][n - 1] for run, n in reached.items()}
    busy = sum(tokens * curves.rates[run] for run, tokens in trained.items())
    return Replayed(best, sum(curves.cost(run, tokens) for run, tokens in trained.items()), busy, makespan)
