"""The `[search]`, `[pruner]` and `[confirm]` tables: what is trained, what stops early, what is trained again."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from march_search.architecture.architecture import Architecture
from march_search.config.halving import DEFAULT_KEEP, DEFAULT_RUNGS
from march_search.config.loader import not_finite, refuse
from march_search.config.training_config import TrainingConfig
from march_search.errors import ArchitectureError

ADAPTIVE = ("tpe", "gp", "cmaes", "random", "qmc")
"""Strategies that use an Optuna sampler to choose the next architecture from the results so far."""

OBJECTIVES = ("loss", "params", "flops", "memory", "depth", "tokens_per_second")
"""Objectives that a study can optimize."""


MOST_TRIALS = 1_000_000
"""Largest number of trials."""

LEAST_STEPS = 50
"""Fewest optimizer steps before candidates are compared on a rung."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The `[search]` table: which architectures are trained."""

    trials: int = 8
    """Number of architectures to train, from 1 to 1,000,000; `architectures` count towards it. Unused by `all` and
    `list`."""
    strategy: Literal["design", "sample", "all", "list", "tpe", "gp", "cmaes", "random", "qmc"] = "design"
    """How architectures are chosen. `design`: spread over the feasible set. `sample`: drawn uniformly from it. `all`:
    every member. `list`: only `architectures`. `tpe`, `gp`, `cmaes`, `random`, `qmc`: Optuna's sampler of that name
    proposes a point whenever a trial can start, and the nearest member that has not been tried is trained."""
    spread: tuple[str, ...] = ("num_layers", "d_model", "num_heads", "d_kv", "feed_forward_proj")
    """Axes of the search space over which `design` spreads; empty for all axes that vary."""
    seed: int = 0
    """Seed of `design`, `sample` and Optuna's samplers, in [0, 2^32)."""
    architectures: tuple[str, ...] = ()
    """Names of architectures to train first, even if they are outside the feasible set. With `list`, these are the only
    ones."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds, distinct and in [0, 2^32). Every architecture is trained once with each seed."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rates, distinct and in (0, 10). Every architecture is trained with each rate and seed, and ranked
    at its best rate. Empty uses `learning_rate` of `[training]`."""
    objectives: tuple[str, ...] = ("loss",)
    """Objectives of the sampler and of the Pareto set: `loss` first, then any of `params`, `flops`, `memory`, `depth`
    and `tokens_per_second`. Each is minimized, or maximized with the prefix `-`. Pruning uses the loss only."""
    warm_start: tuple[str, ...] = ()
    """Earlier results to give to Optuna's samplers: folders of past studies, CSV files with the columns `name`, `loss`
    and optionally `tokens`, or tables of learning curves, such as the shipped `march-2023`. They do not become trials
    of this study."""
    warm_start_trials: int = 0
    """Number of architectures from `warm_start` to train first: those with the lowest loss that are feasible here.
    Above 0, `warm_start` must be set."""
    max_tokens: int | None = None
    """Limit on the training tokens of all trials together, at least 1; tokens repeated after an interruption count. A
    trial that would exceed the limit is not started or resumed. None sets no limit."""
    reuse_trials: bool = False
    """Whether to copy a complete trial from another study under the same root instead of training it again. The shape,
    seed, data, training settings, ranks and threads must be the same."""

    @property
    def adaptive(self) -> bool:
        """Whether an Optuna sampler chooses architectures as results come in."""
        return self.strategy in ADAPTIVE

    def __post_init__(self) -> None:
        """Validate the settings."""
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        """Yield one sentence for each setting or pair of settings that is refused."""
        yield from self._trial_faults()
        known = [name.removeprefix("-") for name in self.objectives]
        if self.objectives[:1] != ("loss",) or len(set(known)) < len(known) or not set(known) <= set(OBJECTIVES):
            yield (
                f'[search]: objectives must start with "loss", then any of {", ".join(OBJECTIVES[1:])}, each once, '
                f"not {list(self.objectives)}."
            )
        if self.strategy == "cmaes" and len(self.objectives) > 1:
            yield '[search]: strategy "cmaes" takes one objective: use "tpe" or "gp", or objectives = ["loss"].'
        if self.warm_start_trials < 0 or (self.warm_start_trials and not self.warm_start):
            yield "[search]: warm_start_trials must not be negative, and needs warm_start to be set."
        if self.warm_start and not (self.adaptive or self.warm_start_trials):
            yield (
                f'[search]: strategy "{self.strategy}" does not use warm_start: use "tpe", or set warm_start_trials to '
                "train the best of them first."
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            yield f"[search]: max_tokens must be at least 1, not {self.max_tokens}."
        if self.strategy == "list" and not self.architectures:
            yield '[search]: strategy "list" needs architectures = ["L12-D768-…", …].'

    def _trial_faults(self) -> Iterator[str]:
        """Yield one sentence for each refused setting of the trials: their number, seeds, rates and architectures."""
        if self.trials < 1 or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            yield "[search]: trials must be at least 1, and seeds must be distinct numbers, at least one."
        if self.trials > MOST_TRIALS:
            yield f"[search]: trials must be at most {MOST_TRIALS:,}, not {self.trials:,}."
        if not all(0 <= seed < 2**32 for seed in (self.seed, *self.seeds)):
            yield "[search]: seed and seeds must be in [0, 2^32)."
        if len(set(self.learning_rates)) < len(self.learning_rates) or not all(0 < r < 10 for r in self.learning_rates):
            yield "[search]: learning_rates must be distinct numbers in (0, 10)."
        for name in self.architectures:
            try:
                Architecture.parse(name)
            except ArchitectureError as error:
                yield f"[search]: architectures: {error}"


@dataclass(frozen=True, kw_only=True)
class PrunerConfig:
    """The `[pruner]` table: when a trial is stopped early."""

    kind: Literal["rungs", "median", "halving", "hyperband", "none"] = "rungs"
    """How trials are pruned. `rungs`: all candidates train to the first rung, the best `keep` of them are promoted to
    the next, and so on; with several seeds, their mean loss decides. With `finalists` + 1 candidates or fewer, all
    train to the end. `median`: a trial is stopped if its loss is above
    the median of earlier trials at the same number of tokens. `halving` and `hyperband`: Optuna's asynchronous pruners.
    `none`: every trial trains to the end."""
    rungs: tuple[float, ...] = DEFAULT_RUNGS
    """Points at which `rungs` compares candidates: values up to 1 are fractions of the data budget, larger ones are
    token counts. Rounded up to whole steps; the end of the data budget is always added. A rung before the end of the
    warm-up or before 50 optimizer steps is raised to it."""
    keep: float = DEFAULT_KEEP
    """`rungs`: fraction of a rung's candidates that is promoted, in (0, 1); the number is rounded up."""
    finalists: int = 3
    """Number of architectures that `rungs` trains to the end at least: the best ones, and also the baseline if it is
    not among them. The baseline is the first of `architectures` of `[search]`, else the first candidate. With the
    other kinds, the finalists are the best complete ones and the baseline, which no pruner stops. `[confirm]` trains
    finalists with further seeds. With 1, `rungs` ends with the best alone, without the baseline."""
    startup_trials: int = 4
    """`median`: number of trials that must finish before any trial is stopped."""
    warmup_tokens: int = 0
    """`median`, `halving`, `hyperband`: tokens that every trial trains on before it can be stopped."""
    reduction_factor: int = 2
    """`halving`, `hyperband`: one in `reduction_factor` trials is promoted at each rung; at least 2."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        refuse([*not_finite(self, "pruner"), *self._faults()])

    def _faults(self) -> Iterator[str]:
        """Yield one sentence for each setting or pair of settings that is refused."""
        if self.startup_trials < 0 or self.warmup_tokens < 0 or self.reduction_factor < 2:
            yield "[pruner]: startup_trials and warmup_tokens must be at least 0, reduction_factor at least 2."
        if not 0 < self.keep < 1:
            yield f"[pruner]: keep must be in (0, 1), not {self.keep}."
        if not 1 <= self.finalists <= MOST_TRIALS:
            yield f"[pruner]: finalists must be from 1 to {MOST_TRIALS:,}, not {self.finalists}."
        if not self.rungs or min(self.rungs) <= 0:
            yield f"[pruner]: rungs must be positive numbers, not {list(self.rungs)}."

    def rung_tokens(self, training: TrainingConfig) -> tuple[int, ...]:
        """Return the rungs in tokens: ascending, rounded up to whole steps, the last at the end of the data budget."""
        steps = {max(step, least_steps(training)) for step in self._steps(training)}
        batch = training.global_batch_tokens
        return tuple(step * batch for step in sorted({*(s for s in steps if s < training.steps), training.steps}))

    def raised_rungs(self, training: TrainingConfig) -> int:
        """Return how many rungs are raised to `least_steps`."""
        return sum(step < least_steps(training) for step in self._steps(training))

    def _steps(self, training: TrainingConfig) -> tuple[int, ...]:
        """Return the rungs in whole steps, as they are set."""
        counts = [rung * training.tokens if rung <= 1 else rung for rung in self.rungs]
        return tuple(math.ceil(tokens / training.global_batch_tokens - 1e-9) for tokens in counts)


def least_steps(training: TrainingConfig) -> int:
    """Return the fewest steps before candidates are compared: those of the warm-up, and at least `LEAST_STEPS`."""
    return max(LEAST_STEPS, math.ceil(training.warmup_tokens / training.global_batch_tokens))


@dataclass(frozen=True, kw_only=True)
class ConfirmConfig:
    """The `[confirm]` table: after the search, further seeds of the finalists decide between them."""

    confidence: float = 0.95
    """Confidence, in (0.5, 1), with which the leader must be separated from the other finalists. Finalists that are not
    separated yet are trained with one more seed each, round after round."""
    max_seeds: int = 3
    """Largest number of seeds per architecture, those of `[search]` included. With 1, or with as many as `seeds` of
    `[search]` has, the study ends with the search. With 0, only `max_tokens` of `[search]` ends the rounds, and without
    it equally good finalists are trained for ever."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        """Yield one sentence for each setting that is refused."""
        if not 0.5 < self.confidence < 1:
            yield f"[confirm]: confidence must be in (0.5, 1), not {self.confidence}."
        if not 0 <= self.max_seeds <= MOST_TRIALS:
            yield f"[confirm]: max_seeds must be from 0 (no limit) to {MOST_TRIALS:,}, not {self.max_seeds}."

    def further(self, seeds: int) -> int | None:
        """Return how many seeds may be added to an architecture that has `seeds`; None for any number."""
        return max(0, self.max_seeds - seeds) if self.max_seeds else None
