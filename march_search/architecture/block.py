"""A user's block: a layer of a user's file that replaces the feed-forward layer, counted by the user's formula.

`Architecture.block` is text such as `moe+num_experts=4+top_k=2`: the name of the block and its fields by name, sorted.
The text can be read without the file. Counting parameters needs the block itself, which `register_block` makes known,
or the counts that a trial recorded, which `remember_counts` makes known.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from march_search.architecture.naming import MOST_BLOCK_CHARACTERS
from march_search.errors import ArchitectureError, ConfigError, shown

if TYPE_CHECKING:
    from torch import nn

FieldValue = int | float | bool | str

_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}", re.ASCII)

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,30}", re.ASCII)


class BlockCounts(NamedTuple):
    """Counts of one layer, as whole numbers or int64 arrays."""

    params: Any
    """Parameters."""
    active: Any
    """Parameters that one position is multiplied by."""
    flops: Any
    """Operations of the forward pass at one position."""
    scalars: Any
    """Activations that the backward pass needs at one position."""


@dataclass(frozen=True)
class Source:
    """Where a block was loaded from."""

    module: str
    """Name of an entry point or of a module, or the absolute path of a file."""
    sha256: str
    """SHA-256 of the file's content."""
    is_file: bool
    """Whether `module` is a path."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """A user's feed-forward layer, from (B, L, d_model) to (B, L, d_model).

    Functions take `d_model`, which is the residual width of the layer, `d_ff`, and the block's fields by name. The
    counts must work on whole numbers and on int64 arrays of `d_model` and `d_ff`, because the solver counts millions of
    shapes at once: use `+ - * //` and NumPy, not `if` or `max`.

    Raises:
        ConfigError: If a name or the value of a field is not valid.
    """

    name: str
    """Name in architecture names: small letters, digits and underscores."""
    num_params: Callable[..., Any]
    """`num_params(d_model, d_ff, **fields)`: parameters of one layer."""
    build: Callable[..., "nn.Module"]
    """`build(d_model, d_ff, **fields)`: the module of one layer. Import torch inside; `march_search.model.block_layer`
    describes initialisation and auxiliary losses."""
    fields: Mapping[str, tuple[FieldValue, ...]] = field(default_factory=dict)
    """Values of each field. A space searches all of them, or those that its `[axes]` list."""
    active_params: Callable[..., Any] | None = None
    """Parameters that one position is multiplied by; None for all."""
    flops_per_token: Callable[..., Any] | None = None
    """Operations of the forward pass at one position; None for two per active parameter."""
    activation_scalars: Callable[..., Any] | None = None
    """Activations that the backward pass needs at one position; None for one per `d_model` active parameters."""
    refuse: Callable[..., Iterable[tuple[Any, str]]] | None = None
    """`refuse(d_model, d_ff, **fields)` yields pairs: a condition under which the values are not allowed,
    and a sentence with the reason."""
    replaces: Literal["feed_forward"] = "feed_forward"
    """Layer that the block replaces."""
    source: Source | None = None
    """Where it was loaded from; None if it was registered by a call."""

    def __post_init__(self) -> None:
        """Validate the names and values."""
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"a block's name must have up to 31 small letters, digits and underscores, not {shown(self.name)}."
            )
        if self.replaces != "feed_forward":
            raise ConfigError(
                f'the block {self.name}: replaces must be "feed_forward", not {shown(self.replaces)}: other layers '
                "cannot be replaced."
            )
        for name, values in self.fields.items():
            if not _NAME.fullmatch(name) or name in ("d_model", "d_ff"):
                raise ConfigError(
                    f"the block {self.name}: the name of a field must have up to 31 small letters, digits and "
                    f"underscores, and not be d_model or d_ff, not {shown(name)}."
                )
            if not isinstance(values, tuple) or not values or len(set(map(_text, values))) < len(values):
                raise ConfigError(f"the block {self.name}: {name} must be a tuple of different values.")
        longest = {name: max(values, key=lambda value: len(_text(value))) for name, values in self.fields.items()}
        number = len(block_text("", longest)) - 1
        if number > MOST_BLOCK_CHARACTERS:
            raise ConfigError(
                f"the block {self.name}: its fields take {number} characters in names, and the limit is "
                f"{MOST_BLOCK_CHARACTERS}: use shorter names."
            )

    def combinations(self, axes: Mapping[str, tuple[FieldValue, ...]]) -> list[str]:
        """Return the text of every combination of values; the last field changes fastest."""
        texts: list[dict[str, FieldValue]] = [{}]
        for name, values in self.fields.items():
            texts = [{**known, name: value} for known in texts for value in axes.get(name, values)]
        return [block_text(self.name, chosen) for chosen in texts]

    def check(self, fields: Mapping[str, FieldValue]) -> None:
        """Check that these are the block's fields, each with one of its values; raise ArchitectureError otherwise."""
        if fields.keys() != self.fields.keys():
            raise ArchitectureError(
                f"the block {self.name} has the fields {', '.join(self.fields) or 'none'}, not "
                f"{', '.join(fields) or 'none'}."
            )
        for name, value in fields.items():
            if not any(value == known and type(value) is type(known) for known in self.fields[name]):
                options = ", ".join(map(_text, self.fields[name]))
                raise ArchitectureError(f"{name} of the block {self.name} must be one of {options}, not {value!r}.")

    def counts(self, d_model: Any, d_ff: Any, fields: Mapping[str, FieldValue]) -> BlockCounts:
        """Return the counts of one layer.

        Raises:
            ConfigError: If a formula fails, or returns anything but whole numbers of the right shape.
        """
        params = self._whole("num_params", d_model, d_ff, fields)
        active = params if self.active_params is None else self._whole("active_params", d_model, d_ff, fields)
        flops = 2 * active if self.flops_per_token is None else self._whole("flops_per_token", d_model, d_ff, fields)
        if self.activation_scalars is None:
            return BlockCounts(params, active, flops, active // d_model)
        return BlockCounts(params, active, flops, self._whole("activation_scalars", d_model, d_ff, fields))

    def _whole(self, name: str, d_model: Any, d_ff: Any, fields: Mapping[str, FieldValue]) -> Any:
        """Return what a formula returns, as an int or an int64 array."""
        try:
            result = getattr(self, name)(d_model, d_ff, **fields)
        except Exception as error:  # whatever the user's code raises
            raise ConfigError(f"the block {self.name}: {name} failed: {type(error).__name__}: {error}.") from None
        array = np.asarray(result)
        if array.dtype.kind not in "iu" or array.min(initial=0) < 0:
            raise ConfigError(
                f"the block {self.name}: {name} must return whole numbers of at least 0, not {shown(result)}: use // "
                "instead of /."
            )
        return array.astype(np.int64) if array.ndim else int(array)


_BLOCKS: dict[str, Block] = {}
"""Blocks by name."""

_RECORDED: dict[tuple[str, int, int], BlockCounts] = {}
"""Counts that trials recorded, by text, `d_model` and `d_ff`."""


def register_block(block: Block) -> None:
    """Make a block known by its name, so that its architectures can be counted and built.

    Raises:
        ConfigError: If another file's block has the same name.
    """
    known, new = _BLOCKS.get(block.name), block.source
    old = known and known.source
    if old and new and old.module != new.module and old.sha256 != new.sha256:
        raise ConfigError(f"{new.module}: a block named {block.name} is known from {old.module}: rename one of them.")
    _BLOCKS[block.name] = block


def find_block(name: str) -> Block:
    """Return the registered block with this name.

    Raises:
        ArchitectureError: If there is none.
    """
    if name not in _BLOCKS:
        raise ArchitectureError(
            f"the block {name} is not known here, so its architectures cannot be counted or built: name its file as "
            "[model] module of a space (explain takes --space), or call march_search.register_block."
        )
    return _BLOCKS[name]


def remember_counts(text: str, rows: Iterable[Iterable[int]]) -> None:
    """Keep counts that a trial recorded; they are used where the block is not registered.

    Args:
        text: Text of the block.
        rows: `d_model`, `d_ff` and the `BlockCounts` of each kind of layer.
    """
    for d_model, d_ff, *counts in rows:
        _RECORDED[text, d_model, d_ff] = BlockCounts(*counts)


def layer_counts(text: str, d_model: Any, d_ff: Any) -> BlockCounts:
    """Return the counts of one layer with this block.

    Raises:
        ArchitectureError: If the block is not registered, and no trial recorded these counts.
        ConfigError: If a formula fails.
    """
    name, fields = parse_block(text)
    if name not in _BLOCKS and not isinstance(d_model, np.ndarray) and (text, d_model, d_ff) in _RECORDED:
        return _RECORDED[text, d_model, d_ff]
    return find_block(name).counts(d_model, d_ff, fields)


def layer_refusals(text: str, d_model: Any, d_ff: Any) -> Iterable[tuple[Any, str]]:
    """Yield the items of `parameters.refusals` of one layer; none if the block is not registered."""
    name, fields = parse_block(text)
    block = _BLOCKS.get(name)
    if block is None or block.refuse is None:
        return
    for refused, sentence in block.refuse(d_model, d_ff, **fields):
        yield refused, f"the block {name}: " + sentence.rstrip(".").replace("{", "{{").replace("}", "}}")


def block_text(name: str, fields: Mapping[str, FieldValue]) -> str:
    """Return a block and its fields as text, such as `moe+num_experts=4+top_k=2`; `name+` without any fields."""
    return f"{name}+" + "+".join(f"{key}={_text(fields[key])}" for key in sorted(fields))


@lru_cache(maxsize=4096)
def parse_block(text: str) -> tuple[str, dict[str, FieldValue]]:
    """Return the name and the fields of a block's text.

    Raises:
        ArchitectureError: If it has another form.
    """
    name, plus, rest = str(text).partition("+")
    fields: dict[str, FieldValue] = {}
    for part in rest.split("+") if rest else ():
        key, _, value = part.partition("=")
        if not _NAME.fullmatch(key) or key in fields:
            plus = ""
        fields[key] = _value(value, text)
    if not plus or not _NAME.fullmatch(name):
        raise ArchitectureError(f'{text!r} is not a block: use the form "moe+num_experts=4+top_k=2".')
    return name, fields


def canonical(text: str) -> str:
    """Return a block's text with its fields sorted; check them if the block is registered.

    Raises:
        ArchitectureError: If the text or a field is not valid.
    """
    name, fields = parse_block(text)
    if name in _BLOCKS:
        _BLOCKS[name].check(fields)
    return block_text(name, fields)


def _text(value: FieldValue) -> str:
    """Return the value of a field as text, from which `_value` reads the same value and type."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        read = _value(text, text)
    except ArchitectureError:
        read = None
    if read != value or type(read) is not type(value):
        raise ConfigError(
            f"the value {shown(value)} of a block's field must be true, false, a whole or decimal number of at least "
            "0, or a word of letters, digits and underscores."
        )
    return text


def _value(text: str, whole: str) -> FieldValue:
    """Return the value that stands in the text `whole` of a block."""
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"\d{1,15}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"\d{1,15}\.\d{1,15}", text, re.ASCII):
        return float(text)
    if _WORD.fullmatch(text):
        return text
    raise ArchitectureError(f"{whole!r} has the value {text!r}, which is neither a number nor a word.")


def source_record(text: str, folder: Path) -> tuple[str, str]:
    """Return the module of a block, with its path relative to `folder`, and the SHA-256 of its file.

    Raises:
        ArchitectureError: If the block is not registered.
        ConfigError: If it was not loaded from a file.
    """
    import os

    block = find_block(parse_block(text)[0])
    if block.source is None:
        raise ConfigError(
            f"the block {block.name} was registered by a call, so the process of a trial cannot load it: set [model] "
            "module in the space to its file."
        )
    module = block.source.module
    if block.source.is_file:
        module = os.path.relpath(module, folder.resolve())
    return module, block.source.sha256
