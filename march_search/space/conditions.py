"""Conditions that a user adds to a space: rules about axes narrow it, rules about measures filter its members."""

from collections.abc import Sequence
from dataclasses import replace

from march_search.architecture.block import Block
from march_search.cost.measures import COLUMN_NAMES, PRICES
from march_search.cost.setup import Setup
from march_search.errors import EmptySetError
from march_search.space.axes import rule_names
from march_search.space.feasible_set import CHUNK, Selection
from march_search.space.infeasible import solve_or_explain
from march_search.space.members import MEASURES
from march_search.space.rules import Rule
from march_search.space.space import SearchSpace


def parse_conditions(texts: Sequence[str], block: Block | None = None) -> tuple[tuple[Rule, ...], tuple[Rule, ...]]:
    """Return the rules about axes alone, and those that mention a measure such as `hours`.

    Raises:
        ConfigError: If a text is not a condition, or names neither axes nor measures.
    """
    rules = [Rule.parse(text, rule_names(block) | dict.fromkeys(MEASURES)) for text in texts]
    measured = tuple(rule for rule in rules if not rule.names.isdisjoint(MEASURES))
    return tuple(rule for rule in rules if rule not in measured), measured


def prices_in(rules: Sequence[Rule]) -> list[str]:
    """Return the names in the rules whose values depend on the device."""
    return sorted({name for rule in rules for name in rule.names if COLUMN_NAMES.get(name, name) in PRICES})


def solve_where(space: SearchSpace, rules: Sequence[Rule], measured: Sequence[Rule], setup: Setup) -> Selection:
    """Return all architectures of a space that meet its budget, further rules about axes, and rules about measures.

    Raises:
        EmptySetError: If there are none. The message has the range of each measure that the rules mention.
    """
    found = solve_or_explain(replace(space, rules=space.rules + tuple(rules)))
    if not measured:
        return found
    kept = found.where(measured, setup)
    if not len(kept):
        names = sorted({name for rule in measured for name in rule.names & {*MEASURES}})
        ends: dict[str, list[float]] = {name: [] for name in names}
        for start in range(0, len(found), CHUNK):
            members = found.decode(found.numbers(start, start + CHUNK))
            for name in names:
                values = members.measure(name, setup)
                ends[name] += [values.min(), values.max()]
        ranges = [f"{name} is between {min(ends[name]):.6g} and {max(ends[name]):.6g}" for name in names]
        texts = " and ".join(rule.text for rule in measured)
        raise EmptySetError(
            f"None of the {len(found):,} architectures in the space {space.name} with {space.condition} meets {texts}: "
            f"{', '.join(ranges)}."
        )
    return kept
