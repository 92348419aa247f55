"""Architectures of a feasible set in some order, built one by one when they are looked at."""

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
"""Members that are looked at together when a large set is walked."""


class Selection(Sequence[Architecture], ABC):
    """An indexable sequence of members of one `FeasibleSet`; slices are selections too."""

    @property
    @abstractmethod
    def source(self) -> "FeasibleSet":
        """The set the members are of."""

    @abstractmethod
    def numbers(self, start: int = 0, stop: int | None = None) -> Ints:
        """Numbers, in `source`, of the members from `start` up to `stop`."""

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
        place = range(len(self))[index]
        return self.source.decode(self.numbers(place, place + 1)).architecture()

    def __iter__(self) -> Iterator[Architecture]:
        for start in range(0, len(self), 4096):
            members = self.source.decode(self.numbers(start, start + 4096))
            for place in range(len(members)):
                yield members.architecture(place)

    def members(self) -> "Members":
        """All of the selection as columns."""
        return self.source.decode(self.numbers())

    def select(self, numbers: Ints) -> "Picked":
        """The members of `source` with these numbers, in this order."""
        return Picked(self.source, numbers)

    def top(self, n: int, key: str = "difference", setup: Setup = Setup()) -> "Selection":  # noqa: B008
        """The `n` members with the smallest key, ties in the set's own order; 0 for all of them, sorted.

        Args:
            n: how many.
            key: one of `members.MEASURES` or an axis; a `-` before it takes the largest first.
            setup: how a trial would run, for measures that depend on it.

        Raises:
            UsageError: there is no such key.
        """
        name = key.removeprefix("-")
        sign = -1 if key != name else 1
        return self.first(n, lambda members: sign * members.measure(name, setup))

    def first(self, n: int, measure: "Callable[[Members], NDArray[Any]]") -> "Selection":
        """The `n` members with the smallest measure, ties in this order; 0 for all of them, sorted.

        Args:
            n: how many.
            measure: (m,) numbers of m members.
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
    """The set they are of."""
    chosen: Ints
    """(n,) their numbers in it."""

    @property
    def source(self) -> "FeasibleSet":
        """The set the members are of."""
        return self.found

    def numbers(self, start: int = 0, stop: int | None = None) -> Ints:
        """Numbers of the members from `start` up to `stop`."""
        return self.chosen[start:stop]
