"""Every architecture of a space inside a budget: counted, indexed, enumerated, sampled, all exactly.

Parameters are linear in `d_ff`: `num_params = constant + slope * d_ff`. So all other axes are laid out as a grid of
int64 arrays, and for each point the feasible values of `d_ff` are one interval, found by division. What is kept is one
row for each point whose interval is not empty; members are numbered through these intervals and built on demand.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search import flops, parameters
from march_search.architecture import Architecture
from march_search.budget import Budget
from march_search.errors import ConfigError
from march_search.selection import Selection
from march_search.space import AXES, SearchSpace

Ints = NDArray[np.int64]

MESH = ("vocab_size", "d_model", "num_heads", "d_kv", "d_bottleneck")
"""Axes that are laid out as arrays; those before them in `AXES` are walked one combination at a time."""

_FAR = 2**61
"""More parameters than any architecture on the axes can have."""

OUTER = tuple(axis for axis in AXES if axis not in MESH and axis != "d_ff")


def solve(space: SearchSpace) -> "FeasibleSet":
    """All architectures of `space` that meet its budget and its rules.

    Raises:
        ConfigError: the space has no budget, or a rule cannot be calculated.
    """
    if space.budget is None:
        raise ConfigError(f'the space "{space.name}" states no budget: use space.with_budget("220M").')
    return solve_band(space, space.budget, space.budget.low, space.budget.high)


def solve_band(space: SearchSpace, budget: Budget, low: int, high: int) -> "FeasibleSet":
    """All architectures of `space` with `low` to `high` parameters, counted as `budget` says, both ends included."""
    low, high = (min(max(bound, -_FAR), _FAR) for bound in (low, high))
    d_ff = np.array(space.axes["d_ff"], dtype=np.int64)
    outer: list[_Combination] = []
    parts: list[Ints] = []
    for values in product(*(space.axes[axis] for axis in OUTER)):
        combination = _Combination(space, dict(zip(OUTER, values, strict=True)))
        if combination.is_real:
            rows = combination.rows(budget, low, high, d_ff)
            if rows.shape[1]:
                rows[0] = len(outer)
                outer.append(combination)
                parts.append(rows)
    rows = np.concatenate(parts, axis=1) if parts else np.zeros((6, 0), dtype=np.int64)
    return FeasibleSet(space, budget, d_ff, tuple(outer), rows)


@dataclass(frozen=True, eq=False)
class FeasibleSet(Selection):
    """Every feasible architecture, ordered: axis by axis as in `space.AXES`, the last (`d_ff`) changing fastest.

    Holds one row of 48 bytes for each run of consecutive `d_ff` values, not the architectures themselves.
    """

    space: SearchSpace
    """What was searched."""
    budget: Budget
    """What it was held to."""
    d_ff: Ints
    """Values of the `d_ff` axis, ascending."""
    combinations: "tuple[_Combination, ...]"
    """Values of the outer axes, one entry for each combination that has members."""
    runs: Ints
    """(6, R): combination, mesh index, first index in `d_ff`, length, constant, slope of each run."""

    @cached_property
    def ends(self) -> Ints:
        """(R,) number of members up to and including each run."""
        return np.cumsum(self.runs[3])

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.runs.shape[1] else 0

    def __contains__(self, architecture: object) -> bool:
        if not isinstance(architecture, Architecture) or not self.space.contains(architecture):
            return False
        total = self.budget.count == "total"
        count = architecture.num_params if total else architecture.num_params_non_embedding
        return self.budget.low <= count <= self.budget.high

    @property
    def source(self) -> "FeasibleSet":
        """The set itself."""
        return self

    def numbers(self, start: int = 0, stop: int | None = None) -> Ints:
        """Member numbers from `start` up to `stop`."""
        return np.arange(start, len(self) if stop is None else min(stop, len(self)))

    def decode(self, numbers: Ints) -> "Members":
        """The members with these numbers (n,), as columns."""
        run = np.searchsorted(self.ends, numbers, side="right")
        combination, mesh, first, length, constant, slope = self.runs[:, run]
        d_ff = self.d_ff[first + numbers - (self.ends[run] - length)]
        return Members(self, combination, mesh, d_ff, constant + slope * d_ff)

    def sample(self, n: int, seed: int) -> Selection:
        """`n` different members, uniformly at random: every subset is equally likely. Same seed, same sample.

        Raises:
            ConfigError: `n` is negative or more than the set holds.
        """
        if seed < 0:
            raise ConfigError(f"a seed is a whole number of at least 0, not {seed}.")
        if not 0 <= n <= len(self):
            raise ConfigError(f"cannot sample {n:,} different architectures: the feasible set holds {len(self):,}.")
        chosen = np.random.default_rng(seed).choice(len(self), size=n, replace=False) if n else self.numbers(0, 0)
        return self.select(np.asarray(chosen, dtype=np.int64))


@dataclass(frozen=True)
class Members:
    """Some members of a feasible set, as columns of equal length n."""

    found: FeasibleSet
    """The set they are of."""
    combination: Ints
    """(n,) index of each one's outer values."""
    mesh: Ints
    """(n,) index into that combination's mesh."""
    d_ff: Ints
    """(n,) feed-forward width."""
    counted: Ints
    """(n,) parameters in the budget's count."""

    def axis(self, name: str) -> NDArray[Any]:
        """(n,) values of one axis; `num_decoder_layers` as the real number of layers, `d_bottleneck` 0 for none."""
        if name == "d_ff":
            return self.d_ff
        if name in OUTER:
            return np.array(
                [c.depth if name == "num_decoder_layers" else c.outer[name] for c in self.found.combinations]
            )[self.combination]
        place = MESH.index(name)
        result = np.zeros(len(self.mesh), dtype=np.int64)
        for chosen, combination in self._by_combination():
            values = np.array([v or 0 for v in combination.mesh_axes[place]], dtype=np.int64)
            result[chosen] = values[np.unravel_index(self.mesh[chosen], combination.mesh_shape)[place]]
        return result

    def flops_per_token(self, **lengths: Any) -> NDArray[np.float64]:
        """(n,) operations per token of text; `lengths` as in `flops.flops_per_token`."""
        result = np.zeros(len(self.mesh))
        for chosen, combination in self._by_combination():
            shape = combination.shape(combination.mesh_values(self.mesh[chosen]))
            shape.d_ff = self.d_ff[chosen]
            result[chosen] = flops.flops_per_token(shape, **lengths)
        return result

    def _by_combination(self) -> "Iterator[tuple[Ints, _Combination]]":
        """(places, combination) for each combination present."""
        order = np.argsort(self.combination, kind="stable")
        starts = np.flatnonzero(np.diff(self.combination[order], prepend=-1))
        for places in np.split(order, starts[1:]) if len(order) else []:
            yield places, self.found.combinations[self.combination[places[0]]]

    def architecture(self, place: int = 0) -> Architecture:
        """The member at one place."""
        combination = self.found.combinations[self.combination[place]]
        index = np.unravel_index(int(self.mesh[place]), combination.mesh_shape)
        mesh = {axis: combination.mesh_axes[i][int(index[i])] for i, axis in enumerate(MESH)}
        return Architecture(**combination.outer, **mesh, d_ff=int(self.d_ff[place]))


class _Combination:
    """One choice of all outer axes, with the grid of the others."""

    def __init__(self, space: SearchSpace, outer: dict[str, Any]) -> None:
        self.space, self.outer = space, outer
        decoder_only = outer["structure"] == "decoder-only"
        first_depth = space.axes["num_decoder_layers"][0]
        self.is_real = not decoder_only or outer["num_decoder_layers"] == first_depth
        if decoder_only:
            self.outer = outer | {"num_decoder_layers": None}
        self.depth: int = self.outer["num_decoder_layers"] or outer["num_layers"]
        narrow: tuple[Any, ...] = (None,) if outer["bottleneck"] == "none" else space.axes["d_bottleneck"]
        self.mesh_axes = [narrow if axis == "d_bottleneck" else space.axes[axis] for axis in MESH]
        self.mesh_shape = tuple(len(values) for values in self.mesh_axes)
        self.mesh_arrays = [None if v == (None,) else np.array(v, dtype=np.int64) for v in self.mesh_axes]

    def shape(self, mesh: list[Any]) -> SimpleNamespace:
        """All fields but `d_ff`, those of the mesh as arrays."""
        return SimpleNamespace(**self.outer, **dict(zip(MESH, mesh, strict=True)))

    def rows(self, budget: Budget, low: int, high: int, d_ff: Ints) -> Ints:
        """(6, R) runs of feasible `d_ff`, in mesh order, the first row left for the combination's number."""
        shape = self.shape(list(_open_mesh(self.mesh_arrays)))
        allowed: Any = self._allowed(shape)
        if not np.any(allowed):
            return np.zeros((6, 0), dtype=np.int64)
        allowed = np.broadcast_to(allowed, self.mesh_shape)
        mesh = np.flatnonzero(allowed)
        if 4 * len(mesh) < allowed.size:  # few points are left: leave the others out of the arithmetic
            shape = self.shape(self.mesh_values(mesh))
            allowed = np.True_
        shape.d_ff = 0
        constant = _counted(shape, budget)
        shape.d_ff = 1
        slope = _counted(shape, budget) - constant
        near = (constant + slope * d_ff[-1] >= low) & (constant + slope * d_ff[0] <= high) & allowed
        near, constant, slope = np.broadcast_arrays(near, constant, slope)
        mesh = mesh[near] if near.ndim == 1 else np.flatnonzero(np.broadcast_to(near, self.mesh_shape))
        if near.ndim > 1:
            constant, slope = (np.broadcast_to(x, self.mesh_shape).ravel()[mesh] for x in (constant, slope))
        else:
            constant, slope = constant[near], slope[near]
        first = _places(d_ff, -((constant - low) // slope))
        stop = _places(d_ff, (high - constant) // slope + 1)
        rows = np.stack([np.zeros_like(mesh), mesh, first, stop - first, constant, slope])[:, stop > first]
        return self._split_by_rules(rows, d_ff)

    def _allowed(self, shape: SimpleNamespace) -> Any:
        """Where on the mesh an architecture exists and all rules without `d_ff` hold: a bool or a bool array."""
        allowed: Any = np.True_
        for refused, _ in parameters.refusals(shape):
            allowed = allowed & np.logical_not(refused)
        values = self._rule_values(vars(shape))
        for rule in self.space.rules:
            if "d_ff" not in rule.names and allowed.any():
                allowed = allowed & rule.holds(values)
        return allowed

    def mesh_values(self, mesh: Ints) -> list[Any]:
        """The mesh axes' values at these mesh indices, each (n,) or None."""
        index = np.unravel_index(mesh, self.mesh_shape)
        return [None if axis is None else axis[i] for axis, i in zip(self.mesh_arrays, index, strict=True)]

    def _rule_values(self, values: dict[str, Any]) -> dict[str, Any]:
        """Values as rules see them: no None."""
        narrow = values["d_model"] if values["d_bottleneck"] is None else values["d_bottleneck"]
        return values | {"num_decoder_layers": self.depth, "d_bottleneck": narrow}

    def _split_by_rules(self, rows: Ints, d_ff: Ints) -> Ints:
        """`rows` cut into the runs in which the rules about `d_ff` hold."""
        rules = [rule for rule in self.space.rules if "d_ff" in rule.names]
        if not rules or not rows.shape[1]:
            return rows
        owner = np.repeat(np.arange(rows.shape[1]), rows[3])
        place = np.arange(len(owner)) - np.repeat(np.cumsum(rows[3]) - rows[3], rows[3]) + rows[2][owner]
        values = self._rule_values(vars(self.shape(self.mesh_values(rows[1][owner]))) | {"d_ff": d_ff[place]})
        keep = np.logical_and.reduce([np.broadcast_to(rule.holds(values), owner.shape) for rule in rules])
        owner, place = owner[keep], place[keep]
        if not len(owner):
            return rows[:, :0]
        starts = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(place, prepend=-2) != 1))
        result = rows[:, owner[starts]]
        result[2] = place[starts]
        result[3] = np.diff(starts, append=len(owner))
        return result


def _open_mesh(arrays: list[Any]) -> Iterator[Any]:
    """Each array along its own dimension, so that together they broadcast to the mesh; None stays None."""
    for place, array in enumerate(arrays):
        yield None if array is None else array.reshape([-1 if i == place else 1 for i in range(len(arrays))])


def _counted(shape: SimpleNamespace, budget: Budget) -> Any:
    """Parameters in the budget's way of counting."""
    groups = parameters.param_groups(shape)
    left_out = () if budget.count == "total" else parameters.EMBEDDING_GROUPS
    return sum(count for group, count in groups.items() if group not in left_out)


def _places(values: Ints, bounds: Ints) -> Ints:
    """Index of the first of the ascending `values` that is not below each bound."""
    step = int(values[1] - values[0]) if len(values) > 1 else 1
    if np.all(np.diff(values) == step):
        return np.asarray(np.clip(-((values[0] - bounds) // step), 0, len(values)), dtype=np.int64)
    return np.asarray(np.searchsorted(values, bounds, side="left"), dtype=np.int64)
