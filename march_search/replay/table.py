"""Reads and writes tables of recorded learning curves, and converts finished studies to such tables.

A table is a JSON object with `schema_version` (1), `source` (where the curves come from), `unit` (of the losses) and
`runs`. Each run is an object with the fields of `Run`; unknown values are null or absent.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from march_search.architecture import Architecture
from march_search.errors import ArchitectureError, ConfigError
from march_search.evidence.trials import StudyRecord, TrialRecord
from march_search.settings import build, read_file
from march_search.shipped import shipped_path


@dataclass(frozen=True)
class Run:
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
class Table:
    """Recorded runs from which a search selects the best."""

    schema_version: int
    """Version of the format; must be 1."""
    source: str
    """Where the curves come from."""
    unit: str
    """Unit of the losses."""
    runs: tuple[Run, ...]
    """The recorded runs, at least 2."""

    def __post_init__(self) -> None:
        if self.schema_version != 1:
            raise ConfigError(f"schema_version is {self.schema_version}; this version of march-search reads 1.")
        if len(self.runs) < 2:
            raise ConfigError(f"a table needs at least 2 runs, not {len(self.runs)}.")
        name, times = Counter(run.name for run in self.runs).most_common(1)[0]
        if times > 1:
            raise ConfigError(f'{times} runs have the name "{name}": give each run a unique name.')


def read_table(name: str) -> Table:
    """Read a table from a file, or the shipped table of that name.

    Raises:
        ConfigError: If the table does not exist or is invalid.
    """
    path = shipped_path("tables", name)
    return build(Table, read_file(path), str(path))


def study_table(study: StudyRecord) -> dict[str, Any]:
    """Return the complete trials of a study as the JSON object of a table; other trials are omitted.

    Raises:
        ConfigError: If fewer than two trials are complete.
    """
    runs = tuple(_run(trial) for trial in study.trials if trial.state == "complete")
    source = f"march-search study {study.name}: {len(runs)} of {len(study.trials)} trials are complete."
    try:
        return asdict(Table(1, source, "nats per target token", runs))
    except ConfigError as error:
        raise ConfigError(f"{study.name}: {error}") from None


def _run(trial: TrialRecord) -> Run:
    """Convert a complete trial to a run; of evaluations repeated after an interruption, keep the last."""
    curve = {int(line["tokens"]): float(line["loss"]) for line in trial.evaluations}
    return Run(
        name=f"{trial.number}-{trial.architecture.name}",
        evaluations=tuple(sorted(curve.items())),
        architecture=trial.architecture.name,
        seed=trial.seed,
        num_params=trial.architecture.num_params,
        tokens_per_second=trial.tokens_per_second,
    )
