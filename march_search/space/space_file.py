"""Read `spaces/*.toml`: the values of the axes, rules and budgets, with all faults of a file in one error."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from march_search.architecture.architecture import DEFAULTS
from march_search.architecture.block import Block
from march_search.architecture.block_file import load_block
from march_search.config.counts import DEFAULT_TOLERANCE, parse_tolerance
from march_search.config.loader import NumberText, gather
from march_search.errors import BudgetError, ConfigError, MarchSearchError, nearest, shown
from march_search.space.axes import AXES, axis_values, block_values, rule_names
from march_search.space.budget import Budget, Count
from march_search.space.limits import KINDS, TRIAL, Limit, needs_device, parse_limits, trial_settings
from march_search.space.rules import Rule


@dataclass(frozen=True, kw_only=True)
class _BudgetTable:
    """The `[budget]` table of a space file: amounts by kind, and the trial that those besides parameters are about."""

    parameters: NumberText | None = None
    tolerance: NumberText | None = None
    count: Count | None = None
    flops_per_token: NumberText | None = None
    training_flops: NumberText | None = None
    hours: NumberText | None = None
    bytes_per_device: NumberText | None = None
    kv_cache_bytes_per_token: NumberText | None = None
    device: str | None = None
    tokens: int | None = None
    sequence_length: int | None = None
    micro_batch: int | None = None
    precision: Literal["fp32", "bf16"] | None = None
    zero_stage: Literal[0, 1, 2, 3] | None = None
    checkpointing: bool | None = None

    def budget(self) -> Budget | None:
        """Return the parameter budget.

        Raises:
            BudgetError: If it is not valid.
        """
        if self.parameters is None:
            return None
        return Budget.parse(self.parameters, self.tolerance or DEFAULT_TOLERANCE, self.count or "total")

    def others(self, faults: list[str]) -> tuple[tuple[Limit, ...], dict[str, Any]]:
        """Return the budgets of other kinds and the settings of their trial; append to `faults` what is refused."""
        amounts = {name: getattr(self, name) for name in KINDS if getattr(self, name) is not None}
        given = {name: getattr(self, name) for name in TRIAL if getattr(self, name) is not None}
        if self.parameters is None and not amounts:
            faults.append(f"[budget] has no budget: set {', '.join(('parameters', *KINDS))} or several of them.")
        if self.parameters is None and self.count is not None:
            faults.append('"budget.count" has no effect without "budget.parameters".')
        if given and not amounts:
            faults.append(f'"budget.{next(iter(given))}" has no effect: no budget of this space depends on a trial.')
        try:
            trial = trial_settings(given)
            limits = parse_limits(amounts, parse_tolerance(self.tolerance or DEFAULT_TOLERANCE), trial)
            if fault := needs_device(limits, trial):
                faults.append(fault)
        except MarchSearchError as error:
            if str(error) not in faults:
                faults.append(str(error))
            return (), {}
        return limits, trial


@dataclass(frozen=True)
class _ModelTable:
    """The `[model]` table of a space file."""

    module: str


@dataclass(frozen=True)
class _SpaceFile:
    """The keys of a space file."""

    description: str = ""
    budget: _BudgetTable | None = None
    model: _ModelTable | None = None
    axes: dict[str, Any] = field(default_factory=dict)
    rules: tuple[str, ...] = ()


def parse_space(table: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the fields of `SearchSpace` besides its name that a parsed TOML table sets.

    Raises:
        ConfigError: If the table has unknown keys, wrong types, an invalid rule or budget. The error lists all faults
            and starts with `source`.
    """
    faults: list[str] = []
    parsed = gather(_SpaceFile, table, faults)
    if parsed is None:
        raise ConfigError.of_file(source, faults)
    block = None
    if parsed.model is not None:
        try:
            block = load_block(parsed.model.module, Path(source).parent)
        except ConfigError as error:
            faults += error.faults
    axes = _axes(parsed.axes, block, faults)
    rules, budget, amounts = [], None, parsed.budget
    for text in parsed.rules:
        try:
            rules.append(Rule.parse(text, rule_names(block)))
        except ConfigError as error:
            faults += error.faults
    try:
        budget = amounts.budget() if amounts else None
    except BudgetError as error:
        faults.append(str(error))
    limits, trial = amounts.others(faults) if amounts else ((), {})
    if faults:
        raise ConfigError.of_file(source, faults)
    return {
        "budget": budget,
        "axes": axes,
        "rules": tuple(rules),
        "block": block,
        "description": parsed.description,
        "vocab_size_is_open": "vocab_size" not in parsed.axes,
        "limits": limits,
        "trial": trial,
    }


def _axes(table: dict[str, Any], block: Block | None, faults: list[str]) -> dict[str, tuple[Any, ...]]:
    """Return the values of every axis from the `[axes]` table; append to `faults` what is refused."""
    axes: dict[str, tuple[Any, ...]] = {axis: (DEFAULTS[axis],) for axis in AXES}
    own: dict[str, tuple[Any, ...]] = {}
    for axis, given in table.items():
        if block is not None and axis in block.fields:
            own[axis] = block_values(block, axis, given, faults)
        elif axis == "block":
            faults.append('"axes.block" cannot be set: name the file of a block as module in [model].')
        elif axis in axes:
            axes[axis] = axis_values(axis, given, faults)
        else:
            faults.append(f"unknown axis {shown(axis)}. {nearest(axis, (*AXES, *(block.fields if block else ())))}")
    if block is not None:
        faults += [
            f"the block {block.name} has a field named {name}, as an axis has." for name in block.fields if name in AXES
        ]
        axes["block"] = tuple(block.combinations(own)) if not faults else ()
    return axes
