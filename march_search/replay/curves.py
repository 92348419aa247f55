"""Learning curves as a strategy sees them: losses with added noise, and the cost of training."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from march_search.replay.table import Table


@dataclass(frozen=True)
class Curves:
    """Curves of the runs of a table, indexed by run number."""

    tokens: tuple[tuple[float, ...], ...]
    """Tokens at every evaluation of every run."""
    losses: tuple[tuple[float, ...], ...]
    """Losses at these evaluations, including noise."""
    rates: tuple[float, ...]
    """Time per token of each run: in seconds, or 1 if the table lacks the time of any run."""
    final: tuple[float, ...]
    """Recorded last losses, without noise, from which regret is computed."""

    def at(self, run: int, fraction: float) -> int:
        """Return the index of the first evaluation of a run at or after this fraction of its tokens."""
        goal = fraction * self.tokens[run][-1] * (1 - 1e-9)
        return next(number for number, tokens in enumerate(self.tokens[run]) if tokens >= goal)

    def total(self) -> float:
        """Return the tokens of training every run to its end."""
        return sum(tokens[-1] for tokens in self.tokens)


@dataclass(frozen=True)
class Replayed:
    """Result of replaying one strategy on one order of the runs."""

    choice: int
    """Number of the run that the strategy selects."""
    tokens: float
    """Tokens trained in total."""
    busy: float
    """Training time, summed over workers."""
    makespan: float
    """Time from the start of the first worker to the end of the last."""


def curves(table: Table, rng: np.random.Generator, noise: float = 0.0, evaluation_noise: float = 0.0) -> Curves:
    """Return the curves of a table with normal noise added.

    Args:
        table: recorded runs.
        rng: random generator of the noise.
        noise: standard deviation of one shift per curve, in the unit of the losses; models the effect of the seed.
        evaluation_noise: standard deviation of an independent shift per evaluation.
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
    """Return the time at which the last job ends if each free worker takes the next job in the list."""
    free = [0.0] * workers
    for time in times:
        heapq.heapreplace(free, free[0] + time)
    return max(free)
