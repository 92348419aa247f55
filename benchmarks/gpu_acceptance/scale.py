"""What the acceptance run measures: at full size on a GPU, and as a rehearsal of the script on a CPU."""

from dataclasses import dataclass

from march_search.config import DataConfig


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Shapes, batches and numbers of steps of all three parts."""

    data: DataConfig
    """Text of all trials."""
    precision: str
    """Precision of all trials."""
    shape: str
    """Shape of part 2, trained at every micro batch."""
    batch_sequences: int
    """Sequences per step of part 2."""
    micro_batches: tuple[int, ...]
    """Micro batches of part 2. The middle one is used for the comparisons."""
    other_shapes: tuple[str, ...]
    """Other shapes of part 2."""
    steps: int
    """Measured steps of each shape in part 2."""
    compared_steps: int
    """Measured steps of each switched setting, and of Hugging Face's T5."""
    warm_up: int
    """Steps before them; a compiled model takes one more."""
    exact_lengths: tuple[int, int]
    """Input and target tokens per example where a CPU and a GPU are compared."""
    survivor: str
    """Shape of the trials of part 3 that are stopped and resumed."""
    survivor_sequences: int
    """Sequences per step of these trials."""
    survivor_steps: int
    """Steps of these trials; checkpoints follow after each quarter."""
    broad: str
    """Shape of the trial that runs out of memory."""
    broad_sequences: int
    """Its micro batch, which must not fit."""
    memory_gigabytes: float
    """On a CPU, the memory limit of that trial. On a GPU, memory is held by another process instead."""
    study_shapes: tuple[str, ...]
    """Shapes of the study."""
    study_steps: int
    """Steps of each of its trials."""
    trial_seconds: float
    """How long a trial of part 3 may take before it counts as failed."""

    @property
    def middle(self) -> int:
        """The micro batch of the comparisons."""
        return self.micro_batches[len(self.micro_batches) // 2]


FULL = Scale(
    data=DataConfig(vocab_size=32128, sequence_length=512, validation_fraction=0.1, validation_sequences=64),
    precision="bf16",
    shape="L12-D768-H12x64-F3072",
    batch_sequences=2048,
    micro_batches=(64, 128, 256),
    other_shapes=(
        "L12-D768-H12x64-F3072-rope",
        "L12-D768-H12x64-F2048-geglu-dec-rope",
        "L24-D512-H8x64-F2048-geglu",
        "L8-D1024-H16x64-F4096-xshared-rope",
    ),
    steps=2,
    compared_steps=1,
    warm_up=1,
    exact_lengths=(451, 118),
    survivor="L6-D512-H8x64-F2048",
    survivor_sequences=64,
    survivor_steps=24,
    broad="L6-D512-H8x64-F2048",
    broad_sequences=1024,
    memory_gigabytes=0.0,
    study_shapes=(
        "L4-D256-H4x64-F1024",
        "L2-D384-H6x64-F1024-geglu",
        "L4-D256-H4x64-F1024-rope",
        "L8-D192-H3x64-F768",
    ),
    study_steps=48,
    trial_seconds=120,
)
"""One GPU with 80 GB or more, such as an H100, where a step of part 2 should take 2 to 4 seconds."""

TINY = Scale(
    data=DataConfig(vocab_size=400, sequence_length=32, validation_fraction=0.2, validation_sequences=16),
    precision="fp32",
    shape="L2-D32-H2x16-F64-V400",
    batch_sequences=16,
    micro_batches=(4, 8),
    other_shapes=("L2-D32-H2x16-F64-geglu-dec-rope-V400", "L2-D48-H2x16-F64-xshared-V400"),
    steps=2,
    compared_steps=2,
    warm_up=1,
    exact_lengths=(29, 13),
    survivor="L1-D32-H2x16-F64-geglu-V400",
    survivor_sequences=8,
    survivor_steps=24,
    broad="L2-D64-H4x16-F256-geglu-rope-V400",
    broad_sequences=2048,
    memory_gigabytes=1.0,
    study_shapes=("L1-D32-H2x16-F64-V400", "L1-D32-H2x16-F64-geglu-V400", "L2-D32-H2x16-F64-rope-V400"),
    study_steps=24,
    trial_seconds=120,
)
"""A minute or two on two CPU cores; its figures mean nothing."""

SCALES = {"full": FULL, "tiny": TINY}
