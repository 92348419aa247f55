"""The grid of a space and where on it `d_ff` is feasible, found by division.

Parameters are linear in `d_ff`: `count = constant + slope * d_ff`. So five axes are laid out as a mesh of int64 arrays,
and for each point the feasible values of `d_ff` are one run of neighbours, cut only by rules that speak of it. The
other axes are walked: a `Family` is one value for each of them but the depths, a `Combination` one for each.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from march_search import parameters
from march_search.budget import Budget
from march_search.space import AXES, SearchSpace

Ints = NDArray[np.int64]

MESH = ("vocab_size", "d_model", "num_heads", "d_kv", "d_bottleneck")
"""Axes that are laid out as arrays."""

DEPTHS = ("num_layers", "num_decoder_layers")
"""Axes that are walked within a family."""

OTHERS = tuple(axis for axis in AXES if axis not in (*MESH, *DEPTHS, "d_ff"))
"""Axes that are walked outside."""


class Runs(NamedTuple):
    """Runs of neighbouring feasible `d_ff`, in order, as columns of length R."""

    mesh: Ints
    """Index of the point on the mesh."""
    first: Ints
    """Index of the first value on the `d_ff` axis."""
    length: Ints
    """How many values."""
    constant: Ints
    """Counted parameters without the feed-forward matrices."""
    slope: Ints
    """Counted parameters for each unit of `d_ff`."""

    def pick(self, rows: Any) -> "Runs":
        """The runs with these indices."""
        return Runs(*(column[rows] for column in self))

    def narrow(self) -> "Runs":
        """The same in 28 bytes a run: what indexes an axis fits 32 bits."""
        columns: list[Any] = [*(column.astype(np.int32) for column in self[:3]), *self[3:]]
        return Runs(*columns)


class Mesh:
    """The mesh of a space, with a bottleneck's width or without."""

    def __init__(self, space: SearchSpace, has_bottleneck: bool) -> None:
        """Takes its axes from the space."""
        narrow: tuple[Any, ...] = space.axes["d_bottleneck"] if has_bottleneck else (None,)
        self.axes = [narrow if axis == "d_bottleneck" else space.axes[axis] for axis in MESH]
        self.shape = tuple(len(values) for values in self.axes)
        self.arrays = [None if v == (None,) else np.array(v, dtype=np.int64) for v in self.axes]

    def open(self) -> dict[str, Any]:
        """Each axis along a dimension of its own, so that together they broadcast to the mesh; None stays None."""
        sides = [[-1 if i == place else 1 for i in range(len(MESH))] for place in range(len(MESH))]
        arrays = zip(MESH, self.arrays, sides, strict=True)
        return {axis: None if array is None else array.reshape(side) for axis, array, side in arrays}

    def values(self, points: Ints) -> dict[str, Any]:
        """The axes' values at these points, each (n,) or None."""
        places = zip(MESH, self.arrays, np.unravel_index(points, self.shape), strict=True)
        return {axis: None if array is None else array[place] for axis, array, place in places}

    def point(self, values: Mapping[str, Any]) -> int:
        """The point with these values; each must be on its axis."""
        places = [axis.index(values[name]) for name, axis in zip(MESH, self.axes, strict=True)]
        return int(np.ravel_multi_index(places, self.shape))


class Family:
    """One value for each axis of `OTHERS`, and the points of the mesh where rules allow it, whatever the depths."""

    def __init__(self, space: SearchSpace, mesh: Mesh, others: Mapping[str, Any]) -> None:
        """Applies the rules that speak neither of depths nor of `d_ff`."""
        self.others, self.mesh, self.rules = others, mesh, space.rules
        self.first_decoder_depth = space.axes["num_decoder_layers"][0]
        self.d_ff = np.array(space.axes["d_ff"], dtype=np.int64)
        gaps = set(np.diff(self.d_ff).tolist())
        self.step = gaps.pop() if len(gaps) == 1 else 0
        self.shape = SimpleNamespace(**others, **mesh.open(), d_ff=1)
        self.allowed = np.broadcast_to(self.keep(self.shape, lambda names: not names & {*DEPTHS, "d_ff"}), mesh.shape)
        self.points = np.flatnonzero(self.allowed)
        self.is_cut = 4 * len(self.points) < self.allowed.size
        if self.is_cut:  # few points are left: leave the others out of all arithmetic
            self.shape = SimpleNamespace(**others, **mesh.values(self.points), d_ff=1)
        self._stacks: dict[tuple[str, int], tuple[Any, Any]] = {}

    def keep(self, shape: SimpleNamespace, wanted: Callable[[frozenset[str]], Any]) -> Any:
        """Where the rules hold whose names are `wanted`: a bool or a bool array."""
        values = vars(shape)
        narrow = values["d_model"] if values["d_bottleneck"] is None else values["d_bottleneck"]
        values = values | {"d_bottleneck": narrow}
        result: Any = np.True_
        for rule in self.rules:
            if wanted(rule.names) and result.any():
                result = result & rule.holds(values)
        return result

    def flat(self, values: Any) -> NDArray[Any]:
        """(n,) one value for each point, from what was calculated with `shape`."""
        if self.is_cut:
            return np.broadcast_to(values, self.points.shape)
        spread = np.broadcast_to(values, self.mesh.shape)
        return spread.reshape(-1) if len(self.points) == spread.size else spread[self.allowed]

    def line(self, shape: SimpleNamespace, budget: Budget) -> tuple[Ints, Ints]:
        """(n,) constant and slope over `d_ff` of the counted parameters; sums of stacks are kept by depth."""
        constant: Any = sum(parameters.embedding_groups(shape).values()) if budget.count == "total" else 0
        slope: Any = 0
        for stack in parameters.stacks(shape):
            if stack not in self._stacks:
                groups = parameters.stack_groups(shape, *stack)
                rise = groups.pop(f"{stack[0]}.feed_forward")
                self._stacks[stack] = sum(groups.values()), rise
            constant, slope = constant + self._stacks[stack][0], slope + self._stacks[stack][1]
        return self.flat(constant), self.flat(slope)

    def forget(self) -> None:
        """Drops the arrays that only the search needs; what members are shown with stays."""
        self._stacks.clear()
        self.shape, self.allowed, self.points = SimpleNamespace(), self.allowed[:0], self.points[:0]

    def places(self, bounds: Ints) -> Ints:
        """Index of the first `d_ff` that is not below each bound."""
        if self.step:
            return np.asarray(np.clip(-((self.d_ff[0] - bounds) // self.step), 0, len(self.d_ff)), dtype=np.int64)
        return np.asarray(np.searchsorted(self.d_ff, bounds, side="left"), dtype=np.int64)


class Combination:
    """One member of a family: one value for each axis that is not on the mesh, but `d_ff`."""

    def __init__(self, family: Family, depths: Sequence[Any]) -> None:
        """Sets the depths, in the order of `DEPTHS`."""
        decoder_only = family.others["structure"] == "decoder-only"
        self.is_real = not decoder_only or depths[1] == family.first_decoder_depth
        """False for a repetition: a decoder-only model has one depth."""
        self.family, self.mesh = family, family.mesh
        self.outer = {
            **family.others,
            "num_layers": depths[0],
            "num_decoder_layers": None if decoder_only else depths[1],
        }
        self.depth: int = self.outer["num_decoder_layers"] or depths[0]

    def shape(self, points: Ints) -> SimpleNamespace:
        """All fields but `d_ff` at these points, those of the mesh as (n,) arrays."""
        return SimpleNamespace(**self.outer, **self.mesh.values(points))

    def runs(self, budget: Budget, low: int, high: int) -> Runs:
        """The runs of `d_ff` with `low` to `high` parameters, counted as `budget` says."""
        family, d_ff = self.family, self.family.d_ff
        shape = SimpleNamespace(**(vars(family.shape) | self.outer))
        allowed = self._allowed(shape)
        if not len(family.points) or not np.any(allowed):
            return Runs(*(family.points[:0],) * 5)
        constant, slope = family.line(shape, budget)
        near = (constant + slope * d_ff[-1] >= low) & (constant + slope * d_ff[0] <= high)
        rows = np.flatnonzero(near & family.flat(allowed))
        constant, slope = constant[rows], slope[rows]
        first = family.places(-((constant - low) // slope))
        length = family.places((high - constant) // slope + 1) - first
        runs = Runs(family.points[rows], first, length, constant, slope)
        return self._split_by_rules(runs if length.all() else runs.pick(length > 0))

    def _allowed(self, shape: SimpleNamespace) -> Any:
        """Where an architecture exists and the rules about depths hold: a bool or a bool array over the shape."""
        allowed: Any = np.True_
        for refused, _ in parameters.refusals(shape):
            if np.any(refused):
                allowed = allowed & np.logical_not(refused)
        shape = SimpleNamespace(**(vars(shape) | {"num_decoder_layers": self.depth}))
        return allowed & self.family.keep(shape, lambda names: names & {*DEPTHS} and "d_ff" not in names)

    def _split_by_rules(self, runs: Runs) -> Runs:
        """`runs` cut into those in which the rules about `d_ff` hold."""
        if not len(runs.mesh) or not any("d_ff" in rule.names for rule in self.family.rules):
            return runs
        owner = np.repeat(np.arange(len(runs.mesh)), runs.length)
        place = np.arange(len(owner)) - (np.cumsum(runs.length) - runs.length - runs.first)[owner]
        shape = self.shape(runs.mesh[owner])
        shape.d_ff, shape.num_decoder_layers = self.family.d_ff[place], self.depth
        keep = np.broadcast_to(self.family.keep(shape, lambda names: "d_ff" in names), owner.shape)
        owner, place = owner[keep], place[keep]
        starts = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(place, prepend=-2) != 1))
        cut = runs.pick(owner[starts])
        return cut._replace(first=place[starts], length=np.diff(starts, append=len(owner)))
