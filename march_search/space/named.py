"""Find the space that a user names: a shipped space, a file, or `auto`, whose ranges lie around the budget."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from march_search.config.counts import DEFAULT_TOLERANCE
from march_search.config.shipped import shipped_names
from march_search.errors import ConfigError
from march_search.space.auto import automatic_space
from march_search.space.budget import Budget, Count
from march_search.space.solver import solve
from march_search.space.space import SearchSpace

AUTO = "auto"
"""Name of the space that is laid around the budget."""

MOST_POINTS = 10**8
"""Largest grid that is searched for an advice."""

FARTHEST = 8
"""Largest factor between the budget of a space and the one asked for."""


def named_space(
    name: str | Path,
    parameters: str | None = None,
    tolerance: str | None = None,
    count: Count | None = None,
    vocab_size: int | None = None,
    limits: Mapping[str, Any] = MappingProxyType({}),
) -> SearchSpace:
    """Return the space of this name or file with parts of its budgets replaced.

    Args:
        name: Name of a shipped space, a file, or `auto`.
        parameters: Parameter budget; None uses the space's.
        tolerance: Tolerance; None uses the space's.
        count: Parameters that the budget counts; None uses the space's.
        vocab_size: Vocabulary of the space `auto`; None chooses one by the budget.
        limits: Budgets of other kinds and settings of their trial, as in `SearchSpace.with_limits`.

    Raises:
        BudgetError: If a budget or the tolerance is not valid, or too small for the space `auto`.
        ConfigError: If the space does not exist or is not valid, or has no budget and none is given.
    """
    if str(name) == AUTO:
        if parameters is None:
            raise ConfigError('the space "auto" is laid around a budget: set one, such as --budget 3M.')
        space = automatic_space(parameters, vocab_size=vocab_size, tolerance=tolerance or DEFAULT_TOLERANCE)
    else:
        space = SearchSpace.load(name)
    if space.limits or any(value is not None for value in limits.values()):
        space = space.with_limits(tolerance, **limits)
    is_changed = parameters is not None or count is not None or (tolerance is not None and space.budget is not None)
    has_budget = space.budget is not None or bool(space.limits)
    return space if has_budget and not is_changed else space.with_budget(parameters, tolerance, count)


def shipped_spaces_with(budget: Budget, most: int = 3) -> list[str]:
    """Return the names of shipped spaces that have architectures with this budget, nearest own budget first."""
    spaces = [SearchSpace.load(name) for name in shipped_names("spaces")]

    def distance(space: SearchSpace) -> float:
        ratio = space.budget.parameters / budget.parameters if space.budget else 2.0
        return max(ratio, 1 / ratio)

    near = sorted((space for space in spaces if distance(space) <= FARTHEST), key=lambda s: (distance(s), s.name))
    names: list[str] = []
    for space in near:
        if len(names) < most and space.grid_size() <= MOST_POINTS and len(solve(replace(space, budget=budget))):
            names.append(space.name)
    return names
