"""Solve a search space: find exactly the architectures that meet its budgets.

`space/grid.py` finds the interval of feasible `d_ff` values for each point of the other axes.
"""

from itertools import product

import numpy as np

from march_search.errors import ConfigError
from march_search.space.budget import Budget
from march_search.space.feasible_set import FeasibleSet
from march_search.space.grid import (
    DEPTHS,
    OTHERS,
    Combination,
    Family,
    Intervals,
    Ints,
    Mesh,
    check_operations,
    check_size,
)
from march_search.space.space import SearchSpace

FAR = 2**61
"""Bound above the parameter count of any architecture on the axes."""

MOST_INTERVALS = 2**26
"""Largest number of intervals of `d_ff` that a set may have; about 2 GB."""


def solve(space: SearchSpace) -> FeasibleSet:
    """Return all architectures in `space` that meet its budgets and rules.

    Raises:
        ConfigError: If the space has no budget, is too large to search, or has a rule that cannot be evaluated.
    """
    budget = space.budget
    if budget is None and not space.limits:
        raise ConfigError(f'the space "{space.name}" has no budget: call space.with_budget("220M").')
    return solve_band(space, budget, budget.low, budget.high) if budget else solve_band(space, None, -FAR, FAR)


def solve_band(space: SearchSpace, budget: Budget | None, low: int, high: int) -> FeasibleSet:
    """Return all architectures in `space` with `low` to `high` parameters by `budget.count`, both ends included.

    They also meet the space's budgets of other kinds.

    Raises:
        ConfigError: If the space is too large to search, or a rule cannot be evaluated.
    """
    check_size(space)
    for limit in space.limits:
        check_operations(space, limit.setup.sequence_length)
    counted, number = budget or Budget(0), 0
    low, high = (min(max(bound, -FAR), FAR) for bound in (low, high))
    meshes = {has_bottleneck: Mesh(space, has_bottleneck) for has_bottleneck in (False, True)}
    combinations: list[Combination] = []
    parts: list[Intervals] = []
    for values in product(*(space.axes[axis] for axis in OTHERS)):
        others = dict(zip(OTHERS, values, strict=True))
        family = Family(space, meshes[others["bottleneck"] != "none"], others)
        for depths in product(*(space.axes[axis] for axis in DEPTHS)):
            combination = Combination(family, depths)
            if combination.is_real:
                intervals = combination.intervals(counted, low, high, space.limits)
                if len(intervals.mesh):
                    combinations.append(combination)
                    parts.append(intervals.narrow())
                    number += len(intervals.mesh)
                if number > MOST_INTERVALS:
                    raise _too_many(space)
        family.release()
    d_ff = np.array(space.axes["d_ff"], dtype=np.int64)
    starts, intervals = _joined(parts)
    return FeasibleSet(
        space=space, budget=budget, d_ff=d_ff, combinations=tuple(combinations), starts=starts, intervals=intervals
    )


def _too_many(space: SearchSpace) -> ConfigError:
    """Return the error for a set that would not fit into memory."""
    widest = sorted((axis for axis in space.varying if axis != "d_ff"), key=lambda axis: -len(space.axes[axis]))[:3]
    axes = ", ".join(f"{axis} ({len(space.axes[axis]):,})" for axis in widest)
    return ConfigError(
        f"too many architectures in the space {space.name} have {space.condition}: they make more than "
        f"{MOST_INTERVALS:,} intervals of d_ff. Add a parameter budget, or use fewer values of {axes}."
    )


def _joined(parts: list[Intervals]) -> tuple[Ints, Intervals]:
    """Return the first row of each part and the concatenated parts; go column by column to save memory."""
    starts = np.cumsum([0, *(len(part.mesh) for part in parts)])
    columns = [list(column) for column in zip(*parts, strict=True)] or [[np.zeros(0, dtype=np.int64)] for _ in range(5)]
    parts.clear()
    return starts[:-1], Intervals(*(np.concatenate(columns.pop(0)) for _ in range(5)))
