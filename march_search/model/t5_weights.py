"""Convert weights to a T5 of Hugging Face transformers."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from march_search.architecture.architecture import DEFAULTS, Architecture
from march_search.architecture.huggingface import t5_config
from march_search.files.atomic import save_tensors


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


def save_t5(a: Architecture, tensors: Mapping[str, Tensor], folder: Path, token_ids: Mapping[str, int]) -> None:
    """Write config.json and model.safetensors for `T5ForConditionalGeneration.from_pretrained`.

    Args:
        a: The architecture.
        tensors: Its weights.
        folder: Folder of the export.
        token_ids: `eos_token_id` and `pad_token_id` of the tokenizer.

    Raises:
        ArchitectureError: If T5 cannot express this architecture.
    """
    dtype = str(tensors["embedding"].dtype).removeprefix("torch.")
    config = t5_config(a.name, asdict(a), DEFAULTS) | {**token_ids, "dtype": dtype}
    weights = {name: tensor.contiguous() for name, tensor in t5_tensors(a, tensors).items()}
    save_tensors(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
