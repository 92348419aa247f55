"""How a trial would run: devices, data budget, batch and precision."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from march_search.architecture.spans import span_lengths
from march_search.cost.devices import A5000, Device
from march_search.errors import ConfigError

if TYPE_CHECKING:
    from march_search.config import StudyConfig, TrialConfig

STUDY_DEVICES = replace(A5000, count=8)
"""Devices of the 2023 study, as fast as its software was."""


@dataclass(frozen=True, kw_only=True)
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
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimizer; Muon keeps one moment of the matrices of layers instead of two."""
    global_batch_tokens: int = 1_048_576
    """Tokens per optimizer step, over which the work of Muon is spread."""
    compiled: bool = False
    """Whether torch.compile fuses the operations of each layer."""
    sums_bias: bool = False
    """Whether attention surely sums the gradient of a trained bias over the examples while it runs, and needs no mask
    tensor for documents."""
    masks_documents: bool = False
    """Whether documents of a sequence do not see one another. The work that a kernel may save is not counted."""

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


def study_setup(config: "StudyConfig | TrialConfig", device: Any = STUDY_DEVICES) -> Setup:
    """Return the cost model's description of a trial of the study on `device`."""
    training, data = config.training, config.data
    return Setup(
        device=device,
        tokens=training.tokens,
        sequence_length=data.sequence_length,
        noise_density=data.noise_density,
        mean_span_length=data.mean_span_length,
        micro_batch=config.batch.micro_batch,
        precision="fp32" if training.precision == "fp32" else "bf16",  # "auto" is resolved when a study is loaded
        zero_stage=training.zero_stage,
        checkpointing=training.activation_checkpointing,
        compiled=training.compile == "layers",
        sums_bias=training.attention == "flex",
        masks_documents=data.documents == "masked",
        optimizer=training.optimizer,
        global_batch_tokens=training.global_batch_tokens,
    )
