"""What a strategy does with recorded curves: who trains how far, and which run it names as the best.

Workers take runs one after the other and train at the same speed, so time is counted in tokens. Between two evaluations
nothing is decided. Optuna's pruners are the real ones, on a study in memory; their steps are
evaluations, counted from 1.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import optuna

from march_search.replay.proposals import Proposals
from march_search.strategy import Rungs

Losses = npt.NDArray[np.float64]
"""Losses of N runs after T token counts."""


DEFAULT = Rungs()


@dataclass(frozen=True)
class Replayed:
    """What came of one strategy on one order."""

    spent: int
    """Tokens that were trained."""
    chosen: int
    """The run it names."""
    makespan: int
    """Tokens from the start to the end by the clock of one worker."""


def rungs(losses_NT: Losses, tokens: Sequence[int], order: Proposals, workers: int, rule: Rungs = DEFAULT) -> Replayed:
    """The default strategy: every run to the first rung, the best share of them to the next.

    A rung's tokens are those of the first evaluation that reaches its fraction of the data budget.
    """
    stages = sorted({next(i for i, t in enumerate(tokens) if t >= f * tokens[-1] - 0.5) for f in rule.fractions})
    alive, spent, makespan, before = list(order), 0, 0, 0
    for stage in stages:
        part = tokens[stage] - before
        spent, makespan, before = spent + part * len(alive), makespan + part * -(-len(alive) // workers), tokens[stage]
        at_stage = {run: float(losses_NT[run, stage]) for run in alive}
        alive = list(rule.promoted(at_stage)) if stage != stages[-1] else alive
    return Replayed(spent, min(alive, key=lambda run: losses_NT[run, -1]), makespan)


def pruned(
    losses_NT: Losses,
    tokens: Sequence[int],
    order: Proposals,
    workers: int,
    pruner: Callable[[int], optuna.pruners.BasePruner],
) -> Replayed:
    """Every run on its own, stopped where Optuna's pruner says so after an evaluation; steps are counted from 1."""
    study = optuna.create_study(pruner=pruner(len(tokens)))
    queue: list[tuple[int, int, optuna.Trial, int, int]] = []  # time, worker, trial, run, evaluation
    spent = makespan = 0
    done: dict[int, int] = {}

    def start(now: int, worker: int) -> None:
        run = next(order, None)
        if run is not None:
            heapq.heappush(queue, (now + tokens[0], worker, study.ask(), run, 0))

    for worker in range(workers):
        start(0, worker)
    while queue:
        now, worker, trial, run, at = heapq.heappop(queue)
        loss, makespan = float(losses_NT[run, at]), max(makespan, now)
        trial.report(loss, at + 1)
        last = at == len(tokens) - 1
        if not last and not trial.should_prune():
            heapq.heappush(queue, (now + tokens[at + 1] - tokens[at], worker, trial, run, at + 1))
            continue
        state = optuna.trial.TrialState.COMPLETE if last else optuna.trial.TrialState.PRUNED
        study.tell(trial, loss if last else None, state=state)
        order.tell(run, loss)
        spent, done[run] = spent + tokens[at], at
        start(now, worker)
    reached = max(done.values())  # a pruner may stop all of them
    return Replayed(spent, min((r for r in done if done[r] == reached), key=lambda r: losses_NT[r, reached]), makespan)


STRATEGIES: dict[str, Callable[[Losses, Sequence[int], Proposals, int], Replayed]] = {
    "exhaustive": partial(pruned, pruner=lambda _: optuna.pruners.NopPruner()),
    "median": partial(pruned, pruner=lambda _: optuna.pruners.MedianPruner()),
    "percentile": partial(pruned, pruner=lambda _: optuna.pruners.PercentilePruner(25.0)),
    "halving": partial(pruned, pruner=lambda _: optuna.pruners.SuccessiveHalvingPruner(1, reduction_factor=4)),
    "hyperband": partial(pruned, pruner=lambda steps: optuna.pruners.HyperbandPruner(1, steps, reduction_factor=3)),
    "rungs": rungs,
}
"""By the name of the command line. Optuna's pruners have its defaults: the median and the percentile spare the
first five runs; halving and Hyperband start at the first evaluation, and the percentile keeps the best quarter."""
