"""Count parameters with a closed formula: plain integers for one architecture, int64 arrays for millions at once.

Notation: V is `vocab_size`, D is `d_model`, F is `d_ff`, I is `num_heads * d_kv`, J is `num_key_value_heads * d_kv`
(equal to I by default), m is the number of feed-forward matrices (2, or 3 if gated), and n is the number of layers in a
stack. Without any of the special fields:

    encoder layer   2·D·I (q, o)  +  2·D·J (k, v)  +  m·D·F  +  2·D (RMSNorm weights)
    decoder layer   2·D·I  +  2·D·J  +  cross  +  m·D·F  +  3·D (2·D without an encoder)
    cross           2·D·I, and 2·D·J (`output`), 2·J² (`layer`: k and v projected again from those of encoder layer i),
                    or nothing (`layer-shared`)
    stack           + D (final RMSNorm)  +  32·heads (relative position bias, once per stack)
    model           V·D once (twice if untied)  +  `max_length`·D (absolute positions, shared by both stacks)

Linear layers have no biases (Raffel et al. 2020, section 2.1). The count is linear in F, and the solver inverts it.
Special fields change the count as follows:

    head_schedule   I differs by layer; the bias table is as wide as the largest number of heads in the stack
    share_layers    each set of shared weights counts once, including its norms
    bottleneck      layer i has width w_i; a w·w' matrix is added at each change of width in D, w_0 … w_(n-1), D;
                    `output` cross-attention projects keys and values from the encoder's output, whose width is D
    noop_key        `learned` adds J scalars to every attention
    qk_norm         adds 2·d_kv (`head`) or I + J (`all`) to every attention
    norm            `layer` doubles the weights of all norms except those of qk_norm
    bias            `qkv` adds I + 2·J to every attention (I without its own keys and values); `all` adds D more to
                    each, and (m - 1)·F + D to every feed-forward layer
    block           replaces m·D·F by the formula of a user's block, which need not be linear in F
    length_reduction, gating function, rotary or no positions, norm_position, parallel_block, attention_window,
    logit_softcap: no change
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from march_search.architecture import block

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
    key_value_heads: Any
    """Number of heads of the keys and values."""
    window: int | None = None
    """Number of positions that self-attention sees; None for all."""

    @property
    def inner(self) -> Any:
        """Total width of all query heads."""
        return self.heads * self.d_kv

    @property
    def key_value_inner(self) -> Any:
        """Total width of all heads of the keys, or of the values."""
        return self.key_value_heads * self.d_kv


def layer_groups(a: Any, num_layers: int) -> list[LayerGroup]:
    """Return the layers of a stack, with equal ones of the same part of the stack grouped."""
    share = num_layers if a.share_layers == "all" else a.share_layers
    widths = layer_widths(a, num_layers)
    varying = a.bottleneck in ("shrinking", "growing")
    counts: dict[tuple[int, int, int | None], list[int]] = {}
    for layer in range(num_layers):
        key = _third(layer, num_layers), layer if varying else 0, layer_window(a, layer)
        count = counts.setdefault(key, [0, 0])
        count[0] += 1
        count[1] += layer % share == 0
    return [
        LayerGroup(applied, sets, third > 0, widths[layer], *_heads(a, third), window)
        for (third, layer, window), (applied, sets) in counts.items()
    ]


def layer_shapes(a: Any, num_layers: int) -> list[LayerGroup]:
    """Return one group per layer, in order, for building the stack of a model."""
    widths, thirds = layer_widths(a, num_layers), [_third(layer, num_layers) for layer in range(num_layers)]
    return [
        LayerGroup(1, 1, third > 0, width, *_heads(a, third), layer_window(a, layer))
        for layer, (third, width) in enumerate(zip(thirds, widths, strict=True))
    ]


def layer_window(a: Any, layer: int) -> int | None:
    """Return the number of positions that self-attention of a layer, counted from 0, sees; None for all."""
    sees_all = a.global_every and (layer + 1) % a.global_every == 0
    return None if sees_all else a.attention_window


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


def param_groups(a: Any, is_active: bool = False) -> dict[str, Any]:
    """Return the number of parameters by group, including empty groups.

    Args:
        a: An `Architecture`, or an object with the same fields whose numbers are broadcastable int64 arrays.
        is_active: Whether to count only those parameters of a user's block that a position is multiplied by.
    """
    groups = embedding_groups(a)
    for stack, num_layers in stacks(a):
        groups |= stack_groups(a, stack, num_layers, is_active)
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


def stack_groups(a: Any, stack: str, num_layers: int, is_active: bool = False) -> dict[str, Any]:
    """Return the parameters of one stack by group; `is_active` as in `param_groups`."""
    cross = stack == "decoder" and a.structure != "decoder-only"
    layers = layer_groups(a, num_layers)
    own = sum(layer.sets * _attention(a, layer, 2 * layer.width * layer.key_value_inner) for layer in layers)
    groups = {f"{stack}.attention": own}
    if cross:
        read = sum(layer.sets * _attention(a, layer, *_cross_keys_values(a, layer)) for layer in layers)
        groups[f"{stack}.cross_attention"] = read
    groups[f"{stack}.feed_forward"] = feed_forward(a, layers, is_active)
    per_norm = 2 if a.norm == "layer" else 1
    groups[f"{stack}.norm"] = per_norm * (sum(layer.sets * (2 + cross) * layer.width for layer in layers) + a.d_model)
    if a.bottleneck != "none":
        groups[f"{stack}.projection"] = sum((w != v) * (w * v) for w, v in projections(a, num_layers))
    if a.position == "relative":
        groups[f"{stack}.position_bias"] = RELATIVE_BUCKETS * most_heads(layers)
    return groups


def feed_forward(a: Any, groups: list[LayerGroup], is_active: bool = False) -> Any:
    """Return the parameters of these feed-forward layers; `is_active` as in `param_groups`."""
    if a.block is None:
        constant, slope = feed_forward_line(a, groups)
        return constant + slope * a.d_ff
    counts = [(group.sets, block.layer_counts(a.block, group.width, a.d_ff)) for group in groups]
    return sum(sets * (own.active if is_active else own.params) for sets, own in counts)


def feed_forward_line(a: Any, groups: list[LayerGroup]) -> tuple[Any, Any]:
    """Return the constant and the slope in `d_ff` of the parameters of these feed-forward layers, without a block."""
    matrices, biased = 3 if a.feed_forward_proj.startswith("gated-") else 2, a.bias == "all"
    slope = sum(group.sets * (matrices * group.width + biased * (matrices - 1)) for group in groups)
    return biased * sum(group.sets * group.width for group in groups), slope


def most_heads(groups: list[LayerGroup]) -> Any:
    """Return the largest number of heads in any layer, which is the width of the stack's position bias table."""
    heads = groups[0].heads
    for group in groups[1:]:
        heads = np.maximum(heads, group.heads) if isinstance(group.heads, np.ndarray) else max(heads, group.heads)
    return heads


def _attention(a: Any, group: LayerGroup, keys_values: Any, has_own: bool = True) -> Any:
    """Return the parameters of one attention with matrices of `keys_values` parameters, if it `has_own` ones."""
    inner, key_value_inner = group.inner, group.key_value_inner
    total = 2 * group.width * inner + keys_values
    if a.noop_key == "learned":
        total = total + key_value_inner
    if a.qk_norm != "none":
        total = total + (2 * group.d_kv if a.qk_norm == "head" else inner + key_value_inner)
    if a.bias != "none":
        total = total + inner + 2 * key_value_inner * has_own + group.width * (a.bias == "all")
    return total


def _cross_keys_values(a: Any, group: LayerGroup) -> tuple[Any, bool]:
    """Return the parameters of the key and value matrices in cross-attention, and whether there are any."""
    if a.cross_attention == "output":
        return 2 * a.d_model * group.key_value_inner, True
    if a.cross_attention == "layer":
        return 2 * group.key_value_inner * group.key_value_inner, True
    return 0, False


def _third(layer: int, num_layers: int) -> int:
    """Return 0 in the first half of a stack, 1 for the middle layer of an odd stack, and 2 in the second half."""
    if num_layers % 2 and layer == num_layers // 2:
        return 1
    return 0 if layer < num_layers // 2 else 2


def _heads(a: Any, third: int) -> tuple[Any, Any, Any]:
    """Return (num_heads, d_kv, key/value heads) of a layer in this part of the stack."""
    heads, d_kv = _query_heads(a, third)
    follows = a.num_key_value_heads is None or a.head_schedule != "constant"  # other numbers are refused there
    return heads, d_kv, heads if follows else a.num_key_value_heads


def _query_heads(a: Any, third: int) -> tuple[Any, Any]:
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
    """Yield (is violated, message) for every rule that a combination of fields other than `d_ff` must meet.

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
    if a.position == "rotary":
        multiple = 4 if same_width else 2
        turned = f"d_kv must be a multiple of {multiple}, not {{d_kv}}"
        if a.rotary_fraction != 1.0:
            turned = (
                f"rotary_fraction ({{rotary_fraction}}) times d_kv ({{d_kv}}) must be a multiple of {multiple}, "
                "at least that"
            )
        width = a.d_kv * a.rotary_fraction
        yield (
            (abs(width / multiple - np.rint(width / multiple)) > 1e-6) | (width < multiple - 0.5),
            f"rotary positions rotate pairs of dimensions: {turned}",
        )
    yield (
        scheduled and shared and any(_group_spans_halves(n, a.share_layers) for n in depths),
        "share_layers={share_layers!r} would share one set of weights between layers with different heads: "
        "head_schedule={head_schedule!r} changes the heads within a stack",
    )
    yield from _bottleneck_refusals(a, shared)
    if a.block is not None:
        yield (
            a.feed_forward_proj != "relu",
            "the block {block} replaces the feed-forward layer: leave feed_forward_proj at its default, not "
            "{feed_forward_proj!r}",
        )
    yield from _attention_refusals(a, depths)
    yield (
        a.parallel_block and not decoder_only,
        "parallel_block needs structure='decoder-only': in a decoder with an encoder, cross-attention stands between "
        "attention and feed-forward",
    )


def block_refusals(a: Any) -> Iterator[tuple[Any, str]]:
    """Yield items as `refusals` does for the rules of a user's block, which may depend on `d_ff`."""
    if a.block is not None:
        widths = {id(width): width for _, depth in stacks(a) for width in layer_widths(a, depth)}
        for width in widths.values():
            yield from block.layer_refusals(a.block, width, a.d_ff)


def _attention_refusals(a: Any, depths: list[int]) -> Iterator[tuple[Any, str]]:
    """Yield the items of `refusals` about key/value heads, norms of queries and keys, positions and windows."""
    if a.num_key_value_heads is not None:
        yield (
            a.num_heads % a.num_key_value_heads != 0,
            "num_key_value_heads ({num_key_value_heads}) must divide num_heads ({num_heads})",
        )
        yield (
            (a.head_schedule != "constant") & (a.num_key_value_heads != a.num_heads),
            "head_schedule={head_schedule!r} changes num_heads within a stack: leave num_key_value_heads at None",
        )
    yield (
        a.qk_norm != "none" and a.cross_attention != "output",
        "qk_norm={qk_norm!r} needs cross_attention='output': with {cross_attention!r}, keys are those of the encoder",
    )
    yield (
        a.position == "none" and a.structure != "decoder-only",
        "position='none' needs structure='decoder-only': without a causal mask, an encoder cannot tell the order",
    )
    for field, default in (("rotary_fraction", 1.0), ("rotary_base", 10000.0), ("rotary_scaling", 1.0)):
        yield (
            a.position != "rotary" and getattr(a, field) != default,
            f"{field}={{{field}}} needs position='rotary', not {{position!r}}",
        )
    yield (
        a.attention_window is None and a.global_every != 0,
        "global_every={global_every} needs an attention_window: without one, every layer sees all positions",
    )
    yield a.global_every == 1, "global_every=1 leaves no layer with a window: leave attention_window at None"
    yield (
        a.global_every > max(depths),
        "global_every={global_every} exceeds the number of layers in a stack: use 0",
    )
    yield (
        a.attention_window is not None and a.length_reduction != 1.0,
        "attention_window counts positions, which length_reduction={length_reduction} merges: use one of the two",
    )


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
