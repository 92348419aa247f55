"""Follow a direction over sizes: find the member of a feasible set that is nearest to ratios of its fields.

A direction is an expression of fields and the value that it aims at, such as `d_model / num_layers` and 64. The
distance of a member is the root of the sum of squares of log2(value / aim), over the directions and the parameters, so
that twice and half an aim are equally far. Members at the same distance keep the order of the set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from march_search.architecture.architecture import DEFAULTS, Architecture
from march_search.errors import ConfigError, EmptySetError, nearest, shown
from march_search.space.axes import AXES, axis_values, rule_values
from march_search.space.feasible_set import FeasibleSet
from march_search.space.limits import KINDS
from march_search.space.members import Members, Numbers
from march_search.space.rules import Rule
from march_search.space.solver import solve
from march_search.space.space import SearchSpace

SHAPE = ("num_layers", "num_decoder_layers", "d_model", "num_heads", "num_key_value_heads", "d_kv", "d_ff")
"""Axes that are free to follow a direction. The others have the first value of the space, unless a field sets them."""

KEPT = 0.1
"""Largest distance in octaves, 7%, at which a direction counts as kept."""


@dataclass(frozen=True)
class Direction:
    """An expression of fields, and the value that it aims at."""

    rule: Rule
    """The rule that the expression equals the aim."""
    text: str
    """The expression as written."""
    aim: float
    """Positive value to aim at."""

    @classmethod
    def parse(cls, text: str, aim: float) -> "Direction":
        """Parse a direction.

        Raises:
            ConfigError: If the text is not an expression of fields.
        """
        whole = f"({text}) == {aim}"
        try:
            rule = Rule.parse(whole, DEFAULTS)
        except ConfigError as error:
            raise _about_direction(error, whole, text) from None
        if not rule.names or any(sign in text for sign in "=<>"):
            raise ConfigError(f'"{text}" is not a direction: use an expression of fields such as d_model / num_layers.')
        return cls(rule, text, aim)

    def octaves(self, shape: Any) -> Any:
        """Return log2(value / aim) for a shape, whose numbers may be arrays; infinite if the value is not positive.

        Raises:
            ConfigError: If the expression is text, or uses text as a number.
        """
        try:
            value = np.asarray(self.rule.left(rule_values(vars(shape))))
        except ConfigError as error:
            raise _about_direction(error, self.rule.text, self.text) from None
        if value.dtype.kind not in "biuf":
            raise ConfigError(f"the direction {shown(self.text)} is text, not a number: use fields such as d_model.")
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(value > 0, np.log2(value / self.aim), np.inf)


def _about_direction(error: ConfigError, rule: str, text: str) -> ConfigError:
    """Return the error about the rule of a direction as one about the direction."""
    return ConfigError(str(error).replace(f"the rule {shown(rule)}", f"the direction {shown(text)}"))


@dataclass(frozen=True, kw_only=True)
class FollowedArm:
    """The member nearest to an arm's directions at one budget."""

    architecture: Architecture
    missed: tuple[str, ...]
    """Directions that could not be kept, each with its value and its aim."""


def follow(space: SearchSpace, directions: Mapping[str, float], fields: Mapping[str, Any]) -> FollowedArm:
    """Return the member of `space` that has the fields and is nearest to the directions.

    Args:
        space: The space, with its budget.
        directions: Aims by expression.
        fields: Exact values by field. Of the axes outside `SHAPE`, the others have their first value.

    Raises:
        ConfigError: If a direction is not an expression of fields, or the space does not have the value of a field.
        EmptySetError: If no member has the fields.
    """
    if clocked := [limit.kind for limit in space.limits if KINDS[limit.kind].by_tokens]:
        raise ConfigError(
            f"the space {space.name} has a budget of {clocked[0]}, which depends on the tokens of a trial, and those "
            "differ by size: remove it from [budget]."
        )
    wanted = [Direction.parse(text, aim) for text, aim in directions.items()]
    for field in fields:
        if field not in AXES:
            raise ConfigError(f'unknown field "{field}". {nearest(field, AXES)}')
    exact = {field: _as_axis_value(field, value) for field, value in fields.items()}
    for field, value in exact.items():
        if not any(value == known and type(value) is type(known) for known in space.axes[field]):
            known = ", ".join("none" if known is None else str(known) for known in space.axes[field][:8])
            raise ConfigError(
                f"the space {space.name} has no {field} = {fields[field]}, only {known}: add it to the space."
            )
    fixed = {axis: space.axes[axis][0] for axis in AXES if axis not in SHAPE} | exact
    found = solve(replace(space, axes=space.axes | {axis: (value,) for axis, value in fixed.items()}))
    if not len(found):
        words = ", ".join(f"{field} = {value}" for field, value in fields.items())
        raise EmptySetError(f"no architecture with {words or 'these rules'} has {found.condition}: widen the space.")
    chosen = nearest_member(found, wanted)
    missed = []
    for direction in wanted:
        octaves = float(direction.octaves(chosen))
        if abs(octaves) > KEPT:
            missed.append(f"{direction.text} is {direction.aim * 2**octaves:.3g}, not {direction.aim:g}")
    return FollowedArm(architecture=chosen, missed=tuple(missed))


def _as_axis_value(field: str, value: Any) -> Any:
    """Return the value of a field as a space file reads it, such as 500000.0 for 500000; unchanged if it refuses it."""
    values = axis_values(field, [value], [])
    return values[0] if values else value


def nearest_member(found: FeasibleSet, directions: Sequence[Direction]) -> Architecture:
    """Return the member with the smallest distance from the directions and the budget."""

    def squares(members: Members) -> Numbers:
        total = np.square(np.log2(members.counted / (members.target or members.counted)))
        for direction in directions:
            total += np.square(members.map(direction.octaves))
        return np.asarray(total, float)

    return found.first(1, squares)[0]
