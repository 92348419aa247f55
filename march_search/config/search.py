"""`[search]` and `[pruner]`: which architectures are tried, and which are stopped."""

import math
from dataclasses import dataclass
from typing import Literal

from march_search.config.checks import check_finite
from march_search.config.training import TrainingConfig
from march_search.errors import ConfigError

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
        check_finite(self, "pruner")
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
