"""The strategies that can be replayed, by name, and the figures of each over many random orders."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner

from march_search.errors import UsageError
from march_search.replay.clock import in_order, replay_optuna
from march_search.replay.curves import Curves, Replayed, curves, schedule
from march_search.replay.proposals import TpeProposals
from march_search.replay.rungs import replay_rungs
from march_search.replay.table import Table
from march_search.settings import nearest
from march_search.strategy import Rungs

PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "exhaustive": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": partial(optuna.pruners.PercentilePruner, percentile=25.0),
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}
"""Optuna's pruners with its own defaults; the percentile, which has none, is 25."""

NAMES = (*PRUNERS, "rungs")


@dataclass(frozen=True)
class Strategy:
    """A strategy and its options."""

    text: str
    """As a person wrote it: `halving:reduction_factor=3`."""
    make: Callable[[], BasePruner] | Rungs
    """Makes the pruner of one study; or our rungs."""


@dataclass(frozen=True)
class Replay:
    """How to replay."""

    orders: int = 100
    seed: int = 0
    noise: float = 0.0
    """Standard deviation of a shift of each whole curve, as another seed would give."""
    evaluation_noise: float = 0.0
    """Standard deviation of a shift of each evaluation by itself."""
    tpe: bool = False
    """Whether TPE chooses which run comes next; else the order is random."""
    step: int = 1
    """Optuna's steps between two evaluations."""


def parse(text: str) -> Strategy:
    """The strategy that `halving` or `halving:min_resource=1,reduction_factor=3` means.

    Raises:
        UsageError: there is no such strategy, or it has no such option or value.
    """
    name, _, rest = text.partition(":")
    if name not in NAMES:
        raise UsageError(f'there is no strategy "{name}". {nearest(name, NAMES)}')
    options = dict(_option(text, part) for part in rest.split(",") if part)
    maker: Callable[..., Any] = PRUNERS.get(name, Rungs)
    known = list(inspect.signature(maker).parameters)
    if unknown := [key for key in options if key not in known]:
        raise UsageError(f'{name} has no option "{unknown[0]}". {nearest(unknown[0], known) if known else ""}'.rstrip())
    make = partial(maker, **options)
    try:
        made = make()
    except TypeError:
        raise UsageError(f"{text}: only fractions are several numbers; the other options are one.") from None
    except ValueError as error:
        raise UsageError(f"{text}: {str(error).rstrip('.')}.") from None
    return Strategy(text, made if isinstance(made, Rungs) else make)


def _option(text: str, part: str) -> tuple[str, Any]:
    """One `key=value`; `a/b/c` is several numbers."""
    key, _, value = part.partition("=")
    try:
        numbers = [float(number) for number in value.split("/")]
    except ValueError:
        raise UsageError(f'{text}: "{part}" must look like key=number, or key=number/number/number.') from None
    if "/" in value or key == "fractions":
        return key, tuple(numbers)
    return key, int(numbers[0]) if numbers[0].is_integer() else numbers[0]


def replay(table: Table, strategy: Strategy, workers: int, how: Replay) -> dict[str, Any]:
    """The figures of one strategy with so many workers, over `how.orders` random orders.

    Order and noise number n are the same for every strategy and number of workers. Regret is the recorded last loss of
    the chosen run minus the lowest one, without noise. `as_exhaustive` counts the orders whose choice is the run with
    the lowest last loss as seen, noise included: what training every run to its end would have chosen.
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
    table: Table, strategy: Strategy, workers: int, how: Replay, seen: Curves, order: list[int], number: int
) -> Replayed:
    """One order."""
    if isinstance(strategy.make, Rungs):
        return replay_rungs(seen, order, workers, strategy.make)
    proposals = TpeProposals(table, how.seed + number) if how.tpe else in_order
    return replay_optuna(seen, order, workers, strategy.make(), proposals, f"order-{number}", how.step)
