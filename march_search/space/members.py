"""Calculate axes, costs and distances of many members of a feasible set without building each `Architecture`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search.architecture import flops
from march_search.architecture.architecture import Architecture
from march_search.architecture.block import parse_block
from march_search.cost.measures import COLUMN_NAMES, SHAPE_MEASURES
from march_search.cost.setup import Setup
from march_search.errors import UsageError, nearest
from march_search.space.axes import AXES, rule_values
from march_search.space.grid import MESH, Combination, Ints, Mesh
from march_search.space.limits import Limit
from march_search.space.rules import Rule

Numbers = NDArray[np.float64]

MEASURES = ("difference", *SHAPE_MEASURES, *COLUMN_NAMES)
"""Keys to order or filter members by, besides the axes: distance from the budget in parameters, and what
`cost/measures.py` lists."""


@dataclass(frozen=True, kw_only=True)
class Members:
    """Members of a feasible set, as columns of equal length n."""

    combinations: tuple[Combination, ...]
    """Combinations of the feasible set."""
    combination: Ints
    """(n,) indices into the set's combinations."""
    mesh: Ints
    """(n,) indices into the combination's mesh."""
    d_ff: Ints
    """(n,) feed-forward widths."""
    counted: Ints
    """(n,) parameters, counted as in the budget."""
    target: int | None
    """Parameters of the budget; None if it has none."""
    limits: tuple[Limit, ...] = ()
    """Budgets of other kinds; there is at least one without a target."""

    def __len__(self) -> int:
        return len(self.d_ff)

    def axis(self, name: str) -> NDArray[Any]:
        """Return (n,) values of one axis: the actual number for those that None makes equal to another, and else 0."""
        if name == "d_ff":
            return self.d_ff
        combinations = self.combinations
        if name in self.block_fields:
            return np.array([parse_block(c.outer["block"])[1][name] for c in combinations])[self.combination]
        if name not in MESH:
            values = [c.depth if name == "num_decoder_layers" else c.outer[name] for c in combinations]
            return np.array([0 if value is None else value for value in values])[self.combination]
        if name == "num_key_value_heads" and not self._has_groups:
            return self.axis("num_heads")
        meshes: dict[int, Mesh] = {id(c.mesh): c.mesh for c in combinations}
        columns = [_on_mesh(mesh, name, self.mesh) for mesh in meshes.values()]
        if len(columns) < 2:
            return columns[0] if columns else np.zeros(0, dtype=np.int64)
        mesh_index = np.array([list(meshes).index(id(c.mesh)) for c in combinations])[self.combination]
        return np.choose(mesh_index, columns)

    @property
    def block_fields(self) -> tuple[str, ...]:
        """Fields of the space's block; empty without one."""
        text = self.combinations[0].outer["block"] if self.combinations else None
        return () if text is None else tuple(parse_block(text)[1])

    @property
    def _has_groups(self) -> bool:
        """Whether the space has an axis for the heads of keys and values."""
        return any(c.mesh.axes[MESH.index("num_key_value_heads")] != (None,) for c in self.combinations[:1])

    def measure(self, name: str, setup: Setup) -> NDArray[Any]:
        """Return (n,) numbers to order by: a key of `MEASURES`, or an axis, with text values replaced by their rank.

        Raises:
            UsageError: If `name` is neither a measure nor an axis.
        """
        if name == "difference":
            return np.asarray(np.abs(self.difference()))
        if name in MEASURES:
            function = SHAPE_MEASURES[COLUMN_NAMES.get(name, name)]
            return self.map(lambda shape: function(shape, setup))
        if name not in (*AXES, *self.block_fields):
            known = (*MEASURES, *AXES, *self.block_fields)
            raise UsageError(f'cannot order architectures by "{name}". {nearest(name, known)}')
        values = self.axis(name)
        if values.dtype.kind in "iuf":
            return values
        whole_set = replace(self, combination=np.arange(len(self.combinations)))  # so that ranks of parts agree
        return np.searchsorted(np.unique(whole_set.axis(name)), values)

    def difference(self) -> NDArray[Any]:
        """Return the (n,) differences from the parameter budget, else from the first budget of another kind."""
        if self.target is not None:
            return np.asarray(self.counted - self.target)
        return self.map(self.limits[0].measure) - self.limits[0].aim

    def difference_percent(self) -> Numbers:
        """Return the (n,) differences in percent of the budget that `difference` is about."""
        aim = self.limits[0].aim if self.target is None else self.target
        return np.asarray(100 * self.difference() / aim, dtype=np.float64)

    def flops_per_token(self, **lengths: Any) -> Numbers:
        """Return (n,) operations per token of text; `lengths` are the arguments of `flops.flops_per_token`."""
        return self.map(lambda shape: flops.flops_per_token(shape, **lengths))

    def map(self, function: Callable[[SimpleNamespace], Any]) -> Numbers:
        """Return (n,) values of a function that takes a shape whose numbers may be arrays."""
        result = np.zeros(len(self))
        for chosen, combination in self._by_combination():
            result[chosen] = function(self._shape(chosen, combination))
        return result

    def holds(self, rule: Rule, setup: Setup) -> NDArray[np.bool_]:
        """Return the (n,) members that meet a rule about axes and measures.

        Raises:
            ConfigError: If the rule cannot be evaluated.
        """
        measured = {name: self.measure(name, setup) for name in rule.names & {*MEASURES}}
        result = np.zeros(len(self), dtype=bool)
        for chosen, combination in self._by_combination():
            shape = vars(self._shape(chosen, combination))
            values = rule_values(shape | {"num_decoder_layers": combination.depth})
            result[chosen] = rule.holds(values | {name: column[chosen] for name, column in measured.items()})
        return result

    def _shape(self, chosen: Ints, combination: Combination) -> SimpleNamespace:
        """Return the rows `chosen`, which belong to one combination, as a shape whose numbers may be arrays."""
        shape = combination.shape(self.mesh[chosen])
        shape.d_ff = self.d_ff[chosen]
        return shape

    def octaves_from(self, architecture: Architecture) -> Numbers:
        """Return the (n,) Euclidean distances from an architecture over all axes.

        Whole numbers differ by the base-2 logarithm of their ratio. Other values differ by one octave if unequal.
        """
        total = np.zeros(len(self))
        own = vars(architecture) | {"num_decoder_layers": architecture.decoder_layers}
        for axis in AXES:
            values, target = self.axis(axis), own[axis]
            if axis == "num_key_value_heads" and target is None:
                if not self._has_groups:
                    continue
                target = architecture.num_heads
            if axis == "attention_window":
                both = (values > 0) & bool(target)
                octaves = np.log2(np.maximum(values, 1)) - np.log2(target or 1)
                total += np.where(both, octaves**2, values != (target or 0))
            elif axis == "block":
                total += values.astype(str) != str(target or 0)
            elif axis == "logit_softcap":
                total += values != (target or 0)
            elif isinstance(target, str):  # NumPy turns a list of numbers and text into text
                total += values.astype(str) != target
            elif values.dtype.kind == "i" and not isinstance(target, bool):
                total += (np.log2(np.maximum(values, 1)) - np.log2(target or 1)) ** 2
            else:
                total += values != (str(target) if values.dtype.kind == "U" else target)
        return np.sqrt(total)

    def _by_combination(self) -> Iterator[tuple[Ints, Combination]]:
        """Yield the row indices and the combination, for each combination present."""
        order = np.argsort(self.combination, kind="stable")
        starts = np.flatnonzero(np.diff(self.combination[order], prepend=-1))
        for rows in np.split(order, starts[1:]) if len(order) else []:
            yield rows, self.combinations[self.combination[rows[0]]]

    def architecture(self, row: int = 0) -> Architecture:
        """Return the member in row `row`."""
        combination = self.combinations[self.combination[row]]
        index = np.unravel_index(int(self.mesh[row]), combination.mesh.shape)
        mesh = {axis: values[int(i)] for axis, values, i in zip(MESH, combination.mesh.axes, index, strict=True)}
        return Architecture(**combination.outer, **mesh, d_ff=int(self.d_ff[row]))


def _on_mesh(mesh: Mesh, name: str, points: Ints) -> Ints:
    """Return (n,) values of one mesh axis; points that belong to another mesh get an arbitrary value."""
    axis = MESH.index(name)
    if len(mesh.axes[axis]) == 1:
        return np.full(len(points), mesh.axes[axis][0] or 0, dtype=np.int64)
    stride = int(np.prod(mesh.shape[axis + 1 :]))
    return np.array(mesh.axes[axis], dtype=np.int64)[points // stride % mesh.shape[axis]]
