"""Predict the memory per device during training: weights, gradients, optimizer state and activations."""

import functools
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from march_search.architecture import parameters
from march_search.architecture.block import layer_counts
from march_search.architecture.parameters import LayerGroup
from march_search.config.deepspeed_config import BUCKET_ELEMENTS
from march_search.cost.setup import Setup
from march_search.cost.speed import Layers, positions, scores_per_token, stack_layers

USABLE = 0.9
"""Fraction of a device's memory that a trial may fill; contexts, workspaces and fragmentation take the rest."""


CHUNK_LOGITS, BLOCK_LOGITS = {"cpu": 2**25, "other": 2**26}, {"cpu": 2**18, "other": 2**26}
"""Logits that the loss holds at once, in the training precision and in fp32; those of `march_search.model.loss`, which
loads torch."""


class Memory(NamedTuple):
    """Peak bytes per device, at the end of the last micro batch's forward pass or early in its backward pass."""

    weights: Any
    """Weights in the training precision."""
    gradients: Any
    """Gradients, their accumulation buffer and ZeRO's bucket."""
    optimizer: Any
    """AdamW's two moments, one for the matrices of Muon, and the fp32 master weights where ZeRO keeps them apart."""
    activations: Any
    """Activations of one micro batch that the backward pass needs."""
    transients: Any
    """What the loss, or a layer's backward pass, holds only while it runs."""

    @property
    def total(self) -> Any:
        """Sum of all parts. Leave 10% free for the CUDA context, fragmentation and kernel workspaces."""
        return sum(self)


def memory(a: Any, setup: Setup) -> Memory:
    """Return the bytes per device under ZeRO (Rajbhandari et al. 2020), checked against DeepSpeed 0.19.

    Bytes per parameter with N devices:

        ZeRO                 0, fp32   1, fp32   1, bf16   2        3
        weights                     4         4         2   2 or 4   2/N or 4/N
        gradients                   4         4     2 + 4      4/N   4/N
        optimizer                   8      12/N      12/N     12/N   12/N
    """
    total = sum(parameters.param_groups(a).values())
    stage, devices, width = setup.stage, setup.device.count, setup.scalar_bytes
    shared = 1 / devices
    saved = _moments_saved(a, setup)
    gradients = 4 * shared if stage >= 2 else 4 + 2 * (setup.precision == "bf16")
    return Memory(
        weights=total * width * (shared if stage == 3 else 1),
        gradients=total * gradients + BUCKET_ELEMENTS * width * (stage > 0),
        optimizer=total * (8 if stage == 0 else 12 * shared) - saved * (shared if stage else 1),
        activations=activation_bytes(a, setup),
        transients=transient_bytes(a, setup),
    )


def _moments_saved(a: Any, setup: Setup) -> Any:
    """Return the bytes by which Muon's state is smaller than AdamW's: one moment of the matrices of layers."""
    matrices = ("attention", "cross_attention", "projection", *(("feed_forward",) if a.block is None else ()))
    groups = parameters.param_groups(a).items()
    total: Any = sum(number for name, number in groups if name.partition(".")[2] in matrices)
    return 4 * total * (setup.optimizer == "muon")


def memory_bytes(a: Any, setup: Setup) -> Any:
    """Return the total of `memory` in bytes per device."""
    return memory(a, setup).total


def largest_micro_batch(a: Any, setup: Setup, share: int, free_bytes: float) -> int:
    """Return the largest micro batch that is expected to fit, or 1 if none is.

    Args:
        a: The architecture.
        setup: How a trial would run; its micro batch is ignored.
        share: Sequences of a rank per step, which the micro batch must divide.
        free_bytes: Free memory of the device, of which `USABLE` may be filled.
    """
    sizes = [size for size in range(share, 0, -1) if share % size == 0]
    room = USABLE * free_bytes
    return next((size for size in sizes if memory(a, replace(setup, micro_batch=size)).total <= room), 1)


def activation_bytes(a: Any, setup: Setup) -> Any:
    """Return the bytes that autograd keeps for one micro batch of `march_search.model`; SDPA on a GPU keeps no scores.

    In a layer of width W with H heads of total width I, each position keeps two norm inputs (2 W) in each of two
    sublayers (three in a decoder), queries and the result (2 I), keys and values (2 J), again what is turned by rotary
    positions or normalised by qk_norm (I + J each), H fp32 normalisers, and F to 4 F scalars around the activation
    function. With checkpointing, a layer keeps only its input, and the largest layer counts once in full. The loss
    keeps the gradients of its input and of the output layer. That a compiled layer recomputes cheap operations and
    keeps less is not counted. Masked documents add `document_bytes`.
    """
    total = sum(setup.micro_batch * _stack_bytes(a, setup, stack, layers) for stack, layers in parameters.stacks(a))
    if setup.device.keeps_scores:
        total = total + setup.micro_batch * scores_per_token(a, setup) * setup.sequence_length * setup.scalar_bytes
    return total + document_bytes(a, setup) + a.vocab_size * a.d_model * setup.scalar_bytes


def document_bytes(a: Any, setup: Setup) -> Any:
    """Return the bytes of what differs by example if documents are masked, which all layers share.

    These are the mask, (B, 1, L, L), once more if only some layers have a window; with relative positions the bias with
    the mask and its gradient, (B, H, L, L) each; and cosine and sine of rotary positions. FlexAttention needs no mask,
    but is certain only with `attention = "flex"` on a GPU.
    """
    if not setup.masks_documents:
        return 0
    length, groups = positions(a, setup).target, parameters.layer_groups(a, a.num_layers)
    has_mask = setup.device.keeps_scores or not setup.sums_bias
    windows = {group.window for group in groups if group.window is None or group.window < length}
    masks: Any = max(1, len(windows)) * has_mask
    if a.position == "relative":
        masks = masks * 2 * parameters.most_heads(groups)
    widest: Any = functools.reduce(np.maximum, [group.d_kv for group in groups])
    turned = 2 * widest * a.rotary_fraction * (a.position == "rotary")
    return setup.micro_batch * length * (length * masks + turned) * setup.scalar_bytes


def _stack_bytes(a: Any, setup: Setup, stack: str, num_layers: int) -> Any:
    """Return the bytes that autograd keeps in one stack for one example."""
    (source, reduced, target), width = positions(a, setup), setup.scalar_bytes
    first, last = (source, reduced) if stack == "encoder" else (target, target)
    kept = [(layer, _layer_bytes(a, layer, width)) for layer in stack_layers(a, setup, stack, num_layers)]
    if setup.checkpointing:
        largest: Any = 0
        total: Any = 0
        for (group, *_), size in kept:
            total = total + group.applied * group.width * first * width
            largest = np.maximum(largest, size)
        total = total + largest
    else:
        total = sum(layer.group.applied * size for layer, size in kept)
    return total + 3 * a.d_model * last * width


def _layer_bytes(a: Any, layers: Layers, width: int) -> Any:
    """Return the bytes that each of these layers keeps for one example."""
    group, length, memory = layers.group, layers.length, layers.memory
    queries_keys, again = group.inner + group.key_value_inner, (a.position == "rotary") + (a.qk_norm != "none")
    scalars = length * (4 * group.width + (2 + again) * queries_keys + _feed_forward_scalars(a, group))
    scalars = scalars + (layers.keys - length) * (2 * group.width + (2 + again) * group.key_value_inner)
    normalisers = length * group.heads
    if memory:
        own = a.cross_attention != "layer-shared"
        scalars = scalars + length * (2 * group.width + 2 * group.inner) + memory * 2 * group.key_value_inner * own
        scalars = scalars + (length * group.inner + memory * group.key_value_inner) * (a.qk_norm != "none")
        normalisers = 2 * normalisers
    return scalars * width + normalisers * 4


def _feed_forward_scalars(a: Any, group: LayerGroup) -> Any:
    """Return the scalars kept around the activation function; the backward pass of ReLU needs only its output."""
    if a.block is not None:
        return layer_counts(a.block, group.width, a.d_ff).scalars
    if a.feed_forward_proj.startswith("gated-"):
        return 4 * a.d_ff
    return (1 if a.feed_forward_proj == "relu" else 2) * a.d_ff


def transient_bytes(a: Any, setup: Setup) -> Any:
    """Return the bytes beyond the activations at the peak: of the loss, or of the gradient of a relative bias.

    The loss holds a chunk of logits, a block of them in fp32, and with several chunks the fp32 sum of the output
    layer's gradient beside those of two chunks. On a GPU, the backward pass of attention with a trained bias writes
    the bias gradient of every example, (B, H, L, M), unless `attention = "flex"` is set. In the encoder this comes
    after the decoder's activations were freed.
    """
    kind, width = "cpu" if setup.device.keeps_scores else "other", setup.scalar_bytes
    logits = setup.micro_batch * positions(a, setup).target * a.vocab_size
    rows = (np.maximum(1, most[kind] // a.vocab_size) for most in (CHUNK_LOGITS, BLOCK_LOGITS))
    chunk, block = (np.minimum(logits, number * a.vocab_size) for number in rows)
    output_layer = a.vocab_size * a.d_model * (logits > chunk)
    sums = output_layer * (4 + (width + 4 * setup.device.keeps_scores) * (width < 4))  # a CPU adds bf16 as an fp32 copy
    blocks = 4 * block * (1 if a.logit_softcap is None else 2)  # capped logits too, in fp32
    peak: Any = chunk * width + np.maximum(blocks + 4 * output_layer, sums)
    if a.position != "relative" or setup.device.keeps_scores or setup.sums_bias:
        return peak
    freed: Any = 0
    for stack, num_layers in reversed(parameters.stacks(a)):
        source, _, target = positions(a, setup)
        length = source if stack == "encoder" else target
        heads = parameters.most_heads(parameters.layer_groups(a, num_layers))
        peak = np.maximum(peak, setup.micro_batch * (heads * length * length * width - freed))
        freed = _stack_bytes(a, setup, stack, num_layers)
    return peak
