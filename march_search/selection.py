"""Architectures of a feasible set in some order, built one by one when they are looked at."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from march_search.architecture import Architecture

if TYPE_CHECKING:
    from march_search.solver import FeasibleSet, Members

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
            for place in range(len(members.d_ff)):
                yield members.architecture(place)

    def members(self) -> "Members":
        """All of the selection as columns."""
        return self.source.decode(self.numbers())

    def select(self, numbers: Ints) -> "Picked":
        """The members of `source` with these numbers, in this order."""
        return Picked(self.source, numbers)

    def top(self, n: int, key: str = "difference", **lengths: Any) -> "Selection":
        """The `n` members with the smallest key, ties in the set's own order; 0 for all of them, sorted.

        Args:
            n: how many.
            key: `difference` from the budget, `params`, `flops`, or an axis; a `-` before it takes the largest first.
            **lengths: what `flops.flops_per_token` needs beyond its defaults.
        """
        best, keys = self.numbers(0, 0), np.zeros(0)
        for start in range(0, len(self), CHUNK):
            numbers = self.numbers(start, start + CHUNK)
            keys = np.concatenate([keys, self._keys(numbers, key, lengths)])
            best = np.concatenate([best, numbers])
            order = np.argsort(keys, kind="stable")[: n or None]
            best, keys = best[order], keys[order]
        return self.select(best)

    def _keys(self, numbers: Ints, key: str, lengths: dict[str, Any]) -> NDArray[Any]:
        """Sort keys of these members."""
        members, name = self.source.decode(numbers), key.removeprefix("-")
        if name == "difference":
            values: NDArray[Any] = np.abs(members.counted - self.source.budget.parameters)
        elif name == "params":
            values = members.counted
        elif name == "flops":
            values = members.flops_per_token(**lengths)
        else:
            values = members.axis(name)
            if values.dtype.kind not in "iuf":
                values = np.unique(values, return_inverse=True)[1]
        return -values if key.startswith("-") else values


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
