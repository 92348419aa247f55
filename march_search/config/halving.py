"""Synchronous successive halving: on rungs of tokens, the default pruning rule, and over the sizes of a ladder."""

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


DEFAULT_RUNGS = (0.02, 0.1, 0.2)
"""Default rungs, as fractions of a trial's data budget; the end is always the last rung. `benchmarks/rungs.py` chose
them and shows how they compare with others."""


def check_rungs(fractions: Sequence[float]) -> None:
    """Validate rungs that are given as fractions of a data budget.

    Raises:
        ValueError: If the fractions are not positive, ascending and end at 1.
    """
    if sorted({*fractions}) != [*fractions] or not fractions or fractions[0] <= 0 or fractions[-1] != 1:
        raise ValueError(f"fractions must be positive, ascending and end at 1, not {fractions}")


@dataclass(frozen=True)
class Halving:
    """Synchronous successive halving: all candidates train to the first rung, the best are promoted to the next.

    By default, the share that is promoted is the ratio of a rung's tokens to the next rung's, so that all rungs cost
    about the same number of tokens (Jamieson and Talwalkar 2016): of the candidates at 2%, a fifth trains to 10%.

    Promoted candidates resume from their checkpoints. A rung is decided once every candidate on it has reached it or
    failed, so neither the order of the trials nor the number of workers affects what is promoted, unlike with the
    asynchronous rules of Li et al. (2020). A worker waits when no candidate on the rung is left to train.
    `benchmarks/strategies.py` measures the benefit and the cost of waiting.

    The candidate that trains to the end alone takes 1/n of the tokens of training all n candidates to the end: 4% of
    25, 10% of 10.

    Raises:
        ValueError: If the fractions are not positive, ascending and end at 1, if `keep` is not in (0, 1], or if
            `finalists` is below 1.
    """

    fractions: tuple[float, ...] = (*DEFAULT_RUNGS, 1.0)
    """Rungs as fractions of a trial's data budget, ascending; the last is 1."""
    keep: float | None = None
    """Fraction of a rung's candidates that is promoted, in (0, 1]; the number is rounded up. None promotes the ratio of
    the rung to the next."""
    finalists: int = 1
    """Fewest candidates that a rung promotes, and therefore that train to the end."""

    def __post_init__(self) -> None:
        check_rungs(self.fractions)
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], not {self.keep}")
        if not (isinstance(self.finalists, int) and self.finalists >= 1):
            raise ValueError(f"finalists must be a whole number of at least 1, not {self.finalists}")

    @classmethod
    def at(cls, rungs: Sequence[int], keep: float | None = None, *, finalists: int = 1) -> "Halving":
        """Return the rule for rungs in tokens, ascending, the last at the end of the data budget."""
        return cls(tuple(rung / rungs[-1] for rung in rungs), keep, finalists)

    def count(self, number: int, rung: int) -> int:
        """Return how many of the `number` candidates on a rung, counted from 0, are promoted to the next."""
        share = self.fractions[rung] / self.fractions[rung + 1] if self.keep is None else self.keep
        return min(number, max(self.finalists, math.ceil(number * share - 1e-9)))

    def promoted(
        self, losses: Mapping[Key, float | None], rung: int, *, always: Collection[Key] = ()
    ) -> tuple[Key, ...]:
        """Return the candidates of a rung that are promoted, lowest loss first.

        A loss that is None or not finite marks a failed candidate. Failed candidates count towards the size of the rung
        but are never promoted; the next best take their places. Equal losses keep the order of the mapping.

        Args:
            losses: Loss of each candidate on the rung.
            rung: Number of the rung, from 0.
            always: Candidates that are promoted in addition to the best unless they failed.
        """
        finite = {key: loss for key, loss in losses.items() if loss is not None and math.isfinite(loss)}
        count, order = self.count(len(losses), rung), sorted(finite, key=lambda key: finite[key])
        return tuple(key for index, key in enumerate(order) if index < count or key in always)

    def survivors(self, candidates: int) -> tuple[int, ...]:
        """Return how many of the candidates reach each rung if none fails."""
        numbers = [candidates]
        for rung in range(len(self.fractions) - 1):
            numbers.append(self.count(numbers[-1], rung))
        return tuple(numbers)


@dataclass(frozen=True)
class SizeHalving:
    """Successive halving over sizes: all arms train at the smallest size, and the best of them at each larger one.

    Nothing is resumed: a model of one size cannot continue as a model of another. The cost is therefore counted in
    FLOPs, and the smaller sizes come on top of what the largest one costs.

    Raises:
        ValueError: If `keep` has fewer than two shares, if they do not begin with 1, rise, leave [0, 1] or end with 0,
            or if `finalists` is below 1.
    """

    keep: tuple[float, ...] = (1.0, 0.5)
    """Share of all arms that train at each size; the numbers are rounded up. With fewer shares than sizes, they are
    those of the largest sizes. A share of 0 skips a size."""
    finalists: int = 1
    """Fewest arms that train at a size."""

    def __post_init__(self) -> None:
        if not isinstance(self.keep, tuple) or len(self.keep) < 2:
            raise ValueError(f"keep must have one share of the arms per size, such as 1/0.5, not {self.keep}")
        used = [share for share in self.keep if share]
        if self.keep[0] != 1 or not self.keep[-1] or sorted(used, reverse=True) != used or used[-1] < 0:
            raise ValueError(f"keep must start with 1, never rise, and end above 0, not {self.keep}")
        if not (isinstance(self.finalists, int) and self.finalists >= 1):
            raise ValueError(f"finalists must be a whole number of at least 1, not {self.finalists}")

    def count(self, arms: int, size: int) -> int:
        """Return how many of a ladder's arms train at a size, counted from 0 along `keep`; 0 if it is skipped."""
        share = self.keep[size]
        return min(arms, max(self.finalists, math.ceil(arms * share - 1e-9))) if share else 0
