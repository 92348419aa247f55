"""The `[training]` table: the training recipe, and when a trial is evaluated and saved."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from march_search.config.loader import not_finite, refuse

MOST_STOPS = 100_000
"""Largest number of evaluations or checkpoints per trial."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A decay branch: steps of a shorter data budget that leave the stable run of `wsd` where its decay would begin."""

    tokens: int
    """The shorter data budget, at which the branch ends."""
    start_tokens: int
    """Tokens of the stable run from which it starts."""
    batch_tokens: int
    """Tokens per optimizer step."""

    @property
    def trained_tokens(self) -> int:
        """Tokens that the branch itself trains."""
        return self.tokens - self.start_tokens

    @property
    def start(self) -> int:
        """Step of the stable run after which it starts."""
        return self.start_tokens // self.batch_tokens


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The `[training]` table: how every trial is trained. The defaults are those of the 2023 study."""

    tokens: int = 1000 * 1_048_576
    """Data budget: tokens of text per trial, before span corruption; a multiple of `global_batch_tokens`."""
    global_batch_tokens: int = 1_048_576
    """Tokens per optimizer step, over all devices; a multiple of `sequence_length` of `[data]`. If a study on a CPU
    leaves it out, it is the largest divisor of `tokens` that gives at least 1,000 steps and at most 8,192 tokens per
    step; it is chosen once, when the study starts, and recorded."""
    micro_batch_sequences: int | None = None
    """Examples per micro batch on each rank; must divide the rank's share of the global batch. None uses the largest
    number that is predicted to fit into memory. Halved if memory runs out."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Optimizer. `muon`: Muon for the matrices of layers (queries, keys, values, gate and up each by itself), AdamW for
    embeddings, norms, output layer and tables. Its steps are as large as AdamW's, so that one `learning_rate` serves
    both. Its momentum is 0.95; `betas` and `epsilon` are AdamW's. Needs ZeRO stage 2 or less, without offloading."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW, in (0, 10). With `learning_rate_scaling = "width"`, the peak for a model of
    `base_shape`."""
    learning_rate_scaling: Literal["fixed", "width"] = "fixed"
    """How the learning rate depends on the shape. `fixed`: the same rate for all shapes and parameters. `width`: the
    rate of each matrix, and the initialisation of some, is scaled by its fan-in and the depth of its stack relative to
    `base_shape`, so that one rate suits wide and narrow, deep and shallow models (maximal update parameterization with
    CompleteP's depth scaling; `march_search/config/scaling.py` lists the factors and sources). The product of learning
    rate and weight decay does not change. Needs `init = "t5"`."""
    base_shape: str = "L12-D768-H12x64-F3072"
    """Name of the shape for which `learning_rate` was chosen, for `learning_rate_scaling = "width"`. A model of this
    shape trains as with `fixed`. Only L, D, H and F matter. Choose a shape from the middle of the search space."""
    betas: tuple[float, ...] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment, each in [0, 1)."""
    epsilon: float = 1e-8
    """Term added to AdamW's denominator for numerical stability; above 0."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices. Norms, no-op keys and position tables are not decayed."""
    z_loss: float = 0.0
    """Coefficient of the z-loss, z_loss · log(Z)² per target token, in [0, 1]. It keeps logits from drifting (PaLM uses
    1e-4: Chowdhery et al. 2022, arXiv 2204.02311). All recorded losses leave it out."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    """Learning rate after the warm-up. `constant`: stays at the peak. `linear`, `cosine`: decays to
    `final_learning_rate` at the end of the data budget. `wsd`: stays at the peak and decays over the last
    `decay_fraction` of the budget (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395)."""
    decay_fraction: float = 0.2
    """Fraction of `tokens` over which `wsd` decays, in (0, 1], rounded to whole steps."""
    decay_shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    """How `wsd` decays: linearly, or as 1 - √(fraction of the decay that is done), which Hägele et al. 2024 (arXiv
    2405.18392) found slightly better."""
    branch_tokens: tuple[int, ...] = ()
    """Shorter data budgets for which `wsd` decays, too: multiples of `global_batch_tokens` below `tokens`. Where a
    trial of such a budget would begin its decay, the trial saves its state, decays to that budget, is evaluated there,
    and resumes its stable run from the saved state. The result is that of a trial of the shorter budget, for the tokens
    of its decay alone. `march-search rank STUDY --at TOKENS` ranks by it. Needs ZeRO stage 2 or less."""
    final_learning_rate: float = 0.0
    """Final learning rate of `linear`, `cosine` and `wsd`, as a fraction of the peak, in [0, 1]."""
    warmup_tokens: int = 0
    """Tokens over which the learning rate rises linearly from 0 to its peak; at most `tokens`."""
    gradient_clipping: float = 1.0
    """Global gradient norm to which gradients are clipped; 0 disables clipping."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Data type of weights and activations in the forward and backward pass. The optimizer's copies are always fp32.
    `auto` is `bf16` on GPUs and CPUs that have it in hardware, else `fp32`; it is resolved once, when the study starts,
    and recorded."""
    deterministic: bool = False
    """Whether to use only operations whose results do not vary from run to run. On a CPU, all are. On a GPU, some
    backward passes sum in a varying order, so a trial that is repeated or resumed agrees in its data and settings, but
    not to the last bit, unless this is set. It makes them slower; by how much has not been measured."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage, which determines what is partitioned across devices: 0 nothing, 1 the optimizer state, 2
    also gradients, 3 also weights. bf16 uses at least stage 1."""
    activation_checkpointing: bool = False
    """Whether to recompute each layer in the backward pass instead of storing its activations."""
    attention: Literal["auto", "sdpa", "flex"] = "auto"
    """How a GPU computes attention with a trained bias (relative positions) or with masked documents. `sdpa`: by
    torch's memory-efficient kernel, which writes the bias gradient and reads the mask of every example. `flex`: by
    FlexAttention, which sums this gradient while it runs and skips other documents; needs torch 2.6 (2.7 for masked
    documents), Triton and a C compiler, and is an error if it fails. `auto`: by FlexAttention in bf16 where it can run,
    after comparing it with SDPA at the start, and by SDPA otherwise. Has no effect on other attention, or on a CPU. No
    GPU has run `flex` yet."""
    compile: Literal["none", "layers"] = "none"
    """Whether torch.compile compiles each layer for training. `layers` needs a C++ compiler on a CPU, Triton and a C
    compiler on a GPU, and a minute or more at the start of each trial; evaluations stay uncompiled. Losses differ
    slightly from those of `none`. Not with `zero_stage = 3`, whose weights are gathered inside the layers. `none` is
    the default until a GPU has measured `layers`."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Additional DeepSpeed settings, such as offloading, as a table or as the path of a JSON or Hjson file relative to
    the study's file. `"auto"`, like a key that is left out, keeps the value that follows from the study's settings. A
    value that contradicts them, a key that DeepSpeed does not know and a value that it rejects are errors, which
    `--dry-run` finds. Trials pass DeepSpeed their own optimizer and schedule: the blocks `optimizer` and `scheduler`
    may only repeat what the study sets."""
    init: Literal["t5", "normal-0.02"] = "t5"
    """Initialisation recipe. `t5`: T5's, scaled by fan-in. `normal-0.02`: GPT-2's, with standard deviation 0.02.
    `march_search/model/init.py` lists both."""
    evaluations: int = 10
    """Number of evaluations per trial, evenly spaced, the last at the end of the data budget; from 1 to
    100,000."""
    evaluate_at: tuple[int, ...] = ()
    """Token counts at which to evaluate, instead of `evaluations`: multiples of `global_batch_tokens` up to `tokens`.
    The end of the data budget is always added."""
    checkpoints: int = 4
    """Number of checkpoints per trial, evenly spaced. With 0, an interrupted trial restarts from the beginning."""
    keep_weights: bool = True
    """Whether a complete trial keeps its weights, as weights.safetensors in `precision`; needed to export it."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        refuse(not_finite(self, "training"))
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        """Yield one sentence for each setting or pair of settings that is refused."""
        yield from self._token_faults()
        if not (len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)):
            yield f"[training]: betas must be two numbers in [0, 1), not {list(self.betas)}."
        if not 0 < self.learning_rate < 10:
            yield f"[training]: learning_rate must be in (0, 10), not {self.learning_rate}."
        if self.learning_rate_scaling == "width" and self.init != "t5":
            yield (
                f'[training]: learning_rate_scaling "width" needs init "t5", which scales matrices by their fan-in, '
                f'not "{self.init}".'
            )
        if self.compile == "layers" and self.zero_stage == 3:
            yield (
                '[training]: compile "layers" needs zero_stage 0, 1 or 2, not 3, which gathers weights inside the '
                "layers."
            )
        for name in ("weight_decay", "warmup_tokens", "gradient_clipping", "checkpoints", "final_learning_rate"):
            if getattr(self, name) < 0:
                yield f"[training]: {name} must not be negative, got {getattr(self, name)}."
        if self.epsilon <= 0:
            yield f"[training]: epsilon must be above 0, not {self.epsilon}."
        yield from self._recipe_faults()
        if self.evaluations < 1 or (self.micro_batch_sequences is not None and self.micro_batch_sequences < 1):
            yield "[training]: evaluations and micro_batch_sequences must be at least 1."
        if max(self.evaluations, self.checkpoints) > MOST_STOPS:
            yield f"[training]: evaluations and checkpoints must be at most {MOST_STOPS:,}."
        if self.final_learning_rate > 1:
            yield f"[training]: final_learning_rate must not exceed 1, not {self.final_learning_rate}."

    def _recipe_faults(self) -> Iterator[str]:
        """Yield one sentence for each refused setting of the optimizer, the z-loss and the decay."""
        if self.optimizer == "muon" and self.zero_stage == 3:
            yield (
                '[training]: optimizer "muon" needs whole matrices, but zero_stage 3 partitions them: set zero_stage '
                "to 2 or less."
            )
        if not 0 <= self.z_loss <= 1:
            yield f"[training]: z_loss must be in [0, 1], not {self.z_loss}; PaLM uses 1e-4."
        if not 0 < self.decay_fraction <= 1:
            yield f"[training]: decay_fraction must be in (0, 1], not {self.decay_fraction}."
        elif self.schedule != "wsd" or self.global_batch_tokens < 1:
            if self.branch_tokens:
                yield f'[training]: branch_tokens needs schedule "wsd", not "{self.schedule}", which has no stable run.'
            return
        elif self.warmup_tokens > self.tokens - self.decay_tokens(self.tokens):
            yield (
                f"[training]: warmup_tokens ({self.warmup_tokens:,}) and the decay of wsd "
                f"({self.decay_tokens(self.tokens):,} tokens, decay_fraction {self.decay_fraction:g}) exceed tokens "
                f"({self.tokens:,})."
            )

        else:
            yield from self._branch_faults()

    def _branch_faults(self) -> Iterator[str]:
        """Yield one sentence for each decay branch that is refused."""
        batch = self.global_batch_tokens
        if self.branch_tokens and self.zero_stage == 3:
            yield (
                "[training]: branch_tokens needs zero_stage 2 or less, not 3, in which DeepSpeed does not load a "
                "checkpoint into a model that has trained."
            )
        if len(set(self.branch_tokens)) < len(self.branch_tokens):
            yield f"[training]: branch_tokens must be distinct, not {list(self.branch_tokens)}."
        for end in self.branch_tokens:
            if not 0 < end < self.tokens or end % batch:
                yield (
                    f"[training]: branch_tokens contains {end:,}; each value must be a multiple of global_batch_tokens "
                    f"({batch:,}) below tokens ({self.tokens:,})."
                )
            elif end - self.decay_tokens(end) < max(batch, self.warmup_tokens):
                yield (
                    f"[training]: branch_tokens contains {end:,}, whose decay would begin after "
                    f"{end - self.decay_tokens(end):,} tokens; it must not begin before the end of the warm-up "
                    f"({self.warmup_tokens:,} tokens) or the first step."
                )

    def _token_faults(self) -> Iterator[str]:
        """Yield one sentence for each refused number of tokens."""
        if self.tokens < 1 or self.global_batch_tokens < 1:
            yield "[training]: tokens and global_batch_tokens must be at least 1."
            return
        if self.tokens % self.global_batch_tokens:
            near = max(1, round(self.tokens / self.global_batch_tokens)) * self.global_batch_tokens
            yield (
                f"[training]: tokens ({self.tokens:,}) must be a multiple of global_batch_tokens "
                f"({self.global_batch_tokens:,}); the nearest is {near:_}."
            )
        if self.warmup_tokens > self.tokens:
            yield f"[training]: warmup_tokens must not exceed tokens ({self.tokens:,}), got {self.warmup_tokens:,}."
        for tokens in self.evaluate_at:
            if not 0 < tokens <= self.tokens or tokens % self.global_batch_tokens:
                yield (
                    f"[training]: evaluate_at contains {tokens:,}; each value must be a multiple of "
                    f"global_batch_tokens ({self.global_batch_tokens:,}) up to tokens ({self.tokens:,})."
                )

    def decay_tokens(self, end: int) -> int:
        """Return the tokens over which `wsd` decays if it ends after `end` tokens: whole steps, at least one."""
        return max(1, round(end * self.decay_fraction / self.global_batch_tokens)) * self.global_batch_tokens

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Decay branches, in the order in which a trial takes them."""
        batch = self.global_batch_tokens
        return tuple(
            Branch(tokens=end, start_tokens=end - self.decay_tokens(end), batch_tokens=batch)
            for end in sorted(self.branch_tokens)
        )

    def branches_between(self, before: int, tokens: int) -> tuple[Branch, ...]:
        """Return the decay branches that a trial takes between two numbers of tokens.

        A branch is taken when the stable run is about to leave its starting point, not when it arrives there.
        """
        return tuple(branch for branch in self.branches if before <= branch.start_tokens < tokens)

    def trained_tokens(self, before: int, tokens: int) -> int:
        """Return the tokens that a trial trains between two numbers of tokens, those of its decay branches included."""
        branched = sum(branch.trained_tokens for branch in self.branches_between(before, tokens))
        return max(0, tokens - before) + branched

    @property
    def steps(self) -> int:
        """Number of optimizer steps per trial, without those of its decay branches."""
        return self.tokens // self.global_batch_tokens

    @property
    def evaluation_steps(self) -> tuple[int, ...]:
        """Steps after which the model is evaluated, ascending, including the last step."""
        if self.evaluate_at:
            return tuple(sorted({*(t // self.global_batch_tokens for t in self.evaluate_at), self.steps}))
        return spread(self.steps, self.evaluations)

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """Steps after which a checkpoint is written, ascending, excluding the last step."""
        return spread(self.steps, self.checkpoints + 1)[:-1] if self.checkpoints else ()


def spread(steps: int, count: int) -> tuple[int, ...]:
    """Return at most `count` distinct, evenly spaced steps from 1 to `steps`, the last one being `steps`."""
    count = min(count, steps)
    return tuple(sorted({max(1, round(steps * part / count)) for part in range(1, count + 1)}))
