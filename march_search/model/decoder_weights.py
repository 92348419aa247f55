"""Name weights as the decoder-only families of Hugging Face transformers do: one table for each family.

Two differences have no setting in these families, and go into the weights: learned positions are averaged with the
token embeddings here and added there, so both tables are halved; and tied embeddings are divided by √d_model before the
output layer here, which multiplies the final norm.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from march_search.architecture.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class Names:
    """Modules of one family by the name of our parameter, without `weight` or `bias`."""

    model: Mapping[str, str]
    """Modules outside the layers."""
    stack: str
    """Prefix of the layers."""
    layer: Mapping[str, tuple[str, ...]]
    """Modules of a layer. Several modules have consecutive rows of our parameter."""
    is_transposed: bool = False
    """Whether the matrices of a layer have a row for each input."""


LLAMA = Names(
    model={"embedding": "model.embed_tokens", "decoder.norm": "model.norm", "lm_head": "lm_head"},
    stack="model.layers",
    layer={
        "norm": ("input_layernorm",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.q_norm": ("self_attn.q_norm",),
        "attention.k_norm": ("self_attn.k_norm",),
        "attention.o": ("self_attn.o_proj",),
        "feed_forward_norm": ("post_attention_layernorm",),
        "feed_forward.wi": ("mlp.gate_proj", "mlp.up_proj"),
        "feed_forward.wo": ("mlp.down_proj",),
    },
)

OLMO2 = replace(
    LLAMA,
    layer={
        **LLAMA.layer,
        "norm": ("post_attention_layernorm",),
        "feed_forward_norm": ("post_feedforward_layernorm",),
    },
)

GPT_NEOX = Names(
    model={"embedding": "gpt_neox.embed_in", "decoder.norm": "gpt_neox.final_layer_norm", "lm_head": "embed_out"},
    stack="gpt_neox.layers",
    layer={
        "norm": ("input_layernorm",),
        "attention.qkv": ("attention.query_key_value",),
        "attention.o": ("attention.dense",),
        "feed_forward_norm": ("post_attention_layernorm",),
        "feed_forward.wi": ("mlp.dense_h_to_4h",),
        "feed_forward.wo": ("mlp.dense_4h_to_h",),
    },
)

GPT2 = Names(
    model={
        "embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "decoder.norm": "transformer.ln_f",
        "lm_head": "lm_head",
    },
    stack="transformer.h",
    layer={
        "norm": ("ln_1",),
        "attention.qkv": ("attn.c_attn",),
        "attention.o": ("attn.c_proj",),
        "feed_forward_norm": ("ln_2",),
        "feed_forward.wi": ("mlp.c_fc",),
        "feed_forward.wo": ("mlp.c_proj",),
    },
    is_transposed=True,
)

NAMES = dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA) | {
    "olmo2": OLMO2,
    "gpt_neox": GPT_NEOX,
    "gpt2": GPT2,
}
"""Names by `model_type`."""


def decoder_views(a: Architecture, kind: str, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield views of our weights, or of their gradients, by their name in a family, without the factors.

    A view with more than two dimensions has the rows of their matrix, or the elements of their bias, in its first
    three.

    Args:
        a: The architecture.
        kind: `model_type` of the family, a key of `NAMES`.
        tensors: Our tensors by name.
    """
    names = NAMES[kind]
    for name, tensor in tensors.items():
        module, _, suffix = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "weight")
        if module.endswith("_bias"):
            module, suffix = module.removesuffix("_bias"), "bias"
        if not module.startswith("decoder.layers."):
            yield f"{names.model[module]}.{suffix}", tensor
            continue
        _, _, number, module = module.split(".", 3)
        theirs = names.layer[module]
        for their_module, view in zip(theirs, _parts(a, kind, module, len(theirs), tensor), strict=True):
            is_transposed = names.is_transposed and view.ndim == 2
            yield f"{names.stack}.{number}.{their_module}.{suffix}", view.T if is_transposed else view


def _parts(a: Architecture, kind: str, module: str, count: int, tensor: Tensor) -> tuple[Tensor, ...]:
    """Return views of a parameter of a layer, one for each of their `count` modules."""
    if module == "attention.qkv" and count == 3:
        keys = a.key_value_heads * a.d_kv
        return torch.split(tensor, [a.num_heads * a.d_kv, keys, keys])
    if module == "attention.qkv" and kind == "gpt_neox":  # queries, keys and values of one head stand together there
        return (tensor.view(3, a.num_heads, a.d_kv, *tensor.shape[1:]).transpose(0, 1),)
    return tensor.chunk(count)


def decoder_factors(a: Architecture, kind: str) -> dict[str, float]:
    """Return their weight as a multiple of ours, by their name, where it is not 1."""
    names, factors, scale = NAMES[kind].model, dict[str, float](), 1.0
    if a.position == "absolute":
        factors |= {f"{names[table]}.weight": 0.5 for table in ("embedding", "position_embedding")}
        scale = 2.0
    if a.tie_word_embeddings:
        norm = ("weight", "bias") if a.norm == "layer" else ("weight",)
        factors |= {f"{names['decoder.norm']}.{suffix}": scale * a.d_model**-0.5 for suffix in norm}
    return factors
