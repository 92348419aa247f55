"""Recorded learning curves: the JSON files that hold them, and the losses that a replayed strategy sees.

A file is a JSON object with `schema_version` (1), `source` (where the curves come from), `unit` (of the losses) and
`runs`. Each run is an object with the fields of `Curve`; unknown values are null or absent.
"""

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from march_search.analysis.study_record import StudyRecord, TrialRecord
from march_search.architecture.architecture import Architecture
from march_search.config.loader import build, read_file
from march_search.config.shipped import shipped_path
from march_search.errors import ArchitectureError, ConfigError


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One recorded training run."""

    name: str
    """Name of the run, unique in its table."""
    evaluations: tuple[tuple[float, ...], ...]
    """Pairs `[tokens, loss]` with ascending tokens; the last pair is the end of the run."""
    family: str = ""
    """Experiment to which the run belongs; empty for none."""
    architecture: str | None = None
    """Name of the architecture, as printed by `march-search solve`."""
    seed: int | None = None
    """Training seed."""
    num_params: int | None = None
    """Number of parameters."""
    minutes: float | None = None
    """Wall time of the run, in minutes."""
    tokens_per_second: float | None = None
    """Training speed."""

    def __post_init__(self) -> None:
        if not self.evaluations or any(len(pair) != 2 for pair in self.evaluations):
            raise ConfigError(f'run "{self.name}": evaluations must be one or more pairs of [tokens, loss].')
        if not all(math.isfinite(number) for pair in self.evaluations for number in pair):
            raise ConfigError(f'run "{self.name}": every token count and loss must be finite; remove the run.')
        tokens = [pair[0] for pair in self.evaluations]
        if tokens[0] <= 0 or any(a >= b for a, b in pairwise(tokens)):
            raise ConfigError(f'run "{self.name}": the tokens of its evaluations must be positive and ascending.')
        for speed in (self.minutes, self.tokens_per_second):
            if speed is not None and not (math.isfinite(speed) and speed > 0):
                raise ConfigError(
                    f'run "{self.name}": minutes and tokens_per_second must be positive; remove them if unknown.'
                )
        if self.architecture is not None:
            try:
                Architecture.parse(self.architecture)
            except ArchitectureError as error:
                raise ConfigError(f'run "{self.name}": {error}') from None

    @property
    def tokens(self) -> float:
        """Tokens at the end of the run."""
        return self.evaluations[-1][0]

    @property
    def seconds(self) -> float | None:
        """Wall time of the run, in seconds; None if neither time nor speed is recorded."""
        if self.minutes is not None:
            return 60 * self.minutes
        return None if self.tokens_per_second is None else self.tokens / self.tokens_per_second


@dataclass(frozen=True)
class LearningCurves:
    """Recorded runs from which a search selects the best."""

    schema_version: int
    """Version of the format; must be 1."""
    source: str
    """Where the curves come from."""
    unit: str
    """Unit of the losses."""
    runs: tuple[Curve, ...]
    """The recorded runs, at least 2."""

    def __post_init__(self) -> None:
        if self.schema_version != 1:
            raise ConfigError(f"schema_version is {self.schema_version}; this version of march-search reads 1.")
        if len(self.runs) < 2:
            raise ConfigError(f"a table needs at least 2 runs, not {len(self.runs)}.")
        name, times = Counter(run.name for run in self.runs).most_common(1)[0]
        if times > 1:
            raise ConfigError(f'{times} runs have the name "{name}": give each run a unique name.')


def read_curves(name: str) -> LearningCurves:
    """Read a table from a file, or the shipped table of that name.

    Raises:
        ConfigError: If the table does not exist or is invalid.
    """
    path = shipped_path("tables", name)
    return build(LearningCurves, read_file(path), str(path))


def study_curves(study: StudyRecord) -> LearningCurves:
    """Return the curves of the complete trials of a study; other trials are omitted.

    Raises:
        ConfigError: If fewer than two trials are complete.
    """
    runs = tuple(_run(trial) for trial in study.trials if trial.state == "complete")
    source = f"march-search study {study.name}: {len(runs)} of {len(study.trials)} trials are complete."
    try:
        return LearningCurves(1, source, "nats per target token", runs)
    except ConfigError as error:
        raise ConfigError(f"{study.name}: {error}") from None


def _run(trial: TrialRecord) -> Curve:
    """Convert a complete trial to a run; of evaluations repeated after an interruption, keep the last."""
    curve = {int(line["tokens"]): float(line["loss"]) for line in trial.evaluations}
    return Curve(
        name=f"{trial.number}-{trial.architecture.name}",
        evaluations=tuple(sorted(curve.items())),
        architecture=trial.architecture.name,
        seed=trial.seed,
        num_params=trial.architecture.num_params,
        tokens_per_second=trial.tokens_per_second,
    )


@dataclass(frozen=True)
class Curves:
    """Curves of the runs of a table, indexed by run number."""

    tokens: tuple[tuple[float, ...], ...]
    """Tokens at every evaluation of every run."""
    losses: tuple[tuple[float, ...], ...]
    """Losses at these evaluations, including noise."""
    rates: tuple[float, ...]
    """Time per token of each run: in seconds, or 1 if the table lacks the time of any run."""
    final: tuple[float, ...]
    """Recorded last losses, without noise, from which regret is computed."""

    def at(self, run: int, fraction: float) -> int:
        """Return the index of the first evaluation of a run at or after this fraction of its tokens."""
        goal = fraction * self.tokens[run][-1] * (1 - 1e-9)
        return next(number for number, tokens in enumerate(self.tokens[run]) if tokens >= goal)

    def total(self) -> float:
        """Return the tokens of training every run to its end."""
        return sum(tokens[-1] for tokens in self.tokens)


@dataclass(frozen=True)
class Replayed:
    """Result of replaying one strategy on one order of the runs."""

    choice: int
    """Number of the run that the strategy selects."""
    tokens: float
    """Tokens trained in total."""
    busy: float
    """Training time, summed over workers."""
    makespan: float
    """Time from the start of the first worker to the end of the last."""


def curves(
    table: LearningCurves, rng: np.random.Generator, noise: float = 0.0, evaluation_noise: float = 0.0
) -> Curves:
    """Return the curves of a table with normal noise added.

    Args:
        table: recorded runs.
        rng: random generator of the noise.
        noise: standard deviation of one shift per curve, in the unit of the losses; models the effect of the seed.
        evaluation_noise: standard deviation of an independent shift per evaluation.
    """
    seconds = [run.seconds for run in table.runs]
    timed = all(s is not None for s in seconds)
    losses = []
    for run in table.runs:
        recorded = np.array([loss for _, loss in run.evaluations])
        shifts = noise * rng.standard_normal() + evaluation_noise * rng.standard_normal(len(recorded))
        losses.append(tuple((recorded + shifts).tolist()))
    return Curves(
        tokens=tuple(tuple(tokens for tokens, _ in run.evaluations) for run in table.runs),
        losses=tuple(losses),
        rates=tuple((s or 0.0) / run.tokens if timed else 1.0 for s, run in zip(seconds, table.runs, strict=True)),
        final=tuple(run.evaluations[-1][1] for run in table.runs),
    )


def schedule(times: Sequence[float], workers: int) -> float:
    """Return the time at which the last job ends if each free worker takes the next job in the list."""
    free = [0.0] * workers
    for time in times:
        heapq.heapreplace(free, free[0] + time)
    return max(free)
