"""One strategy over many random orders: what it spends, what it misses, how often it finds the best."""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna

from march_search.replay.proposals import Proposals, Random, Tpe
from march_search.replay.strategies import STRATEGIES
from march_search.replay.table import Table


@dataclass(frozen=True)
class Outcome:
    """A strategy over all orders."""

    strategy: str
    workers: int
    orders: int
    spent: float
    """Mean share of the tokens that training every run to its end takes."""
    found: float
    """Share of the orders in which the chosen run is the best."""
    regret: float
    """Mean loss of the chosen run minus that of the best, in nats."""
    worst: float
    """The largest such difference."""
    busy: float
    """Mean share of the workers' time in which they train."""


def replay(
    table: Table,
    strategy: str,
    *,
    orders: int = 100,
    workers: int = 1,
    noise: float = 0.0,
    noise_of: Literal["run", "evaluation"] = "run",
    proposals: Literal["random", "tpe"] = "random",
    seed: int = 0,
) -> Outcome:
    """Runs `strategy` on `table` in `orders` orders.

    Noise, in nats, is added to the recorded curves anew for each order: the same for all evaluations of a run, as that
    of a seed is, or drawn for each evaluation. The best run is the best of the curves the strategy saw.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shape = (len(table.architectures), 1 if noise_of == "run" else len(table.tokens))
    spent, regret, busy = [], [], []
    for number in range(orders):
        drawn = np.random.default_rng([seed, number])
        losses_NT = table.losses_NT + drawn.normal(0.0, noise, shape)
        order: Proposals = Random(shape[0], int(drawn.integers(2**31)))
        if proposals == "tpe":
            order = Tpe(table.architectures, int(drawn.integers(2**31)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            one = STRATEGIES[strategy](losses_NT, table.tokens, order, workers)
        spent.append(one.spent / (shape[0] * table.tokens[-1]))
        regret.append(losses_NT[one.chosen, -1] - losses_NT[:, -1].min())
        busy.append(one.spent / (workers * one.makespan))
    return Outcome(
        strategy,
        workers,
        orders,
        float(np.mean(spent)),
        float(np.mean(np.array(regret) == 0)),
        float(np.mean(regret)),
        float(np.max(regret)),
        float(np.mean(busy)),
    )
