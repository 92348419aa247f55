"""Find the untried member of a feasible set that is nearest to a sampler's proposal.

`FeasibleSet.nearest` compares every member. This module compares whole intervals of adjacent `d_ff` values: the
distance of an interval is that of the wanted `d_ff`, or of the end nearest to it; if the axis lacks that value, the
member chosen may be off by one step. A search of 8 million members takes a tenth of a second.
"""

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search.space.axes import AXES
from march_search.space.feasible_set import FeasibleSet
from march_search.space.grid import MESH, Combination, Ints, Mesh

Numbers = NDArray[np.float64]


class Neighbours:
    """Nearest-member search in one feasible set, with columns that are computed once.

    The distance is the square of `Members.octaves_from`, over the given axes.
    """

    def __init__(self, found: FeasibleSet) -> None:
        """Compute the columns of the intervals of `found`."""
        self.found = found
        intervals = np.diff(np.append(found.starts, len(found.intervals.mesh)))
        self._combination = np.repeat(np.arange(len(intervals), dtype=np.int32), intervals)
        self._low = np.log2(found.d_ff[found.intervals.first])
        self._high = np.log2(found.d_ff[found.intervals.first + found.intervals.length - 1])

    def nearest(self, wanted: Mapping[str, Any], tried: Collection[int], fixed: Mapping[str, Any]) -> int | None:
        """Return the index of the nearest member that is not in `tried`; None if no member is left.

        Args:
            wanted: Values of some axes; `num_decoder_layers` is the actual number of layers.
            tried: Indices of members to exclude.
            fixed: Values that the member must have.
        """
        ends = self._squares(wanted, fixed)
        most = min(len(tried) + 1, len(ends))  # among the nearest members of this many intervals, one is untried
        intervals = np.argpartition(ends, most - 1)[:most]
        intervals = np.sort(intervals[np.isfinite(ends[intervals])])
        begins, lengths = self.found.begins[intervals], self.found.intervals.length[intervals].astype(np.int64)
        numbers = np.repeat(begins - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        d_ff = self.found.decode(numbers).d_ff
        outside = np.isin(numbers, np.fromiter(tried, dtype=np.int64, count=len(tried)))
        if "d_ff" in fixed:
            outside |= d_ff != fixed["d_ff"]
        if outside.all():
            return None
        squares = np.repeat(self._outer_squares(wanted, fixed, intervals), lengths)
        if "d_ff" in wanted:
            squares = squares + (np.log2(d_ff) - np.log2(wanted["d_ff"])) ** 2
        return int(numbers[np.argmin(np.where(outside, np.inf, squares))])

    def values(self, axis: str) -> list[Any]:
        """Return the values of an axis that members have: numbers in ascending order, others in the space's order."""
        if axis == "d_ff":
            first, last = self.found.intervals.first, self.found.intervals.first + self.found.intervals.length
            size = len(self.found.d_ff) + 1
            covered = np.cumsum(np.bincount(first, minlength=size) - np.bincount(last, minlength=size)) > 0
            return [int(value) for value in self.found.d_ff[covered[:-1]]]
        if axis in MESH:
            present = {
                int(mesh.axes[MESH.index(axis)][index] or 0)
                for mesh, points in self._points
                for index in np.unique(np.unravel_index(points, mesh.shape)[MESH.index(axis)])
            }
            return sorted(present)
        seen = {_outer(combination, axis) for combination in self.found.combinations}
        return sorted(seen, key=None if all(type(v) is int for v in seen) else self.found.space.axes[axis].index)

    @cached_property
    def _points(self) -> list[tuple[Mesh, Ints]]:
        """Meshes, each with its points that have members."""
        meshes = {id(c.mesh): c.mesh for c in self.found.combinations}
        owner = np.array([list(meshes).index(id(c.mesh)) for c in self.found.combinations])[self._combination]
        return [(mesh, np.unique(self.found.intervals.mesh[owner == k])) for k, mesh in enumerate(meshes.values())]

    def _squares(self, wanted: Mapping[str, Any], fixed: Mapping[str, Any]) -> Numbers:
        """Return the (R,) squared distance of the nearest member of each interval."""
        squares = self._outer_squares(wanted, fixed, slice(None))
        if "d_ff" in wanted:
            target = np.log2(wanted["d_ff"])
            squares += np.maximum(0, np.maximum(self._low - target, target - self._high)) ** 2
        if "d_ff" in fixed:
            target = np.log2(fixed["d_ff"])
            squares[(self._low > target) | (self._high < target)] = np.inf
        return squares

    def _outer_squares(self, wanted: Mapping[str, Any], fixed: Mapping[str, Any], intervals: Any) -> Numbers:
        """Return the squared distance of these intervals without `d_ff`; infinite where a fixed axis differs."""
        combinations = self.found.combinations
        outer = np.zeros(len(combinations))
        for index, combination in enumerate(combinations):
            for axis in AXES:
                if axis not in (*MESH, "d_ff"):
                    outer[index] += _square(axis, _outer(combination, axis), wanted, fixed)
        owner = self._combination[intervals]
        squares: Numbers = outer[owner]
        meshes = {id(c.mesh): c.mesh for c in combinations}
        tables = {key: _mesh_squares(mesh, wanted, fixed) for key, mesh in meshes.items()}
        if len(tables) == 1:
            squares += next(iter(tables.values()))[self.found.intervals.mesh[intervals]]
            return squares
        kinds = np.array([list(meshes).index(id(c.mesh)) for c in combinations])[owner]
        for kind, table in enumerate(tables.values()):
            mask = kinds == kind
            squares[mask] += table[self.found.intervals.mesh[intervals][mask]]
        return squares


def _outer(combination: Combination, axis: str) -> Any:
    """Return the value of an axis that is not on the mesh."""
    return combination.depth if axis == "num_decoder_layers" else combination.outer[axis]


def _mesh_squares(mesh: Mesh, wanted: Mapping[str, Any], fixed: Mapping[str, Any]) -> Numbers:
    """Return the (points,) squared distance over the axes of a mesh."""
    total = np.zeros(())
    for axis, values in zip(MESH, mesh.axes, strict=True):
        total = np.add.outer(total, [_square(axis, value or 0, wanted, fixed) for value in values])
    return total.reshape(-1)


def _square(axis: str, value: Any, wanted: Mapping[str, Any], fixed: Mapping[str, Any]) -> float:
    """Return the squared distance of one value; infinite if it differs from a fixed value."""
    if axis in fixed and value != fixed[axis]:
        return float("inf")
    if axis not in wanted or value == wanted[axis]:
        return 0.0
    if type(value) is int and type(wanted[axis]) is int:
        return float(np.log2(max(value, 1) / max(wanted[axis], 1)) ** 2)
    return 1.0
