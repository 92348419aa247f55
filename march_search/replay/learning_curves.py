"""Recorded learning curves: the JSON files that hold them, and the losses that a replayed strategy sees.

A file is a JSON object with `schema_version` (1 or 2), `source` (where the curves come from), `unit` (of the losses)
and `runs`. Each run is an object with the fields of `Curve`; unknown values are null or absent. Version 2 adds `arm`,
`size` and `flops_per_token`: the runs of a ladder are several seeds of the same arms at several sizes.
"""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

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
    arm: str | None = None
    """Arm of a ladder."""
    size: str | None = None
    """Size of a ladder."""
    flops_per_token: float | None = None
    """Training FLOPs per token, forward and backward."""

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
        if self.flops_per_token is not None and not (math.isfinite(self.flops_per_token) and self.flops_per_token > 0):
            raise ConfigError(f'run "{self.name}": flops_per_token must be positive; remove it if unknown.')
        if self.size is not None and None in (self.arm, self.num_params, self.flops_per_token):
            raise ConfigError(f'run "{self.name}": a run with a size needs arm, num_params and flops_per_token.')
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
    """Version of the format: 1, or 2 with sizes."""
    source: str
    """Where the curves come from."""
    unit: str
    """Unit of the losses."""
    runs: tuple[Curve, ...]
    """The recorded runs, at least 2."""

    def __post_init__(self) -> None:
        if self.schema_version not in (1, 2):
            raise ConfigError(f"schema_version is {self.schema_version}; this version of march-search reads 1 and 2.")
        if len(self.runs) < 2:
            raise ConfigError(f"a table needs at least 2 runs, not {len(self.runs)}.")
        name, times = Counter(run.name for run in self.runs).most_common(1)[0]
        if times > 1:
            raise ConfigError(f'{times} runs have the name "{name}": give each run a unique name.')
        sized = [run.size is not None for run in self.runs]
        if any(sized) and not all(sized):
            lacking = self.runs[sized.index(False)].name
            raise ConfigError(f'run "{lacking}" has no size, but other runs have: give all runs a size, or none.')
        if any(sized) and len(self.arms) < 2:
            raise ConfigError(
                f"a table with sizes needs at least 2 arms with a run at each of {', '.join(self.sizes)}; it has "
                f"{len(self.arms)}."
            )

    @property
    def sizes(self) -> tuple[str, ...]:
        """Names of the sizes, fewest parameters first; empty if the runs have none."""
        counts: dict[str, list[int]] = defaultdict(list)
        for run in self.runs:
            if run.size is not None:
                counts[run.size].append(run.num_params or 0)
        return tuple(sorted(counts, key=lambda size: sum(counts[size]) / len(counts[size])))

    @property
    def arms(self) -> dict[str, tuple[tuple[Curve, ...], ...]]:
        """Runs of each arm that has one at every size: for each size, smallest first, those of its seeds."""
        found: dict[str, dict[str, list[Curve]]] = defaultdict(lambda: defaultdict(list))
        for run in self.runs:
            if run.arm is not None and run.size is not None:
                found[run.arm][run.size].append(run)
        sizes = self.sizes
        return {
            arm: tuple(tuple(own[size]) for size in sizes) for arm, own in found.items() if all(s in own for s in sizes)
        }


def read_curves(name: str) -> LearningCurves:
    """Read a table from a file, or the shipped table of that name.

    Raises:
        ConfigError: If the table does not exist or is invalid.
    """
    path = shipped_path("tables", name)
    return build(LearningCurves, read_file(path), str(path))


@dataclass(frozen=True)
class Curves:
    """Curves of the runs of a table, indexed by run number."""

    tokens: tuple[tuple[float, ...], ...]
    """Tokens at every evaluation of every run."""
    losses: tuple[tuple[float, ...], ...]
    """Losses at these evaluations, including noise."""
    rates: tuple[float, ...]
    """Time per token of each run, in seconds. If the table lacks the time of any run, its FLOPs per token, or 1 without
    sizes."""
    final: tuple[float, ...]
    """Recorded last losses, without noise, from which regret is computed; the mean over the seeds of an arm."""
    flops: tuple[float, ...] | None = None
    """FLOPs per token of each run; None if cost is counted in tokens."""
    smaller: tuple["Curves", ...] = ()
    """Curves of the same arms at the smaller sizes of a ladder, smallest first."""

    def at(self, run: int, fraction: float) -> int:
        """Return the index of the first evaluation of a run at or after this fraction of its tokens."""
        goal = fraction * self.tokens[run][-1] * (1 - 1e-9)
        return next(number for number, tokens in enumerate(self.tokens[run]) if tokens >= goal)

    def cost(self, run: int, tokens: float) -> float:
        """Return the cost of training a run on this many tokens: the tokens, or the FLOPs."""
        return tokens if self.flops is None else tokens * self.flops[run]

    def total(self) -> float:
        """Return the cost of training every run to its end."""
        return sum(self.cost(run, tokens[-1]) for run, tokens in enumerate(self.tokens))


@dataclass(frozen=True)
class Replayed:
    """Result of replaying one strategy on one order of the runs."""

    choice: int
    """Number of the run that the strategy selects."""
    cost: float
    """Tokens trained in total, or FLOPs where the table has sizes."""
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
    losses = []
    for run in table.runs:
        recorded = np.array([loss for _, loss in run.evaluations])
        shifts = noise * rng.standard_normal() + evaluation_noise * rng.standard_normal(len(recorded))
        losses.append(tuple((recorded + shifts).tolist()))
    return Curves(
        tokens=tuple(tuple(tokens for tokens, _ in run.evaluations) for run in table.runs),
        losses=tuple(losses),
        rates=_rates(table.runs),
        final=tuple(run.evaluations[-1][1] for run in table.runs),
    )


def ladder_curves(
    table: LearningCurves,
    arms: Sequence[str],
    rng: np.random.Generator,
    noise: float = 0.0,
    evaluation_noise: float = 0.0,
) -> tuple[LearningCurves, Curves]:
    """Return the runs of some arms at the largest size, each of a random seed, and their curves at all sizes.

    Args:
        table: recorded runs with sizes.
        arms: names of the arms.
        rng: random generator of the seeds and the noise.
        noise: see `curves`.
        evaluation_noise: see `curves`.
    """
    known, drawn = table.arms, []
    rates = dict(zip((run.name for run in table.runs), _rates(table.runs), strict=True))
    for index in range(len(table.sizes)):
        runs = tuple(known[arm][index][rng.integers(len(known[arm][index]))] for arm in arms)
        own = curves(replace(table, runs=runs), rng, noise, evaluation_noise)
        flops = tuple(run.flops_per_token or 0.0 for run in runs)
        drawn.append(replace(own, rates=tuple(rates[run.name] for run in runs), flops=flops))
    final = tuple(float(np.mean([run.evaluations[-1][1] for run in known[arm][-1]])) for arm in arms)
    return replace(table, runs=runs), replace(drawn[-1], final=final, smaller=tuple(drawn[:-1]))


def _rates(runs: Sequence[Curve]) -> tuple[float, ...]:
    """Return the time per token of each run: in seconds, or in FLOPs or tokens if the time of any run is unknown."""
    seconds = [run.seconds for run in runs]
    if any(s is None for s in seconds):
        return tuple(run.flops_per_token or 1.0 if run.size is not None else 1.0 for run in runs)
    return tuple((s or 0.0) / run.tokens for s, run in zip(seconds, runs, strict=True))


def schedule(times: Sequence[float], workers: int) -> float:
    """Return the time at which the last job ends if each free worker takes the next job in the list."""
    free = [0.0] * workers
    for time in times:
        heapq.heapreplace(free, free[0] + time)
    return max(free)
