"""Search spaces: read spaces/*.toml into axes of values, shape rules and a parameter budget."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from march_search.architecture.architecture import CHOICES, DEFAULTS, Architecture
from march_search.config.loader import build, read_file
from march_search.config.shipped import shipped_path
from march_search.errors import ConfigError, nearest
from march_search.space.budget import DEFAULT_TOLERANCE, Budget, Count
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
    "max_length",
    "feed_forward_proj",
    "num_layers",
    "num_decoder_layers",
    "vocab_size",
    "d_model",
    "num_heads",
    "d_kv",
    "d_bottleneck",
    "d_ff",
)
"""All fields of `Architecture`, in the iteration order of a feasible set; the last changes fastest."""


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Values of every axis, the rules between them, and the parameter budget."""

    name: str
    """File name without its extension."""
    budget: Budget | None
    """Parameter budget; None if the file does not set one."""
    axes: dict[str, tuple[Any, ...]]
    """Values of every field of `Architecture`; whole numbers are sorted, and a fixed field has one value."""
    rules: tuple[Rule, ...] = ()
    """Conditions that an architecture must meet. In a rule, `num_decoder_layers` is always a number, and `d_bottleneck`
    equals `d_model` if there is no bottleneck."""
    description: str = ""
    """Purpose of the space."""

    @classmethod
    def load(cls, name: str | Path) -> "SearchSpace":
        """Return the shipped space with this name, or the space in a file.

        Raises:
            ConfigError: If the space does not exist, or has an unknown key, a wrong type or an invalid rule.
        """
        path = shipped_path("spaces", str(name))
        return cls.from_table(read_file(path), path.stem, str(path))

    @classmethod
    def from_table(cls, table: dict[str, Any], name: str = "space", source: str = "space") -> "SearchSpace":
        """Return the space in a parsed TOML table; error messages start with `source`."""
        parsed = build(_SpaceFile, table, source)
        axes = {axis: (DEFAULTS[axis],) for axis in AXES}
        for axis, values in parsed.axes.items():
            if axis not in axes:
                raise ConfigError(f'{source}: unknown axis "{axis}". {nearest(axis, AXES)}')
            axes[axis] = _values(axis, values, source)
        try:
            rules = tuple(Rule.parse(text, DEFAULTS) for text in parsed.rules)
            limit = parsed.budget
            budget = Budget.parse(limit.parameters, limit.tolerance, limit.count) if limit else None
        except ValueError as error:
            raise type(error)(f"{source}: {error}") from None
        return cls(name=name, budget=budget, axes=axes, rules=rules, description=parsed.description)

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
            raise ConfigError(f'the space "{self.name}" has no budget: set one with --budget, such as --budget 220M.')
        budget = Budget.parse(
            str(old and old.parameters) if parameters is None else parameters,
            DEFAULT_TOLERANCE if tolerance is None else tolerance,
            count or (old.count if old else "total"),
        )
        if old is not None and tolerance is None:
            budget = replace(budget, tolerance=old.tolerance)
        return replace(self, budget=budget)

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
        values["num_decoder_layers"] = architecture.decoder_layers
        skipped = {"num_decoder_layers"} if self.equal_depths or architecture.structure == "decoder-only" else set()
        if self.equal_depths and architecture.num_decoder_layers is not None:
            return False
        if architecture.bottleneck == "none":
            skipped.add("d_bottleneck")
            values["d_bottleneck"] = architecture.d_model
        on_axes = all(values[axis] in self.axes[axis] for axis in AXES if axis not in skipped)
        return on_axes and all(bool(rule.holds(values)) for rule in self.rules)

    @property
    def equal_depths(self) -> bool:
        """Whether the decoder always has as many layers as the encoder."""
        return self.axes["num_decoder_layers"] == (None,)


_LARGEST = {"num_layers": 1024, "num_decoder_layers": 1024, "share_layers": 1024}
"""Largest value of an axis (default: 2^20), so that parameter counts fit in 64 bits."""


@dataclass(frozen=True)
class _BudgetTable:
    """The `[budget]` table of a space file."""

    parameters: str
    tolerance: str = DEFAULT_TOLERANCE
    count: Count = "total"


@dataclass(frozen=True)
class _SpaceFile:
    """The keys of a space file."""

    description: str = ""
    budget: _BudgetTable | None = None
    axes: dict[str, Any] = field(default_factory=dict)
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Range:
    """A range such as `{ min = 64, max = 4096, multiple_of = 64 }`, both ends included."""

    min: int
    max: int
    multiple_of: int = 1


def _values(axis: str, given: Any, source: str) -> tuple[Any, ...]:
    """Return the values of one axis from a scalar, a list or a range table."""
    if isinstance(given, dict):
        limits = build(_Range, given, source, f"axes.{axis}.")
        step = limits.multiple_of
        if step < 1 or limits.min < 1:
            raise ConfigError(f'{source}: "axes.{axis}": min and multiple_of must be at least 1.')
        _check_value(axis, limits.max, source)
        values: tuple[Any, ...] = tuple(range(-(-limits.min // step) * step, limits.max + 1, step))
    else:
        values = tuple(given) if isinstance(given, list) else (given,)
    if not values:
        raise ConfigError(f'{source}: "axes.{axis}" has no values: list at least one, or widen the range.')
    for value in values:
        _check_value(axis, value, source)
    if len(set(values)) < len(values):
        raise ConfigError(f'{source}: "axes.{axis}" has duplicate values: list each value once.')
    return tuple(sorted(values)) if all(type(v) is int for v in values) else values


def _check_value(axis: str, value: Any, source: str) -> None:
    """Check that `value` is valid for the field of `Architecture`; raise ConfigError if not."""
    if axis in CHOICES:
        known = CHOICES[axis]
        if not any(value == k and type(value) is type(k) for k in known):
            words = [str(k).lower() if isinstance(k, bool) else k for k in known]
            raise ConfigError(f'{source}: "axes.{axis}" cannot be {value!r}. {nearest(str(value), words)}')
    elif axis == "length_reduction":
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 / 1024 <= value <= 1:
            raise ConfigError(f'{source}: "axes.{axis}" must be numbers in [1/1024, 1], not {value!r}.')
    elif axis == "share_layers" and value == "all":
        return
    elif type(value) is not int or not 1 <= value <= _LARGEST.get(axis, 2**20):
        raise ConfigError(
            f'{source}: "axes.{axis}" must be whole numbers from 1 to {_LARGEST.get(axis, 2**20):,}, not {value!r}.'
        )
