"""Sequences of members of a feasible set, in any order; each architecture is built when it is accessed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from march_search.architecture import Architecture
from march_search.cost import Setup

if TYPE_CHECKING:
    from march_search.members import Members
    from march_search.solver import FeasibleSet

Ints = NDArray[np.int64]

CHUNK = 1 << 20
"""Members processed at a time when iterating over a large set."""


class Selection(Sequence[Architecture], ABC):
    """An indexable sequence of members of one `FeasibleSet`; slices are selections too."""

    @property
    @abstractmethod
    def source(self) -> "FeasibleSet":
        """The feasible set that the members belong to."""

    @abstractmethod
    def numbers(self, start: int = 0, stop: int | None = None) -> Ints:
        """Return the indices in `source` of the members from `start` up to `stop`."""

    def __len__(self) -> int:
        return len(self.numbers())

    @overload
    def __getitem__(self, index: int) -> Architecture: ...
    @overload
    def __getitem__(self, index: slice) -> "Selection": ...
    def __getitem__(self, index: int | slice) -> "Architecture | Selection":
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self.select(self.numbers(start, max(start, stop)))
            return self.select(self.numbers()[index])
        position = range(len(self))[index]
        return self.source.decode(self.numbers(position, position + 1)).architecture()

    def __iter__(self) -> Iterator[Architecture]:
        for start in range(0, len(self), 4096):
            members = self.source.decode(self.numbers(start, start + 4096))
            for row in range(len(members)):
                yield members.architecture(row)

    def members(self) -> "Members":
        """Return the whole selection as columns."""
        return self.source.decode(self.numbers())

    def select(self, numbers: Ints) -> "Picked":
        """Return the members of `source` with these indices, in this order."""
        return Picked(self.source, numbers)

    def top(self, n: int, key: str = "difference", setup: Setup = Setup()) -> "Selection":  # noqa: B008
        """Return the `n` members with the smallest key; ties keep their order.

        Args:
            n: Number of members; 0 returns all of them, sorted.
            key: One of `members.MEASURES` or an axis; prefix it with `-` to put the largest first.
            setup: How a trial would run, for measures that depend on it.

        Raises:
            UsageError: If the key is unknown.
        """
        name = key.removeprefix("-")
        sign = -1 if key != name else 1
        return self.first(n, lambda members: sign * members.measure(name, setup))

    def first(self, n: int, measure: "Callable[[Members], NDArray[Any]]") -> "Selection":
        """Return the `n` members with the smallest measure; ties keep their order.

        Args:
            n: Number of members; 0 returns all of them, sorted.
            measure: Function that returns (m,) numbers for m members.
        """
        best, keys = self.numbers(0, 0), np.zeros(0)
        for start in range(0, len(self), CHUNK):
            numbers = self.numbers(start, start + CHUNK)
            keys = np.concatenate([keys, measure(self.source.decode(numbers))])
            best = np.concatenate([best, numbers])
            order = np.argsort(keys, kind="stable")[: n or None]
            best, keys = best[order], keys[order]
        return self.select(best)


@dataclass(frozen=True, eq=False)
class Picked(Selection):
    """Chosen members of a feasible set, in the order chosen."""

    found: "FeasibleSet"
    """The feasible set that the members belong to."""
    chosen: Ints
    """(n,) indices of the members in the set."""

    @property
    def source(self) -> "FeasibleSet":
        """The feasible set that the members belong to."""
        return self.found

    def numbers(self, start: int = 0, stop: int | None = None) -> Ints:
        """Return the indices of the members from `start` up to `stop`."""
        return self.chosen[start:stop]
