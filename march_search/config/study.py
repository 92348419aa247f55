"""A whole study, and one trial of it."""

from dataclasses import dataclass, field
from typing import Literal

from march_search.config.data import DataConfig
from march_search.config.devices import BatchPlan, DevicesConfig
from march_search.config.search import PrunerConfig, SearchConfig
from march_search.config.training import TrainingConfig
from march_search.errors import ConfigError


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
    search: SearchConfig = field(default_factory=SearchConfig)
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    devices: DevicesConfig = field(default_factory=DevicesConfig)

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
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    devices: DevicesConfig = field(default_factory=DevicesConfig)
    schema_version: Literal[1] = 1
    """Version of this file's form."""

    @property
    def batch(self) -> BatchPlan:
        """How a global batch is cut."""
        return BatchPlan.of(self.training, self.data, self.devices.ranks)
