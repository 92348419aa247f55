"""Parse search strategies by name and replay each of them over many random orders."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner

from march_search.config.halving import Halving
from march_search.errors import UsageError, nearest
from march_search.replay.clock import in_order, replay_optuna
from march_search.replay.learning_curves import Curves, LearningCurves, Replayed, curves, schedule
from march_search.replay.proposals import TpeProposals


def replay_rungs(curves: Curves, order: Sequence[int], workers: int, rungs: Halving) -> Replayed:
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


PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "exhaustive": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": partial(optuna.pruners.PercentilePruner, percentile=25.0),
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}
"""Optuna's pruners with Optuna's defaults; `percentile` has no default and is set to 25."""

NAMES = (*PRUNERS, "rungs")


@dataclass(frozen=True)
class Strategy:
    """A strategy and its options."""

    text: str
    """The strategy as the user wrote it, for example `halving:reduction_factor=3`."""
    make: Callable[[], BasePruner] | Halving
    """Function that creates the pruner of one study, or the rungs."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Settings of a replay."""

    orders: int = 100
    """Number of random orders of the runs."""
    seed: int = 0
    """Seed of the orders and of the noise."""
    noise: float = 0.0
    """Standard deviation of one shift per curve; models the effect of another seed."""
    evaluation_noise: float = 0.0
    """Standard deviation of an independent shift per evaluation."""
    tpe: bool = False
    """Whether TPE chooses the next run; otherwise the order is random."""
    step: int = 1
    """Optuna steps between two evaluations."""


def parse(text: str) -> Strategy:
    """Parse a strategy such as `halving` or `halving:min_resource=1,reduction_factor=3`.

    Raises:
        UsageError: If the strategy or an option is unknown, or if a value is invalid.
    """
    name, _, rest = text.partition(":")
    if name not in NAMES:
        raise UsageError(f'unknown strategy "{name}". {nearest(name, NAMES)}')
    options = dict(_option(text, part) for part in rest.split(",") if part)
    maker: Callable[..., Any] = PRUNERS.get(name, Halving)
    known = list(inspect.signature(maker).parameters)
    if unknown := [key for key in options if key not in known]:
        raise UsageError(f'{name} has no option "{unknown[0]}". {nearest(unknown[0], known) if known else ""}'.rstrip())
    make = partial(maker, **options)
    try:
        made = make()
    except TypeError:
        raise UsageError(
            f"{text}: only fractions takes several numbers; give one number for each other option."
        ) from None
    except ValueError as error:
        raise UsageError(f"{text}: {str(error).rstrip('.')}.") from None
    return Strategy(text, made if isinstance(made, Halving) else make)


def _option(text: str, part: str) -> tuple[str, Any]:
    """Parse `key=value`, where the value is one number or several, separated by `/`."""
    key, _, value = part.partition("=")
    try:
        numbers = [float(number) for number in value.split("/")]
    except ValueError:
        raise UsageError(f'{text}: "{part}" must look like key=number, or key=number/number/number.') from None
    if "/" in value or key == "fractions":
        return key, tuple(numbers)
    return key, int(numbers[0]) if numbers[0].is_integer() else numbers[0]


def replay(table: LearningCurves, strategy: Strategy, workers: int, how: Replay) -> dict[str, Any]:
    """Replay one strategy over `how.orders` random orders and return a row of results.

    The nth order and its noise are the same for every strategy and number of workers. Regret is the recorded last loss
    of the selected run minus the lowest recorded last loss, both without noise. `as_exhaustive` counts the orders in
    which the strategy selects the run with the lowest last loss including noise, as training every run to its end
    would.
    """
    spent, regret, same, time, idle = [], [], 0, [], []
    for number in range(how.orders):
        rng = np.random.default_rng([how.seed, number])
        order = [int(run) for run in rng.permutation(len(table.runs))]
        seen = curves(table, rng, how.noise, how.evaluation_noise)
        done = _once(table, strategy, workers, how, seen, order, number)
        spent.append(done.tokens / seen.total())
        regret.append(seen.final[done.choice] - min(seen.final))
        same += seen.losses[done.choice][-1] == min(losses[-1] for losses in seen.losses)
        whole = schedule([seen.tokens[run][-1] * seen.rates[run] for run in order], workers)
        time.append(done.makespan / whole)
        idle.append(1 - done.busy / (workers * done.makespan))
    return {
        "strategy": strategy.text,
        "workers": workers,
        "orders": how.orders,
        "spent": float(np.mean(spent)),
        "spent_max": max(spent),
        "regret": float(np.mean(regret)),
        "regret_max": max(regret),
        "found": sum(value == 0 for value in regret),
        "as_exhaustive": int(same),
        "time": float(np.mean(time)),
        "idle": max(0.0, float(np.mean(idle))),
    }


def _once(
    table: LearningCurves, strategy: Strategy, workers: int, how: Replay, seen: Curves, order: list[int], number: int
) -> Replayed:
    """Replay the strategy on one order."""
    if isinstance(strategy.make, Halving):
        return replay_rungs(seen, order, workers, strategy.make)
    proposals = TpeProposals(table, how.seed + number) if how.tpe else in_order
    return replay_optuna(seen, order, workers, strategy.make(), proposals, f"order-{number}", how.step)
