"""Count parameters with a closed formula: plain integers for one architecture, int64 arrays for millions at once.

Notation: V is `vocab_size`, D is `d_model`, F is `d_ff`, I is `num_heads * d_kv`, m is the number of feed-forward
matrices (2, or 3 if gated), and n is the number of layers in a stack. Without any of the special fields:

    encoder layer   4·D·I (q, k, v, o)  +  m·D·F  +  2·D (RMSNorm weights)
    decoder layer   4·D·I  +  cross  +  m·D·F  +  3·D
    cross           4·D·I (`output`),  2·D·I + 2·I² (`layer`: k and v projected again from those of encoder layer i),
                    2·D·I (`layer-shared`)
    stack           + D (final RMSNorm)  +  32·heads (relative position bias, once per stack)
    model           V·D once (twice if untied)  +  `max_length`·D (absolute positions, shared by both stacks)

Linear layers have no biases (Raffel et al. 2020, section 2.1). The count is linear in F, and the solver inverts it.
Special fields change the count as follows:

    head_schedule   I differs by layer; the bias table is as wide as the largest number of heads in the stack
    share_layers    each set of shared weights counts once, including its norms
    bottleneck      layer i has width w_i; a w·w' matrix is added at each change of width in D, w_0 … w_(n-1), D;
                    `output` cross-attention projects keys and values from the encoder's output, whose width is D
    noop_key        `learned` adds I scalars to every attention
    length_reduction, gating function, rotary positions: no change
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

RELATIVE_BUCKETS = 32
"""Number of buckets in T5's relative position bias."""


class LayerGroup(NamedTuple):
    """Consecutive layers of a stack with equal shapes. Numbers are ints or broadcastable int64 arrays."""

    applied: int
    """Number of layers, including shared ones."""
    sets: int
    """Number of separate sets of weights in these layers."""
    second_half: bool
    """Whether the layers are at or after the middle layer of the stack."""
    width: Any
    """Residual width."""
    heads: Any
    """Number of attention heads."""
    d_kv: Any
    """Width of one head."""

    @property
    def inner(self) -> Any:
        """Total width of all heads."""
        return self.heads * self.d_kv


def layer_groups(a: Any, num_layers: int) -> list[LayerGroup]:
    """Return the layers of a stack in order, with equal neighbours grouped."""
    share = num_layers if a.share_layers == "all" else a.share_layers
    widths = layer_widths(a, num_layers)
    varying = a.bottleneck in ("shrinking", "growing")
    runs: dict[tuple[int, int], list[int]] = {}
    for layer in range(num_layers):
        count = runs.setdefault((_third(layer, num_layers), layer if varying else 0), [0, 0])
        count[0] += 1
        count[1] += layer % share == 0
    return [
        LayerGroup(applied, sets, third > 0, widths[layer], *_heads(a, third))
        for (third, layer), (applied, sets) in runs.items()
    ]


def layer_shapes(a: Any, num_layers: int) -> list[LayerGroup]:
    """Return one `Run` per layer, in order, for building the stack of a model."""
    return [run._replace(applied=1, sets=1) for run in layer_groups(a, num_layers) for _ in range(run.applied)]


def layer_widths(a: Any, num_layers: int) -> list[Any]:
    """Return the residual width of each layer in a stack: `num_layers` ints or arrays."""
    if a.bottleneck == "none":
        return [a.d_model] * num_layers
    if a.bottleneck == "flat" or num_layers == 1:
        return [a.d_bottleneck] * num_layers
    start, end = (a.d_model, a.d_bottleneck) if a.bottleneck == "shrinking" else (a.d_bottleneck, a.d_model)
    steps = [layer / (num_layers - 1) for layer in range(num_layers)]
    return [_on_grid(start ** (1.0 - step) * end**step) for step in steps]


def projections(a: Any, num_layers: int) -> list[tuple[Any, Any]]:
    """Return the pairs of consecutive residual widths in a stack; a pair of equal widths needs no matrix."""
    path = [a.d_model, *layer_widths(a, num_layers), a.d_model]
    return list(pairwise(path))


def param_groups(a: Any) -> dict[str, Any]:
    """Return the number of parameters by group, including empty groups.

    Args:
        a: An `Architecture`, or an object with the same fields whose numbers are broadcastable int64 arrays.
    """
    groups = embedding_groups(a)
    for stack, num_layers in stacks(a):
        groups |= stack_groups(a, stack, num_layers)
    return groups


def embedding_groups(a: Any) -> dict[str, Any]:
    """Return the parameters by group that a non-embedding count excludes (Kaplan et al. 2020, section 2.1)."""
    return {
        "embedding": a.vocab_size * a.d_model,
        "position_embedding": a.max_length * a.d_model * (a.position == "absolute"),
        "lm_head": a.vocab_size * a.d_model * (not a.tie_word_embeddings),
    }


def stacks(a: Any) -> list[tuple[str, int]]:
    """Return the name and number of layers of each stack, the decoder last."""
    if a.structure == "decoder-only":
        return [("decoder", a.num_layers)]
    depth = a.num_layers if a.num_decoder_layers is None else a.num_decoder_layers
    return [("encoder", a.num_layers), ("decoder", depth)]


def stack_groups(a: Any, stack: str, num_layers: int) -> dict[str, Any]:
    """Return the parameters of one stack by group."""
    cross = stack == "decoder" and a.structure != "decoder-only"
    runs = layer_groups(a, num_layers)
    noop = a.noop_key == "learned"
    matrices = 3 if a.feed_forward_proj.startswith("gated-") else 2
    groups = {f"{stack}.attention": sum(r.sets * (4 * r.width + noop) * r.inner for r in runs)}
    if cross:
        groups[f"{stack}.cross_attention"] = sum(
            r.sets * (2 * r.width * r.inner + _cross_keys_values(a, r) + noop * r.inner) for r in runs
        )
    groups[f"{stack}.feed_forward"] = sum(r.sets * matrices * r.width for r in runs) * a.d_ff
    groups[f"{stack}.norm"] = sum(r.sets * (2 + cross) * r.width for r in runs) + a.d_model
    if a.bottleneck != "none":
        groups[f"{stack}.projection"] = sum((w != v) * (w * v) for w, v in projections(a, num_layers))
    if a.position == "relative":
        groups[f"{stack}.position_bias"] = RELATIVE_BUCKETS * most_heads(runs)
    return groups


def most_heads(runs: list[LayerGroup]) -> Any:
    """Return the largest number of heads in any layer, which is the width of the stack's position bias table."""
    heads = runs[0].heads
    for run in runs[1:]:
        heads = np.maximum(heads, run.heads) if isinstance(run.heads, np.ndarray) else max(heads, run.heads)
    return heads


def _cross_keys_values(a: Any, run: LayerGroup) -> Any:
    """Return the parameters of the key and value projections in cross-attention."""
    if a.cross_attention == "output":
        return 2 * a.d_model * run.inner
    return 2 * run.inner * run.inner if a.cross_attention == "layer" else 0


def _third(layer: int, num_layers: int) -> int:
    """Return 0 in the first half of a stack, 1 for the middle layer of an odd stack, and 2 in the second half."""
    if num_layers % 2 and layer == num_layers // 2:
        return 1
    return 0 if layer < num_layers // 2 else 2


def _heads(a: Any, third: int) -> tuple[Any, Any]:
    """Return (num_heads, d_kv) of a layer in this part of the stack."""
    if a.head_schedule == "constant" or third == 1:
        return a.num_heads, a.d_kv
    many = (third == 0) == a.head_schedule.startswith("more-first")
    if a.head_schedule.endswith("same-width"):
        return (2 * a.num_heads, a.d_kv // 2) if many else (a.num_heads // 2, 2 * a.d_kv)
    return (3 * a.num_heads // 2 if many else a.num_heads // 2), a.d_kv


def _on_grid(width: Any) -> Any:
    """Return the nearest multiple of 64. Exact halves do not occur when both end widths are multiples of 64."""
    rounded = (width + 32) // 64 * 64
    return rounded.astype(np.int64) if isinstance(rounded, np.ndarray) else int(rounded)


def refusals(a: Any) -> Iterator[tuple[Any, str]]:
    """Yield (is violated, message) for every rule that a combination of fields must meet.

    The first item is a bool, or a bool array if the fields are arrays. The message may contain field names in braces.
    """
    decoder_only, shared = a.structure == "decoder-only", a.share_layers != 1
    depths = [a.num_layers] if decoder_only else [a.num_layers, a.num_decoder_layers or a.num_layers]
    yield (
        decoder_only and a.num_decoder_layers is not None,
        "a decoder-only model has no num_decoder_layers: set num_layers only",
    )
    yield (
        decoder_only and a.cross_attention != "output",
        "a decoder-only model has no cross-attention: leave cross_attention at its default, not {cross_attention!r}",
    )
    yield (
        decoder_only and a.length_reduction != 1.0,
        "length_reduction shortens the encoder, which a decoder-only model does not have: leave it at 1.0",
    )
    yield (
        a.cross_attention != "output" and len(set(depths)) > 1,
        "cross_attention={cross_attention!r} pairs decoder layer i with encoder layer i: num_decoder_layers "
        "({num_decoder_layers}) must equal num_layers ({num_layers})",
    )
    yield (
        shared and a.share_layers != "all" and a.share_layers > min(depths),
        "share_layers={share_layers} exceeds the number of layers in a stack: use 'all'",
    )
    scheduled = a.head_schedule != "constant"
    yield (
        scheduled & (a.num_heads % 2 == 1),
        "head_schedule={head_schedule!r} halves num_heads: num_heads must be even, not {num_heads}",
    )
    same_width = a.head_schedule.endswith("same-width")
    yield same_width & (a.d_kv % 2 == 1), "head_schedule={head_schedule!r} halves d_kv: d_kv must be even, not {d_kv}"
    multiple = 4 if same_width else 2
    yield (
        (a.position == "rotary") & (a.d_kv % multiple != 0),
        f"rotary positions rotate pairs of dimensions: d_kv must be a multiple of {multiple}, not {{d_kv}}",
    )
    yield (
        scheduled and shared and any(_group_spans_halves(n, a.share_layers) for n in depths),
        "share_layers={share_layers!r} would share one set of weights between layers with different heads: "
        "head_schedule={head_schedule!r} changes the heads within a stack",
    )
    yield from _bottleneck_refusals(a, shared)


def _bottleneck_refusals(a: Any, shared: bool) -> Iterator[tuple[Any, str]]:
    """Yield the items of `refusals` about the residual width."""
    if a.bottleneck == "none":
        yield (
            a.d_bottleneck is not None,
            "d_bottleneck={d_bottleneck} needs bottleneck to be flat, shrinking or growing",
        )
        return
    yield a.d_bottleneck is None, "bottleneck={bottleneck!r} needs d_bottleneck"
    if a.d_bottleneck is None:
        return
    yield a.d_bottleneck >= a.d_model, "d_bottleneck ({d_bottleneck}) must be smaller than d_model ({d_model})"
    if a.bottleneck != "flat":
        off_grid = (a.d_bottleneck % 64 != 0) | (a.d_model % 64 != 0)
        yield (
            off_grid,
            "bottleneck={bottleneck!r} needs multiples of 64: d_model is {d_model} and d_bottleneck is {d_bottleneck}",
        )
        yield (
            shared,
            "share_layers={share_layers!r} needs layers of equal width, but bottleneck={bottleneck!r} varies the width",
        )


def _group_spans_halves(num_layers: int, share: Any) -> bool:
    """Return whether layers that share weights are in different parts of the stack."""
    size = num_layers if share == "all" else share
    parts = [{_third(i, num_layers) for i in range(g, min(g + size, num_layers))} for g in range(0, num_layers, size)]
    return any(len(part) > 1 for part in parts)
