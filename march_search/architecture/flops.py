"""Count the floating-point operations of matrix products and attention, for one architecture or arrays of them.

A multiply-add counts as two operations. The count includes every weight matrix at every position where it is applied,
the attention scores and their product with the values (over the full matrix, also with a causal mask or masked
documents; with a window of W positions, at most W keys per query, or 2 W - 1 in an encoder), and the output layer. It
excludes embedding look-ups, norms, biases, softmax, activation functions, residual sums and the no-op key. The backward
pass costs twice the forward pass (Kaplan et al. 2020, section 2.1).
"""

from collections.abc import Sequence
from typing import Any

from march_search.architecture.block import layer_counts
from march_search.architecture.parameters import LayerGroup, layer_groups, projections
from march_search.architecture.spans import span_lengths


def flops_per_token(
    a: Any,
    sequence_length: int = 512,
    noise_density: float = 0.15,
    mean_span_length: float = 3.0,
    backward: bool = True,
) -> Any:
    """Return the operations per token of text.

    A token is a token of the corpus before corruption, the unit of the data budget. An encoder-decoder reads
    `sequence_length` tokens as a shorter input and a target (`spans.span_lengths`). A decoder-only model reads them
    unchanged.

    Args:
        a: An `Architecture`, or an object with the same fields as int64 arrays.
        sequence_length: Tokens of text per example.
        noise_density: Fraction of these tokens that span corruption moves to the target.
        mean_span_length: Mean number of tokens per span.
        backward: Whether to count the backward pass as well.
    """
    if a.structure == "decoder-only":
        forward = forward_flops(a, 0, sequence_length)
    else:
        lengths = span_lengths(sequence_length, noise_density, mean_span_length)
        forward = forward_flops(a, lengths.input, lengths.target)
    return forward * (3 if backward else 1) / sequence_length


def forward_flops(a: Any, input_length: int, target_length: int) -> Any:
    """Return the operations of a forward pass over `input_length` encoder and `target_length` decoder positions."""
    if a.structure == "decoder-only":
        input_length = 0
    total = 2 * target_length * a.vocab_size * a.d_model
    reduced = input_length
    if a.structure != "decoder-only":
        reduced = reduced_length(input_length, a.length_reduction)
        total = total + _encoder(a, input_length, reduced)
        depth = a.num_layers if a.num_decoder_layers is None else a.num_decoder_layers
    else:
        depth = a.num_layers
    return total + _decoder(a, depth, input_length, reduced, target_length)


def reduced_length(length: int, fraction: float) -> int:
    """Return the number of positions left when an encoder keeps `fraction` of `length`; at least one."""
    return max(1, round(length * fraction))


def _encoder(a: Any, length: int, reduced: int) -> Any:
    """Return the operations of the encoder, which has `reduced` positions from the middle layer on.

    The middle layer still attends to all keys.
    """
    total, before = 0, True
    for group in layer_groups(a, a.num_layers):
        if not group.second_half:
            total = total + group.applied * _layer(a, group, length, length, False)
            continue
        first = 1 if before else 0
        total = (
            total
            + first * _layer(a, group, reduced, length, False)
            + (group.applied - first) * _layer(a, group, reduced, reduced, False)
        )
        before = False
    return total + _moves(a, a.num_layers, length, reduced)


def _decoder(a: Any, num_layers: int, input_length: int, reduced: int, length: int) -> Any:
    """Return the operations of a decoder with `length` positions over an encoder with `reduced` output positions."""
    total, groups = _moves(a, num_layers, length, length), layer_groups(a, num_layers)
    for group, full in zip(groups, full_reads(a, groups), strict=True):
        total = total + group.applied * _layer(a, group, length, length, True)
        if input_length:
            total = total + full * _cross(a, group, length, input_length)
            total = total + (group.applied - full) * _cross(a, group, length, reduced)
    return total


def full_reads(a: Any, groups: Sequence[LayerGroup]) -> list[int]:
    """Return for each group of decoder layers how many of them read an encoder layer with all its positions.

    With cross-attention by layer, decoder layer i reads the keys and values of encoder layer i. Those of the middle
    layer still have all positions, because only its queries are pooled. The encoder's output is always reduced.
    """
    if a.cross_attention == "output":
        return [0] * len(groups)
    middle = next((index for index, group in enumerate(groups) if group.second_half), None)
    return [1 if index == middle else 0 if group.second_half else group.applied for index, group in enumerate(groups)]


def seen_keys(keys: int, window: int | None, is_causal: bool) -> int:
    """Return the largest number of keys that one query sees."""
    return keys if window is None else min(keys, window if is_causal else 2 * window - 1)


def _layer(a: Any, group: LayerGroup, queries: int, keys: int, is_causal: bool) -> Any:
    """Return the operations of self-attention and feed-forward in one layer."""
    attention = 4 * group.width * (group.inner * queries + group.key_value_inner * keys)
    scores = 4 * queries * seen_keys(keys, group.window, is_causal) * group.inner
    return attention + scores + queries * feed_forward_flops(a, group)


def feed_forward_flops(a: Any, group: LayerGroup) -> Any:
    """Return the operations of one feed-forward layer at one position."""
    if a.block is not None:
        return layer_counts(a.block, group.width, a.d_ff).flops
    matrices = 3 if a.feed_forward_proj.startswith("gated-") else 2
    return 2 * matrices * group.width * a.d_ff


def _cross(a: Any, group: LayerGroup, queries: int, keys: int) -> Any:
    """Return the operations of cross-attention in one layer."""
    source = {"output": a.d_model, "layer": group.key_value_inner, "layer-shared": 0}[a.cross_attention]
    weights = source * group.key_value_inner
    return 4 * queries * group.width * group.inner + 4 * keys * weights + 4 * queries * keys * group.inner


def _moves(a: Any, num_layers: int, length: int, reduced: int) -> Any:
    """Return the operations of the projections between residual widths, at `reduced` positions after the middle."""
    if a.bottleneck == "none":
        return 0
    steps = projections(a, num_layers)
    return sum(
        2 * (length if index <= num_layers // 2 else reduced) * (w != v) * (w * v) for index, (w, v) in enumerate(steps)
    )
