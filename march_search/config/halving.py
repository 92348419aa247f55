"""The default pruning rule: synchronous successive halving on rungs."""

import math
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


DEFAULT_RUNGS = (0.02, 0.06, 0.2)
"""Default rungs, as fractions of a trial's data budget; the end is always the last rung."""

DEFAULT_KEEP = 1 / 3
"""Default fraction of a rung's candidates that is promoted."""


@dataclass(frozen=True)
class Halving:
    """Synchronous successive halving: all candidates train to the first rung, the best are promoted to the next.

    Promoted candidates resume from their checkpoints. A rung is decided once every candidate on it has reached it or
    failed, so neither the order of the trials nor the number of workers affects what is promoted (Jamieson and
    Talwalkar 2016, without the asynchrony of Li et al. 2020). A worker waits when no candidate on the rung is left to
    train. `benchmarks/strategies.py` measures the benefit and the cost of waiting.

    The candidate that trains to the end alone takes 1/n of the tokens of training all n candidates to the end: 4% of
    25, 10% of 10.

    Raises:
        ValueError: If the fractions are not positive, ascending and end at 1, or if `keep` is not in (0, 1].
    """

    fractions: tuple[float, ...] = (*DEFAULT_RUNGS, 1.0)
    """Rungs as fractions of a trial's data budget, ascending; the last is 1."""
    keep: float = DEFAULT_KEEP
    """Fraction of a rung's candidates that is promoted, in (0, 1]; the number is rounded up."""

    def __post_init__(self) -> None:
        ascending = sorted({*self.fractions}) == [*self.fractions]
        if not (ascending and self.fractions and self.fractions[0] > 0 and self.fractions[-1] == 1):
            raise ValueError(f"fractions must be positive, ascending and end at 1, not {self.fractions}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], not {self.keep}")

    def promoted(self, losses: Mapping[Key, float | None], *, always: Collection[Key] = ()) -> tuple[Key, ...]:
        """Return the candidates of a rung that are promoted, lowest loss first.

        A loss that is None or not finite marks a failed candidate. Failed candidates count towards the size of the rung
        but are never promoted; the next best take their places. Equal losses keep the order of the mapping.

        Args:
            losses: Loss of each candidate on the rung.
            always: Candidates that are promoted in addition to the best unless they failed.
        """
        finite = {key: loss for key, loss in losses.items() if loss is not None and math.isfinite(loss)}
        count = max(1, math.ceil(len(losses) * self.keep - 1e-9))
        order = sorted(finite, key=lambda key: finite[key])
        return tuple(key for index, key in enumerate(order) if index < count or key in always)

    def survivors(self, candidates: int, rungs: int, *, least: int = 1, extra: int = 0) -> tuple[int, ...]:
        """Return how many of the candidates reach each of the rungs if none fails.

        Args:
            candidates: Number of candidates on the first rung.
            rungs: Number of rungs.
            least: Fewest candidates that are promoted from each rung.
            extra: Candidates that are promoted in addition to the best.
        """
        numbers = [candidates]
        for _ in range(rungs - 1):
            best = len(self.promoted(dict.fromkeys(range(numbers[-1]), 0.0)))
            numbers.append(min(numbers[-1], max(best, least) + extra))
        return tuple(numbers)
