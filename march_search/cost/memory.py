"""Predict the memory per device during training: weights, gradients, optimizer state and activations."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from march_search.architecture import parameters
from march_search.architecture.parameters import LayerGroup
from march_search.config.deepspeed_config import BUCKET_ELEMENTS
from march_search.cost.setup import Setup
from march_search.cost.speed import positions, scores_per_token

USABLE = 0.9
"""Fraction of a device's memory that a trial may fill; contexts, workspaces and fragmentation take the rest."""


class Memory(NamedTuple):
    """Peak bytes per device, at the end of the last micro batch's forward pass."""

    weights: Any
    """Weights in the training precision."""
    gradients: Any
    """Gradients, their accumulation buffer and ZeRO's bucket."""
    optimizer: Any
    """AdamW's two moments, and the fp32 master weights where ZeRO keeps them separately."""
    activations: Any
    """Activations of one micro batch that the backward pass needs."""

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
    gradients = 4 * shared if stage >= 2 else 4 + 2 * (setup.precision == "bf16")
    return Memory(
        weights=total * width * (shared if stage == 3 else 1),
        gradients=total * gradients + BUCKET_ELEMENTS * width * (stage > 0),
        optimizer=total * (8 if stage == 0 else 12 * shared),
        activations=activation_bytes(a, setup),
    )


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
    sublayers (three in a decoder), queries, keys, values and the result (4 I, plus 2 I if rotary), H fp32 normalisers,
    and F to 4 F scalars around the activation function. With checkpointing, a layer keeps only its input, and the
    largest layer counts once in full. The loss keeps the gradients of its input and of the output layer.
    """
    (source, reduced, target), width = positions(a, setup), setup.scalar_bytes
    total: Any = 0
    for stack, num_layers in parameters.stacks(a):
        encoder = stack == "encoder"
        length, memory_length = (source, 0) if encoder else (target, reduced)
        layers = [
            (run, _layer_bytes(a, run, reduced if encoder and run.second_half else length, memory_length, width))
            for run in parameters.layer_groups(a, num_layers)
        ]
        if setup.checkpointing:
            largest: Any = 0
            for run, size in layers:
                total = total + run.applied * run.width * length * width
                largest = np.maximum(largest, size) if isinstance(size, np.ndarray) else max(largest, size)
            total = total + largest
        else:
            total = total + sum(run.applied * size for run, size in layers)
        total = total + 3 * a.d_model * (reduced if encoder else length) * width
    if setup.device.keeps_scores:
        total = total + scores_per_token(a, setup) * setup.sequence_length * width
    return setup.micro_batch * total + a.vocab_size * a.d_model * width


def _layer_bytes(a: Any, run: LayerGroup, length: int, memory_length: int, width: int) -> Any:
    """Return the bytes that a layer with `length` positions keeps; `memory_length` counts encoder output positions."""
    inner, rotary = run.inner, a.position == "rotary"
    scalars = length * (4 * run.width + (4 + 2 * rotary) * inner + _feed_forward_scalars(a))
    normalisers = length * run.heads
    if memory_length:
        own = a.cross_attention != "layer-shared"
        scalars = scalars + length * (2 * run.width + 2 * inner) + memory_length * 2 * inner * own
        normalisers = 2 * normalisers
    return scalars * width + normalisers * 4


def _feed_forward_scalars(a: Any) -> Any:
    """Return the scalars kept around the activation function; the backward pass of ReLU needs only its output."""
    if a.feed_forward_proj.startswith("gated-"):
        return 4 * a.d_ff
    return (1 if a.feed_forward_proj == "relu" else 2) * a.d_ff
