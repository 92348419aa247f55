"""Decoder-only architectures are read from the config.json of their family in transformers and written to it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.reference import decoder_checkpoints

from march_search import Architecture
from march_search.architecture.huggingface_decoders import FAMILIES
from march_search.errors import ArchitectureError

TINY = "L3-D48-H4x12-F80-V101-"
CHECKPOINTS = decoder_checkpoints()
NAMES = {
    "gpt2": TINY + "M64-gelu-abs-dec-ln-ball-E0.00001",
    "gpt_neox": TINY + "rope-untied-dec-exactgelu-ln-ball-par-RF0.5-RB5000-E0.00001",
    "gpt_neox, in sequence": TINY + "gelu-rope-dec-ln-ball-RF0.5",
    "llama": TINY + "swiglu-rope-untied-dec-KV2",
    "llama, biases": TINY + "geglu-rope-dec-ball-KV1-RB500000",
    "llama, scaled": TINY + "swiglu-rope-dec-KV2-RB500000-RS32",
    "llama, wide heads": "L2-D40-H4x16-F80-V101-swiglu-rope-dec-KV2",
    "mistral": TINY + "swiglu-rope-untied-dec-KV2-W32",
    "qwen2": TINY + "swiglu-rope-dec-bqkv-KV2-RB1000000",
    "qwen2, windows": TINY + "swiglu-rope-dec-bqkv-W32-G3",
    "qwen3": "L3-D40-H4x16-F80-V101-swiglu-rope-dec-qknorm-KV2-RB1000000",
    "qwen3, windows": TINY + "swiglu-rope-dec-qknorm-W16-G2",
    "olmo2": TINY + "swiglu-rope-untied-dec-qknormall-postnorm-KV2-RB500000",
}


def counted(config: dict[str, Any]) -> int:
    """Return the number of parameters of the model that transformers builds on the meta device."""
    import transformers

    config = dict(config)
    kind = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(kind).num_parameters()


def public(name: str) -> dict[str, Any]:
    """Return the config.json of a public model."""
    row = next(row for row in CHECKPOINTS if row["name"] == name)
    return {"model_type": row["model_type"], **row["config"]}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda row: row["name"])
def test_public_models_are_counted_exactly(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    config = public(checkpoint["name"])
    a = Architecture.from_huggingface(config)
    assert a.num_params == checkpoint["num_params"]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(a.to_huggingface()))
    assert Architecture.from_huggingface(path) == a == Architecture.parse(a.name)
    assert a.to_huggingface()["model_type"] == checkpoint["model_type"]


@pytest.mark.parametrize("kind", NAMES)
def test_transformers_counts_as_many_parameters(kind: str) -> None:
    a = Architecture.parse(NAMES[kind])
    config = a.to_huggingface()
    assert config["model_type"] == kind.partition(",")[0]
    assert Architecture.from_huggingface(config) == a
    assert counted(config) == a.num_params


@pytest.mark.parametrize("kind", FAMILIES)
def test_transformers_agrees_on_missing_keys(kind: str) -> None:
    from transformers import AutoConfig

    sizes = dict.fromkeys(FAMILIES[kind].keys.values())
    full = AutoConfig.for_model(kind).to_dict()
    bare = {key: full[key] for key in sizes} | {"model_type": kind}
    if FAMILIES[kind].has_groups:
        bare["num_key_value_heads"] = full["num_key_value_heads"]
    if kind == "qwen3":  # its heads are 128 wide by default, and every file has the key
        bare["head_dim"] = full["head_dim"]
    assert Architecture.from_huggingface(bare) == Architecture.from_huggingface(full)


def test_files_of_earlier_versions_are_read_as_those_of_today() -> None:
    earlier = public("tinyllama-1.1b") | {"rope_theta": 5e5, "rope_scaling": None, "rms_norm_eps": 1e-5}
    today = public("tinyllama-1.1b") | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    today["rms_norm_eps"] = 1e-5
    assert Architecture.from_huggingface(earlier) == Architecture.from_huggingface(today)
    assert Architecture.from_huggingface(earlier).name.endswith("V32000-KV4-RB500000-E0.00001")


def test_the_rope_scaling_of_llama_3_is_read_from_either_key_and_written() -> None:
    scaling = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = public("llama-3-8b") | {"rope_theta": 500000.0, "rms_norm_eps": 1e-5}
    a = Architecture.from_huggingface(config | {"rope_scaling": {"rope_type": "llama3", **scaling}})
    assert a.rotary_scaling == 32.0
    assert a.name.endswith("-V128256-KV8-RB500000-RS32-E0.00001")
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, **scaling}
    assert Architecture.from_huggingface(config | {"rope_parameters": rope}) == a
    written = a.to_huggingface()
    assert written["rope_parameters"] == rope
    assert written["max_position_embeddings"] > 8192
    assert Architecture.from_huggingface(written) == a == Architecture.parse(a.name)
    assert a.num_params == Architecture.from_huggingface(config).num_params


def test_windows_of_qwen_are_read_from_either_key() -> None:
    config = public("qwen2.5-0.5b") | {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 0}
    assert Architecture.from_huggingface(config).attention_window == 128
    kinds = ["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(24)]
    assert Architecture.from_huggingface(config | {"layer_types": kinds}).global_every == 6
    assert Architecture.from_huggingface(config | {"use_sliding_window": False}).attention_window is None
    assert Architecture.from_huggingface(config | {"max_window_layers": 24}).attention_window is None
    null = {"max_window_layers": None, "num_hidden_layers": 20, "layer_types": None}
    assert Architecture.from_huggingface(config | null).attention_window is None


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpt2", {"activation_function": "tanh"}, 'activation_function "tanh" cannot be expressed. Known: silu,'),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True, but only False"),
        ("gpt2", {"n_embd": None}, "n_embd is missing: a gpt2 needs it."),
        ("gpt2", {"n_head": 7}, "n_head (7) must divide n_embd (768) where head_dim is missing."),
        ("llama-3-8b", {"rope_scaling": {"rope_type": "llama3"}}, 'rope_scaling: factor is missing: the type "llama3"'),
        (
            "llama-3-8b",
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}},
            "rope_scaling: low_freq_factor is 2.0, but only 1.0 can be expressed.",
        ),
        (
            "llama-3-8b",
            {"rope_scaling": {"type": "longrope"}},
            'rope_scaling of type "longrope" cannot be expressed, on',
        ),
        ("llama-3-8b", {"attention_bias": True}, "attention_bias is True and mlp_bias is False, but only equal values"),
        ("llama-3-8b", {"model_type": "lama"}, 'model_type "lama" cannot be expressed. Did you mean "llama"?'),
        (
            "llama-3-8b",
            {"hidden_act": "gelu"},
            'hidden_act "gelu" cannot be expressed. Known: silu, swish, relu, gelu_',
        ),
        ("qwen3-0.6b", {"attention_bias": True}, "attention_bias is True, but only False can be expressed."),
        ("qwen2.5-0.5b", {"use_sliding_window": True, "max_window_layers": 12}, "max_window_layers is 12, but only a"),
        ("gpt2", {"n_embd": {}}, "n_embd must be a whole number, not {}."),
        ("llama-3-8b", {"model_type": ["llama"]}, "model_type must be text, not ['llama']."),
        ("llama-3-8b", {"hidden_act": ["silu"]}, "hidden_act must be text, not ['silu']."),
        ("llama-3-8b", {"rope_scaling": 8.0}, "rope_scaling must be an object of keys, not 8.0."),
        ("qwen3-0.6b", {"use_sliding_window": True, "max_window_layers": "all"}, "max_window_layers must be a whole"),
        ("qwen3-0.6b", {"use_sliding_window": True, "num_hidden_layers": "28"}, "num_hidden_layers must be a whole"),
        ("qwen3-0.6b", {"use_sliding_window": True, "layer_types": 3}, "layer_types must be a list, not 3."),
        (
            "pythia-70m",
            {"rope_parameters": {"rope_type": "yarn"}},
            'rope_parameters of type "yarn" cannot be expressed',
        ),
    ],
)
def test_a_config_that_cannot_be_expressed_names_the_key(name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError) as error:
        Architecture.from_huggingface(public(name) | change)
    assert str(error.value).startswith(f"config: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            NAMES["llama"] + "-C30",
            "is not a Hugging Face llama, the nearest family: logit_softcap is 30.0, but it supports",
        ),
        (NAMES["gpt2"] + "-KV2", "is not a Hugging Face gpt2, the nearest family: num_key_value_heads is 2, but it"),
        (NAMES["llama"] + "-noop", "noop_key is 'learned', but it supports only 'none'."),
        ("L3-D40-H4x16-F80-swiglu-rope-dec-qknormall-postnorm", "num_heads * d_kv is 64, but it must be d_model (40)."),
        (TINY + "rope-dec", "feed_forward_proj is 'relu', but its layers are gated."),
    ],
)
def test_a_shape_that_no_family_can_express_names_the_field(name: str, message: str) -> None:
    with pytest.raises(ArchitectureError) as error:
        Architecture.parse(name).to_huggingface()
    assert message in str(error.value)
