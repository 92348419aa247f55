"""Every architecture of a space inside a budget: counted, indexed, enumerated, sampled, all exactly.

`grid.py` finds, for each point of all axes but `d_ff`, the run of feasible `d_ff`. What is kept is one row of 28 bytes
for each run that is not empty; members are numbered through these runs and built on demand.
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
"""More parameters than any architecture on the axes can have."""


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
    """The first run of each part, and all parts as one, column by column so that no column is held three times."""
    starts = np.cumsum([0, *(len(part.mesh) for part in parts)])
    columns = [list(column) for column in zip(*parts, strict=True)] or [[np.zeros(0, dtype=np.int64)] for _ in range(5)]
    parts.clear()
    return starts[:-1], Runs(*(np.concatenate(columns.pop(0)) for _ in range(5)))


@dataclass(frozen=True, eq=False)
class FeasibleSet(Selection):
    """Every feasible architecture, ordered: axis by axis as in `space.AXES`, the last (`d_ff`) changing fastest.

    Holds one row for each run of neighbouring `d_ff` values, not the architectures themselves.
    """

    space: SearchSpace
    """What was searched."""
    budget: Budget
    """What it was held to."""
    d_ff: Ints
    """Values of the `d_ff` axis, ascending."""
    combinations: tuple[Combination, ...]
    """Values of the outer axes, one entry for each combination that has members."""
    starts: Ints
    """(combinations,) the first run of each."""
    runs: Runs
    """Columns of length R, combination by combination."""

    @cached_property
    def begins(self) -> Ints:
        """(R + 1,) number of the first member of each run, and of the one after the last."""
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
        """Member numbers from `start` up to `stop`."""
        return np.arange(start, len(self) if stop is None else min(stop, len(self)))

    def decode(self, numbers: Ints) -> Members:
        """The members with these numbers (n,), as columns."""
        run = np.searchsorted(self.begins, numbers, side="right") - 1
        combination = np.searchsorted(self.starts, run, side="right") - 1
        mesh, first, _, constant, slope = self.runs.pick(run)
        d_ff = self.d_ff[first + (numbers - self.begins[run])]
        return Members(self, combination, mesh, d_ff, constant + slope * d_ff)

    def index(self, architecture: Any, start: int = 0, stop: int | None = None) -> int:
        """The number of a member, found without walking the set.

        Raises:
            ValueError: it is none, or none between `start` and `stop`.
        """
        number = self._number(architecture) if architecture in self else -1
        if number not in range(*slice(start, stop).indices(len(self))):
            raise ValueError(f"{architecture} is not in the feasible set.")
        return number

    def _number(self, a: Architecture) -> int:
        """The number of `a`, which is a member."""
        combination = self._outer_index[*(getattr(a, axis) for axis in OTHERS), a.num_layers, a.decoder_layers]
        rows = slice(self.starts[combination], [*self.starts, len(self.runs.mesh)][combination + 1])
        mesh = self.combinations[combination].mesh.point(vars(a))
        place = int(np.searchsorted(self.d_ff, a.d_ff))
        key = self.runs.mesh[rows].astype(np.int64) * len(self.d_ff) + self.runs.first[rows]
        run = int(rows.start + np.searchsorted(key, mesh * len(self.d_ff) + place, side="right") - 1)
        return int(self.begins[run] + place - self.runs.first[run])

    @cached_property
    def _outer_index(self) -> dict[tuple[Any, ...], int]:
        """Which combination has these outer values, with the real number of decoder layers."""
        combinations = enumerate(self.combinations)
        return {(*c.family.others.values(), c.outer["num_layers"], c.depth): place for place, c in combinations}

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

    def design(self, n: int, by: Sequence[str] = (), seed: int = 0, strata: Sequence[str] = ()) -> Selection:
        """`n` members, as different from each other along the axes `by` as can be; see `design.design`."""
        return design.design(self, n, by, seed, strata)

    def pareto(self, by: Sequence[str] = pareto.OBJECTIVES, setup: Setup = Setup()) -> Selection:  # noqa: B008
        """The members that no other beats in all of `by`; see `pareto.pareto`."""
        return pareto.pareto(self, by, setup)

    def nearest(self, architecture: Architecture, n: int = 1) -> Selection:
        """The `n` members nearest to an architecture, which may be one; ties in the set's own order.

        The distance is `Members.octaves_from`: twice the width is as far as half of it, and as another activation.
        """
        return self.first(n, lambda members: members.octaves_from(architecture))

    def project(self, architecture: Architecture) -> Architecture:
        """The member nearest to an architecture: itself if it is one.

        Raises:
            EmptySetError: the set is empty.
        """
        if not len(self):
            raise EmptySetError(f"nothing is nearest to {architecture}: no architecture has {self.budget}.")
        return self.nearest(architecture)[0]
