"""Convert weights to a T5 of Hugging Face transformers."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from march_search.architecture.architecture import Architecture


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
