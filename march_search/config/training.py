"""`[training]`: the recipe, and when a trial is evaluated and saved."""

from dataclasses import dataclass, field
from typing import Any, Literal

from march_search.config.checks import check_finite
from march_search.errors import ConfigError


@dataclass(frozen=True)
class TrainingConfig:
    """`[training]`: the recipe of every trial. The defaults are the 2023 study's."""

    tokens: int = 1000 * 1_048_576
    """Data budget of a trial, in tokens of text before corruption; a multiple of `global_batch_tokens`."""
    global_batch_tokens: int = 1_048_576
    """Tokens of one optimizer step over all devices; a multiple of the sequence length."""
    micro_batch_sequences: int | None = None
    """Examples a device takes at once; None for as many as its memory is expected to hold. Halved where it does not."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW; of a model of `base_shape`, if rates are scaled."""
    learning_rate_scaling: Literal["fixed", "width"] = "fixed"
    """`fixed`: the same rate for all shapes and parameters. `width`: each matrix has its own, and some their own
    initialisation, by its inputs and its stack's depth relative to `base_shape`, so that one rate suits wide and
    narrow, deep and shallow models (maximal update parameterization, with CompleteP's depth; `march_search/scaling.py`
    has the factors and their sources). Learning rate times weight decay stays the same for all. Needs `init = "t5"`."""
    base_shape: str = "L12-D768-H12x64-F3072"
    """For `width`, the shape that `learning_rate` was chosen for, which trains as under `fixed`. Only L, D, H and F of
    the name count; take one from the middle of the study's own space."""
    betas: tuple[float, ...] = (0.9, 0.95)
    """Decay of AdamW's two moments."""
    epsilon: float = 1e-8
    """AdamW's denominator term."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices only; norms, no-op keys and position tables have
    none."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up: as it is, or down to `final_learning_rate` at the end of the data budget."""
    final_learning_rate: float = 0.0
    """Where `linear` and `cosine` end, as a fraction of the peak."""
    warmup_tokens: int = 0
    """Tokens over which the learning rate rises from 0."""
    gradient_clipping: float = 1.0
    """Largest global gradient norm; 0 for none."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Type of weights and activations in the passes; the optimizer's own copies are fp32 in both."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """What DeepSpeed's ZeRO spreads over devices: 1 optimizer state, 2 gradients too, 3 weights too. bf16 takes at
    least 1."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further keys of a DeepSpeed configuration, offloading say, or the path of a JSON file that holds them. `"auto"`
    is what the study makes it; what contradicts the study is refused."""
    init: Literal["t5", "normal-0.02"] = "t5"
    """Initialisation recipe, see `march_search.model`."""
    evaluations: int = 10
    """Evaluations, evenly spread in steps, the last at the end of the data budget."""
    evaluate_at: tuple[int, ...] = ()
    """Token counts to evaluate at instead, multiples of `global_batch_tokens`; the end is always added."""
    checkpoints: int = 4
    """Checkpoints, evenly spread; 0 for none, which makes an interrupted trial start again."""
    keep_weights: bool = True
    """Whether a complete trial leaves weights.safetensors, in `precision`, for `march-search export`."""

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        check_finite(self, "training")
        if self.tokens < 1 or self.global_batch_tokens < 1:
            raise ConfigError("[training]: tokens and global_batch_tokens must be at least 1.")
        if self.tokens % self.global_batch_tokens:
            near = max(1, round(self.tokens / self.global_batch_tokens)) * self.global_batch_tokens
            raise ConfigError(
                f"[training]: tokens ({self.tokens:,}) must be a multiple of global_batch_tokens "
                f"({self.global_batch_tokens:,}); the nearest is {near:_}."
            )
        if not (len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)):
            raise ConfigError(f"[training]: betas must be two numbers in [0, 1), not {list(self.betas)}.")
        if not 0 < self.learning_rate < 10:
            raise ConfigError(f"[training]: learning_rate must lie in (0, 10), not {self.learning_rate}.")
        if self.learning_rate_scaling == "width" and self.init != "t5":
            raise ConfigError(
                f'[training]: learning_rate_scaling "width" needs init "t5", whose matrices shrink with their inputs, '
                f'not "{self.init}".'
            )
        negative = [
            name
            for name in ("weight_decay", "warmup_tokens", "gradient_clipping", "checkpoints", "final_learning_rate")
            if getattr(self, name) < 0
        ]
        if negative or self.epsilon <= 0:
            raise ConfigError(
                f"[training]: {(negative or ['epsilon'])[0]} must not be negative (epsilon must be above 0)."
            )
        if self.evaluations < 1 or (self.micro_batch_sequences is not None and self.micro_batch_sequences < 1):
            raise ConfigError("[training]: evaluations and micro_batch_sequences must be at least 1.")
        if self.warmup_tokens > self.tokens or self.final_learning_rate > 1:
            raise ConfigError("[training]: warmup_tokens must not exceed tokens, nor final_learning_rate 1.")
        for tokens in self.evaluate_at:
            if not 0 < tokens <= self.tokens or tokens % self.global_batch_tokens:
                raise ConfigError(
                    f"[training]: evaluate_at holds {tokens:,}, which is no multiple of global_batch_tokens "
                    f"({self.global_batch_tokens:,}) up to tokens ({self.tokens:,})."
                )

    @property
    def steps(self) -> int:
        """Optimizer steps of a whole trial."""
        return self.tokens // self.global_batch_tokens

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Steps after which the model is evaluated, ascending, the last step included."""
        if self.evaluate_at:
            return tuple(sorted({*(t // self.global_batch_tokens for t in self.evaluate_at), self.steps}))
        return spread(self.steps, self.evaluations)

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps after which a checkpoint is written, ascending, the last step left out."""
        return spread(self.steps, self.checkpoints + 1)[:-1] if self.checkpoints else ()


def spread(steps: int, count: int) -> tuple[int, ...]:
    """At most `count` different steps from 1 to `steps`, evenly apart, the last one `steps`."""
    count = min(count, steps)
    return tuple(sorted({max(1, round(steps * part / count)) for part in range(1, count + 1)}))
