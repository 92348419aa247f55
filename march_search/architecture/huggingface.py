"""Convert between the fields of an architecture and the config.json of a T5, or by `huggingface_decoders` of others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from march_search.architecture.huggingface_decoders import FAMILIES, config_from_decoder, fields_from_decoder
from march_search.architecture.parameters import RELATIVE_BUCKETS
from march_search.errors import ArchitectureError, nearest, shown

MAX_DISTANCE = 128
"""Distance from which on all relative positions share T5's last bucket."""

EPSILON = 1e-6
"""Added to the mean square in T5's norms, where a config.json leaves it out."""

START_TOKEN = 0
"""Token that T5's decoder starts with: the padding token."""

SIZES = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
"""Fields with the same name in both, with the value that transformers takes where a config.json leaves them out."""

FIXED = {
    "relative_attention_num_buckets": RELATIVE_BUCKETS,
    "relative_attention_max_distance": MAX_DISTANCE,
    "is_encoder_decoder": True,
}
"""Keys of a config.json that have one value in every architecture here."""

ACTIVATIONS = {
    "relu": "relu",
    "gelu": "exact-gelu",
    "gelu_new": "gelu",
    "silu": "silu",
    "gated-relu": "gated-relu",
    "gated-gelu": "gated-gelu",
    "gated-gelu_new": "gated-gelu",
    "gated-silu": "gated-silu",
}
"""Our name of each `feed_forward_proj` in transformers, whose plain `gelu` is the exact form and `gated-gelu` the tanh
form that is used here in both."""

T5_TYPES = ("t5", "mt5")
"""Values of `model_type` that are read as a T5."""

KINDS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("model_type", "feed_forward_proj", "hidden_act", "activation_function"), (str, "text")),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), (Mapping, "an object of keys")),
    **dict.fromkeys(("num_hidden_layers", "max_window_layers", "n_embd"), (int, "a whole number")),
    "layer_types": (list, "a list"),
}
"""Type of each key that is looked up or calculated with, and its name. The architecture checks the other values."""

FREE = (*SIZES, "norm_epsilon", "num_decoder_layers", "max_length", "feed_forward_proj", "tie_word_embeddings")
"""Fields that may have any value in T5. `max_length` has no effect without learned positions."""


def fields_from_config(config: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """Return the fields of the architecture that a config.json describes.

    Args:
        config: Content of a config.json, or its path.

    Raises:
        ArchitectureError: If the file cannot be read, or a key has a value that no architecture here can express.
    """
    source, table = ("config", config) if isinstance(config, Mapping) else (str(config), _read(Path(config)))
    for key, (required, words) in KINDS.items():
        if table.get(key) is not None and not isinstance(table[key], required):
            raise ArchitectureError(f"{source}: {key} must be {words}, not {shown(table[key])}.")
    kind = table.get("model_type", "t5")
    if kind in FAMILIES:
        return fields_from_decoder(kind, table, source)
    if kind not in T5_TYPES:
        known = (*T5_TYPES, *FAMILIES)
        raise ArchitectureError(f'{source}: model_type "{kind}" cannot be expressed. {nearest(str(kind), known)}')
    for key, value in FIXED.items():
        if table.get(key, value) != value:
            raise ArchitectureError(f"{source}: {key} is {table[key]!r}, but only {value!r} can be expressed.")
    activation = table.get("feed_forward_proj", "relu")
    if activation not in ACTIVATIONS:
        raise ArchitectureError(
            f'{source}: feed_forward_proj "{activation}" cannot be expressed. Known: {", ".join(ACTIVATIONS)}.'
        )
    fields = {key: table.get(key, default) for key, default in SIZES.items()}
    return fields | {
        "num_decoder_layers": table.get("num_decoder_layers"),
        "feed_forward_proj": ACTIVATIONS[activation],
        "tie_word_embeddings": table.get("tie_word_embeddings", True),
        "norm_epsilon": table.get("layer_norm_epsilon", EPSILON),
    }


def config_from_fields(name: str, fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of an architecture: of `T5ForConditionalGeneration`, or of a decoder-only family.

    Args:
        name: Name of the architecture, for the error message.
        fields: All fields of the architecture.
        defaults: Default of every field.

    Raises:
        ArchitectureError: If transformers cannot express a field. The message names the first one.
    """
    if fields["structure"] == "decoder-only":
        return config_from_decoder(name, fields, defaults)
    for field, default in defaults.items():
        if field not in FREE and fields[field] != default:
            raise ArchitectureError(
                f"{name} is not a Hugging Face T5: {field} is {fields[field]!r}, but T5 supports only {default!r}."
            )
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if fields["feed_forward_proj"] not in activations:
        raise ArchitectureError(
            f"{name} is not a Hugging Face T5: feed_forward_proj is {fields['feed_forward_proj']!r}, but only "
            f"{', '.join(sorted(activations))} can be written."
        )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **{key: fields[key] for key in SIZES},
        "num_decoder_layers": fields["num_decoder_layers"] or fields["num_layers"],
        "feed_forward_proj": activations[fields["feed_forward_proj"]],
        "tie_word_embeddings": fields["tie_word_embeddings"],
        **FIXED,
        "layer_norm_epsilon": fields["norm_epsilon"],
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": START_TOKEN,
    }


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a config.json."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArchitectureError(f"{path}: cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ArchitectureError(f"{path}: invalid JSON: {error}.") from None
    if not isinstance(table, dict):
        raise ArchitectureError(f"{path}: expected an object of keys, got a {type(table).__name__}.")
    return table
