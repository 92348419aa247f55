"""Predict the operations, speed and hours of training an architecture; `cost/memory.py` predicts its memory.

Every function takes an `Architecture`, or an object with the same fields as int64 arrays, and a `Setup`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from march_search.architecture import flops, parameters
from march_search.architecture.block import layer_counts
from march_search.architecture.parameters import LayerGroup
from march_search.architecture.spans import span_lengths
from march_search.cost.setup import Setup


def flops_per_token(a: Any, setup: Setup) -> Any:
    """Return the operations per token of text, forward and backward, and of Muon's iterations.

    See `march_search.architecture.flops`.
    """
    model = flops.flops_per_token(a, setup.sequence_length, setup.noise_density, setup.mean_span_length)
    return model + (muon_flops(a) / setup.global_batch_tokens if setup.optimizer == "muon" else 0)


def muon_flops(a: Any) -> Any:
    """Return the operations of Muon in one step: five Newton-Schulz iterations of 4 m² n + 2 m³ per (m, n) matrix.

    m is the smaller side. Where ranks repeat each other's matrices (ZeRO 0), only one rank counts. Projections of a
    bottleneck and cross-attention by layer count as matrices of the residual width. AdamW trains a user's block.
    """
    total: Any = 0
    for stack, num_layers in parameters.stacks(a):
        attentions = 2 if stack == "decoder" and a.structure != "decoder-only" else 1
        for group in parameters.layer_groups(a, num_layers):
            feeds = 0 if a.block is not None else 3 if a.feed_forward_proj.startswith("gated-") else 2
            own = 4 * attentions * _iterations(group.width, group.inner) + feeds * _iterations(group.width, a.d_ff)
            total = total + group.sets * own
    return total


def _iterations(rows: Any, columns: Any) -> Any:
    """Return the operations of Muon's five iterations on one matrix."""
    small, large = np.minimum(rows, columns) * 1.0, np.maximum(rows, columns) * 1.0
    return 5 * (4 * small**2 * large + 2 * small**3)


class Positions(NamedTuple):
    """Number of positions per example in each part of a model."""

    source: int
    """Positions in the first half of the encoder; 0 without an encoder."""
    reduced: int
    """Positions from the encoder's middle layer on."""
    target: int
    """Positions in the decoder."""


def positions(a: Any, setup: Setup) -> Positions:
    """Return the positions of one example; a decoder-only model reads the text unchanged."""
    if a.structure == "decoder-only":
        return Positions(0, 0, setup.sequence_length)
    lengths = span_lengths(setup.sequence_length, setup.noise_density, setup.mean_span_length)
    return Positions(lengths.input, flops.reduced_length(lengths.input, a.length_reduction), lengths.target)


class Layers(NamedTuple):
    """Equal layers of a stack, with their positions in one example."""

    group: LayerGroup
    length: int
    """Positions of the layer."""
    keys: int
    """Positions that self-attention reads: more than `length` in the layer that shortens the encoder."""
    memory: int
    """Positions of the encoder that cross-attention reads; 0 in an encoder and without one."""
    is_causal: bool
    """Whether the layers belong to a decoder."""


def stack_layers(a: Any, setup: Setup, stack: str, num_layers: int) -> Iterator[Layers]:
    """Yield the layers of one stack in groups of equal ones with equal positions."""
    source, reduced, target = positions(a, setup)
    groups, is_shortened = parameters.layer_groups(a, num_layers), reduced < source
    full_reads = flops.full_reads(a, groups) if is_shortened else [0] * len(groups)
    middle = next((index for index, group in enumerate(groups) if group.second_half), None)
    for index, (group, full) in enumerate(zip(groups, full_reads, strict=True)):
        if stack == "decoder":
            parts = [(full, target, target, source), (group.applied - full, target, target, reduced)]
        elif group.second_half and is_shortened:
            first = int(index == middle)
            parts = [(first, reduced, source, 0), (group.applied - first, reduced, reduced, 0)]
        else:
            parts = [(group.applied, source, source, 0)]
        for applied, length, keys, memory in parts:
            if applied:
                yield Layers(group._replace(applied=applied), length, keys, memory, stack == "decoder")


def _layers(a: Any, setup: Setup) -> Iterator[Layers]:
    """Yield the layers of all stacks in groups of equal ones."""
    for stack, num_layers in parameters.stacks(a):
        yield from stack_layers(a, setup, stack, num_layers)


def scores_per_token(a: Any, setup: Setup, with_bias: bool = False) -> Any:
    """Return the number of attention scores (queries times keys, over all heads and layers) per token of text.

    With `with_bias`, count only those with a trained bias: self-attention with relative positions.
    """
    if with_bias and a.position != "relative":
        return 0.0
    total: Any = 0
    for group, length, keys, memory, _ in _layers(a, setup):
        total = total + group.applied * group.heads * length * (keys + (0 if with_bias else memory))
    return total / setup.sequence_length


def attention_flops(a: Any, setup: Setup, is_fused: bool) -> Any:
    """Return the operations per token of scores and their product with the values, forward and backward.

    Fused attention skips the future of causal positions and computes the scores again in the backward pass, 7 products
    instead of 6 (Dao et al. 2022).
    """
    total: Any = 0
    for group, length, keys, memory, is_causal in _layers(a, setup):
        own = computed_keys(keys, group.window, is_causal, is_fused)
        total = total + group.applied * group.inner * length * (own + memory)
    return total * (14 if is_fused else 12) / setup.sequence_length


def computed_keys(length: int, window: int | None, is_causal: bool, is_fused: bool) -> float:
    """Return the keys per query whose scores are computed: with fused attention the mean number of those it sees."""
    most = flops.seen_keys(length, window, is_causal)
    if not is_fused:
        return most
    if window is None or window >= length:
        return length / 2 if is_causal else length
    side = window - window**2 / (2 * length)
    return side if is_causal else 2 * side


def moved_bytes(a: Any, setup: Setup) -> Any:
    """Return the bytes per token that a GPU reads and writes between operations; attention scores are left out.

    The forward pass of a layer of width W with queries of total width I and keys of J moves, per position, 14 W scalars
    (two norms, two residual sums, inputs and outputs of products), 4 (I + J) (7 (I + J) more with rotary positions, and
    as much with qk_norm), and 4 F (8 F if gated; twice the kept activations of a user's block); cross-attention moves
    7 W + 4 I, and 4 J + W per position of the encoder's output. The backward pass moves twice as much. A logit is
    written, turned into its gradient in fp32, and read twice; a parameter's gradient is added to the fp32 sum once per
    micro batch.
    """
    rotary, is_gated = a.position == "rotary", a.feed_forward_proj.startswith("gated-")
    total: Any = 0
    for group, length, _, memory, _ in _layers(a, setup):
        width, inner, key_value_inner = group.width, group.inner, group.key_value_inner
        queries_keys = (4 + 7 * rotary + 7 * (a.qk_norm != "none")) * (inner + key_value_inner)
        fed = (8 if is_gated else 4) * a.d_ff
        if a.block is not None:
            fed = 2 * layer_counts(a.block, width, a.d_ff).scalars
        size = length * (14 * width + queries_keys + fed)
        if memory:
            size = size + length * (7 * width + 4 * inner) + memory * (width + 4 * key_value_inner)
        total = total + group.applied * size
    total = 3 * total + 13 * positions(a, setup).target * a.vocab_size
    gradients = 8 * sum(parameters.param_groups(a).values()) / setup.micro_batch
    return setup.scalar_bytes * (total + gradients) / setup.sequence_length


class Seconds(NamedTuple):
    """Seconds per token of text on one device, by what takes them."""

    products: Any
    """Matrix products, without those of attention scores."""
    attention: Any
    """Products of queries, keys and values."""
    traffic: Any
    """Reading and writing memory between operations."""
    scores: Any
    """Reading and writing attention scores that leave the kernel."""
    layers: Any
    """The device's `layer_seconds`."""
    launches: Any
    """Launching kernels, which runs beside all the others."""

    @property
    def total(self) -> Any:
        """Seconds per token: about the longer of launches and everything else, and more where both are alike."""
        work = self.products + self.attention + self.traffic + self.scores + self.layers
        return np.hypot(work, self.launches)


def seconds_per_token(a: Any, setup: Setup) -> Seconds:
    """Return the seconds per token of text on one device, forward and backward, without recomputed activations."""
    device = setup.device
    peak = device.peak(setup.precision) / device.count
    layers = sum(num_layers for _, num_layers in parameters.stacks(a))
    is_fused = device.attention_utilisation > 0
    products = flops_per_token(a, setup) - attention_flops(a, setup, is_fused=False)
    moved = moved_bytes(a, setup) * (device.compiled_share if setup.compiled else 1)
    scores = scores_per_token(a, setup, with_bias=not device.all_scores) * setup.scalar_bytes / 2
    return Seconds(
        products=products / (device.utilisation * peak),
        attention=attention_flops(a, setup, is_fused) / ((device.attention_utilisation or device.utilisation) * peak),
        traffic=moved / device.bandwidth if device.bandwidth else 0.0,
        scores=scores * device.score_seconds,
        layers=layers * device.layer_seconds,
        launches=layers * device.launch_seconds / (setup.micro_batch * setup.sequence_length),
    )


def tokens_per_second(a: Any, setup: Setup) -> Any:
    """Return the tokens of text per second of all devices together."""
    again = 4 / 3 if setup.checkpointing else 1
    return setup.device.count / (again * seconds_per_token(a, setup).total)


def hours(a: Any, setup: Setup) -> Any:
    """Return the hours to train on the data budget, without evaluations."""
    return setup.tokens / tokens_per_second(a, setup) / 3600
