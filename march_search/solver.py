"""Solve a search space: count, index, enumerate and sample exactly the architectures that meet a budget.

`grid.py` finds the interval of feasible `d_ff` values for each point of the other axes. A feasible set stores one row
of 28 bytes per non-empty interval. Its members are indexed through these rows and built on demand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from march_search import design, pareto
from march_search.architecture import Architecture
from march_search.budget import Budget
from march_search.cost import Setup
from march_search.errors import ConfigError, EmptySetError
from march_search.grid import DEPTHS, OTHERS, Combination, Family, Ints, Mesh, Runs
from march_search.members import Members
from march_search.selection import Selection
from march_search.space import SearchSpace

_FAR = 2**61
"""Bound above the parameter count of any architecture on the axes."""


def solve(space: SearchSpace) -> "FeasibleSet":
    """Return all architectures in `space` that meet its budget and rules.

    Raises:
        ConfigError: If the space has no budget or a rule cannot be evaluated.
    """
    if space.budget is None:
        raise ConfigError(f'the space "{space.name}" has no budget: call space.with_budget("220M").')
    return solve_band(space, space.budget, space.budget.low, space.budget.high)


def solve_band(space: SearchSpace, budget: Budget, low: int, high: int) -> "FeasibleSet":
    """Return all architectures in `space` with `low` to `high` parameters by `budget.count`, both ends included."""
    low, high = (min(max(bound, -_FAR), _FAR) for bound in (low, high))
    meshes = {has_bottleneck: Mesh(space, has_bottleneck) for has_bottleneck in (False, True)}
    combinations: list[Combination] = []
    parts: list[Runs] = []
    for values in product(*(space.axes[axis] for axis in OTHERS)):
        others = dict(zip(OTHERS, values, strict=True))
        family = Family(space, meshes[others["bottleneck"] != "none"], others)
        for depths in product(*(space.axes[axis] for axis in DEPTHS)):
            combination = Combination(family, depths)
            if combination.is_real:
                runs = combination.runs(budget, low, high)
                if len(runs.mesh):
                    combinations.append(combination)
                    parts.append(runs.narrow())
        family.forget()
    d_ff = np.array(space.axes["d_ff"], dtype=np.int64)
    return FeasibleSet(space, budget, d_ff, tuple(combinations), *_joined(parts))


def _joined(parts: list[Runs]) -> tuple[Ints, Runs]:
    """Return the first row of each part and the concatenated parts; go column by column to save memory."""
    starts = np.cumsum([0, *(len(part.mesh) for part in parts)])
    columns = [list(column) for column in zip(*parts, strict=True)] or [[np.zeros(0, dtype=np.int64)] for _ in range(5)]
    parts.clear()
    return starts[:-1], Runs(*(np.concatenate(columns.pop(0)) for _ in range(5)))


@dataclass(frozen=True, eq=False)
class FeasibleSet(Selection):
    """All feasible architectures, in the order of the axes in `space.AXES`; the last axis, `d_ff`, changes fastest.

    The set stores one row per interval of `d_ff` values, not the architectures themselves.
    """

    space: SearchSpace
    """The space that was searched."""
    budget: Budget
    """The parameter budget that members meet."""
    d_ff: Ints
    """Values of the `d_ff` axis, ascending."""
    combinations: tuple[Combination, ...]
    """Values of the outer axes, one entry per combination that has members."""
    starts: Ints
    """(combinations,) first row of each combination in `runs`."""
    runs: Runs
    """Intervals of `d_ff` as columns of length R, grouped by combination."""

    @cached_property
    def begins(self) -> Ints:
        """(R + 1,) index of the first member of each interval, then the total number of members."""
        return np.concatenate([[0], np.cumsum(self.runs.length, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.begins[-1])

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
        """Return the member indices from `start` up to `stop`."""
        return np.arange(start, len(self) if stop is None else min(stop, len(self)))

    def decode(self, numbers: Ints) -> Members:
        """Return the members with these (n,) indices as columns."""
        run = np.searchsorted(self.begins, numbers, side="right") - 1
        combination = np.searchsorted(self.starts, run, side="right") - 1
        mesh, first, _, constant, slope = self.runs.pick(run)
        d_ff = self.d_ff[first + (numbers - self.begins[run])]
        return Members(self, combination, mesh, d_ff, constant + slope * d_ff)

    def index(self, architecture: Any, start: int = 0, stop: int | None = None) -> int:
        """Return the index of a member without iterating over the set.

        Raises:
            ValueError: If `architecture` is not a member, or its index is not between `start` and `stop`.
        """
        number = self._number(architecture) if architecture in self else -1
        if number not in range(*slice(start, stop).indices(len(self))):
            raise ValueError(f"{architecture} is not in the feasible set.")
        return number

    def _number(self, a: Architecture) -> int:
        """Return the index of the member `a`."""
        combination = self._outer_index[*(getattr(a, axis) for axis in OTHERS), a.num_layers, a.decoder_layers]
        rows = slice(self.starts[combination], [*self.starts, len(self.runs.mesh)][combination + 1])
        mesh = self.combinations[combination].mesh.point(vars(a))
        d_ff = int(np.searchsorted(self.d_ff, a.d_ff))
        key = self.runs.mesh[rows].astype(np.int64) * len(self.d_ff) + self.runs.first[rows]
        run = int(rows.start + np.searchsorted(key, mesh * len(self.d_ff) + d_ff, side="right") - 1)
        return int(self.begins[run] + d_ff - self.runs.first[run])

    @cached_property
    def _outer_index(self) -> dict[tuple[Any, ...], int]:
        """Index of the combination with these outer values; the last value is the actual number of decoder layers."""
        combinations = enumerate(self.combinations)
        return {(*c.family.others.values(), c.outer["num_layers"], c.depth): index for index, c in combinations}

    def sample(self, n: int, seed: int) -> Selection:
        """Return `n` different members, drawn uniformly at random; every subset is equally likely.

        The same seed gives the same sample.

        Raises:
            ConfigError: If `seed` or `n` is negative, or `n` exceeds the size of the set.
        """
        if seed < 0:
            raise ConfigError(f"seed must be a whole number of at least 0, not {seed}.")
        if not 0 <= n <= len(self):
            raise ConfigError(f"cannot sample {n:,} different architectures: the feasible set has {len(self):,}.")
        chosen = np.random.default_rng(seed).choice(len(self), size=n, replace=False) if n else self.numbers(0, 0)
        return self.select(np.asarray(chosen, dtype=np.int64))

    def design(self, n: int, by: Sequence[str] = (), seed: int = 0, strata: Sequence[str] = ()) -> Selection:
        """Return `n` members that are as different as possible along the axes `by`; see `design.design`."""
        return design.design(self, n, by, seed, strata)

    def pareto(self, by: Sequence[str] = pareto.OBJECTIVES, setup: Setup = Setup()) -> Selection:  # noqa: B008
        """Return the Pareto-optimal members for the objectives `by`; see `pareto.pareto`."""
        return pareto.pareto(self, by, setup)

    def nearest(self, architecture: Architecture, n: int = 1) -> Selection:
        """Return the `n` members nearest to an architecture, which may be a member; ties keep the order of the set.

        The distance is `Members.octaves_from`: twice the width, half the width and another activation are equally far.
        """
        return self.first(n, lambda members: members.octaves_from(architecture))

    def project(self, architecture: Architecture) -> Architecture:
        """Return the member nearest to an architecture, which is the architecture if it is a member.

        Raises:
            EmptySetError: If the set is empty.
        """
        if not len(self):
            raise EmptySetError(f"cannot project {architecture}: no architecture in the space has {self.budget}.")
        return self.nearest(architecture)[0]
