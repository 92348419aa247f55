"""Convert fields to architecture names such as `L12-D768-H12x64-F3072-geglu`, and back.

Names contain only letters, digits, `-`, `+` and `.`, so they are safe as file names. Those of a user's block, such as
`moe+num_experts=4+top_k=2`, also contain `=` and `_`.
"""

import re
from decimal import Decimal
from typing import Any

from march_search.errors import ArchitectureError

WORDS: dict[str, tuple[str, Any]] = {
    "gelu": ("feed_forward_proj", "gelu"),
    "silu": ("feed_forward_proj", "silu"),
    "reglu": ("feed_forward_proj", "gated-relu"),
    "geglu": ("feed_forward_proj", "gated-gelu"),
    "swiglu": ("feed_forward_proj", "gated-silu"),
    "abs": ("position", "absolute"),
    "rope": ("position", "rotary"),
    "untied": ("tie_word_embeddings", False),
    "xlayer": ("cross_attention", "layer"),
    "xshared": ("cross_attention", "layer-shared"),
    "dec": ("structure", "decoder-only"),
    "morefirst": ("head_schedule", "more-first"),
    "morelast": ("head_schedule", "more-last"),
    "morefirstsame": ("head_schedule", "more-first-same-width"),
    "morelastsame": ("head_schedule", "more-last-same-width"),
    "Sall": ("share_layers", "all"),
    "noop": ("noop_key", "learned"),
    "noopfixed": ("noop_key", "fixed"),
    "exactgelu": ("feed_forward_proj", "exact-gelu"),
    "nopos": ("position", "none"),
    "qknorm": ("qk_norm", "head"),
    "qknormall": ("qk_norm", "all"),
    "ln": ("norm", "layer"),
    "postnorm": ("norm_position", "post"),
    "bqkv": ("bias", "qkv"),
    "ball": ("bias", "all"),
    "par": ("parallel_block", True),
}
"""Words that set a field to a fixed value."""

NUMBERS: dict[str, tuple[str, type]] = {
    "M": ("max_length", int),
    "V": ("vocab_size", int),
    "S": ("share_layers", int),
    "R": ("length_reduction", float),
    "KV": ("num_key_value_heads", int),
    "RF": ("rotary_fraction", float),
    "RB": ("rotary_base", float),
    "RS": ("rotary_scaling", float),
    "W": ("attention_window", int),
    "G": ("global_every", int),
    "C": ("logit_softcap", float),
    "E": ("norm_epsilon", float),
}
"""Letters that set a field to the number after them."""

MOST_BLOCK_CHARACTERS = 100
"""Largest number of characters of the fields of a user's block in a name."""

_SHAPE = re.compile(
    r"L(\d{1,9})(?:\+(\d{1,9}))?-D(\d{1,9})-H(\d{1,9})x(\d{1,9})-F(\d{1,9})"
    rf"((?:-[A-Za-z0-9.]{{1,30}}|-[a-z][a-z0-9_]{{0,30}}\+[A-Za-z0-9_.=+]{{0,{MOST_BLOCK_CHARACTERS}}})*)",
    re.ASCII,
)

_BOTTLENECK = re.compile(r"B(flat|shrinking|growing)(\d+)", re.ASCII)

_NUMBER = re.compile(r"([A-Z]{1,2})([\d.]+)", re.ASCII)


def encode(values: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Return the name of the architecture with these field values."""
    decoder = "" if values["num_decoder_layers"] is None else f"+{values['num_decoder_layers']}"
    heads = f"H{values['num_heads']}x{values['d_kv']}"
    parts = [f"L{values['num_layers']}{decoder}", f"D{values['d_model']}", heads, f"F{values['d_ff']}"]
    changed = {field: value for field, value in values.items() if value != defaults[field]}
    parts += [word for word, (field, value) in WORDS.items() if field in changed and changed[field] == value]
    parts += [
        f"{letter}{_decimal(changed[field])}"
        for letter, (field, _) in NUMBERS.items()
        if field in changed and changed[field] != "all"
    ]
    if values["bottleneck"] != "none":
        parts.append(f"B{values['bottleneck']}{values['d_bottleneck']}")
    if values["block"] is not None:
        parts.append(values["block"])
    return "-".join(parts)


def _decimal(value: float) -> str:
    """Return a number as short as possible and without an exponent, which would need a sign."""
    text = f"{Decimal(repr(value)):f}"
    return text.removesuffix(".0")


def decode(name: str) -> dict[str, Any]:
    """Return the field values that a name sets; other fields are absent.

    Raises:
        ArchitectureError: If the name has another form, contains an unknown word or sets a field twice.
    """
    match = _SHAPE.fullmatch(name.strip())
    if not match:
        raise ArchitectureError(f"{name!r} is not an architecture name: use the form L12-D768-H12x64-F3072-geglu.")
    layers, decoder, d_model, heads, d_kv, d_ff, rest = match.groups()
    values: dict[str, Any] = {
        "num_layers": int(layers),
        "num_decoder_layers": int(decoder) if decoder else None,
        "d_model": int(d_model),
        "num_heads": int(heads),
        "d_kv": int(d_kv),
        "d_ff": int(d_ff),
    }
    for word in rest.split("-")[1:]:
        for field, value in _decode_word(word, name):
            if field in values:
                raise ArchitectureError(f"{name!r} sets {field} twice.")
            values[field] = value
    return values


def _decode_word(word: str, name: str) -> list[tuple[str, Any]]:
    """Return the fields that one word of a name sets."""
    if word in WORDS:
        return [WORDS[word]]
    if "+" in word:
        return [("block", word)]
    if match := _BOTTLENECK.fullmatch(word):
        return [("bottleneck", match[1]), ("d_bottleneck", int(match[2]))]
    match = _NUMBER.fullmatch(word)
    if match and match[1] in NUMBERS:
        field, kind = NUMBERS[match[1]]
        try:
            return [(field, kind(match[2]))]
        except ValueError:
            pass
    raise ArchitectureError(f'{name!r}: unknown word "{word}" in an architecture name. Known: {", ".join(WORDS)}.')
