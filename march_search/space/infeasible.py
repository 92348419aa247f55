"""Explain an empty feasible set: name the closest architectures on either side and the ranges to widen.

With budgets of several kinds, say which of them rules all architectures out, and the nearest values within reach.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from march_search.architecture.architecture import Architecture
from march_search.errors import ConfigError, EmptySetError
from march_search.space.budget import Budget
from march_search.space.feasible_set import FeasibleSet
from march_search.space.limits import KINDS, Limit
from march_search.space.named import shipped_spaces_with
from march_search.space.solver import FAR, solve, solve_band
from march_search.space.space import SearchSpace

_SHAPE = ("num_layers", "num_decoder_layers", "d_model", "num_heads", "d_kv", "d_ff")
"""Axes that the message may suggest to widen."""

_STEPS = {"d_model": 64, "d_kv": 32, "d_ff": 64}
"""Step of an axis that has a single value (default: 1)."""

_FURTHER = 64
"""Number of values to try beyond each end of an axis."""


AROUND = 'The space "auto" (--space auto) lays ranges around any budget.'
"""Sentence for a budget outside a space."""


def solve_or_explain(space: SearchSpace) -> FeasibleSet:
    """Return `solve(space)`; raise if the feasible set is empty.

    Raises:
        EmptySetError: If no architecture is feasible; the message names the closest ones and the ranges to widen.
        ConfigError: If the space has no budget.
    """
    found = solve(space)
    if not len(found):
        assert space.budget is not None or space.limits, space.name
        advice = _conflict(space) if space.limits or space.budget is None else _advice(space, space.budget)
        raise EmptySetError(f"No architecture in the space {space.name} has {found.condition}. {advice}")
    return found


def _conflict(space: SearchSpace) -> str:
    """Return the sentences that name the budgets that cannot be met, and the nearest values that can.

    A budget that no architecture meets alone is named alone. Else each budget is named with the nearest values that it
    has where all the others are met.
    """
    budgets = [one for one in (space.budget, *space.limits) if one is not None]
    alone = [one for one in budgets if not len(solve(_with(space, [one])))]
    reached: list[str] = []
    for one in alone or budgets:
        reached += _nearest(_with(space, [] if alone else [other for other in budgets if other is not one]), one)
    if alone:
        if not reached:
            return "No grid point satisfies the rules: loosen a rule or widen an axis."
        which = "This budget alone rules" if len(alone) == 1 else "Each of these budgets alone rules"
        named = "" if len(alone) == len(budgets) == 1 else f" ({' and '.join(map(str, alone))})"
        return f"{which} out every architecture{named}. Nearest: {', '.join(reached)}."
    start = "Each budget can be met alone, but not all together"
    if not reached:
        return f"{start}, and not if one of them is dropped: drop two, or widen an axis."
    return f"{start}. Nearest, with the other{'s' * (len(budgets) > 2)} met: {', '.join(reached)}."


def _with(space: SearchSpace, budgets: Sequence[Budget | Limit]) -> SearchSpace:
    """Return the space with these budgets only."""
    parameters = next((one for one in budgets if isinstance(one, Budget)), None)
    return replace(space, budget=parameters, limits=tuple(one for one in budgets if isinstance(one, Limit)))


def _nearest(space: SearchSpace, budget: Budget | Limit) -> list[str]:
    """Return in words the largest value below a budget and the smallest above it in a space without it.

    Both parameters and measures rise with `d_ff`, so only the ends of the intervals of `d_ff` are compared.
    """
    nearest = []
    for is_above in (False, True):
        if isinstance(budget, Budget):
            low, high = (budget.high + 1, FAR) if is_above else (-FAR, budget.low - 1)
            found = solve_band(replace(space, budget=budget), budget, low, high)
        else:
            above, below = replace(budget, low=budget.high, high=math.inf), replace(budget, low=0.0, high=budget.low)
            band = above if is_above else below
            limits = sorted((*space.limits, band), key=lambda limit: list(KINDS).index(limit.kind))
            found = solve(replace(space, limits=tuple(limits)))
        if len(found):
            members = found.decode(found.begins[:-1] if is_above else found.begins[1:] - 1)
            values = members.counted if isinstance(budget, Budget) else members.map(budget.measure)
            row = int(np.argmin(values) if is_above else np.argmax(values))
            value = f"{values[row]:,} {budget.noun}" if isinstance(budget, Budget) else budget.words(float(values[row]))
            nearest.append(f"{value} ({members.architecture(row).name})")
    return nearest


def closest(space: SearchSpace, budget: Budget) -> list[Architecture]:
    """Return the largest architecture below an unreachable `budget` and the smallest above it, where they exist."""
    below = _first(space, budget, -1, lambda near, far: (int(budget.low / far), int(budget.low / near)))
    above = _first(space, budget, 1, lambda near, far: (int(budget.high * near), int(budget.high * far)))
    return below + above


def _first(
    space: SearchSpace, budget: Budget, sign: int, band: Callable[[float, float], tuple[int, int]]
) -> list[Architecture]:
    """Return the nearest member on one side; search bands that start at the budget and grow fourfold in width."""
    near, width = 1.0, 0.001
    while True:
        low, high = band(near, 1 + width)
        if high < 1 or low > 10**15:
            return []
        found = solve_band(space, budget, low, high)
        if len(found):
            return list(found.first(1, lambda members: sign * members.counted))
        near, width = 1 + width, 4 * width


def _advice(space: SearchSpace, budget: Budget) -> str:
    """Return the sentences that name the closest architectures and the ranges to widen."""
    sides = closest(space, budget)
    if not sides:
        return "No grid point satisfies the rules: loosen a rule or widen an axis."
    counts = [budget.counted(a) for a in sides]
    named = " and ".join(
        f"{a.name} at {budget.difference_percent(n):+.3g}%" for a, n in zip(sides, counts, strict=True)
    )
    wider = " or ".join(_wider_ranges(space))
    if len(sides) == 2:
        return f"Closest: {named}. Widen the tolerance{', or ' * bool(wider)}{wider}."
    end = "largest" if counts[0] < budget.parameters else "smallest"
    advice = f"Widen {wider}" if wider else "No single axis reaches the budget: widen several axes, loosen a rule"
    others = [name for name in shipped_spaces_with(budget) if name != space.name]
    shipped = f"Shipped spaces that reach it: {', '.join(others)}. " if others else ""
    return f"The {end} is {named}. {advice}, or change the budget. {shipped}{AROUND}"


def _wider_ranges(space: SearchSpace) -> list[str]:
    """Return each axis that makes an architecture feasible when it alone is widened, such as `d_ff up to 3,264`."""
    ranges = []
    for axis in _SHAPE:
        values = space.axes[axis]
        if values == (None,):
            continue
        step = min((b - a for a, b in pairwise(values)), default=_STEPS.get(axis, 1))
        for direction, further in (
            ("up to", range(values[-1] + step, 2 * values[-1] + 1, step)[:_FURTHER]),
            ("down to", range(values[0] - step, values[0] // 2, -step)[:_FURTHER]),
        ):
            try:
                found = solve(replace(space, axes=space.axes | {axis: tuple(sorted(further))})) if further else ()
            except ConfigError:  # too large to search, so not worth suggesting
                continue
            if isinstance(found, FeasibleSet) and len(found):
                reached = found.members().axis(axis)
                ranges.append(f"{axis} {direction} {reached.min() if direction == 'up to' else reached.max():,}")
    return ranges
