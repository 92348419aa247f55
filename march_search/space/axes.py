"""Axes of a search space: the fields of `Architecture`, their values in a space file, and how a rule sees them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from march_search.architecture.architecture import CHOICES, DEFAULTS, NUMBERS
from march_search.architecture.block import Block, parse_block
from march_search.config.loader import as_count, gather
from march_search.errors import nearest, shown

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


_LARGEST = dict.fromkeys(("num_layers", "num_decoder_layers", "share_layers", "global_every"), 1024)
"""Largest value of an axis (default: 2^20), so that parameter counts fit in 64 bits."""


def rule_names(block: Block | None) -> dict[str, Any]:
    """Return the fields that a rule may name, those of a block included."""
    return DEFAULTS | ({} if block is None else dict.fromkeys(block.fields))


def rule_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all fields as a rule sees them, those of a block included, where none of them is None.

    `num_decoder_layers` is the number of layers of the only or second stack, `num_key_value_heads` that of all heads.
    Without a bottleneck, `d_bottleneck` equals `d_model`. A missing window and a missing bound of the logits are 0.
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


@dataclass(frozen=True)
class _Range:
    """A range such as `{ min = 64, max = 4096, multiple_of = 64 }`, both ends included."""

    min: int
    max: int
    multiple_of: int = 1


def axis_values(axis: str, given: Any, faults: list[str]) -> tuple[Any, ...]:
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


def block_values(block: Block, axis: str, given: Any, faults: list[str]) -> tuple[Any, ...]:
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
