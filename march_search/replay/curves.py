"""Curves as a strategy sees them: losses with noise, and what training up to an evaluation costs."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from march_search.replay.table import Table


@dataclass(frozen=True)
class Curves:
    """The runs of a table, by number."""

    tokens: tuple[tuple[float, ...], ...]
    """Tokens of every evaluation of every run."""
    losses: tuple[tuple[float, ...], ...]
    """Losses there, as the strategy sees them."""
    rates: tuple[float, ...]
    """Time a token takes in each run: in seconds, or 1 where the table lacks the time of some run."""
    final: tuple[float, ...]
    """Recorded last losses, without noise: what regret is measured against."""

    def at(self, run: int, fraction: float) -> int:
        """Number of the first evaluation of a run at or after this share of its tokens."""
        goal = fraction * self.tokens[run][-1] * (1 - 1e-9)
        return next(number for number, tokens in enumerate(self.tokens[run]) if tokens >= goal)

    def total(self) -> float:
        """Tokens of all runs, each to its end."""
        return sum(tokens[-1] for tokens in self.tokens)


@dataclass(frozen=True)
class Replayed:
    """What one strategy did with one order of the runs."""

    choice: int
    """The run it ends with."""
    tokens: float
    """What it spent."""
    busy: float
    """Time that workers trained, summed."""
    makespan: float
    """Time from the first worker's start to the last one's end."""


def curves(table: Table, rng: np.random.Generator, noise: float = 0.0, evaluation_noise: float = 0.0) -> Curves:
    """The table's curves with normal noise added.

    Args:
        table: recorded runs.
        rng: what draws the noise.
        noise: standard deviation of a shift of each whole curve, in the unit of the losses: the seed's.
        evaluation_noise: standard deviation of a shift of each evaluation by itself.
    """
    seconds = [run.seconds for run in table.runs]
    timed = all(s is not None for s in seconds)
    losses = []
    for run in table.runs:
        recorded = np.array([loss for _, loss in run.evaluations])
        shifts = noise * rng.standard_normal() + evaluation_noise * rng.standard_normal(len(recorded))
        losses.append(tuple((recorded + shifts).tolist()))
    return Curves(
        tokens=tuple(tuple(tokens for tokens, _ in run.evaluations) for run in table.runs),
        losses=tuple(losses),
        rates=tuple((s or 0.0) / run.tokens if timed else 1.0 for s, run in zip(seconds, table.runs, strict=True)),
        final=tuple(run.evaluations[-1][1] for run in table.runs),
    )


def schedule(times: Sequence[float], workers: int) -> float:
    """When the last job ends if every free worker takes the next job of the list."""
    free = [0.0] * workers
    for time in times:
        heapq.heapreplace(free, free[0] + time)
    return max(free)
