"""Opens the Optuna study of a folder: a journal file by default, SQLite, PostgreSQL or a gRPC proxy by URL."""

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
from march_search.errors import StorageError
from march_search.files import lock
from march_search.study.journal import JOURNAL, open_journal
from march_search.study.urls import resolve

_SCHEMA_LOCK = 0x6D617263
"""Number of the PostgreSQL advisory lock under which tables are made."""


def open_study(name: str, folder: Path, url: str | None, pruner: PrunerConfig, seed: int) -> optuna.Study:
    """The Optuna study `name`, made if it does not exist.

    Raises:
        StorageError: the storage cannot be opened; a password in its URL is not repeated.
        ConfigError: the URL is in an environment variable that is not set.
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
    """The storage of a study's setting.

    Raises:
        StorageError: it cannot be opened; a password in its URL is not repeated.
        ConfigError: the URL is in an environment variable that is not set.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = resolve(url)
    try:
        return open_storage(url, folder)
    except StorageError:
        raise
    except Exception as error:
        where = f"{urlsplit(url).scheme} storage" if url else str(folder / JOURNAL)
        hint = ": pip install 'march-search[postgres]'." if isinstance(error, ImportError) else None
        raise StorageError(
            f"the {where} cannot be opened ({type(error).__name__})"
            + (hint or ": check that it exists and is writable.")
        ) from None


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The storage at `url`, the journal in `folder` without one; safe to open many times at the same moment."""
    if url is None:
        return open_journal((folder / JOURNAL).resolve())
    scheme = urlsplit(url).scheme
    if scheme == "grpc":
        return _proxy(url)
    if scheme in ("postgres", "postgresql"):
        url = "postgresql+psycopg" + url.removeprefix(scheme)
    with _schema_lock(url):
        storage = optuna.storages.RDBStorage(url, engine_kwargs=_engine(url))
    weakref.finalize(storage, storage.engine.dispose)  # its connections would be left open
    if scheme.startswith("sqlite"):
        _begin_immediately(storage)
    return optuna.storages.get_storage(storage)


def _engine(url: str) -> dict[str, Any]:
    """SQLAlchemy's settings: SQLite waits for its lock a minute; a connection that PostgreSQL closed is made again."""
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": 60, "isolation_level": None}}
    return {"pool_pre_ping": True}


def _begin_immediately(storage: optuna.storages.RDBStorage) -> None:
    """Has SQLite transactions take the lock for writing at their start, and wait for it there.

    One that reads first and writes later fails without waiting where another has written in between.
    """
    from sqlalchemy import event

    @event.listens_for(storage.engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _proxy(url: str) -> BaseStorage:
    """The storage behind a gRPC proxy.

    Raises:
        StorageError: nobody answers there.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "localhost", parts.port or 13000
    with warnings.catch_warnings():  # an experiment of Optuna's that whoever names it has asked for
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = optuna.storages.GrpcStorageProxy(host=host, port=port)
    try:
        storage.wait_server_ready(timeout=20)
    except ConnectionError:
        raise StorageError(f"no storage proxy answers at {host}:{port}: march-search storage-proxy STUDY.") from None
    return storage


@contextmanager
def _schema_lock(url: str) -> Iterator[None]:
    """Lets one process at a time make tables: Optuna's own making of them fails when two meet."""
    import sqlalchemy

    if url.startswith("sqlite"):
        path = sqlalchemy.make_url(url).database
        if not path or path == ":memory:":
            raise StorageError("an SQLite storage must be a file: sqlite:////absolute/path.db.")
        with lock(Path(f"{path}.lock")):
            yield
        return
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({_SCHEMA_LOCK})"))
        yield  # the lock goes with the connection


@contextmanager
def guarded() -> Iterator[None]:
    """Turns what a storage that stops working raises into one line without its URL.

    Raises:
        StorageError: it stopped working.
    """
    try:
        yield
    except Exception as error:
        room = type(error).__module__.split(".")[0]
        if not (isinstance(error, optuna.exceptions.StorageInternalError) or room in ("sqlalchemy", "grpc", "psycopg")):
            raise
        raise StorageError(
            f"the storage stopped working ({type(error).__name__}): when it is back, the same command goes on."
        ) from None


def bind(study: optuna.Study, folder_id: str) -> None:
    """Ties the Optuna study to one folder.

    Raises:
        StorageError: it belongs to another: its trials, and those still running there, are not this folder's.
    """
    owner = study.user_attrs.get("folder_id")
    if owner is None and not study.get_trials(deepcopy=False):
        study.set_user_attr("folder_id", folder_id)
    elif owner != folder_id:
        raise StorageError(
            f"the storage already holds a study {study.study_name!r} that another folder started: go on there, or give "
            "the study's file another name."
        )


def make_pruner(config: PrunerConfig) -> optuna.pruners.BasePruner:
    """Optuna's pruner of these settings, its arguments written out; steps are tokens. Rungs are decided elsewhere."""
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
