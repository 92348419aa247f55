"""One choice of a space's outer axes, with the grid of the others: where `d_ff` is feasible, found by division.

Parameters are linear in `d_ff`: `count = constant + slope * d_ff`. So the other axes of the mesh are laid out as int64
arrays, and for each point the feasible values of `d_ff` are one run of neighbours, cut only by rules that speak of it.
"""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from march_search import parameters
from march_search.budget import Budget
from march_search.space import AXES, SearchSpace

Ints = NDArray[np.int64]

MESH = ("vocab_size", "d_model", "num_heads", "d_kv", "d_bottleneck")
"""Axes that are laid out as arrays; those before them in `AXES` are walked one combination at a time."""

OUTER = tuple(axis for axis in AXES if axis not in MESH and axis != "d_ff")
"""Axes that are walked; the two depths are the last of them."""

Line = tuple[Any, Any]
"""Constant and slope of a count that is linear in `d_ff`: ints or arrays."""


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


class Combination:
    """One value for each outer axis."""

    def __init__(self, space: SearchSpace, outer: Mapping[str, Any]) -> None:
        """Takes the mesh axes from the space; `outer` has a value for each axis of `OUTER`."""
        decoder_only = outer["structure"] == "decoder-only"
        self.is_real = not decoder_only or outer["num_decoder_layers"] == space.axes["num_decoder_layers"][0]
        """False for a repetition: a decoder-only model has one depth."""
        self.rules = space.rules
        self.outer = {**outer, "num_decoder_layers": None} if decoder_only else dict(outer)
        self.depth: int = self.outer["num_decoder_layers"] or outer["num_layers"]
        narrow: tuple[Any, ...] = (None,) if outer["bottleneck"] == "none" else space.axes["d_bottleneck"]
        self.mesh_axes = [narrow if axis == "d_bottleneck" else space.axes[axis] for axis in MESH]
        self.mesh_shape = tuple(len(values) for values in self.mesh_axes)
        self.mesh_arrays = [None if v == (None,) else np.array(v, dtype=np.int64) for v in self.mesh_axes]

    def shape(self, mesh: list[Any]) -> SimpleNamespace:
        """All fields but `d_ff`, those of the mesh as arrays."""
        return SimpleNamespace(**self.outer, **dict(zip(MESH, mesh, strict=True)))

    def mesh_values(self, mesh: Ints) -> list[Any]:
        """The mesh axes' values at these mesh indices, each (n,) or None."""
        index = np.unravel_index(mesh, self.mesh_shape)
        return [None if axis is None else axis[i] for axis, i in zip(self.mesh_arrays, index, strict=True)]

    def mesh_index(self, values: Mapping[str, Any]) -> int:
        """Index of the point with these values; each must be on its axis."""
        places = [axis.index(values[name]) for name, axis in zip(MESH, self.mesh_axes, strict=True)]
        return int(np.ravel_multi_index(places, self.mesh_shape))

    def runs(self, budget: Budget, low: int, high: int, d_ff: Ints, stacks: dict[Any, Line]) -> Runs:
        """The runs of `d_ff` with `low` to `high` parameters.

        Args:
            budget: how parameters are counted.
            low: fewest.
            high: most.
            d_ff: values of that axis, ascending.
            stacks: sums over the whole mesh by stack and depth, kept between combinations that differ in depth only.
        """
        shape = self.shape(list(_open_mesh(self.mesh_arrays)))
        allowed = np.broadcast_to(self._allowed(shape), self.mesh_shape)
        mesh = np.flatnonzero(allowed)
        if not len(mesh):
            return Runs(*(mesh,) * 5)
        if 4 * len(mesh) < allowed.size:  # few points are left: leave the others out of the arithmetic
            shape, stacks = self.shape(self.mesh_values(mesh)), {}
            constant, slope = np.broadcast_arrays(*_line(shape, budget, stacks), mesh)[:2]
        else:
            lines = np.broadcast_arrays(*_line(shape, budget, stacks), allowed)[:2]
            constant, slope = (line.reshape(-1) if len(mesh) == allowed.size else line[allowed] for line in lines)
        near = np.flatnonzero((constant + slope * d_ff[-1] >= low) & (constant + slope * d_ff[0] <= high))
        constant, slope = constant[near], slope[near]
        first = _places(d_ff, -((constant - low) // slope))
        length = _places(d_ff, (high - constant) // slope + 1) - first
        runs = Runs(mesh[near], first, length, constant, slope)
        return self._split_by_rules(runs if length.all() else runs.pick(length > 0), d_ff)

    def _allowed(self, shape: SimpleNamespace) -> Any:
        """Where on the mesh an architecture exists and all rules without `d_ff` hold: a bool or a bool array."""
        allowed: Any = np.True_
        for refused, _ in parameters.refusals(shape):
            allowed = allowed & np.logical_not(refused)
        values = self._rule_values(vars(shape))
        for rule in self.rules:
            if "d_ff" not in rule.names and allowed.any():
                allowed = allowed & rule.holds(values)
        return allowed

    def _rule_values(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values as rules see them: no None."""
        narrow = values["d_model"] if values["d_bottleneck"] is None else values["d_bottleneck"]
        return values | {"num_decoder_layers": self.depth, "d_bottleneck": narrow}

    def _split_by_rules(self, runs: Runs, d_ff: Ints) -> Runs:
        """`runs` cut into those in which the rules about `d_ff` hold."""
        rules = [rule for rule in self.rules if "d_ff" in rule.names]
        if not rules or not len(runs.mesh):
            return runs
        owner = np.repeat(np.arange(len(runs.mesh)), runs.length)
        place = np.arange(len(owner)) - (np.cumsum(runs.length) - runs.length - runs.first)[owner]
        values = self._rule_values(vars(self.shape(self.mesh_values(runs.mesh[owner]))) | {"d_ff": d_ff[place]})
        keep = np.logical_and.reduce([np.broadcast_to(rule.holds(values), owner.shape) for rule in rules])
        owner, place = owner[keep], place[keep]
        starts = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(place, prepend=-2) != 1))
        cut = runs.pick(owner[starts])
        return cut._replace(first=place[starts], length=np.diff(starts, append=len(owner)))


def _open_mesh(arrays: list[Any]) -> Iterator[Any]:
    """Each array along its own dimension, so that together they broadcast to the mesh; None stays None."""
    for place, array in enumerate(arrays):
        yield None if array is None else array.reshape([-1 if i == place else 1 for i in range(len(arrays))])


def _line(shape: SimpleNamespace, budget: Budget, stacks: dict[Any, Line]) -> Line:
    """Counted parameters as a line over `d_ff`; looks stacks up in `stacks`, and keeps them there."""
    shape.d_ff = 1
    constant: Any = sum(parameters.embedding_groups(shape).values()) if budget.count == "total" else 0
    slope: Any = 0
    for stack, num_layers in parameters.stacks(shape):
        if (stack, num_layers) not in stacks:
            groups = parameters.stack_groups(shape, stack, num_layers)
            rise = groups.pop(f"{stack}.feed_forward")
            stacks[stack, num_layers] = sum(groups.values()), rise
        own, rise = stacks[stack, num_layers]
        constant, slope = constant + own, slope + rise
    return constant, slope


def _places(values: Ints, bounds: Ints) -> Ints:
    """Index of the first of the ascending `values` that is not below each bound."""
    step = int(values[1] - values[0]) if len(values) > 1 else 1
    if np.all(np.diff(values) == step):
        return np.asarray(np.clip(-((values[0] - bounds) // step), 0, len(values)), dtype=np.int64)
    return np.asarray(np.searchsorted(values, bounds, side="left"), dtype=np.int64)
