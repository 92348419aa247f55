"""What training an architecture costs before anything runs: operations, seconds, hours. `memory.py` has the bytes.

Every function takes an `Architecture`, or an object with its fields in which numbers are int64 arrays, and a `Setup`.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from march_search import flops, parameters
from march_search.devices import GPUS, Device
from march_search.errors import ConfigError
from march_search.spans import span_lengths

STUDY_DEVICES = replace(GPUS[0], count=8)
"""The devices of the 2023 study."""


@dataclass(frozen=True)
class Setup:
    """How a trial would run. The defaults are the 2023 study's data budget on its devices."""

    device: Device = STUDY_DEVICES
    """Devices, and how many."""
    tokens: int = 1000 * 1_048_576
    """Data budget in tokens of text."""
    sequence_length: int = 512
    """Tokens of text an example is made from."""
    noise_density: float = 0.15
    """Share of them that span corruption moves to the target."""
    mean_span_length: float = 3.0
    """Mean tokens of a span."""
    micro_batch: int = 8
    """Examples a device takes at once."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Type of weights and activations."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What ZeRO spreads over the devices; bf16 takes at least 1."""
    checkpointing: bool = False
    """Whether each layer is computed again in the backward pass."""

    def __post_init__(self) -> None:
        """Refuses numbers that cannot be meant."""
        if min(self.tokens, self.micro_batch) < 1:
            raise ConfigError("a price needs tokens and a micro batch of at least 1.")
        try:
            span_lengths(self.sequence_length, self.noise_density, self.mean_span_length)
        except ValueError as error:
            raise ConfigError(f"a price needs examples: {error}.") from None

    @property
    def stage(self) -> int:
        """The ZeRO stage that trains: DeepSpeed accumulates bf16 gradients in fp32 from stage 1 on."""
        return max(self.zero_stage, 1) if self.precision == "bf16" else self.zero_stage

    @property
    def scalar_bytes(self) -> int:
        """Bytes of a weight or an activation."""
        return 2 if self.precision == "bf16" else 4


def flops_per_token(a: Any, setup: Setup) -> Any:
    """Operations per token of text, forward and backward; see `march_search.flops`."""
    return flops.flops_per_token(a, setup.sequence_length, setup.noise_density, setup.mean_span_length)


class Positions(NamedTuple):
    """Positions of an example that each part of a model works on."""

    source: int
    """In the first half of the encoder; 0 without one."""
    kept: int
    """From the encoder's middle layer on."""
    target: int
    """In the decoder."""


def positions(a: Any, setup: Setup) -> Positions:
    """Positions of one example of the setup; a decoder-only model reads the text as it is."""
    if a.structure == "decoder-only":
        return Positions(0, 0, setup.sequence_length)
    lengths = span_lengths(setup.sequence_length, setup.noise_density, setup.mean_span_length)
    return Positions(lengths.input, flops.reduced_length(lengths.input, a.length_reduction), lengths.target)


def scores_per_token(a: Any, setup: Setup) -> Any:
    """Attention scores (queries times keys, over all heads and layers) of an example, per token of text."""
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
    """Tokens of text a second that all devices train on together, by `devices.Device`'s formula."""
    device = setup.device
    layers = sum(num_layers for _, num_layers in parameters.stacks(a))
    products = flops_per_token(a, setup) / (device.utilisation * device.peak(setup.precision))
    rest = layers * device.layer_seconds + scores_per_token(a, setup) * device.score_seconds
    again = 4 / 3 if setup.checkpointing else 1
    return 1 / (again * (products + rest / device.count))


def hours(a: Any, setup: Setup) -> Any:
    """Hours in which the data budget is trained, evaluations not counted."""
    return setup.tokens / tokens_per_second(a, setup) / 3600
