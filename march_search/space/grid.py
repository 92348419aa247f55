"""Find the feasible values of `d_ff` at every point of a search space's grid.

The parameter count is linear in `d_ff`: `count = constant + slope * d_ff`. The feasible values at one grid point are
therefore one interval, found by division; only rules that mention `d_ff` can split it. Six axes form a mesh of int64
arrays that is searched at once. The other axes are looped over: a `Family` fixes all of them except the depths, and a
`Combination` fixes the depths as well.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from march_search.architecture import parameters
from march_search.architecture.block import BlockCounts, find_block, layer_counts, parse_block
from march_search.errors import ConfigError
from march_search.space.axes import AXES, rule_values
from march_search.space.budget import Budget
from march_search.space.limits import Limit
from march_search.space.space import SearchSpace

Ints = NDArray[np.int64]

MESH = ("vocab_size", "d_model", "num_heads", "num_key_value_heads", "d_kv", "d_bottleneck")
"""Axes that form the mesh."""

DEPTHS = ("num_layers", "num_decoder_layers")
"""Axes that are looped over within a family."""

OTHERS = tuple(axis for axis in AXES if axis not in (*MESH, *DEPTHS, "d_ff"))
"""Axes that are looped over outside, one family per combination of values."""


MOST_WORK = 2**28
"""Largest number of mesh points to search, over all combinations; about a minute and 8 GB without any rule."""

LEAST_WORK = 2**11
"""Mesh points that a combination counts as at least, because each takes some time."""

MOST_SPLIT = 2**25
"""Largest number of architectures of one depth for which rules about `d_ff` are checked; about 2 GB."""

MOST_PARAMETERS = 2**61
"""Bound below which parameter counts are calculated, because they must fit into 64 bits."""


def check_size(space: SearchSpace) -> None:
    """Check that a space can be searched in memory and that its parameter counts fit into 64 bits.

    Raises:
        ConfigError: If not. The message names the widest axes.
    """
    sizes = {axis: len(space.axes[axis]) for axis in AXES if axis != "d_ff"}
    mesh = math.prod(sizes[axis] for axis in MESH)
    combinations = math.prod(sizes.values()) // mesh
    work = combinations * max(mesh, LEAST_WORK)
    if work > MOST_WORK:
        widest = sorted((axis for axis in sizes if sizes[axis] > 1), key=lambda axis: -sizes[axis])[:3]
        raise ConfigError(
            f"the space {space.name} is too large to search: it takes the time of {work:.2g} grid points, not counting "
            f"d_ff, and the limit is {MOST_WORK:.2g}. Use fewer values of "
            f"{', '.join(f'{axis} ({sizes[axis]:,})' for axis in widest)}."
        )
    largest = _bound(space)
    if largest >= MOST_PARAMETERS:
        raise ConfigError(
            f"the space {space.name} has shapes of up to {largest:.1e} parameters, and at most "
            f"{MOST_PARAMETERS:.1e} can be counted: lower the largest d_model, num_heads, d_kv or d_ff."
        )


def _bound(space: SearchSpace) -> int:
    """Return an upper bound of the parameters of all architectures on the axes, as an integer of any size."""
    axes = ("d_model", "num_heads", "d_kv", "d_ff", "vocab_size", "max_length", "num_layers")
    width, heads, d_kv, d_ff, vocab_size, max_length, depth = (max(space.axes[axis]) for axis in axes)
    depth += max(other or depth for other in space.axes["num_decoder_layers"])
    inner = 2 * heads * d_kv  # a head schedule has up to twice the heads or the width in some layers
    attention = 8 * width * inner + ("layer" in space.axes["cross_attention"]) * 2 * inner**2 + 42 * inner + 2 * width
    feed_forward = max(_block_bound(text, width, d_ff) for text in space.axes["block"])
    return int(depth * (attention + feed_forward + 2 * width**2 + 9 * width) + width * (2 * vocab_size + max_length))


def _block_bound(text: str | None, width: int, d_ff: int) -> int:
    """Return the parameters of the largest feed-forward layer, as an integer of any size."""
    if text is None:
        return (3 * width + 2) * d_ff
    name, fields = parse_block(text)
    return int(find_block(name).num_params(width, d_ff, **fields))


def check_operations(space: SearchSpace, sequence_length: int) -> None:
    """Check that the operations of one example, forward and backward, fit into 64 bits for all shapes on the axes.

    Raises:
        ConfigError: If not.
    """
    heads, d_kv, depth = (max(space.axes[axis]) for axis in ("num_heads", "d_kv", "num_layers"))
    scores = 2 * (depth + max(other or depth for other in space.axes["num_decoder_layers"])) * heads * d_kv
    if 16 * sequence_length * (_bound(space) + sequence_length * scores) >= 2**62:
        raise ConfigError(
            f"the space {space.name} has shapes whose operations exceed 64 bits at {sequence_length:,} tokens per "
            "sequence: lower the largest d_model, num_heads, d_kv or d_ff, or the sequence length."
        )


class Intervals(NamedTuple):
    """Intervals of feasible `d_ff` values, in order, as columns of length R."""

    mesh: Ints
    """Index of the mesh point."""
    first: Ints
    """Index of the interval's first value on the `d_ff` axis."""
    length: Ints
    """Number of values in the interval."""
    constant: Ints
    """Counted parameters without the feed-forward matrices."""
    slope: Ints
    """Counted parameters per unit of `d_ff`."""

    def pick(self, rows: Any) -> "Intervals":
        """Return the selected rows."""
        return Intervals(*(column[rows] for column in self))

    def narrow(self) -> "Intervals":
        """Return a copy that takes 28 bytes per row; indices fit in 32 bits."""
        columns: list[Any] = [*(column.astype(np.int32) for column in self[:3]), *self[3:]]
        return Intervals(*columns)


class Mesh:
    """The mesh of a space, with or without the `d_bottleneck` axis."""

    def __init__(self, space: SearchSpace, has_bottleneck: bool) -> None:
        """Take the axes from `space`."""
        narrow: tuple[Any, ...] = space.axes["d_bottleneck"] if has_bottleneck else (None,)
        self.axes = [narrow if axis == "d_bottleneck" else space.axes[axis] for axis in MESH]
        self.shape = tuple(len(values) for values in self.axes)
        self.arrays = [None if v == (None,) else np.array(v, dtype=np.int64) for v in self.axes]

    def open(self) -> dict[str, Any]:
        """Return each axis shaped so that all of them broadcast to the mesh; None stays None."""
        sides = [[-1 if i == axis else 1 for i in range(len(MESH))] for axis in range(len(MESH))]
        arrays = zip(MESH, self.arrays, sides, strict=True)
        return {axis: None if array is None else array.reshape(side) for axis, array, side in arrays}

    def values(self, points: Ints) -> dict[str, Any]:
        """Return the axis values at these points, each (n,) or None."""
        indices = zip(MESH, self.arrays, np.unravel_index(points, self.shape), strict=True)
        return {axis: None if array is None else array[index] for axis, array, index in indices}

    def point(self, values: Mapping[str, Any]) -> int:
        """Return the point with these values, each of which must be on its axis."""
        indices = [axis.index(values[name]) if len(axis) > 1 else 0 for name, axis in zip(MESH, self.axes, strict=True)]
        return int(np.ravel_multi_index(indices, self.shape))


class BlockForm(NamedTuple):
    """How the counts of one layer with a user's block depend on `d_ff`, over all its values and at every width."""

    params_is_line: bool
    """Whether the parameters rise linearly."""
    active_is_line: bool
    """Whether the active parameters rise linearly."""
    rises: bool
    """Whether neither parameters, operations nor activations fall anywhere."""


class Family:
    """One value per axis in `OTHERS`, and the mesh points that the rules allow at any depth."""

    def __init__(self, space: SearchSpace, mesh: Mesh, others: Mapping[str, Any]) -> None:
        """Apply the rules that mention neither the depths nor `d_ff`."""
        self.others, self.mesh, self.rules = others, mesh, space.rules
        self.first_decoder_depth = space.axes["num_decoder_layers"][0]
        self.d_ff = np.array(space.axes["d_ff"], dtype=np.int64)
        gaps = set(np.diff(self.d_ff).tolist())
        self.step = gaps.pop() if len(gaps) == 1 else 0
        self.shape = SimpleNamespace(**others, **mesh.open(), d_ff=1)
        self.allowed = np.broadcast_to(self.keep(self.shape, lambda names: not names & {*DEPTHS, "d_ff"}), mesh.shape)
        self.points = np.flatnonzero(self.allowed)
        self.is_cut = 4 * len(self.points) < self.allowed.size
        if self.is_cut:  # few points are left, so calculate for those points only
            self.shape = SimpleNamespace(**others, **mesh.values(self.points), d_ff=1)
        self._stacks: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._forms: dict[bytes, BlockForm] = {}

    def keep(self, shape: SimpleNamespace, wanted: Callable[[frozenset[str]], Any]) -> Any:
        """Return where the rules hold, as a bool or bool array; apply only rules whose names satisfy `wanted`."""
        values = rule_values({"num_layers": 0, "num_decoder_layers": 0} | vars(shape))
        result: Any = np.True_
        for rule in self.rules:
            if wanted(rule.names) and result.any():
                result = result & rule.holds(values)
        return result

    def flat(self, values: Any) -> NDArray[Any]:
        """Return (n,) values, one per allowed point, from values that were calculated with `shape`."""
        if self.is_cut:
            return np.broadcast_to(values, self.points.shape)
        spread = np.broadcast_to(values, self.mesh.shape)
        return spread.reshape(-1) if len(self.points) == spread.size else spread[self.allowed]

    def line(self, shape: SimpleNamespace, budget: Budget) -> tuple[Ints, Ints]:
        """Return the (n,) constant and slope in `d_ff` of the parameter count; cache the sums per stack and depth."""
        constant: Any = sum(parameters.embedding_groups(shape).values()) if budget.count != "non-embedding" else 0
        slope: Any = 0
        for stack in parameters.stacks(shape):
            if stack not in self._stacks:
                rise, step = self._rise(shape, stack[1], budget)
                shape.d_ff = step
                total = sum(parameters.stack_groups(shape, *stack, budget.count == "active").values())
                self._stacks[stack] = total - step * rise, rise
            constant, slope = constant + self._stacks[stack][0], slope + self._stacks[stack][1]
        return self.flat(constant), self.flat(slope)

    def _rise(self, shape: SimpleNamespace, num_layers: int, budget: Budget) -> tuple[Any, int]:
        """Return the slope in `d_ff` of the feed-forward parameters of a stack, and a `d_ff` at which it holds."""
        groups = parameters.layer_groups(shape, num_layers)
        if shape.block is None:
            return parameters.feed_forward_line(shape, groups)[1], 1
        first, second = self.d_ff[:2].tolist()
        low, high = (
            parameters.feed_forward(SimpleNamespace(**(vars(shape) | {"d_ff": d_ff})), groups, budget.count == "active")
            for d_ff in (first, second)
        )
        return (high - low) // (second - first), first

    def is_line(self, shape: SimpleNamespace, budget: Budget) -> bool:
        """Return whether the feed-forward parameters rise linearly over all values of `d_ff`, at every width."""
        form = self._form(shape)
        return form.active_is_line if budget.count == "active" else form.params_is_line

    def rises(self, shape: SimpleNamespace) -> bool:
        """Return whether no cost of a feed-forward layer falls anywhere as `d_ff` rises, at every width."""
        return self._form(shape).rises

    def _form(self, shape: SimpleNamespace) -> BlockForm:
        """Return the form of a layer's counts over all values of `d_ff`; cache it per set of widths."""
        if shape.block is None:
            return BlockForm(True, True, True)
        widths = {id(w): np.ravel(w) for _, n in parameters.stacks(shape) for w in parameters.layer_widths(shape, n)}
        unique = np.unique(np.concatenate(list(widths.values())))
        if (key := unique.tobytes()) not in self._forms:
            counts = layer_counts(shape.block, unique[:, None], self.d_ff[None, :])
            steps = BlockCounts(*(np.diff(np.broadcast_to(c, (len(unique), len(self.d_ff)))) for c in counts))
            self._forms[key] = BlockForm(
                params_is_line=self._is_line(steps.params),
                active_is_line=self._is_line(steps.active),
                rises=all(bool((step >= 0).all()) for step in (steps.params, steps.flops, steps.scalars)),
            )
        return self._forms[key]

    def _is_line(self, steps: Ints) -> bool:
        """Return whether (widths, values - 1) differences are those of rising lines in `d_ff`."""
        gaps = np.diff(self.d_ff)
        slopes = steps[:, :1] // gaps[:1]
        return bool(slopes.size and (slopes > 0).all() and (steps == slopes * gaps).all())

    def counts(self, shape: SimpleNamespace, budget: Budget) -> Iterator[Ints]:
        """Yield the (n,) parameter counts at each value of `d_ff`, for a block whose formula is not linear."""
        is_active = budget.count == "active"
        rest: Any = sum(parameters.embedding_groups(shape).values()) if budget.count != "non-embedding" else 0
        layers = [parameters.layer_groups(shape, num_layers) for _, num_layers in parameters.stacks(shape)]
        shape.d_ff = int(self.d_ff[0])
        for (stack, num_layers), own in zip(parameters.stacks(shape), layers, strict=True):
            groups = parameters.stack_groups(shape, stack, num_layers, is_active)
            rest = rest + sum(groups.values()) - parameters.feed_forward(shape, own, is_active)
        rest = self.flat(rest)
        for d_ff in self.d_ff.tolist():
            shape.d_ff = d_ff
            yield rest + self.flat(sum(parameters.feed_forward(shape, own, is_active) for own in layers))

    def release(self) -> None:
        """Drop the arrays that only the search needs."""
        self._stacks.clear()
        self.shape, self.allowed, self.points = SimpleNamespace(), self.allowed[:0], self.points[:0]

    def first_at_least(self, bounds: Ints) -> Ints:
        """Return the index of the first `d_ff` value that is not below each bound."""
        if self.step:
            return np.asarray(np.clip(-((self.d_ff[0] - bounds) // self.step), 0, len(self.d_ff)), dtype=np.int64)
        return np.asarray(np.searchsorted(self.d_ff, bounds, side="left"), dtype=np.int64)


class Combination:
    """A family with fixed depths: one value for every axis except `d_ff` and those of the mesh."""

    def __init__(self, family: Family, depths: Sequence[Any]) -> None:
        """Set the depths, in the order of `DEPTHS`."""
        decoder_only = family.others["structure"] == "decoder-only"
        self.is_real = not decoder_only or depths[1] == family.first_decoder_depth
        """False for a duplicate: a decoder-only model has one depth."""
        self.family, self.mesh = family, family.mesh
        self.outer = {
            **family.others,
            "num_layers": depths[0],
            "num_decoder_layers": None if decoder_only else depths[1],
        }
        self.depth: int = self.outer["num_decoder_layers"] or depths[0]

    def shape(self, points: Ints) -> SimpleNamespace:
        """Return all fields except `d_ff` at these points, with the mesh axes as (n,) arrays."""
        return SimpleNamespace(**self.outer, **self.mesh.values(points))

    def intervals(self, budget: Budget, low: int, high: int, limits: Sequence[Limit] = ()) -> Intervals:
        """Return the intervals of `d_ff` with `low` to `high` parameters by `budget.count`, within all limits."""
        family, d_ff = self.family, self.family.d_ff
        shape = SimpleNamespace(**(vars(family.shape) | self.outer))
        allowed = self._allowed(shape)
        if not len(family.points) or not np.any(allowed):
            return Intervals(*(family.points[:0],) * 5)
        if not family.is_line(shape, budget):
            rows = np.flatnonzero(family.flat(allowed))
            return self._split_by_rules(self._single(shape, rows, budget, low, high), limits)
        constant, slope = family.line(shape, budget)
        near = (constant + slope * d_ff[-1] >= low) & (constant + slope * d_ff[0] <= high)
        rows = np.flatnonzero(near & family.flat(allowed))
        constant, slope = constant[rows], slope[rows]
        first = family.first_at_least(-((constant - low) // slope))
        length = family.first_at_least((high - constant) // slope + 1) - first
        intervals = Intervals(family.points[rows], first, length, constant, slope)
        intervals = intervals if length.all() else intervals.pick(length > 0)
        if limits and not family.rises(shape):
            return self._split_by_rules(intervals, limits)
        for limit in limits:
            intervals = self._within(intervals, limit)
        return self._split_by_rules(intervals)

    def _within(self, intervals: Intervals, limit: Limit) -> Intervals:
        """Return the part of each interval that is within a limit, whose measure never falls as `d_ff` rises."""

        def measured(rows: Ints, index: Ints) -> NDArray[np.float64]:
            shape = self.shape(intervals.mesh[rows])
            shape.d_ff = self.family.d_ff[index]
            return np.broadcast_to(np.asarray(limit.measure(shape), dtype=np.float64), rows.shape)

        first, stop = limit.inside(measured, intervals.first, intervals.first + intervals.length)
        return intervals._replace(first=first, length=stop - first).pick(stop > first)

    def _single(self, shape: SimpleNamespace, rows: Ints, budget: Budget, low: int, high: int) -> Intervals:
        """Return an interval of length one for each feasible `d_ff` of these allowed points; try all of them."""
        family = self.family
        if len(rows) * len(family.d_ff) > MOST_SPLIT:
            raise ConfigError(
                f"the formula of {shape.block} is not linear in d_ff, so {len(rows) * len(family.d_ff):.2g} "
                f"architectures of one depth have to be counted, and the limit is {MOST_SPLIT:.2g}: use fewer values."
            )
        found = [np.zeros((3, 0), dtype=np.int64)]
        for index, counts in enumerate(family.counts(shape, budget)):
            near = rows[(counts[rows] >= low) & (counts[rows] <= high)]
            found.append(np.stack([near, np.full(len(near), index), counts[near]]))
        row, first, constant = np.concatenate(found, axis=1)
        order = np.lexsort((first, row))
        row, first, constant = row[order], first[order], constant[order]
        return Intervals(family.points[row], first, np.ones_like(first), constant, np.zeros_like(first))

    def _allowed(self, shape: SimpleNamespace) -> Any:
        """Return where an architecture is valid and the rules about depths hold, as a bool or bool array."""
        allowed: Any = np.True_
        for refused, _ in parameters.refusals(shape):
            if np.any(refused):
                allowed = allowed & np.logical_not(refused)
        shape = SimpleNamespace(**(vars(shape) | {"num_decoder_layers": self.depth}))
        return allowed & self.family.keep(shape, lambda names: names & {*DEPTHS} and "d_ff" not in names)

    def _split_by_rules(self, intervals: Intervals, limits: Sequence[Limit] = ()) -> Intervals:
        """Return `intervals` split into the intervals where the rules about `d_ff`, and those of a block, hold.

        Limits are checked at each value of `d_ff`, which then has an interval of its own: a measure may fall between.
        """
        text = self.outer["block"]
        refuses = text is not None and find_block(parse_block(text)[0]).refuse is not None
        about_d_ff = refuses or any("d_ff" in rule.names for rule in self.family.rules)
        if not len(intervals.mesh) or not (about_d_ff or limits):
            return intervals
        if (number := int(intervals.length.sum())) > MOST_SPLIT:
            checked = (
                f"the budgets of {text}, whose formulas are not linear in d_ff," if limits else "the rules about d_ff"
            )
            raise ConfigError(
                f"{checked} have to be checked for {number:.2g} architectures of one "
                f"depth, and the limit is {MOST_SPLIT:.2g}: lower the tolerance, or use fewer values of d_ff."
            )
        owner = np.repeat(np.arange(len(intervals.mesh)), intervals.length)
        index = np.arange(len(owner)) - (np.cumsum(intervals.length) - intervals.length - intervals.first)[owner]
        shape = self.shape(intervals.mesh[owner])
        shape.d_ff = self.family.d_ff[index]
        keep: Any = np.True_
        for refused, _ in parameters.block_refusals(shape):
            keep = keep & np.logical_not(refused)
        for limit in limits:
            measured = limit.measure(shape)
            keep = keep & (measured >= limit.low) & (measured <= limit.high)
        shape.num_decoder_layers = self.depth
        keep = np.broadcast_to(keep & self.family.keep(shape, lambda names: "d_ff" in names), owner.shape)
        owner, index = owner[keep], index[keep]
        starts = np.flatnonzero((np.diff(owner, prepend=-1) != 0) | (np.diff(index, prepend=-2) != 1) | bool(limits))
        cut = intervals.pick(owner[starts])
        return cut._replace(first=index[starts], length=np.diff(starts, append=len(owner)))
