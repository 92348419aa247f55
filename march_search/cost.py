"""Predict the operations, speed and hours of training an architecture; `memory.py` predicts its memory.

Every function takes an `Architecture`, or an object with the same fields as int64 arrays, and a `Setup`.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from march_search import flops, parameters
from march_search.devices import GPUS, Device
from march_search.errors import ConfigError
from march_search.spans import span_lengths

STUDY_DEVICES = replace(GPUS[0], count=8)
"""Devices of the 2023 study."""


@dataclass(frozen=True)
class Setup:
    """How a trial would run. The defaults are the data budget and devices of the 2023 study."""

    device: Device = STUDY_DEVICES
    """Type and number of devices."""
    tokens: int = 1000 * 1_048_576
    """Data budget in tokens of text."""
    sequence_length: int = 512
    """Tokens of text per example."""
    noise_density: float = 0.15
    """Fraction of these tokens that span corruption moves to the target."""
    mean_span_length: float = 3.0
    """Mean number of tokens per span."""
    micro_batch: int = 8
    """Examples per device in one forward pass."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of weights and activations."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """ZeRO stage; bf16 uses at least 1."""
    checkpointing: bool = False
    """Whether the backward pass recomputes the activations of each layer."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        if min(self.tokens, self.micro_batch) < 1:
            raise ConfigError("cannot predict the cost of a trial: tokens and micro_batch must be at least 1.")
        try:
            span_lengths(self.sequence_length, self.noise_density, self.mean_span_length)
        except ValueError as error:
            raise ConfigError(f"cannot predict the cost of a trial: {error}.") from None

    @property
    def stage(self) -> int:
        """ZeRO stage used for training: at least 1 in bf16, where DeepSpeed then accumulates gradients in fp32."""
        return max(self.zero_stage, 1) if self.precision == "bf16" else self.zero_stage

    @property
    def scalar_bytes(self) -> int:
        """Bytes per weight or activation."""
        return 2 if self.precision == "bf16" else 4


def flops_per_token(a: Any, setup: Setup) -> Any:
    """Return the operations per token of text, forward and backward; see `march_search.flops`."""
    return flops.flops_per_token(a, setup.sequence_length, setup.noise_density, setup.mean_span_length)


class Positions(NamedTuple):
    """Number of positions per example in each part of a model."""

    source: int
    """Positions in the first half of the encoder; 0 without an encoder."""
    kept: int
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
    source, kept, target = positions(a, setup)
    total: Any = 0
    for stack, num_layers in parameters.stacks(a):
        for run in parameters.stack_runs(a, num_layers):
            if stack == "encoder":
                length = kept if run.second_half else source
                total = total + run.applied * run.heads * length * length
            else:
                total = total + run.applied * run.heads * target * (target + kept)
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
