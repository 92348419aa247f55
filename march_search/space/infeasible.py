"""Explain an empty feasible set: name the closest architectures on either side and the ranges to widen."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from march_search.architecture.architecture import Architecture
from march_search.errors import ConfigError, EmptySetError
from march_search.space.budget import Budget
from march_search.space.feasible_set import FeasibleSet, solve, solve_band
from march_search.space.named import shipped_spaces_with
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
        raise EmptySetError(
            f"No architecture in the space {space.name} has {found.budget}. {_advice(space, found.budget)}"
        )
    return found


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
