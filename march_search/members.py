"""Some members of a feasible set, as columns: axes, costs, distances, without building an `Architecture` each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from march_search import cost, flops, memory, parameters
from march_search.architecture import Architecture
from march_search.errors import UsageError
from march_search.grid import MESH, Combination, Ints, Mesh
from march_search.settings import nearest
from march_search.space import AXES

if TYPE_CHECKING:
    from march_search.solver import FeasibleSet

Numbers = NDArray[np.float64]

MEASURES = ("difference", "params", "flops", "depth", "memory", "hours")
"""What members can be ordered by besides the axes: distance from the budget in parameters, parameters, operations per
token, layers of both stacks, bytes of one device, hours of a trial."""


@dataclass(frozen=True)
class Members:
    """Columns of equal length n."""

    found: "FeasibleSet"
    """The set they are of."""
    combination: Ints
    """(n,) index of each one's outer values."""
    mesh: Ints
    """(n,) index into that combination's mesh."""
    d_ff: Ints
    """(n,) feed-forward width."""
    counted: Ints
    """(n,) parameters in the budget's count."""

    def __len__(self) -> int:
        return len(self.d_ff)

    def axis(self, name: str) -> NDArray[Any]:
        """(n,) values of one axis; `num_decoder_layers` as the real number of layers, `d_bottleneck` 0 for none."""
        if name == "d_ff":
            return self.d_ff
        combinations = self.found.combinations
        if name not in MESH:
            values = [c.depth if name == "num_decoder_layers" else c.outer[name] for c in combinations]
            return np.array(values)[self.combination]
        meshes: dict[int, Mesh] = {id(c.mesh): c.mesh for c in combinations}
        columns = [_on_mesh(mesh, name, self.mesh) for mesh in meshes.values()]
        if len(columns) < 2:
            return columns[0] if columns else np.zeros(0, dtype=np.int64)
        own = np.array([list(meshes).index(id(c.mesh)) for c in combinations])[self.combination]
        return np.choose(own, columns)

    def measure(self, name: str, setup: cost.Setup) -> NDArray[Any]:
        """(n,) numbers to order by: one of `MEASURES`, or an axis, where values that are no numbers are numbered.

        Raises:
            UsageError: neither.
        """
        if name == "difference":
            return np.abs(self.counted - self.found.budget.parameters)
        if name == "params":
            return self.counted
        if name in MEASURES:
            return self.map(lambda shape: _SHAPE_MEASURES[name](shape, setup))
        if name not in AXES:
            raise UsageError(f'architectures have no "{name}" to order by. {nearest(name, (*MEASURES, *AXES))}')
        values = self.axis(name)
        return values if values.dtype.kind in "iuf" else np.unique(values, return_inverse=True)[1]

    def flops_per_token(self, **lengths: Any) -> Numbers:
        """(n,) operations per token of text; `lengths` as in `flops.flops_per_token`."""
        return self.map(lambda shape: flops.flops_per_token(shape, **lengths))

    def map(self, function: Callable[[SimpleNamespace], Any]) -> Numbers:
        """(n,) values of a function of shapes whose numbers may be arrays."""
        result = np.zeros(len(self))
        for chosen, combination in self._by_combination():
            shape = combination.shape(self.mesh[chosen])
            shape.d_ff = self.d_ff[chosen]
            result[chosen] = function(shape)
        return result

    def octaves_from(self, architecture: Architecture) -> Numbers:
        """(n,) distance from an architecture: Euclidean over all axes that vary here or differ there.

        Whole numbers differ by the logarithm to base 2 of their ratio; other values that differ are one octave apart.
        """
        total = np.zeros(len(self))
        for axis in AXES:
            values, target = self.axis(axis), getattr(architecture, axis)
            if axis == "num_decoder_layers":
                target = architecture.decoder_layers
            if values.dtype.kind == "i" and not isinstance(target, bool):
                total += (np.log2(np.maximum(values, 1)) - np.log2(target or 1)) ** 2
            else:  # NumPy has no array of numbers and words: both are words there
                total += values != (str(target) if values.dtype.kind == "U" else target)
        return np.sqrt(total)

    def _by_combination(self) -> Iterator[tuple[Ints, Combination]]:
        """(places, combination) for each combination present."""
        order = np.argsort(self.combination, kind="stable")
        starts = np.flatnonzero(np.diff(self.combination[order], prepend=-1))
        for places in np.split(order, starts[1:]) if len(order) else []:
            yield places, self.found.combinations[self.combination[places[0]]]

    def architecture(self, place: int = 0) -> Architecture:
        """The member at one place."""
        combination = self.found.combinations[self.combination[place]]
        index = np.unravel_index(int(self.mesh[place]), combination.mesh.shape)
        mesh = {axis: values[int(i)] for axis, values, i in zip(MESH, combination.mesh.axes, index, strict=True)}
        return Architecture(**combination.outer, **mesh, d_ff=int(self.d_ff[place]))


def _on_mesh(mesh: Mesh, name: str, points: Ints) -> Ints:
    """(n,) values of one axis of a mesh; points beyond the mesh, which are another's, have any value."""
    place = MESH.index(name)
    if len(mesh.axes[place]) == 1:
        return np.full(len(points), mesh.axes[place][0] or 0, dtype=np.int64)
    behind = int(np.prod(mesh.shape[place + 1 :]))
    return np.array(mesh.axes[place], dtype=np.int64)[points // behind % mesh.shape[place]]


def _depth(shape: Any, _: cost.Setup) -> int:
    """Layers of all stacks together."""
    return sum(num_layers for _, num_layers in parameters.stacks(shape))


_SHAPE_MEASURES: dict[str, Callable[[Any, cost.Setup], Any]] = {
    "flops": cost.flops_per_token,
    "depth": _depth,
    "memory": memory.memory_bytes,
    "hours": cost.hours,
}
