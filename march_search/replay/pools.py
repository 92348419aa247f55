"""Replay strategies on random pools of recorded runs, and summarise what they find and what they cost."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from march_search.config.halving import Halving, SizeHalving
from march_search.replay.asha import Asha, replay_asha
from march_search.replay.clock import in_order, replay_optuna
from march_search.replay.learning_curves import Curves, LearningCurves, Replayed, curves, ladder_curves, schedule
from march_search.replay.proposals import TpeProposals
from march_search.replay.sizes import replay_sizes
from march_search.replay.strategies import Strategy, replay_rungs

Z = 1.959964
"""Quantile of the normal distribution for intervals of 95%."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Settings of a replay."""

    replays: int = 100
    """Number of replays, each with a new pool, new noise and a new random order."""
    pool: int | None = None
    """Number of runs in a pool, or of arms if the table has sizes, drawn without replacement; None takes all."""
    seed: int = 0
    """Seed of the pools, the orders and the noise."""
    noise: float = 0.0
    """Standard deviation of one shift per curve; models the effect of another seed."""
    evaluation_noise: float = 0.0
    """Standard deviation of an independent shift per evaluation."""
    tpe: bool = False
    """Whether TPE chooses the next run; otherwise the order is random."""
    step: int = 1
    """Optuna steps between two evaluations."""

    def pools(self, table: LearningCurves) -> int:
        """Return how many different pools are drawn: one if neither runs, seeds nor noise are random."""
        has_seeds = any(len(runs) > 1 for own in table.arms.values() for runs in own)
        is_smaller = (self.pool or candidates(table)) < candidates(table)
        is_random = self.noise or self.evaluation_noise or has_seeds or is_smaller
        return self.replays if is_random else 1


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What one replay is run on."""

    pool: LearningCurves
    """Recorded runs of the pool, in the order of the table; those at the largest size if it has sizes."""
    curves: Curves
    """Their curves, with noise."""
    order: tuple[int, ...]
    """Numbers of the runs, in the order in which they are offered."""


def candidates(table: LearningCurves) -> int:
    """Return the number of runs that a pool can have; of a table with sizes, the number of arms."""
    return len(table.arms if table.sizes else table.runs)


def draw(table: LearningCurves, how: Replay, number: int) -> Draw:
    """Return the pool, the noise and the order of the nth replay; they depend on the seed and the number alone."""
    rng = np.random.default_rng([how.seed, number])
    pool = table
    if table.sizes:
        arms = list(table.arms)
        members = sorted(rng.choice(len(arms), how.pool or len(arms), replace=False).tolist())
        order = tuple(rng.permutation(len(members)).tolist())
        pool, seen = ladder_curves(table, [arms[k] for k in members], rng, how.noise, how.evaluation_noise)
        return Draw(pool=pool, curves=seen, order=order)
    if how.pool is not None:
        members = sorted(rng.choice(len(table.runs), how.pool, replace=False).tolist())
        pool = replace(table, runs=tuple(table.runs[run] for run in members))
    order = tuple(rng.permutation(len(pool.runs)).tolist())
    return Draw(pool=pool, curves=curves(pool, rng, how.noise, how.evaluation_noise), order=order)


def replay(table: LearningCurves, strategy: Strategy, workers: int, how: Replay) -> dict[str, Any]:
    """Replay one strategy and return a row of results, with intervals of 95%.

    The nth pool, noise and order are the same for every strategy and number of workers. Regret is the recorded last
    loss of the selected run minus the lowest recorded last loss of its pool, both without noise; `found` is the share
    of replays without regret. `as_exhaustive` is the share in which the strategy selects the run with the lowest last
    loss including noise, as training every run of the pool to its end would. In a table with sizes, a run is an arm at
    the largest size, each replay draws the seed of every arm and size, and the recorded last loss of an arm is the mean
    over its seeds; `spent` is then in FLOPs, else in tokens.

    One replay is one observation. A strategy that ignores the order is replayed once per pool, because another order of
    the same pool would repeat the observation. The intervals of other strategies hold over the orders of one pool if
    there is only one.
    """
    pools = how.pools(table)
    replays = how.replays if strategy.is_ordered else pools
    spent, regret, same, time, idle = [], [], [], [], []
    for number in range(replays):
        drawn = draw(table, how, number)
        seen, done = drawn.curves, _once(drawn, strategy, workers, how, number)
        spent.append(done.cost / seen.total())
        regret.append(seen.final[done.choice] - min(seen.final))
        same.append(seen.losses[done.choice][-1] == min(losses[-1] for losses in seen.losses))
        whole = schedule([seen.tokens[run][-1] * seen.rates[run] for run in drawn.order], workers)
        time.append(done.makespan / whole)
        idle.append(1 - done.busy / (workers * done.makespan))
    found = sum(value == 0 for value in regret)
    low, high = share_interval(found, replays)
    return {
        "strategy": strategy.text,
        "workers": workers,
        "pools": pools,
        "replays": replays,
        "spent": float(np.mean(spent)),
        "spent_max": max(spent),
        "found": found / replays,
        "found_low": low,
        "found_high": high,
        "as_exhaustive": float(np.mean(same)),
        "regret": float(np.mean(regret)),
        "regret_error": _standard_error(regret),
        "regret_max": max(regret),
        "time": float(np.mean(time)),
        "idle": max(0.0, float(np.mean(idle))),
    }


def share_interval(count: int, number: int) -> tuple[float, float]:
    """Return the 95% interval of a share of `count` in `number` observations (Wilson 1927)."""
    share, z = count / number, Z**2 / number
    middle, half = share + z / 2, Z * math.sqrt(share * (1 - share) / number + z / (4 * number))
    return max(0.0, (middle - half) / (1 + z)), min(1.0, (middle + half) / (1 + z))


def _standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean; None for one value."""
    return None if len(values) < 2 else float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _once(drawn: Draw, strategy: Strategy, workers: int, how: Replay, number: int) -> Replayed:
    """Replay the strategy once."""
    if isinstance(strategy.make, Halving):
        return replay_rungs(drawn.curves, drawn.order, workers, strategy.make)
    if isinstance(strategy.make, SizeHalving):
        return replay_sizes(drawn.curves, drawn.order, workers, strategy.make)
    if isinstance(strategy.make, Asha):
        return replay_asha(drawn.curves, drawn.order, workers, strategy.make)
    proposals = TpeProposals(drawn.pool, how.seed + number) if how.tpe else in_order
    return replay_optuna(drawn.curves, drawn.order, workers, strategy.make(), proposals, f"order-{number}", how.step)
