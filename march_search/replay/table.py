"""Tables of recorded learning curves: the JSON format, its reader, and finished studies written as such tables.

A table is one JSON object with `schema_version` (1), `source` (where the curves come from), `unit` (of a loss) and
`runs`. A run is an object with the fields of `Run`; what is not known is null or absent.
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
    """One recorded training."""

    name: str
    """What the run is called; no two runs of a table share one."""
    evaluations: tuple[tuple[float, ...], ...]
    """`[tokens, loss]`, tokens ascending; the last is the end of the run."""
    family: str = ""
    """Which question the run belongs to; empty for none."""
    architecture: str | None = None
    """The shape's name, as `march-search solve` prints it."""
    seed: int | None = None
    num_params: int | None = None
    minutes: float | None = None
    """Wall time of the whole run."""
    tokens_per_second: float | None = None

    def __post_init__(self) -> None:
        if not self.evaluations or any(len(pair) != 2 for pair in self.evaluations):
            raise ConfigError(f'run "{self.name}": evaluations must be one or more pairs of [tokens, loss].')
        if not all(math.isfinite(number) for pair in self.evaluations for number in pair):
            raise ConfigError(f'run "{self.name}": every token count and loss must be finite. Leave the run out.')
        tokens = [pair[0] for pair in self.evaluations]
        if tokens[0] <= 0 or any(a >= b for a, b in pairwise(tokens)):
            raise ConfigError(f'run "{self.name}": the tokens of its evaluations must be above 0 and ascend.')
        for speed in (self.minutes, self.tokens_per_second):
            if speed is not None and not (math.isfinite(speed) and speed > 0):
                raise ConfigError(f'run "{self.name}": minutes and tokens_per_second must be above 0, or left out.')
        if self.architecture is not None:
            try:
                Architecture.parse(self.architecture)
            except ArchitectureError as error:
                raise ConfigError(f'run "{self.name}": {error}') from None

    @property
    def tokens(self) -> float:
        """Tokens of the whole run."""
        return self.evaluations[-1][0]

    @property
    def seconds(self) -> float | None:
        """Wall time of the whole run; None where neither time nor speed is recorded."""
        if self.minutes is not None:
            return 60 * self.minutes
        return None if self.tokens_per_second is None else self.tokens / self.tokens_per_second


@dataclass(frozen=True)
class Table:
    """Recorded runs that compete with each other."""

    schema_version: int
    source: str
    unit: str
    runs: tuple[Run, ...]

    def __post_init__(self) -> None:
        if self.schema_version != 1:
            raise ConfigError(f"schema_version is {self.schema_version}; this version of march-search reads 1.")
        if len(self.runs) < 2:
            raise ConfigError(f"a search needs at least 2 runs to choose from, not {len(self.runs)}.")
        name, times = Counter(run.name for run in self.runs).most_common(1)[0]
        if times > 1:
            raise ConfigError(f'{times} runs are called "{name}": give each run a name of its own.')


def read_table(name: str) -> Table:
    """The table in a file, or the shipped one of that name.

    Raises:
        ConfigError: there is none, or it does not keep to the format.
    """
    path = shipped_path("tables", name)
    return build(Table, read_file(path), str(path))


def study_table(study: StudyRecord) -> dict[str, Any]:
    """The complete trials of a study as a table's JSON object; the others are left out.

    Raises:
        ConfigError: fewer than two trials are complete.
    """
    runs = tuple(_run(trial) for trial in study.trials if trial.state == "complete")
    source = f"march-search study {study.name}: {len(runs)} complete trials of {len(study.trials)}."
    try:
        return asdict(Table(1, source, "nats per target token", runs))
    except ConfigError as error:
        raise ConfigError(f"{study.name}: {error}") from None


def _run(trial: TrialRecord) -> Run:
    """A complete trial as a run; an evaluation repeated after an interruption counts once, the last time."""
    curve = {int(line["tokens"]): float(line["loss"]) for line in trial.evaluations}
    return Run(
        name=f"{trial.number}-{trial.architecture.name}",
        evaluations=tuple(sorted(curve.items())),
        architecture=trial.architecture.name,
        seed=trial.seed,
        num_params=trial.architecture.num_params,
        tokens_per_second=trial.tokens_per_second,
    )
