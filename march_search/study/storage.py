"""Open the Optuna study of a folder: a journal file by default, or SQLite, PostgreSQL or a gRPC proxy by URL."""

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage

from march_search.config import PrunerConfig
from march_search.config.study_config import resolve_storage
from march_search.errors import StorageError
from march_search.files import lock
from march_search.study.journal import JOURNAL, open_journal

_SCHEMA_LOCK = 0x6D617263
"""Key of the PostgreSQL advisory lock that is held while tables are created."""


def open_study(name: str, folder: Path, url: str | None, pruner: PrunerConfig, seed: int) -> optuna.Study:
    """Open the Optuna study `name`; create it if it does not exist.

    Raises:
        StorageError: If the storage cannot be opened; the message does not contain the password of the URL.
        ConfigError: If the URL refers to an environment variable that is not set.
    """
    storage = opened(url, folder)
    with guarded():
        return optuna.create_study(
            study_name=name,
            storage=storage,
            direction="minimize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=seed),
            pruner=make_pruner(pruner),
        )


def opened(url: str | None, folder: Path) -> BaseStorage:
    """Open the storage at the configured `url`, or the journal in `folder` if it is None.

    Raises:
        StorageError: If it cannot be opened; the message does not contain the password of the URL.
        ConfigError: If the URL refers to an environment variable that is not set.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = resolve_storage(url)
    try:
        return open_storage(url, folder)
    except StorageError:
        raise
    except Exception as error:
        where = f"the {urlsplit(url).scheme} storage" if url else str(folder / JOURNAL)
        hint = ": pip install 'march-search[postgres]'." if isinstance(error, ImportError) else None
        raise StorageError(
            f"{where} cannot be opened ({type(error).__name__})" + (hint or ": check that it exists and is writable.")
        ) from None


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Open the storage at `url`, or the journal in `folder` if it is None; safe to call concurrently."""
    if url is None:
        return open_journal((folder / JOURNAL).resolve())
    scheme = urlsplit(url).scheme
    if scheme == "grpc":
        return _proxy(url)
    if scheme in ("postgres", "postgresql"):
        url = "postgresql+psycopg" + url.removeprefix(scheme)
    with _schema_lock(url):
        storage = optuna.storages.RDBStorage(url, engine_kwargs=_engine(url))
    weakref.finalize(storage, storage.engine.dispose)  # close its connections
    if scheme.startswith("sqlite"):
        _begin_immediately(storage)
    return optuna.storages.get_storage(storage)


def _engine(url: str) -> dict[str, Any]:
    """Return SQLAlchemy's settings: SQLite waits a minute for its lock, PostgreSQL reopens closed connections."""
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": 60, "isolation_level": None}}
    return {"pool_pre_ping": True}


def _begin_immediately(storage: optuna.storages.RDBStorage) -> None:
    """Make SQLite transactions acquire the write lock, and wait for it, when they start.

    A transaction that reads first and writes later fails without waiting if another one has written in between.
    """
    from sqlalchemy import event

    @event.listens_for(storage.engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _proxy(url: str) -> BaseStorage:
    """Connect to the storage behind a gRPC proxy.

    Raises:
        StorageError: If no proxy answers.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "localhost", parts.port or 13000
    with warnings.catch_warnings():  # the user chose this experimental storage by its URL
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.GrpcStorageProxy(host=host, port=port)
    try:
        storage.wait_server_ready(timeout=20)
    except ConnectionError:
        raise StorageError(
            f"no storage proxy answers at {host}:{port}: start one with march-search study storage-proxy env:NAME."
        ) from None
    return storage


@contextmanager
def _schema_lock(url: str) -> Iterator[None]:
    """Let one process at a time create tables, because Optuna fails if two create them at once."""
    import sqlalchemy

    if url.startswith("sqlite"):
        path = sqlalchemy.make_url(url).database
        if not path or path == ":memory:":
            raise StorageError("an SQLite storage must be a file: use sqlite:////absolute/path.db.")
        with lock(Path(f"{path}.lock")):
            yield
        return
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({_SCHEMA_LOCK})"))
        yield  # closing the connection releases the lock


@contextmanager
def guarded() -> Iterator[None]:
    """Convert errors of a storage that stops working into a one-line error without its URL.

    Raises:
        StorageError: If the storage stops working.
    """
    try:
        yield
    except Exception as error:
        root = type(error).__module__.split(".")[0]
        if not (isinstance(error, optuna.exceptions.StorageInternalError) or root in ("sqlalchemy", "grpc", "psycopg")):
            raise
        raise StorageError(
            f"the storage stopped working ({type(error).__name__}): run the same command to resume once it is back."
        ) from None


def bind(study: optuna.Study, folder_id: str) -> None:
    """Bind the Optuna study to one folder.

    Raises:
        StorageError: If the study belongs to another folder; its trials, some still running, are not this folder's.
    """
    owner = study.user_attrs.get("folder_id")
    if owner is None and not study.get_trials(deepcopy=False):
        study.set_user_attr("folder_id", folder_id)
    elif owner != folder_id:
        raise StorageError(
            f"the storage already holds a study {study.study_name!r} that another folder started: continue it "
            "there, or rename this study's file."
        )


def make_pruner(config: PrunerConfig) -> optuna.pruners.BasePruner:
    """Return Optuna's pruner with its arguments set explicitly; steps are tokens. `study.rungs` decides on rungs."""
    least = max(1, config.warmup_tokens)
    if config.kind == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=config.startup_trials,
            n_warmup_steps=config.warmup_tokens,
            interval_steps=1,
            n_min_trials=1,
        )
    if config.kind == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=least, reduction_factor=config.reduction_factor, min_early_stopping_rate=0, bootstrap_count=0
        )
    if config.kind == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=least, max_resource="auto", reduction_factor=config.reduction_factor, bootstrap_count=0
        )
    return optuna.pruners.NopPruner()
