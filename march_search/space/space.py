"""Search spaces: read spaces/*.toml into axes of values, shape rules and budgets."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from march_search.architecture.architecture import CHOICES, DEFAULTS, NUMBERS, Architecture
from march_search.architecture.block import Block, parse_block
from march_search.architecture.block_file import load_block
from march_search.config.counts import DEFAULT_TOLERANCE, parse_tolerance
from march_search.config.loader import NumberText, as_count, gather, read_file
from march_search.config.shipped import shipped_path
from march_search.errors import BudgetError, ConfigError, MarchSearchError, nearest, shown
from march_search.space.budget import Budget, Count
from march_search.space.limits import KINDS, TRIAL, Limit, needs_device, parse_limits, trial_settings
from march_search.space.rules import Rule

AXES = (
    "structure",
    "position",
    "cross_attention",
    "tie_word_embeddings",
    "head_schedule",
    "share_layers",
    "bottleneck",
    "length_reduction",
    "noop_key",
    "qk_norm",
    "norm",
    "norm_position",
    "bias",
    "parallel_block",
    "rotary_fraction",
    "rotary_base",
    "rotary_scaling",
    "attention_window",
    "global_every",
    "logit_softcap",
    "norm_epsilon",
    "block",
    "max_length",
    "feed_forward_proj",
    "num_layers",
    "num_decoder_layers",
    "vocab_size",
    "d_model",
    "num_heads",
    "num_key_value_heads",
    "d_kv",
    "d_bottleneck",
    "d_ff",
)
"""All fields of `Architecture`, in the iteration order of a feasible set; the last changes fastest."""


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
        faults: list[str] = []
        parsed = gather(_SpaceFile, table, faults)
        if parsed is None:
            raise ConfigError.of_file(source, faults)
        axes: dict[str, tuple[Any, ...]] = {axis: (DEFAULTS[axis],) for axis in AXES}
        block, own = None, dict[str, tuple[Any, ...]]()
        if parsed.model is not None:
            try:
                block = load_block(parsed.model.module, Path(source).parent)
            except ConfigError as error:
                faults += error.faults
        for axis, given in parsed.axes.items():
            if block is not None and axis in block.fields:
                own[axis] = _block_values(block, axis, given, faults)
                continue
            if axis == "block":
                faults.append('"axes.block" cannot be set: name the file of a block as module in [model].')
                continue
            if axis not in axes:
                faults.append(f"unknown axis {shown(axis)}. {nearest(axis, (*AXES, *(block.fields if block else ())))}")
            axes[axis] = _values(axis, given, faults) if axis in axes else ()
        if block is not None:
            faults += [
                f"the block {block.name} has a field named {name}, as an axis has."
                for name in block.fields
                if name in AXES
            ]
            axes["block"] = tuple(block.combinations(own)) if not faults else ()
        rules, budget, limit = [], None, parsed.budget
        for text in parsed.rules:
            try:
                rules.append(Rule.parse(text, rule_names(block)))
            except ConfigError as error:
                faults += error.faults
        try:
            budget = limit.budget() if limit else None
        except BudgetError as error:
            faults.append(str(error))
        others = limit.others(faults) if limit else ((), {})
        if faults:
            raise ConfigError.of_file(source, faults)
        return cls(
            name=name,
            budget=budget,
            axes=axes,
            rules=tuple(rules),
            block=block,
            description=parsed.description,
            vocab_size_is_open="vocab_size" not in parsed.axes,
            limits=others[0],
            trial=others[1],
        )

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
        """Return a copy with budgets of other kinds than parameters added or replaced; those of one kind replace it.

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


def rule_names(block: Block | None) -> dict[str, Any]:
    """Return the fields that a rule may name, those of a block included."""
    return DEFAULTS | ({} if block is None else dict.fromkeys(block.fields))


def in_words(budget: Budget | None, limits: Sequence[Limit]) -> str:
    """Return budgets in words: `220,000,000 parameters ± 1.5% and at most 40kB of key/value cache per token`."""
    words = [str(one) for one in (budget, *limits) if one is not None]
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:]))) or "any size"


def rule_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all fields as a rule sees them, those of a block included, where none of them is None.

    `num_decoder_layers` is the number of layers of the only or second stack, `num_key_value_heads` that of heads,
    `d_bottleneck` equals `d_model` if there is no bottleneck, and no window and no bound of the logits are 0.
    """
    instead = {
        "num_decoder_layers": values["num_layers"],
        "num_key_value_heads": values["num_heads"],
        "d_bottleneck": values["d_model"],
        "attention_window": 0,
        "logit_softcap": 0.0,
        "block": "none",
    }
    own = {} if values["block"] is None else parse_block(values["block"])[1]
    return own | dict(values) | {axis: value for axis, value in instead.items() if values[axis] is None}


_LARGEST = dict.fromkeys(("num_layers", "num_decoder_layers", "share_layers", "global_every"), 1024)
"""Largest value of an axis (default: 2^20), so that parameter counts fit in 64 bits."""


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


@dataclass(frozen=True)
class _Range:
    """A range such as `{ min = 64, max = 4096, multiple_of = 64 }`, both ends included."""

    min: int
    max: int
    multiple_of: int = 1


def _values(axis: str, given: Any, faults: list[str]) -> tuple[Any, ...]:
    """Return the values of one axis from a scalar, a list or a range table; append to `faults` what is refused."""
    before, key = len(faults), f'"axes.{axis}"'
    if isinstance(given, dict):
        limits = gather(_Range, given, faults, f"axes.{axis}.")
        if limits is None:
            return ()
        step = limits.multiple_of
        if step < 1 or limits.min < 1:
            faults.append(f"{key}: min and multiple_of must be at least 1.")
        _value(axis, limits.max, faults)
        if len(faults) > before:
            return ()
        values: tuple[Any, ...] = tuple(range(-(-limits.min // step) * step, limits.max + 1, step))
    else:
        values = tuple(_value(axis, value, faults) for value in (given if isinstance(given, list) else [given]))
    if len(faults) > before:
        return ()
    if not values:
        faults.append(f"{key} has no values: list at least one, or widen the range.")
    if len(set(values)) < len(values):
        faults.append(f"{key} has duplicate values: list each value once.")
    return tuple(sorted(values)) if all(type(v) is int for v in values) else values


def _block_values(block: Block, axis: str, given: Any, faults: list[str]) -> tuple[Any, ...]:
    """Return the values of a block's field from a scalar or a list; append to `faults` what is refused."""
    known, values = block.fields[axis], tuple(given) if isinstance(given, list) else (given,)
    for value in values:
        if not any(value == other and type(value) is type(other) for other in known):
            options = ", ".join(map(str, known))
            faults.append(f'"axes.{axis}" must be among {options} of the block {block.name}, not {shown(value)}.')
            return ()
    if not values or len(set(values)) < len(values):
        faults.append(f'"axes.{axis}" must list each value once, and at least one.')
    return values


def _fields_in(text: str) -> list[str]:
    """Return the axes that a text mentions, if it is an expression of them."""
    return [word for word in re.findall(r"[a-z_]+", text) if word in AXES]


def _value(axis: str, value: Any, faults: list[str]) -> Any:
    """Return a value of an axis, with counts such as `"32K"` as ints; append to `faults` if it is refused."""
    key = f'"axes.{axis}"'
    if axis in CHOICES:
        known = CHOICES[axis]
        if not any(value == k and type(value) is type(k) for k in known):
            words = [str(k).lower() if isinstance(k, bool) else k for k in known]
            faults.append(f"{key} cannot be {shown(value)}. {nearest(str(value)[:60], words)}")
    elif axis in NUMBERS:
        (low, high), is_none = NUMBERS[axis], axis == "logit_softcap" and value == "none"
        if not is_none and (isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high):
            lowest = "1/1024" if low == 1 / 1024 else f"{low:g}"
            faults.append(f"{key} must be numbers in [{lowest}, {high:g}], not {shown(value)}.")
            return None
        return None if is_none else float(value)
    elif axis == "attention_window" and value == "none":
        return None
    elif not (axis == "share_layers" and value == "all"):
        least, most = axis != "global_every", _LARGEST.get(axis, 2**20)
        number = as_count(value)
        if number is None and isinstance(value, str) and (names := _fields_in(value)):
            faults.append(
                f"{key} cannot be the expression {shown(value)}: give it the range to search, and tie it to "
                f"{' and '.join(names)} with rules = [{shown(f'{axis} == {value}')}]."
            )
        elif number is None or not least <= number <= most:
            faults.append(f"{key} must be whole numbers from {int(least)} to {most:,}, not {shown(value)}.")
        return number
    return value
