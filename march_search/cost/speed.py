"""Predict the operations, speed and hours of training an architecture; `cost/memory.py` predicts its memory.

Every function takes an `Architecture`, or an object with the same fields as int64 arrays, and a `Setup`.
"""

from typing import Any, NamedTuple

from march_search.architecture import flops, parameters
from march_search.architecture.spans import span_lengths
from march_search.cost.setup import Setup


def flops_per_token(a: Any, setup: Setup) -> Any:
    """Return the operations per token of text, forward and backward; see `march_search.architecture.flops`."""
    return flops.flops_per_token(a, setup.sequence_length, setup.noise_density, setup.mean_span_length)


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


def scores_per_token(a: Any, setup: Setup) -> Any:
    """Return the number of attention scores (queries times keys, over all heads and layers) per token of text."""
    source, reduced, target = positions(a, setup)
    total: Any = 0
    for stack, num_layers in parameters.stacks(a):
        for run in parameters.layer_groups(a, num_layers):
            if stack == "encoder":
                length = reduced if run.second_half else source
                total = total + run.applied * run.heads * length * length
            else:
                total = total + run.applied * run.heads * target * (target + reduced)
    return total / setup.sequence_length


def tokens_per_second(a: Any, setup: Setup) -> Any:
    """Return the tokens of text per second of all devices together, by the formula of `devices.Device`."""
    device = setup.device
    layers = sum(num_layers for _, num_layers in parameters.stacks(a))
    products = flops_per_token(a, setup) / (device.utilisation * device.peak(setup.precision))
    rest = layers * device.layer_seconds + scores_per_token(a, setup) * device.score_seconds
    again = 4 / 3 if setup.checkpointing else 1
    return 1 / (again * (products + rest / device.count))


def hours(a: Any, setup: Setup) -> Any:
    """Return the hours to train on the data budget, without evaluations."""
    return setup.tokens / tokens_per_second(a, setup) / 3600
