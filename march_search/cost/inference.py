"""Predict what generating text costs: bytes of the key/value cache, and seconds to read a prompt and write a token.

Every function takes an `Architecture`, or an object with the same fields as int64 arrays, and a `Setup`. The model is a
roofline of one device (Williams et al. 2009) for one sequence, in the precision of the setup: a step takes as long as
its operations at the share of the peak that training reaches, or as reading every weight and cached key and value once
at the bandwidth of the data sheet, whichever is longer. Launches, sampling and the network are left out, so these are
lower bounds that order shapes.

A decoder-only model has read `sequence_length` tokens. An encoder-decoder has read as many in its encoder, and has
written as many.
"""

from typing import Any

import numpy as np

from march_search.architecture import flops, parameters
from march_search.cost.setup import Setup


def cache_bytes_per_token(a: Any, setup: Setup) -> Any:
    """Return the bytes of the key/value cache of one sequence divided by its `sequence_length` tokens.

    A layer keeps a key and a value of width J per token; a layer with a window only those of its last positions.
    An encoder-decoder also keeps those of cross-attention, for the positions that the encoder, or with cross-attention
    by layer the encoder layer of the same number, has.
    """
    return setup.scalar_bytes * _cached_scalars(a, setup) / setup.sequence_length


def prefill_ms(a: Any, setup: Setup) -> Any:
    """Return the milliseconds to read `sequence_length` tokens: a decoder-only model up to the first logits, an encoder
    up to the keys and values of cross-attention."""
    length, (stack, num_layers) = setup.sequence_length, parameters.stacks(a)[0]
    weights = _read_weights(a, num_layers)
    if stack == "decoder":
        operations = flops.forward_flops(a, 0, length) - 2 * (length - 1) * a.vocab_size * a.d_model
        operations = operations - _scores(a, length) / 2  # the future of causal positions is skipped
        weights = weights + a.vocab_size * a.d_model
    else:
        operations = flops.forward_flops(a, length, 1) - 2 * _written_weights(a)
    return _milliseconds(setup, operations, weights)


def decode_ms(a: Any, setup: Setup) -> Any:
    """Return the milliseconds to write one token after `sequence_length` tokens, in a batch of one sequence."""
    weights, cached = _written_weights(a), _cached_scalars(a, setup)
    heads_per_group = a.num_heads / (a.num_heads if a.num_key_value_heads is None else a.num_key_value_heads)
    return _milliseconds(setup, 2 * weights + 2 * cached * heads_per_group, weights + cached)


def _milliseconds(setup: Setup, operations: Any, scalars: Any) -> Any:
    """Return the longer of the time of operations, and that of reading scalars."""
    device = setup.device
    arithmetic = operations / (device.utilisation * device.peak(setup.precision) / device.count)
    reading = scalars * setup.scalar_bytes / device.memory_bandwidth if device.memory_bandwidth else 0.0
    return 1e3 * np.maximum(arithmetic, reading)


def _read_weights(a: Any, num_layers: int) -> Any:
    """Return the weights of self-attention and feed-forward of a stack, with those of shared layers at each use."""
    total: Any = 0
    for group in parameters.layer_groups(a, num_layers):
        attention = 2 * group.width * (group.inner + group.key_value_inner)
        total = total + group.applied * (attention + flops.feed_forward_flops(a, group) // 2)
    return total


def _written_weights(a: Any) -> Any:
    """Return the weights that one position of the decoder multiplies by, those of the output layer included."""
    _, num_layers = parameters.stacks(a)[-1]
    total = _read_weights(a, num_layers) + a.vocab_size * a.d_model
    if a.structure != "decoder-only":  # queries and outputs of cross-attention; its keys and values are cached
        groups = parameters.layer_groups(a, num_layers)
        total = total + sum(2 * group.applied * group.width * group.inner for group in groups)
    return total


def _cached_scalars(a: Any, setup: Setup) -> Any:
    """Return the keys and values of one sequence."""
    length = setup.sequence_length
    _, num_layers = parameters.stacks(a)[-1]
    reduced = 0 if a.structure == "decoder-only" else flops.reduced_length(length, a.length_reduction)
    groups = parameters.layer_groups(a, num_layers)
    total: Any = 0
    for group, full in zip(groups, flops.full_reads(a, groups), strict=True):
        kept = group.applied * (flops.seen_keys(length, group.window, is_causal=True) + reduced)
        total = total + 2 * (kept + full * (length - reduced)) * group.key_value_inner
    return total


def _scores(a: Any, length: int) -> Any:
    """Return the operations of the scores of a decoder without windows, and their product with the values."""
    groups = parameters.layer_groups(a, parameters.stacks(a)[-1][1])
    return sum(g.applied * 4 * length * length * g.inner * (g.window is None) for g in groups)
