"""Convert between the fields of a decoder-only architecture and the config.json of its family in transformers.

One row of `FAMILIES` describes a family: its keys for the sizes, the fields that it fixes, and those it leaves free.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from march_search.errors import ArchitectureError

LLAMA_KEYS = {
    "num_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "d_ff": "intermediate_size",
    "vocab_size": "vocab_size",
}
"""Keys of a config.json by field, in every family but GPT-2."""

GPT2_KEYS = {
    "num_layers": "n_layer",
    "d_model": "n_embd",
    "num_heads": "n_head",
    "vocab_size": "vocab_size",
    "max_length": "n_positions",
}

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "exact-gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
}
"""Our activation by that of transformers; the first of several is written."""

LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Keys of rotary positions of type `llama3` besides the factor, as in Llama 3.1, 3.2 and 3.3. Wavelengths longer than
`original_max_position_embeddings` divided by the low factor are scaled, and those shorter than by the high one are
not."""

WINDOW = 4096
"""Window of Mistral and Qwen where a config.json leaves it out."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How transformers writes one family of decoder-only models."""

    model_class: str
    """Class of the model with its output layer."""
    keys: Mapping[str, str] = field(default_factory=lambda: LLAMA_KEYS)
    """Key of each size."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Values of fields that have others than T5, the usual one first."""
    epsilon: tuple[str, float] = ("rms_norm_eps", 1e-6)
    """Key of `norm_epsilon`, and its value where a config.json leaves it out."""
    activation: tuple[str, str] = ("hidden_act", "silu")
    """Key of the activation, and its value where a config.json leaves it out."""
    is_gated: bool = True
    """Whether the feed-forward layer is gated."""
    is_tied: bool = False
    """Whether embeddings are tied where a config.json leaves it out."""
    has_groups: bool = True
    """Whether keys and values may have fewer heads than queries."""
    has_head_dim: bool = False
    """Whether `head_dim` may differ from the width divided by the heads."""
    heads_divide_width: bool = False
    """Whether the number of heads must divide the width nevertheless."""
    rotary_fraction: float = 1.0
    """Fraction of a head that is turned where a config.json leaves it out."""
    window: str = "none"
    """Layers with a window: `none`, `all`, or `layers`, which lists them."""
    needs: Mapping[str, Any] = field(default_factory=dict)
    """Keys that have one value in every architecture here."""


FAMILIES: dict[str, Family] = {
    "llama": Family(
        model_class="LlamaForCausalLM",
        has_head_dim=True,
        heads_divide_width=True,
        fixed={"bias": ("none", "all")},
    ),
    "mistral": Family(model_class="MistralForCausalLM", has_head_dim=True, window="all"),
    "qwen2": Family(model_class="Qwen2ForCausalLM", window="layers", fixed={"bias": ("qkv",)}),
    "qwen3": Family(
        model_class="Qwen3ForCausalLM",
        has_head_dim=True,
        window="layers",
        fixed={"qk_norm": ("head",)},
        needs={"attention_bias": False},
    ),
    "olmo2": Family(
        model_class="Olmo2ForCausalLM",
        epsilon=("rms_norm_eps", 1e-5),
        fixed={"qk_norm": ("all",), "norm_position": ("post",)},
        needs={"attention_bias": False},
    ),
    "gpt_neox": Family(
        model_class="GPTNeoXForCausalLM",
        epsilon=("layer_norm_eps", 1e-5),
        activation=("hidden_act", "gelu"),
        is_gated=False,
        has_groups=False,
        rotary_fraction=0.25,
        fixed={"norm": ("layer",), "bias": ("all",), "parallel_block": (True, False)},
        needs={"attention_bias": True},
    ),
    "gpt2": Family(
        model_class="GPT2LMHeadModel",
        keys=GPT2_KEYS,
        epsilon=("layer_norm_epsilon", 1e-5),
        activation=("activation_function", "gelu_new"),
        is_gated=False,
        is_tied=True,
        has_groups=False,
        fixed={"norm": ("layer",), "bias": ("all",), "position": ("absolute",)},
        needs={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
}
"""Families by `model_type`; an architecture is written as the first that can express it."""

OPEN = ("norm_epsilon", "tie_word_embeddings", "num_key_value_heads", "d_kv", "feed_forward_proj")
"""Fields that may have any value, within what `_refused` checks."""


def fields_from_decoder(kind: str, table: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the fields of the architecture that the config.json of a decoder-only family describes.

    Args:
        kind: Its `model_type`, a key of `FAMILIES`.
        table: Its content.
        source: Start of the error message.

    Raises:
        ArchitectureError: If a key is missing, or has a value that no architecture here can express.
    """
    family = FAMILIES[kind]
    for key, needed in family.needs.items():
        if table.get(key, needed) != needed:
            raise ArchitectureError(f"{source}: {key} is {table[key]!r}, but only {needed!r} can be expressed.")
    missing = [key for name, key in family.keys.items() if table.get(key) is None and name != "max_length"]
    if missing:
        raise ArchitectureError(f"{source}: {missing[0]} is missing: a {kind} needs it.")
    fields = {name: table[key] for name, key in family.keys.items() if table.get(key) is not None}
    if kind == "gpt2":
        fields["d_ff"] = table.get("n_inner") or 4 * fields["d_model"]
    fields |= {name: values[0] for name, values in family.fixed.items()}
    fields |= {
        "structure": "decoder-only",
        "d_kv": _head_width(family, table, fields, source),
        "norm_epsilon": table.get(*family.epsilon),
        "tie_word_embeddings": table.get("tie_word_embeddings", family.is_tied),
        "feed_forward_proj": _activation(family, table, source),
    }
    if family.has_groups:
        fields["num_key_value_heads"] = table.get("num_key_value_heads")
    if "bias" in fields and kind == "llama":
        fields["bias"] = _llama_bias(table, source)
    if kind == "gpt_neox":
        fields["parallel_block"] = table.get("use_parallel_residual", True)
    if kind != "gpt2":
        fields |= _rotary(family, table, source)
    return fields | _window(family, table, fields["num_layers"], source)


def config_from_decoder(name: str, fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of a decoder-only architecture, of the first family that can express it.

    Args:
        name: Name of the architecture, for the error message.
        fields: All fields of the architecture.
        defaults: Default of every field.

    Raises:
        ArchitectureError: If no family can. The message names the family that comes nearest, and its first field.
    """
    refused = {kind: _refused(family, fields, defaults) for kind, family in FAMILIES.items()}
    kind = min(refused, key=lambda k: len(refused[k]))
    if refused[kind]:
        raise ArchitectureError(f"{name} is not a Hugging Face {kind}, the nearest family: {refused[kind][0]}.")
    family = FAMILIES[kind]
    activation = fields["feed_forward_proj"].removeprefix("gated-")
    config = {
        "architectures": [family.model_class],
        "model_type": kind,
        **{key: fields[field] for field, key in family.keys.items()},
        family.epsilon[0]: fields["norm_epsilon"],
        family.activation[0]: next(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation),
        "tie_word_embeddings": fields["tie_word_embeddings"],
        **family.needs,
    }
    if kind == "gpt2":
        return config | {"n_inner": fields["d_ff"], "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    rope, most = {"rope_type": "default", "rope_theta": fields["rotary_base"]}, fields["max_length"]
    if (scaling := fields["rotary_scaling"]) != 1.0:
        rope |= {"rope_type": "llama3", "factor": scaling, **LLAMA3_ROPE}
        most = max(most, round(scaling * LLAMA3_ROPE["original_max_position_embeddings"]))
    config |= {"max_position_embeddings": most}
    if kind == "gpt_neox":
        rope["partial_rotary_factor"] = fields["rotary_fraction"]
        config["use_parallel_residual"] = fields["parallel_block"]
    if kind == "llama":
        config |= dict.fromkeys(("attention_bias", "mlp_bias"), fields["bias"] == "all")
    if family.has_groups:
        config["num_key_value_heads"] = fields["num_key_value_heads"] or fields["num_heads"]
    if family.has_head_dim:
        config["head_dim"] = fields["d_kv"]
    return config | {"rope_parameters": rope} | _window_keys(family, fields)


def _head_width(family: Family, table: Mapping[str, Any], fields: Mapping[str, Any], source: str) -> Any:
    """Return the width of a head."""
    if table.get("head_dim") is not None:
        return table["head_dim"]
    width, heads = fields["d_model"], fields["num_heads"]
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1 or width % heads:
        keys = family.keys["num_heads"], family.keys["d_model"]
        raise ArchitectureError(
            f"{source}: {keys[0]} ({heads}) must divide {keys[1]} ({width}) where head_dim is missing."
        )
    return width // heads


def _activation(family: Family, table: Mapping[str, Any], source: str) -> str:
    """Return our name of the feed-forward layer."""
    key, default = family.activation
    given = table.get(key, default)
    if given not in ACTIVATIONS or (family.is_gated and ACTIVATIONS[given] == "exact-gelu"):
        known = ", ".join(k for k, ours in ACTIVATIONS.items() if not (family.is_gated and ours == "exact-gelu"))
        raise ArchitectureError(f'{source}: {key} "{given}" cannot be expressed. Known: {known}.')
    return "gated-" * family.is_gated + ACTIVATIONS[given]


def _llama_bias(table: Mapping[str, Any], source: str) -> str:
    """Return the biases of a Llama, which has all or none here."""
    attention, feed_forward = table.get("attention_bias", False), table.get("mlp_bias", False)
    if attention != feed_forward:
        raise ArchitectureError(
            f"{source}: attention_bias is {attention!r} and mlp_bias is {feed_forward!r}, but only equal values can be "
            "expressed."
        )
    return "all" if attention else "none"


def _rotary(family: Family, table: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the fields of rotary positions, from the keys of today or of earlier versions of transformers."""
    scaling = 1.0
    for key in ("rope_parameters", "rope_scaling"):
        rope = table.get(key) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "llama3":
            scaling = _llama3_factor(rope, f"{source}: {key}")
        elif kind != "default":
            raise ArchitectureError(
                f'{source}: {key} of type "{kind}" cannot be expressed, only "default" and "llama3".'
            )
    rope = table.get("rope_parameters") or {}
    base = rope.get("rope_theta", table.get("rope_theta", table.get("rotary_emb_base", 10000.0)))
    fraction = table.get("partial_rotary_factor", table.get("rotary_pct", family.rotary_fraction))
    return {
        "position": "rotary",
        "rotary_base": base,
        "rotary_fraction": rope.get("partial_rotary_factor", fraction),
        "rotary_scaling": scaling,
    }


def _llama3_factor(rope: Mapping[str, Any], where: str) -> Any:
    """Return the factor of rotary positions of type `llama3`."""
    for name, value in LLAMA3_ROPE.items():
        if rope.get(name, value) != value:
            raise ArchitectureError(f"{where}: {name} is {rope[name]!r}, but only {value!r} can be expressed.")
    if "factor" not in rope:
        raise ArchitectureError(f'{where}: factor is missing: the type "llama3" needs it.')
    return rope["factor"]


def _window(family: Family, table: Mapping[str, Any], num_layers: int, source: str) -> dict[str, Any]:
    """Return the fields of the attention window."""
    if family.window == "none":
        return {}
    if family.window == "all":
        return {"attention_window": table.get("sliding_window", WINDOW)}
    if not table.get("use_sliding_window", False) or table.get("sliding_window", WINDOW) is None:
        return {}
    first = 28 if table.get("max_window_layers") is None else table["max_window_layers"]
    local = [layer >= first for layer in range(num_layers)]
    if table.get("layer_types") is not None:
        local = [kind == "sliding_attention" for kind in table["layer_types"]]
    if not any(local):
        return {}
    pattern = next((n for n in (0, *range(2, num_layers + 1)) if local == _local(n, num_layers)), None)
    if pattern is None:
        key, value = "max_window_layers", first
        if table.get("layer_types") is not None:
            key, value = "layer_types", table["layer_types"]
        raise ArchitectureError(
            f"{source}: {key} is {value!r}, but only a window in all layers, or in all but every n-th, can be "
            "expressed."
        )
    return {"attention_window": table.get("sliding_window", WINDOW), "global_every": pattern}


def _local(every: int, num_layers: int) -> list[bool]:
    """Return for each layer whether it has a window."""
    return [not every or (layer + 1) % every != 0 for layer in range(num_layers)]


def _window_keys(family: Family, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the attention window."""
    window, local = fields["attention_window"], _local(fields["global_every"], fields["num_layers"])
    if family.window == "all":
        return {"sliding_window": window}
    if family.window == "none" or window is None:
        return {}
    kinds = ["sliding_attention" if is_local else "full_attention" for is_local in local]
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0, "layer_types": kinds}


def _refused(family: Family, fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return a clause for every field that a family cannot express."""
    wanted: dict[str, tuple[Any, ...]] = {name: (default,) for name, default in defaults.items()}
    wanted |= {"structure": ("decoder-only",), "position": ("rotary",)} | dict(family.fixed)
    free = {*family.keys, *OPEN, "d_ff", "max_length"}
    if wanted["position"] == ("rotary",):
        free |= {"rotary_base", "rotary_scaling"} | ({"rotary_fraction"} if family.rotary_fraction != 1.0 else set())
    if not family.has_groups:
        free.discard("num_key_value_heads")
    if family.window != "none":
        free |= {"attention_window"} | ({"global_every"} if family.window == "layers" else set())
    refused = [
        f"{name} is {fields[name]!r}, but it supports only {' and '.join(map(repr, values))}"
        for name, values in wanted.items()
        if name not in free and fields[name] not in values
    ]
    gated, activation = fields["feed_forward_proj"].startswith("gated-"), fields["feed_forward_proj"]
    if gated != family.is_gated:
        refused.append(f"feed_forward_proj is {activation!r}, but its layers are {'not ' * (not family.is_gated)}gated")
    inner, width = fields["num_heads"] * fields["d_kv"], fields["d_model"]
    if not family.has_head_dim and inner != width:
        refused.append(f"num_heads * d_kv is {inner}, but it must be d_model ({width})")
    if family.heads_divide_width and width % fields["num_heads"]:
        refused.append(f"num_heads is {fields['num_heads']}, but it must divide d_model ({width})")
    return refused
