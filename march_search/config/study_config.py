"""Settings of a study and of one trial, and the URL of a study's storage."""

import os
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from march_search.config.data_config import DataConfig
from march_search.config.devices_config import BatchPlan, DevicesConfig
from march_search.config.search_config import PrunerConfig, SearchConfig
from march_search.config.training_config import TrainingConfig
from march_search.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Settings of a study: the top-level keys of its TOML file, and one field per table."""

    space: str
    """Name of a shipped search space, or path of a space's TOML file, relative to the study's file."""
    description: str = ""
    """One-line description, printed by `study list`."""
    question: str = ""
    """Question that the study should answer; printed at the top of its report."""
    answer: str = ""
    """Result that would answer the question; printed in the report."""
    budget: str | None = None
    """Parameter budget, such as `220M` or `t5-base`; None uses the budget of the space."""
    tolerance: str | None = None
    """Allowed deviation from the parameter budget, such as `1.5%`; None uses the tolerance of the space."""
    storage: str | None = None
    """Optuna storage. None uses a journal file in the study folder. A URL is `sqlite:////path.db`,
    `postgresql://user@host/name`, or `grpc://host:port` of `march-search study storage-proxy`. `env:NAME` reads the URL
    from an environment variable, which keeps passwords out of files."""
    heartbeat_seconds: float = 20.0
    """Seconds between a worker's heartbeats, from 0.05 to 3600. A worker without a heartbeat for three times as long is
    considered dead, and other workers resume its trials."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """The `[search]` table: which architectures are trained."""
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    """The `[pruner]` table: when a trial is stopped early."""
    data: DataConfig = field(default_factory=DataConfig)
    """The `[data]` table: corpus, tokenizer and examples."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The `[training]` table: how every trial is trained."""
    devices: DevicesConfig = field(default_factory=DevicesConfig)
    """The `[devices]` table: the devices and processes of each trial."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        if not 0.05 <= self.heartbeat_seconds <= 3600:
            raise ConfigError(f"heartbeat_seconds must be between 0.05 and 3600, not {self.heartbeat_seconds}.")
        beyond = [rung for rung in self.pruner.rungs if rung > max(1, self.training.tokens)]
        if self.pruner.kind == "rungs" and beyond:
            raise ConfigError(
                f"[pruner]: a rung at {beyond[0]:,.0f} tokens exceeds the data budget of {self.training.tokens:,}."
            )

    @property
    def batch(self) -> BatchPlan:
        """How a global batch is split across ranks and micro batches."""
        return BatchPlan.of(self.training, self.data, self.devices.ranks)


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Settings of one trial, stored as `trial.json` in its folder."""

    architecture: str
    """Name of the architecture."""
    store: str
    """Path of the token store, absolute or relative to the trial folder."""
    seed: int = 0
    """Seed of the initialisation and of the data order."""
    data: DataConfig = field(default_factory=DataConfig)
    """The study's `[data]` table."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The study's `[training]` table, with the learning rate of this trial."""
    devices: DevicesConfig = field(default_factory=DevicesConfig)
    """The study's `[devices]` table."""
    schema_version: Literal[1] = 1
    """Version of the file format."""

    @property
    def batch(self) -> BatchPlan:
        """How a global batch is split across ranks and micro batches."""
        return BatchPlan.of(self.training, self.data, self.devices.ranks)


def resolve_storage(url: str | None) -> str | None:
    """Return the storage URL; read it from the environment variable NAME if it is `env:NAME`.

    Raises:
        ConfigError: If the variable is not set.
    """
    if url is None or not url.startswith("env:"):
        return url
    name = url.removeprefix("env:")
    if not os.environ.get(name):
        raise ConfigError(f"storage is {url!r}, but the environment variable {name} is not set: export it first.")
    return os.environ[name]


def public_storage(url: str | None) -> str | None:
    """Return the URL without its password and query; `env:NAME` is returned unchanged."""
    if url is None or url.startswith("env:"):
        return url
    parts = urlsplit(url)
    if parts.query:  # it may contain a password
        parts = parts._replace(query="")
    if parts.password is None:
        return parts.geturl()
    name = f"{parts.username}@" if parts.username else ""
    return parts._replace(netloc=name + parts.netloc.rpartition("@")[2]).geturl()
