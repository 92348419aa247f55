"""Settings of a study and of one trial, and the URL of a study's storage."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from march_search.config.counts import parse_parameters, parse_tolerance
from march_search.config.data_config import DataConfig
from march_search.config.devices_config import BatchPlan, DevicesConfig
from march_search.config.ladder_config import LadderConfig
from march_search.config.loader import NumberText, refuse
from march_search.config.scaling import base_shape
from march_search.config.search_config import ConfirmConfig, PrunerConfig, SearchConfig
from march_search.config.tracking_config import TrackingConfig
from march_search.config.training_config import TrainingConfig
from march_search.errors import BudgetError, ConfigError, MarchSearchError

if TYPE_CHECKING:
    from sqlalchemy import URL


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Settings of a study: the top-level keys of its TOML file, and one field per table."""

    space: str
    """Name of a shipped search space, or path of a space's TOML file, relative to the study's file. `"auto"` lays
    ranges around `budget`, for encoder-decoders with the vocabulary of `[data]`."""
    description: str = ""
    """One-line description, printed by `study list`."""
    question: str = ""
    """Question that the study should answer; printed at the top of its report."""
    answer: str = ""
    """Result that would answer the question; printed in the report."""
    budget: NumberText | None = None
    """Parameter budget, such as `"220M"`, `2.2e8` or `"t5-base"`; None uses the budget of the space."""
    tolerance: NumberText | None = None
    """Allowed deviation from the parameter budget, such as `"1.5%"` or `0.015`; None uses the tolerance of the
    space."""
    storage: str | None = None
    """Optuna storage. None uses a journal file in the study folder. A URL is `sqlite:////path.db`,
    `postgresql://user@host/name`, or `grpc://host:port` of `march-search study storage-proxy`. SQLAlchemy parses it, so
    an `@` in a password is written `%40`. `env:NAME` reads the URL from an environment variable, which keeps passwords
    out of files."""
    heartbeat_seconds: float = 20.0
    """Seconds between a worker's heartbeats, from 0.05 to 3600. A worker without a heartbeat for three times as long is
    considered dead, and other workers resume its trials."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """The `[search]` table: which architectures are trained."""
    pruner: PrunerConfig = field(default_factory=PrunerConfig)
    """The `[pruner]` table: when a trial is stopped early."""
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    """The `[confirm]` table: after the search, further seeds of the finalists decide between them."""
    ladder: LadderConfig = field(default_factory=LadderConfig)
    """The `[ladder]` table: the same arms at several sizes."""
    data: DataConfig = field(default_factory=DataConfig)
    """The `[data]` table: corpus, tokenizer and examples."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """The `[training]` table: how every trial is trained."""
    devices: DevicesConfig = field(default_factory=DevicesConfig)
    """The `[devices]` table: the devices and processes of each trial."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """The `[tracking]` table: the experiment trackers that metrics are sent to."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        """Yield one sentence for each setting or pair of tables that is refused; those of tables start with a "["."""
        if not 0.05 <= self.heartbeat_seconds <= 3600:
            yield f"heartbeat_seconds must be between 0.05 and 3600, not {self.heartbeat_seconds}."
        for text, parse in ((self.budget, parse_parameters), (self.tolerance, parse_tolerance)):
            try:
                _ = text is None or parse(text)
            except BudgetError as error:
                yield str(error)
        try:
            public_storage(self.storage)
        except ConfigError as error:
            yield from error.faults
        beyond = [rung for rung in self.pruner.rungs if rung > max(1, self.training.tokens)]
        if self.pruner.kind == "rungs" and beyond:
            yield f"[pruner]: a rung at {beyond[0]:,.0f} tokens exceeds the data budget of {self.training.tokens:,}."
        if self.ladder.budgets:
            yield from self._ladder_faults()
        try:
            _ = self.batch
        except ConfigError as error:
            yield from error.faults
        try:
            base_shape(self.training)
        except MarchSearchError as error:
            yield str(error)

    def _ladder_faults(self) -> Iterator[str]:
        """Yield one sentence for each setting that a ladder refuses; every arm trains to the end at every size."""
        if self.budget is not None:
            yield "[ladder]: budgets replace budget: remove budget."
        if self.pruner.kind != "none":
            yield f'[ladder]: every arm must train to the end: set kind = "none" in [pruner], not "{self.pruner.kind}".'
        if self.search.architectures or self.search.warm_start or self.search.adaptive:
            yield "[ladder]: arms replace the candidates: remove architectures, warm_start and strategy from [search]."
        if self.training.evaluate_at:
            yield "[ladder]: tokens differ by size: use evaluations instead of evaluate_at in [training]."
        if self.training.branch_tokens:
            yield "[ladder]: tokens differ by size: remove branch_tokens from [training]."
        batch = self.training.global_batch_tokens
        uneven = [tokens for tokens in self.ladder.tokens_by_size if tokens < 1 or tokens % batch]
        if uneven:
            yield (
                f"[ladder]: tokens_by_size has {uneven[0]:,}, which is not a multiple of global_batch_tokens "
                f"({batch:,}) of [training]."
            )

    @property
    def batch(self) -> BatchPlan:
        """How a global batch is split across ranks and micro batches."""
        return BatchPlan.of(self.training, self.data, self.devices.ranks)


@dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The `block` table of trial.json: where a user's block comes from, and its counts, so that a ranking needs no
    foreign code."""

    module: str
    """Entry point, module, or path of the file relative to the trial folder."""
    sha256: str
    """SHA-256 of the file."""
    counts: tuple[tuple[int, ...], ...]
    """For each width of a layer: the width, `d_ff`, parameters, active parameters, forward operations per position and
    kept activations per position."""


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
    block: BlockConfig | None = None
    """A user's block, if the architecture has one."""
    study: str | None = None
    """ID of the study that the trial belongs to; None for a trial that was started by hand."""
    number: int | None = None
    """Number of the trial in its study."""
    schema_version: Literal[1] = 1
    """Version of the file format."""

    @property
    def batch(self) -> BatchPlan:
        """How a global batch is split across ranks and micro batches."""
        return BatchPlan.of(self.training, self.data, self.devices.ranks)


_PUBLIC = frozenset(
    ("host", "hostaddr", "port", "service", "sslmode", "sslrootcert", "target_session_attrs", "connect_timeout")
)
"""Parameters in the query of a server's URL that are shown; others may be secret."""


def resolve_storage(url: str | None) -> str | None:
    """Return the storage URL; read it from the environment variable NAME if it is `env:NAME`.

    Raises:
        ConfigError: If NAME is not the name of a variable, or the variable is not set.
    """
    if url is None or not url.startswith("env:"):
        return url
    name = _variable(url)
    if not os.environ.get(name):
        raise ConfigError(f"storage is {url!r}, but the environment variable {name} is not set: export it first.")
    return os.environ[name]


def parse_storage(url: str) -> "URL":
    """Return the parts of a storage URL, as SQLAlchemy reads it.

    Raises:
        ConfigError: If it is not a URL. The message does not quote it, because it may contain a password.
    """
    from sqlalchemy import make_url  # here, because it takes a while and most studies use a journal
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is None or (parsed.get_backend_name() == "sqlite" and parsed.host):  # a path with too few slashes
        raise ConfigError(
            "storage is not a valid URL: use sqlite:////absolute/path.db, postgresql://user@host:port/name, "
            "grpc://host:port or env:NAME."
        )
    if parsed.get_backend_name() != "sqlite" and url.count("@") > 1:  # the rest of a password would become the host
        raise ConfigError('storage has more than one "@": write those of the password or user as %40.')
    return parsed


def public_storage(url: str | None) -> str | None:
    """Return the URL without its password; `env:NAME` is returned unchanged.

    The query of a server's URL keeps only what is known to be harmless.

    Raises:
        ConfigError: If the URL is not valid.
    """
    if url is None:
        return url
    if url.startswith("env:"):
        return f"env:{_variable(url)}"
    parsed = parse_storage(url)
    is_file = parsed.get_backend_name() == "sqlite"
    public = type(parsed).create(
        parsed.drivername,
        username=parsed.username or None,
        host=parsed.host,
        port=parsed.port,
        database=parsed.database,
        query=parsed.query if is_file else {key: parsed.query[key] for key in parsed.query if key in _PUBLIC},
    )
    return public.render_as_string(hide_password=True)


def _variable(url: str) -> str:
    """Return NAME of `env:NAME`.

    Raises:
        ConfigError: If it is not the name of a variable. The message does not quote it, because it may be a URL.
    """
    name = url.removeprefix("env:")
    if not name.isidentifier():
        raise ConfigError("storage starts with env: but does not continue with the name of an environment variable.")
    return name
