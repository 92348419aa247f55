"""Search spaces: axes of values, rules between them, and budgets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.architecture.block import Block
from march_search.config.counts import DEFAULT_TOLERANCE, parse_tolerance
from march_search.config.loader import read_file
from march_search.config.shipped import shipped_path
from march_search.errors import ConfigError
from march_search.space.axes import AXES, rule_values
from march_search.space.budget import Budget, Count
from march_search.space.limits import KINDS, Limit, needs_device, parse_limits, trial_settings
from march_search.space.rules import Rule
from march_search.space.space_file import parse_space


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Values of every axis, the rules between them, and the budgets."""

    name: str
    """File name without its extension."""
    budget: Budget | None
    """Parameter budget; None if the file does not set one."""
    axes: dict[str, tuple[Any, ...]]
    """Values of every field of `Architecture`; whole numbers are sorted, and a fixed field has one value."""
    rules: tuple[Rule, ...] = ()
    """Conditions that an architecture must meet. In a rule, every field has a value; see `rule_values`."""
    description: str = ""
    """Purpose of the space."""
    block: Block | None = None
    """A user's block that `[model]` names; then the axis `block` has one value per combination of its fields."""
    vocab_size_is_open: bool = False
    """Whether the space leaves `vocab_size` to the study that uses it."""
    limits: tuple[Limit, ...] = ()
    """Budgets of other kinds than parameters, in the order of `limits.KINDS`."""
    trial: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Setup` that the space itself sets for these budgets."""

    @classmethod
    def load(cls, name: str | Path) -> "SearchSpace":
        """Return the shipped space with this name, or the space in a file.

        Raises:
            ConfigError: If the space does not exist, or has unknown keys, wrong types, an invalid rule or budget. The
                error lists all faults.
        """
        path = shipped_path("spaces", str(name))
        return cls.from_table(read_file(path), path.stem, str(path))

    @classmethod
    def from_table(cls, table: dict[str, Any], name: str = "space", source: str = "space") -> "SearchSpace":
        """Return the space in a parsed TOML table; error messages start with `source`."""
        return cls(name=name, **parse_space(table, source))

    def with_budget(
        self, parameters: str | None = None, tolerance: str | None = None, count: Count | None = None
    ) -> "SearchSpace":
        """Return a copy with parts of the budget replaced.

        Raises:
            BudgetError: If `parameters` or `tolerance` is not valid.
            ConfigError: If the space has no budget and `parameters` is None.
        """
        old = self.budget
        if old is None and parameters is None:
            kind = "parameter budget" if self.limits else "budget"
            raise ConfigError(f'the space "{self.name}" has no {kind}: set one with --budget, such as --budget 220M.')
        budget = Budget.parse(
            str(old and old.parameters) if parameters is None else parameters,
            DEFAULT_TOLERANCE if tolerance is None else tolerance,
            count or (old.count if old else "total"),
        )
        if old is not None and tolerance is None:
            budget = replace(budget, tolerance=old.tolerance)
        return replace(self, budget=budget)

    def with_limits(self, tolerance: str | None = None, **values: Any) -> "SearchSpace":
        """Return a copy with budgets of other kinds than parameters added.

        A new budget replaces the one of the same kind.

        Args:
            tolerance: Tolerance of FLOPs; None keeps that of the parameter budget, else 1.5%.
            values: Amounts by a key of `limits.KINDS`, such as `hours=48` or `flops_per_token="<=600M"`, and settings
                of the trial that they are about by a name in `limits.TRIAL`, such as `device="8xH100"`. None is
                ignored.

        Raises:
            BudgetError: If an amount or the tolerance is not valid.
            ConfigError: If a name is unknown, a setting is not valid, or a device is missing.
            UsageError: If the device is unknown.
        """
        given = {name: value for name, value in values.items() if value is not None}
        amounts = {name: str(given.pop(name)) for name in KINDS if name in given}
        trial = {**self.trial, **trial_settings(given)}
        old = self.budget.tolerance if self.budget else parse_tolerance(DEFAULT_TOLERANCE)
        wanted = old if tolerance is None else parse_tolerance(tolerance)
        kept = [limit if tolerance is None else limit.with_tolerance(wanted) for limit in self.limits]
        limits = parse_limits(amounts, wanted, trial, kept)
        if fault := needs_device(limits, trial):
            raise ConfigError(fault)
        return replace(self, limits=limits, trial=trial)

    @property
    def condition(self) -> str:
        """All budgets in words."""
        return in_words(self.budget, self.limits)

    @property
    def varying(self) -> tuple[str, ...]:
        """Axes with more than one value."""
        return tuple(axis for axis in AXES if len(self.axes[axis]) > 1)

    def grid_size(self) -> int:
        """Return the number of grid points before rules and budget."""
        size = 1
        for values in self.axes.values():
            size *= len(values)
        return size

    def contains(self, architecture: Architecture) -> bool:
        """Return whether all fields are on their axes and all rules hold; the budget is not checked."""
        values = {axis: getattr(architecture, axis) for axis in AXES}
        skipped = {"num_decoder_layers"} if self.equal_depths or architecture.structure == "decoder-only" else set()
        if self.equal_depths and architecture.num_decoder_layers is not None:
            return False
        if architecture.bottleneck == "none":
            skipped.add("d_bottleneck")
        if self.has_groups:
            values["num_key_value_heads"] = architecture.key_value_heads
        values["num_decoder_layers"] = architecture.decoder_layers
        on_axes = all(values[axis] in self.axes[axis] for axis in AXES if axis not in skipped)
        shown = rule_values(values)
        return on_axes and all(bool(rule.holds(shown)) for rule in self.rules)

    @property
    def equal_depths(self) -> bool:
        """Whether the decoder always has as many layers as the encoder."""
        return self.axes["num_decoder_layers"] == (None,)

    @property
    def has_groups(self) -> bool:
        """Whether an axis sets the number of key/value heads, which is else that of all heads."""
        return self.axes["num_key_value_heads"] != (None,)


def in_words(budget: Budget | None, limits: Sequence[Limit]) -> str:
    """Return budgets in words: `220,000,000 parameters ± 1.5% and at most 40kB of key/value cache per token`."""
    words = [str(one) for one in (budget, *limits) if one is not None]
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:]))) or "any size"
