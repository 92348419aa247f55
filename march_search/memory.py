"""Bytes on one device while an architecture trains: weights, gradients, optimizer, activations."""

from typing import Any, NamedTuple

import numpy as np

from march_search import parameters
from march_search.cost import Setup, positions, scores_per_token
from march_search.parameters import Run

BUCKET_ELEMENTS = 50_000_000
"""Gradients that ZeRO gathers before it reduces them; trials hand this number to DeepSpeed."""


class Memory(NamedTuple):
    """Bytes on one device when they are most: at the end of the last micro batch's forward pass."""

    weights: Any
    """Weights in the precision of the passes."""
    gradients: Any
    """Gradients and what they are accumulated in, and ZeRO's bucket."""
    optimizer: Any
    """AdamW's two moments, and the fp32 weights where ZeRO keeps them apart."""
    activations: Any
    """What the backward pass will need of one micro batch."""

    @property
    def total(self) -> Any:
        """All of it. The CUDA context, fragmentation and kernels' workspaces come on top: leave a tenth free."""
        return sum(self)


def memory(a: Any, setup: Setup) -> Memory:
    """Bytes on one device under DeepSpeed's ZeRO (Rajbhandari et al. 2020), measured against DeepSpeed 0.19.

    A parameter takes, in bytes, with N devices:

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
    """Bytes on one device, as `memory` counts them."""
    return memory(a, setup).total


def activation_bytes(a: Any, setup: Setup) -> Any:
    """Bytes that autograd keeps of one micro batch of `march_search.model`; SDPA keeps no scores on a GPU.

    A position of a layer of width W, with all heads I wide and H heads, keeps: the two inputs of a norm, 2 W, at each
    of two sublayers (three in a decoder); queries, keys, values and the result, 4 I, again 2 I if rotary; H fp32
    normalisers; and around the activation function F to 4 F. With checkpointing a layer keeps its input alone, and the
    largest layer is there once more. The loss keeps the gradients of its input and of the output layer.
    """
    (source, kept, target), width = positions(a, setup), setup.scalar_bytes
    total: Any = 0
    for stack, num_layers in parameters.stacks(a):
        encoder = stack == "encoder"
        length, memory_length = (source, 0) if encoder else (target, kept)
        layers = [
            (run, _layer_bytes(a, run, kept if encoder and run.second_half else length, memory_length, width))
            for run in parameters.stack_runs(a, num_layers)
        ]
        if setup.checkpointing:
            largest: Any = 0
            for run, size in layers:
                total = total + run.applied * run.width * length * width
                largest = np.maximum(largest, size) if isinstance(size, np.ndarray) else max(largest, size)
            total = total + largest
        else:
            total = total + sum(run.applied * size for run, size in layers)
        total = total + 3 * a.d_model * (kept if encoder else length) * width
    if setup.device.keeps_scores:
        total = total + scores_per_token(a, setup) * setup.sequence_length * width
    return setup.micro_batch * total + a.vocab_size * a.d_model * width


def _layer_bytes(a: Any, run: Run, length: int, memory_length: int, width: int) -> Any:
    """Bytes that one layer of `length` positions keeps, in a decoder of an encoder of `memory_length`."""
    inner, rotary = run.inner, a.position == "rotary"
    scalars = length * (4 * run.width + (4 + 2 * rotary) * inner + _feed_forward_scalars(a))
    normalisers = length * run.heads
    if memory_length:
        own = a.cross_attention != "layer-shared"
        scalars = scalars + length * (2 * run.width + 2 * inner) + memory_length * 2 * inner * own
        normalisers = 2 * normalisers
    return scalars * width + normalisers * 4


def _feed_forward_scalars(a: Any) -> Any:
    """Scalars kept around the activation function: what ReLU returns is all its backward pass needs."""
    if a.feed_forward_proj.startswith("gated-"):
        return 4 * a.d_ff
    return (1 if a.feed_forward_proj == "relu" else 2) * a.d_ff
