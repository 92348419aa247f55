"""Study and trial settings: the tables of studies/*.toml, checked before anything starts."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from march_search.errors import ConfigError
from march_search.spans import SpanLengths, span_lengths


@dataclass(frozen=True)
class DataConfig:
    """`[data]`: which text, which tokenizer, and how examples are cut from it."""

    corpus: str = "wikipedia-summaries"
    """A corpus by name (`data/corpora.py`), a local file, folder or glob of .txt, .jsonl or .parquet, or
    `hub:OWNER/NAME` for any data set of the Hugging Face hub."""
    hub_config: str | None = None
    """Configuration of a hub data set, where it has several."""
    hub_split: str = "train"
    """Split of a hub data set."""
    hub_revision: str | None = None
    """Pinned git revision of a hub data set; None takes the newest and records which."""
    text_column: str = "text"
    """Column that holds the text."""
    vocab_size: int = 32128
    """Tokens of the vocabulary, special ones included; the architectures'. A loaded tokenizer may have fewer, up to the
    next multiple of 128: T5's has 32,100 for 32,128."""
    tokenizer: str | None = None
    """A tokenizer.json, or the folder of a T5 tokenizer; None trains byte-level BPE."""
    tokenizer_corpus: str | None = None
    """Corpus to train the tokenizer on, written like `corpus`; None for `corpus` itself."""
    tokenizer_bytes: int = 50_000_000
    """Bytes of text the tokenizer is trained on, from the first training documents."""
    split_digits: bool = False
    """Train the tokenizer with every digit as a token of its own."""
    sequence_length: int = 512
    """Tokens of text an example is made from, before corruption. The data budget counts these."""
    noise_density: float = 0.15
    """Share of an example's tokens that the target holds."""
    mean_span_length: float = 3.0
    """Mean tokens of a corrupted span."""
    validation_fraction: float = 0.02
    """Share of documents kept for validation, chosen by a hash of their text."""
    validation_sequences: int = 512
    """Examples of the fixed validation set."""

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        _check_finite(self, "data")
        if self.tokenizer_bytes < 1:
            raise ConfigError("[data]: tokenizer_bytes must be at least 1.")
        try:
            lengths = self.lengths
        except ValueError as error:
            raise ConfigError(f"[data]: {error}.") from None
        if lengths.spans > 100:
            raise ConfigError(
                f"[data]: {self.sequence_length} tokens make {lengths.spans} spans, more than the 100 sentinels: "
                "shorten sequence_length or lengthen mean_span_length."
            )
        if self.tokenizer and (self.tokenizer_corpus or self.split_digits):
            raise ConfigError(
                "[data]: tokenizer_corpus and split_digits are for a trained tokenizer: leave out one side."
            )
        if self.tokenizer is None and self.vocab_size < 384:
            raise ConfigError(
                f"[data]: vocab_size must be at least 384 (256 bytes, 102 special tokens), not {self.vocab_size}."
            )
        if not 0 < self.validation_fraction < 0.5:
            raise ConfigError(f"[data]: validation_fraction must lie in (0, 0.5), not {self.validation_fraction}.")
        if self.validation_sequences < 2:
            raise ConfigError("[data]: validation_sequences must be at least 2.")

    @property
    def lengths(self) -> SpanLengths:
        """Input and target lengths of an example."""
        return span_lengths(self.sequence_length, self.noise_density, self.mean_span_length)


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
        _check_finite(self, "training")
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


def _check_finite(settings: Any, table: str) -> None:
    """Refuses a number that is infinite or no number."""
    for one in fields(settings):
        value = getattr(settings, one.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"[{table}]: {one.name} must be a finite number, not {number}.")


@dataclass(frozen=True)
class DevicesConfig:
    """`[devices]`: what one trial runs on."""

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes GPUs where torch finds any."""
    ranks: int = 1
    """Processes of a trial on all its machines together, one a GPU; on a CPU they share the cores."""
    nodes: int = 1
    """Machines of a trial, `ranks / nodes` processes on each. They see the same folders under the same names."""
    launcher: Literal["own", "deepspeed", "srun"] = "own"
    """What starts the ranks: `own` on this machine; `deepspeed`, its launcher, on the hosts of `hostfile`; `srun`, from
    within an allocation of Slurm."""
    hostfile: str | None = None
    """For `deepspeed`: a file with a line `name slots=8` for each host, reached by ssh without a password."""
    port: int | None = None
    """Where the ranks of several machines meet on the first; None for one that is free here."""
    threads: int | None = None
    """CPU threads of a rank; None divides the machine's cores."""
    parallel_trials: int = 1
    """Trials that run at the same time on this machine, each on ranks of its own. With more than one, which trials a
    pruner stops depends on which is ahead; losses do not."""
    hang_seconds: float = 1800.0
    """A trial none of whose ranks gets on for so long is killed and goes on from its checkpoint, once; 0 for never.
    Before the first step it has at least ten minutes. A layer, or a file of a checkpoint, must take less."""

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        if min(self.ranks, self.parallel_trials, 1 if self.threads is None else self.threads) < 1:
            raise ConfigError("[devices]: ranks, threads and parallel_trials must be at least 1.")
        if self.nodes < 1 or self.ranks % self.nodes:
            raise ConfigError(f"[devices]: {self.ranks} ranks cannot be divided between {self.nodes} nodes.")
        if self.launcher == "own" and self.nodes > 1:
            raise ConfigError(
                f'[devices]: {self.nodes} nodes need launcher = "deepspeed" and a hostfile, or launcher = "srun".'
            )
        if (self.launcher == "deepspeed") != (self.hostfile is not None):
            raise ConfigError('[devices]: launcher = "deepspeed" and hostfile need each other.')
        if self.launcher != "own" and self.parallel_trials > 1:
            raise ConfigError(
                f'[devices]: launcher = "{self.launcher}" gives all devices to one trial: parallel_trials must be 1, '
                f"not {self.parallel_trials}."
            )
        _check_finite(self, "devices")
        if self.hang_seconds < 0:
            raise ConfigError(f"[devices]: hang_seconds must not be negative, and is {self.hang_seconds}; 0 for never.")


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is cut: `sequences = ranks * accumulation * micro_batch` examples a step."""

    sequences: int
    """Examples of a global batch."""
    ranks: int
    """Processes."""
    micro_batch: int
    """Examples a process takes at once."""
    accumulation: int
    """Micro batches of a process in one step."""

    @classmethod
    def of(cls, training: TrainingConfig, data: DataConfig, ranks: int) -> "BatchPlan":
        """The plan of these settings.

        Raises:
            ConfigError: a division leaves a remainder; the message says which values would not.
        """
        sequences, rest = divmod(training.global_batch_tokens, data.sequence_length)
        if rest or not sequences:
            near = max(1, round(training.global_batch_tokens / data.sequence_length)) * data.sequence_length
            raise ConfigError(
                f"[training]: global_batch_tokens ({training.global_batch_tokens:,}) must be a multiple of "
                f"[data] sequence_length ({data.sequence_length}); the nearest is {near:_}."
            )
        if sequences % ranks:
            raise ConfigError(f"[devices]: {sequences} sequences a step cannot be divided between {ranks} ranks.")
        share = sequences // ranks
        micro = training.micro_batch_sequences or share
        if share % micro:
            fits = [m for m in range(1, share + 1) if share % m == 0]
            near = min(fits, key=lambda m: abs(m - micro))
            raise ConfigError(
                f"[training]: micro_batch_sequences ({micro}) must divide the {share} sequences of a rank; the nearest "
                f"that does is {near}."
            )
        return cls(sequences, ranks, micro, share // micro)


ADAPTIVE = ("tpe", "gp", "cmaes", "random", "qmc")
"""Strategies that choose the next architecture when it can start."""

OBJECTIVES = ("loss", "params", "flops", "memory", "depth", "tokens_per_second")
"""What a study may look for."""


@dataclass(frozen=True)
class SearchConfig:
    """`[search]`: which architectures are tried."""

    trials: int = 8
    """How many architectures."""
    strategy: Literal["design", "sample", "all", "list", "tpe", "gp", "cmaes", "random", "qmc"] = "design"
    """`design`: spread over the feasible set; `sample`: uniform from it; `all` of it; `list`: only `architectures`.
    `tpe`, `gp`, `cmaes`, `random`, `qmc`: Optuna's sampler of that name is asked whenever a trial can start, and the
    nearest feasible architecture that has not been tried is trained."""
    spread: tuple[str, ...] = ("num_layers", "d_model", "num_heads", "d_kv", "feed_forward_proj")
    """Axes over which a design spreads."""
    seed: int = 0
    """Seed of `design`, `sample` and Optuna's samplers."""
    architectures: tuple[str, ...] = ()
    """Names that are tried first, on the budget or not; with `list`, the only ones."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; every architecture is trained once with each."""
    learning_rates: tuple[float, ...] = ()
    """Every architecture and seed is trained with each of these, and ranked at its best; empty for the one of
    `[training]`."""
    objectives: tuple[str, ...] = ("loss",)
    """What a sampler looks for and a Pareto set is drawn by: `loss` first, then `params`, `flops`, `memory`, `depth` or
    `tokens_per_second`, the smallest best, or the largest behind a `-`. Pruning goes by the loss alone."""
    warm_start: tuple[str, ...] = ()
    """Results that Optuna's samplers know from the start: folders of past studies, CSV files with the columns name and
    loss, or tables of curves, `march-2023` is shipped. They are no trials of this study."""
    warm_start_trials: int = 0
    """How many of the best among them are tried first, if they are feasible here."""
    max_tokens: int | None = None
    """Tokens that all trials of the study may train on together, repeated ones counted; what would exceed them is not
    started. None for no limit."""
    reuse_trials: bool = False
    """Whether complete trials of other studies under the same root that are the same (shape, seed, text, training) are
    taken over instead of trained again."""
    race: float | None = None
    """Confidence, 0.95 say, at which the winner is to be separated from the others: after the candidates, the leaders
    are trained with further seeds until it is, or `max_tokens` ends. None for no race."""

    @property
    def adaptive(self) -> bool:
        """Whether a sampler chooses as results come in."""
        return self.strategy in ADAPTIVE

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        if len(set(self.learning_rates)) < len(self.learning_rates) or not all(0 < r < 10 for r in self.learning_rates):
            raise ConfigError("[search]: learning_rates must be different numbers in (0, 10).")
        known = [name.removeprefix("-") for name in self.objectives]
        if self.objectives[:1] != ("loss",) or len(set(known)) < len(known) or not set(known) <= set(OBJECTIVES):
            raise ConfigError(
                f'[search]: objectives must begin with "loss" and name others once, of {", ".join(OBJECTIVES[1:])}, '
                f"not {list(self.objectives)}."
            )
        if self.strategy == "cmaes" and len(self.objectives) > 1:
            raise ConfigError('[search]: "cmaes" seeks one objective: take "tpe" or "gp", or objectives = ["loss"].')
        if self.warm_start_trials < 0 or (self.warm_start_trials and not self.warm_start):
            raise ConfigError("[search]: warm_start_trials is how many of warm_start to try first: give that too.")
        if self.warm_start and not (self.adaptive or self.warm_start_trials):
            raise ConfigError(
                f'[search]: strategy "{self.strategy}" learns nothing from warm_start: say "tpe", or how many of the '
                "best to try first with warm_start_trials."
            )
        if self.trials < 1 or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("[search]: trials must be at least 1, and seeds a list of different numbers.")
        if not all(0 <= seed < 2**32 for seed in (self.seed, *self.seeds)):
            raise ConfigError("[search]: seed and seeds must lie in [0, 2^32).")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"[search]: max_tokens must be at least 1, not {self.max_tokens}.")
        if self.race is not None and not 0.5 < self.race < 1:
            raise ConfigError(f"[search]: race is a confidence between 0.5 and 1, not {self.race}.")
        if self.strategy == "list" and not self.architectures:
            raise ConfigError('[search]: strategy "list" needs architectures = ["L12-D768-…", …].')


@dataclass(frozen=True)
class PrunerConfig:
    """`[pruner]`: when a trial is stopped early."""

    kind: Literal["rungs", "median", "halving", "hyperband", "none"] = "rungs"
    """`rungs`: all candidates train to the first rung, the best `keep` of them go on from there to the next, and so on;
    with several seeds the mean decides. `median`: worse than the median of earlier trials at the same tokens.
    `halving` and `hyperband`: Optuna's, which decide as trials come in. `none`: all train to the end."""
    rungs: tuple[float, ...] = (0.02, 0.06, 0.2)
    """Where `rungs` stops to compare: token counts, or up to 1 shares of a trial's tokens. Rounded up to whole steps;
    the end is always added."""
    keep: float = 1 / 3
    """Share of a rung's candidates that goes on, rounded up."""
    startup_trials: int = 4
    """`median`: trials that run to their end before any is stopped."""
    warmup_tokens: int = 0
    """`median`, `halving`, `hyperband`: no trial is stopped before it has seen so many tokens."""
    reduction_factor: int = 2
    """`halving`, `hyperband`: one in so many goes on at each rung."""

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        _check_finite(self, "pruner")
        if self.startup_trials < 0 or self.warmup_tokens < 0 or self.reduction_factor < 2:
            raise ConfigError(
                "[pruner]: startup_trials and warmup_tokens must be at least 0, reduction_factor at least 2."
            )
        if not 0 < self.keep < 1:
            raise ConfigError(f"[pruner]: keep must lie between 0 and 1, not {self.keep}.")
        if not self.rungs or min(self.rungs) <= 0:
            raise ConfigError(f"[pruner]: rungs must be numbers above 0, not {list(self.rungs)}.")

    def rung_tokens(self, training: TrainingConfig) -> tuple[int, ...]:
        """Rungs in tokens, whole steps, ascending, the end of the data budget last."""
        batch = training.global_batch_tokens
        asked = [rung * training.tokens if rung <= 1 else rung for rung in self.rungs]
        steps = {math.ceil(tokens / batch - 1e-9) for tokens in asked}
        return tuple(step * batch for step in sorted({*steps, training.steps}))


@dataclass(frozen=True)
class StudyConfig:
    """One file of studies/: a question, the architectures that answer it, and how they are trained."""

    space: str
    """A shipped search space, or a TOML file beside the study's."""
    description: str = ""
    """One line, shown by `study list`."""
    question: str = ""
    """What the study asks."""
    answer: str = ""
    """What would count as an answer."""
    budget: str | None = None
    """Parameter budget, if not the space's own."""
    tolerance: str | None = None
    """Tolerance, if not the space's own."""
    storage: str | None = None
    """None keeps a journal file in the study's folder. Or a URL: `sqlite:////path.db`, `postgresql://user@host/name`,
    `grpc://host:port` of `march-search storage-proxy`; `env:NAME` for the URL in an environment variable, which keeps a
    password out of files."""
    heartbeat_seconds: float = 20.0
    """How often a worker shows that it lives. The trials of one that is silent for three times as long go on
    elsewhere."""
    search: SearchConfig = SearchConfig()
    pruner: PrunerConfig = PrunerConfig()
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    devices: DevicesConfig = DevicesConfig()

    def __post_init__(self) -> None:
        """Refuses settings that cannot be meant."""
        if not 0.05 <= self.heartbeat_seconds <= 3600:
            raise ConfigError(f"heartbeat_seconds must lie between 0.05 and 3600, not {self.heartbeat_seconds}.")
        beyond = [rung for rung in self.pruner.rungs if rung > max(1, self.training.tokens)]
        if self.pruner.kind == "rungs" and beyond:
            raise ConfigError(
                f"[pruner]: a rung at {beyond[0]:,.0f} tokens lies beyond the {self.training.tokens:,} of a trial."
            )

    @property
    def batch(self) -> BatchPlan:
        """How a global batch is cut."""
        return BatchPlan.of(self.training, self.data, self.devices.ranks)


@dataclass(frozen=True)
class TrialConfig:
    """`trial.json`: all that one trial needs to know."""

    architecture: str
    """The architecture's name."""
    store: str
    """Folder of the prepared tokens, absolute or relative to the trial's folder."""
    seed: int = 0
    """Seeds initialisation and the order of the data."""
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    devices: DevicesConfig = DevicesConfig()
    schema_version: Literal[1] = 1
    """Version of this file's form."""

    @property
    def batch(self) -> BatchPlan:
        """How a global batch is cut."""
        return BatchPlan.of(self.training, self.data, self.devices.ranks)
