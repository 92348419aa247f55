"""Sets of architectures that meet a budget: count, index, enumerate, select and sample them.

A feasible set stores one row of 28 bytes per non-empty interval of `d_ff`, found by `space/grid.py`. Its members are
indexed through these rows and built on demand.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from march_search.architecture.architecture import Architecture
from march_search.cost.setup import Setup
from march_search.errors import ConfigError, EmptySetError, UsageError
from march_search.space.budget import Budget
from march_search.space.design import spread_members
from march_search.space.grid import (
    OTHERS,
    Combination,
    Intervals,
    Ints,
)
from march_search.space.limits import Limit
from march_search.space.members import Members
from march_search.space.pareto import front
from march_search.space.rules import Rule
from march_search.space.space import SearchSpace, in_words

CHUNK = 1 << 20
"""Members processed at a time when iterating over a large set."""

POOL = 20_000
"""Members that a design is chosen from; a larger set is sampled uniformly first."""

OBJECTIVES = ("flops", "memory", "-depth")
"""Default objectives of a Pareto set: the fewest operations and bytes for each depth."""


class Selection(Sequence[Architecture], ABC):
    """An indexable sequence of members of one `FeasibleSet`; slices are selections too."""

    @property
    @abstractmethod
    def source(self) -> "FeasibleSet":
        """The feasible set that the members belong to."""

    @abstractmethod
    def numbers(self, start: int = 0, stop: int | None = None) -> Ints:
        """Return the indices in `source` of the members from `start` up to `stop`."""

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
        position = range(len(self))[index]
        return self.source.decode(self.numbers(position, position + 1)).architecture()

    def __iter__(self) -> Iterator[Architecture]:
        for start in range(0, len(self), 4096):
            members = self.source.decode(self.numbers(start, start + 4096))
            for row in range(len(members)):
                yield members.architecture(row)

    def members(self) -> Members:
        """Return the whole selection as columns."""
        return self.source.decode(self.numbers())

    def select(self, numbers: Ints) -> "Picked":
        """Return the members of `source` with these indices, in this order."""
        return Picked(self.source, numbers)

    def top(self, n: int, key: str = "difference", setup: Setup = Setup()) -> "Selection":  # noqa: B008
        """Return the `n` members with the smallest key; ties keep their order.

        Args:
            n: Number of members; 0 returns all of them, sorted.
            key: One of `members.MEASURES` or an axis; prefix it with `-` to put the largest first.
            setup: How a trial would run, for measures that depend on it.

        Raises:
            UsageError: If the key is unknown.
        """
        name = key.removeprefix("-")
        sign = -1 if key != name else 1
        return self.first(n, lambda members: sign * members.measure(name, setup))

    def first(self, n: int, measure: Callable[[Members], NDArray[Any]]) -> "Selection":
        """Return the `n` members with the smallest measure; ties keep their order.

        Args:
            n: Number of members; 0 returns all of them, sorted.
            measure: Function that returns (m,) numbers for m members.
        """
        best, keys = self.numbers(0, 0), np.zeros(0)
        for start in range(0, len(self), CHUNK):
            numbers = self.numbers(start, start + CHUNK)
            keys = np.concatenate([keys, measure(self.source.decode(numbers))])
            best = np.concatenate([best, numbers])
            order = np.argsort(keys, kind="stable")[: n or None]
            best, keys = best[order], keys[order]
        return self.select(best)

    def at(self, positions: Ints) -> Ints:
        """Return the indices in `source` of the members at these positions of the selection."""
        return self.numbers()[positions]

    def where(self, rules: Sequence[Rule], setup: Setup = Setup()) -> "Selection":  # noqa: B008
        """Return the members that meet all rules, in the same order; a rule may name axes and `members.MEASURES`.

        Raises:
            ConfigError: If a rule cannot be evaluated.
        """
        kept = [self.numbers(0, 0)]
        for start in range(0, len(self), CHUNK):
            numbers = self.numbers(start, start + CHUNK)
            for rule in rules:
                numbers = numbers[self.source.decode(numbers).holds(rule, setup)]
            kept.append(numbers)
        return self.select(np.concatenate(kept))

    def sample(self, n: int, seed: int) -> "Selection":
        """Return `n` different members, drawn uniformly at random; every subset is equally likely.

        The same seed gives the same sample.

        Raises:
            ConfigError: If `seed` or `n` is negative, or `n` exceeds the size of the set.
        """
        if seed < 0:
            raise ConfigError(f"seed must be a whole number of at least 0, not {seed}.")
        if not 0 <= n <= len(self):
            raise ConfigError(f"cannot sample {n:,} different architectures: the feasible set has {len(self):,}.")
        chosen = np.random.default_rng(seed).choice(len(self), size=n, replace=False) if n else ()
        return self.select(self.at(np.asarray(chosen, dtype=np.int64)))

    def design(self, n: int, by: Sequence[str] = (), seed: int = 0, strata: Sequence[str] = ()) -> "Selection":
        """Return `n` members that are as different as possible along the axes `by`; see `design.spread_members`.

        Args:
            n: Number of members.
            by: Axes; empty for all that vary.
            seed: Seed of the uniform sample of `POOL` members that a larger set is reduced to first.
            strata: Axes whose combinations of values take turns.

        Raises:
            ConfigError: If `n` exceeds the size of the set, or an axis is unknown.
        """
        if not 0 <= n <= len(self):
            raise ConfigError(f"cannot choose a design of {n:,} architectures: the feasible set has {len(self):,}.")
        size = max(POOL, n)
        pool = self.numbers() if len(self) <= size else np.sort(self.sample(size, seed).numbers())
        members = self.source.decode(pool)
        return self.select(pool[spread_members(members, n, by or self.source.space.varying, strata)])

    def pareto(self, by: Sequence[str] = OBJECTIVES, setup: Setup = Setup()) -> "Selection":  # noqa: B008
        """Return the members that no other member dominates, sorted by the first objective, then by the next.

        A member dominates another if it is at least as good in all of `by` and better in one. Equal members all stay.

        Args:
            by: Measures or axes as in `top`; smaller is better, or larger with the prefix `-`.
            setup: How a trial would run.

        Raises:
            UsageError: If `by` is empty or contains an unknown measure.
        """
        if not by:
            raise UsageError("a Pareto set needs at least one objective, such as flops,memory,-depth.")
        numbers, points = self.numbers(0, 0), np.zeros((0, len(by)))
        for start in range(0, max(len(self), 1), CHUNK):
            more = self.numbers(start, start + CHUNK)
            members = self.source.decode(more)
            columns = [(-1.0 if key[0:1] == "-" else 1.0) * members.measure(key.removeprefix("-"), setup) for key in by]
            numbers = np.concatenate([numbers, more])
            points = np.concatenate([points, np.stack(columns, axis=1)])
            optimal = front(points)
            numbers, points = numbers[optimal], points[optimal]
        return self.select(numbers[np.lexsort(points.T[::-1])])

    def nearest(self, architecture: Architecture, n: int = 1) -> "Selection":
        """Return the `n` members nearest to an architecture, which may be a member; ties keep the order of the set.

        The distance is `Members.octaves_from`: twice the width, half the width and another activation are equally far.
        """
        return self.first(n, lambda members: members.octaves_from(architecture))


@dataclass(frozen=True, eq=False)
class Picked(Selection):
    """Chosen members of a feasible set, in the order chosen."""

    found: "FeasibleSet"
    """The feasible set that the members belong to."""
    chosen: Ints
    """(n,) indices of the members in the set."""

    @property
    def source(self) -> "FeasibleSet":
        """The feasible set that the members belong to."""
        return self.found

    def numbers(self, start: int = 0, stop: int | None = None) -> Ints:
        """Return the indices of the members from `start` up to `stop`."""
        return self.chosen[start:stop]


@dataclass(frozen=True, eq=False, kw_only=True)
class FeasibleSet(Selection):
    """All feasible architectures, in the order of the axes in `axes.AXES`; the last axis, `d_ff`, changes fastest.

    The set stores one row per interval of `d_ff` values, not the architectures themselves.
    """

    space: SearchSpace
    """The space that was searched."""
    budget: Budget | None
    """The parameter budget that members meet; None if the space has only budgets of other kinds."""
    d_ff: Ints
    """Values of the `d_ff` axis, ascending."""
    combinations: tuple[Combination, ...]
    """Values of the outer axes, one entry per combination that has members."""
    starts: Ints
    """(combinations,) first row of each combination in `intervals`."""
    intervals: Intervals
    """Intervals of `d_ff` as columns of length R, grouped by combination."""

    @cached_property
    def begins(self) -> Ints:
        """(R + 1,) index of the first member of each interval, then the total number of members."""
        return np.concatenate([[0], np.cumsum(self.intervals.length, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.begins[-1])

    def __contains__(self, architecture: object) -> bool:
        if not isinstance(architecture, Architecture) or not self.space.contains(architecture):
            return False
        if self.budget is not None and not self.budget.holds(architecture):
            return False
        return all(limit.holds(architecture) for limit in self.limits)

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Budgets of other kinds that members meet."""
        return self.space.limits

    @property
    def condition(self) -> str:
        """All budgets in words, such as `220,000,000 parameters ± 1.5% and at most 48 hours for …`."""
        return in_words(self.budget, self.limits)

    def difference_percent(self, a: Architecture) -> float:
        """Return the difference of an architecture from the parameter budget, else from the first other one."""
        if self.budget is not None:
            return self.budget.difference_percent(self.budget.counted(a))
        return float(100 * (self.limits[0].measure(a) - self.limits[0].aim) / self.limits[0].aim)

    @property
    def source(self) -> "FeasibleSet":
        """The set itself."""
        return self

    def numbers(self, start: int = 0, stop: int | None = None) -> Ints:
        """Return the member indices from `start` up to `stop`."""
        return np.arange(start, len(self) if stop is None else min(stop, len(self)))

    def at(self, positions: Ints) -> Ints:
        """Return the positions, which are the indices."""
        return positions

    def decode(self, numbers: Ints) -> Members:
        """Return the members with these (n,) indices as columns."""
        interval = np.searchsorted(self.begins, numbers, side="right") - 1
        combination = np.searchsorted(self.starts, interval, side="right") - 1
        mesh, first, _, constant, slope = self.intervals.pick(interval)
        d_ff = self.d_ff[first + (numbers - self.begins[interval])]
        return Members(
            combinations=self.combinations,
            combination=combination,
            mesh=mesh,
            d_ff=d_ff,
            counted=constant + slope * d_ff,
            target=None if self.budget is None else self.budget.parameters,
            limits=self.limits,
        )

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
        rows = slice(self.starts[combination], [*self.starts, len(self.intervals.mesh)][combination + 1])
        mesh = self.combinations[combination].mesh.point(vars(a) | {"num_key_value_heads": a.key_value_heads})
        d_ff = int(np.searchsorted(self.d_ff, a.d_ff))
        key = self.intervals.mesh[rows].astype(np.int64) * len(self.d_ff) + self.intervals.first[rows]
        interval = int(rows.start + np.searchsorted(key, mesh * len(self.d_ff) + d_ff, side="right") - 1)
        return int(self.begins[interval] + d_ff - self.intervals.first[interval])

    @cached_property
    def _outer_index(self) -> dict[tuple[Any, ...], int]:
        """Index of the combination with these outer values; the last value is the actual number of decoder layers."""
        combinations = enumerate(self.combinations)
        return {(*c.family.others.values(), c.outer["num_layers"], c.depth): index for index, c in combinations}

    def project(self, architecture: Architecture) -> Architecture:
        """Return the member nearest to an architecture, which is the architecture if it is a member.

        Raises:
            EmptySetError: If the set is empty.
        """
        if not len(self):
            raise EmptySetError(f"cannot project {architecture}: no architecture in the space has {self.condition}.")
        return self.nearest(architecture)[0]
