"""Our weights as Hugging Face's T5: its names, its config.json, and which architectures it cannot express."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from march_search.architecture import DEFAULTS, Architecture
from march_search.errors import ArchitectureError
from march_search.model.cpu import EPSILON
from march_search.model.files import save_tensors
from march_search.model.positions import MAX_DISTANCE
from march_search.model.seq2seq import START_TOKEN
from march_search.parameters import RELATIVE_BUCKETS

FREE = ("num_layers", "d_model", "num_heads", "d_kv", "d_ff", "num_decoder_layers", "vocab_size", "max_length")
"""Fields that T5 takes at any value; `max_length` has no meaning without learned positions."""

FREE_CHOICES = ("feed_forward_proj", "tie_word_embeddings")
"""Fields of which T5 knows every choice."""

EXACT_NAMES = {"gelu": "gelu_new"}
"""Activations that have another name there: T5's `gelu` alone is the exact one, with `gated-` it is the tanh form."""


def check_t5(a: Architecture) -> None:
    """Refuses an architecture that is no T5.

    Raises:
        ArchitectureError: the message names the first field that T5 cannot express.
    """
    for field, default in DEFAULTS.items():
        value = getattr(a, field)
        if field not in (*FREE, *FREE_CHOICES) and value != default:
            raise ArchitectureError(
                f"{a.name} cannot be a Hugging Face T5: {field} is {value!r}, and T5 knows only {default!r}."
            )


def t5_config(a: Architecture, dtype: str) -> dict[str, Any]:
    """The config.json of `T5ForConditionalGeneration`; `dtype` is that of the weights, "float32" say.

    With untied embeddings T5 does not scale its last hidden state, and neither do we.
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
    """Our weights, or their gradients, under the names of `T5ForConditionalGeneration`; views of ours."""
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
    """Norm, T5's name and T5's matrices of each part of one of our layers, in order."""
    q, k, v = layer["attention.qkv"].chunk(3)
    yield "norm.weight", "SelfAttention", {"q": q, "k": k, "v": v, "o": layer["attention.o"]}
    if "cross_attention.q" in layer:
        q, (k, v) = layer["cross_attention.q"], layer["cross_attention.kv"].chunk(2)
        yield "cross_norm.weight", "EncDecAttention", {"q": q, "k": k, "v": v, "o": layer["cross_attention.o"]}
    wi = layer["feed_forward.wi"]
    into = dict(zip(("wi_0", "wi_1"), wi.chunk(2), strict=True)) if is_gated else {"wi": wi}
    yield "feed_forward_norm.weight", "DenseReluDense", {**into, "wo": layer["feed_forward.wo"]}


def save_t5(a: Architecture, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Writes config.json and model.safetensors, which `T5ForConditionalGeneration.from_pretrained` opens.

    Raises:
        ArchitectureError: T5 cannot express this architecture.
    """
    check_t5(a)
    dtype = str(tensors["embedding"].dtype).removeprefix("torch.")
    weights = {name: tensor.contiguous() for name, tensor in t5_tensors(a, tensors).items()}
    save_tensors(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(t5_config(a, dtype), indent=2) + "\n", encoding="utf-8")
