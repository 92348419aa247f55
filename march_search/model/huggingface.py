"""Convert weights to Hugging Face's T5: tensor names, config.json, and a check that T5 can express the architecture."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from march_search.architecture.architecture import DEFAULTS, Architecture
from march_search.architecture.parameters import RELATIVE_BUCKETS
from march_search.errors import ArchitectureError
from march_search.files import save_tensors
from march_search.model.cpu import EPSILON
from march_search.model.positions import MAX_DISTANCE
from march_search.model.seq2seq import START_TOKEN

FREE = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "num_decoder_layers", "vocab_size", "max_length")
"""Fields that may have any value in T5. `max_length` has no effect without learned positions."""

FREE_CHOICES = ("feed_forward_proj", "tie_word_embeddings")
"""Fields for which T5 supports every choice."""

EXACT_NAMES = {"gelu": "gelu_new"}
"""Activations with another name in T5, whose plain `gelu` is the exact form and `gated-gelu` the tanh form."""


def check_t5(a: Architecture) -> None:
    """Check that the architecture can be expressed as a T5.

    Raises:
        ArchitectureError: If it cannot. The message names the first unsupported field.
    """
    for field, default in DEFAULTS.items():
        value = getattr(a, field)
        if field not in (*FREE, *FREE_CHOICES) and value != default:
            raise ArchitectureError(
                f"{a.name} is not a Hugging Face T5: {field} is {value!r}, but T5 supports only {default!r}."
            )


def t5_config(a: Architecture, dtype: str) -> dict[str, Any]:
    """Return the config.json of `T5ForConditionalGeneration`; `dtype` is that of the weights, such as "float32".

    With untied embeddings, neither T5 nor our model scales the last hidden state.
    """
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": a.vocab_size,
        "d_model": a.d_model,
        "d_kv": a.d_kv,
        "d_ff": a.d_ff,
        "num_layers": a.num_layers,
        "num_decoder_layers": a.decoder_layers,
        "num_heads": a.num_heads,
        "relative_attention_num_buckets": RELATIVE_BUCKETS,
        "relative_attention_max_distance": MAX_DISTANCE,
        "feed_forward_proj": EXACT_NAMES.get(a.feed_forward_proj, a.feed_forward_proj),
        "layer_norm_epsilon": EPSILON,
        "dropout_rate": 0.0,
        "tie_word_embeddings": a.tie_word_embeddings,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": START_TOKEN,
        "dtype": dtype,
    }


def t5_tensors(a: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return views of our weights, or of their gradients, under the names of `T5ForConditionalGeneration`."""
    named = {"shared.weight": tensors["embedding"]}
    if not a.tie_word_embeddings:
        named["lm_head.weight"] = tensors["lm_head"]
    for stack, depth in (("encoder", a.num_layers), ("decoder", a.decoder_layers)):
        named[f"{stack}.final_layer_norm.weight"] = tensors[f"{stack}.norm.weight"]
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        named[bias] = tensors[f"{stack}.relative_bias"]
        for i in range(depth):
            ours = f"{stack}.layers.{i}."
            layer = {name.removeprefix(ours): tensor for name, tensor in tensors.items() if name.startswith(ours)}
            for number, (norm, part, matrices) in enumerate(_sublayers(layer, a.is_gated)):
                at = f"{stack}.block.{i}.layer.{number}"
                named[f"{at}.layer_norm.weight"] = layer[norm]
                named |= {f"{at}.{part}.{name}.weight": matrix for name, matrix in matrices.items()}
    return named


def _sublayers(layer: Mapping[str, Tensor], is_gated: bool) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """Yield the norm's name, T5's sublayer name and T5's matrices for each sublayer of one of our layers."""
    q, k, v = layer["attention.qkv"].chunk(3)
    yield "norm.weight", "SelfAttention", {"q": q, "k": k, "v": v, "o": layer["attention.o"]}
    if "cross_attention.q" in layer:
        q, (k, v) = layer["cross_attention.q"], layer["cross_attention.kv"].chunk(2)
        yield "cross_norm.weight", "EncDecAttention", {"q": q, "k": k, "v": v, "o": layer["cross_attention.o"]}
    wi = layer["feed_forward.wi"]
    into = dict(zip(("wi_0", "wi_1"), wi.chunk(2), strict=True)) if is_gated else {"wi": wi}
    yield "feed_forward_norm.weight", "DenseReluDense", {**into, "wo": layer["feed_forward.wo"]}


def save_t5(a: Architecture, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write config.json and model.safetensors for `T5ForConditionalGeneration.from_pretrained`.

    Raises:
        ArchitectureError: If T5 cannot express this architecture.
    """
    check_t5(a)
    dtype = str(tensors["embedding"].dtype).removeprefix("torch.")
    weights = {name: tensor.contiguous() for name, tensor in t5_tensors(a, tensors).items()}
    save_tensors(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(t5_config(a, dtype), indent=2) + "\n", encoding="utf-8")
