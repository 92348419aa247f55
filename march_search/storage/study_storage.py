"""Open the Optuna study of a folder: a journal file by default, or SQLite, PostgreSQL or a gRPC proxy by URL."""

import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage

from march_search.config import PrunerConfig
from march_search.config.study_config import parse_storage, public_storage, resolve_storage
from march_search.errors import MarchSearchError, StorageError
from march_search.files.atomic import lock
from march_search.storage.journal import JOURNAL, RESTORE, open_journal

if TYPE_CHECKING:
    from sqlalchemy import URL

_SCHEMA_LOCK = 0x6D617263
"""Key of the PostgreSQL advisory lock that is held while tables are created."""


def open_study(name: str, folder: Path, url: str | None, pruner: PrunerConfig, seed: int) -> optuna.Study:
    """Open the Optuna study `name`; create it if it does not exist.

    Raises:
        StorageError: If the storage cannot be opened or read; the message does not contain the password of the URL.
        ConfigError: If the URL is not valid or refers to an environment variable that is not set.
    """
    with _named_errors(url, folder):
        study = optuna.create_study(
            study_name=name,
            storage=open_storage(resolve_storage(url), folder),
            direction="minimize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=seed),
            pruner=make_pruner(pruner),
        )
        study.get_trials(deepcopy=False)  # reads every record once, so that damage is found here
        return study


def load_study(name: str, folder: Path, url: str | None, pruner: PrunerConfig) -> optuna.Study | None:
    """Return the Optuna study `name`, or None if the storage does not contain it.

    Raises:
        StorageError: If the storage cannot be opened or read; the message does not contain the password of the URL.
        ConfigError: If the URL is not valid or refers to an environment variable that is not set.
    """
    storage = opened(url, folder)
    with _named_errors(url, folder):
        try:
            study = optuna.load_study(study_name=name, storage=storage, pruner=make_pruner(pruner))
        except KeyError:
            return None
        study.get_trials(deepcopy=False)  # reads every record once, so that damage is found here
        return study


def opened(url: str | None, folder: Path) -> BaseStorage:
    """Open the storage at the configured `url`, or the journal in `folder` if it is None.

    Raises:
        StorageError: If it cannot be opened; the message does not contain the password of the URL.
        ConfigError: If the URL is not valid or refers to an environment variable that is not set.
    """
    with _named_errors(url, folder):
        return open_storage(resolve_storage(url), folder)


@contextmanager
def _named_errors(url: str | None, folder: Path) -> Iterator[None]:
    """Convert errors while the storage is opened or read into one line: which storage, what is wrong, what to do.

    Raises:
        StorageError: If the storage cannot be opened or read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = resolve_storage(url)
    try:
        yield
    except MarchSearchError:
        raise
    except Exception as error:
        raise StorageError(_fault(_cause(error), url, folder)) from None


def _cause(error: BaseException) -> BaseException:
    """Return the error of the database that Optuna and SQLAlchemy report."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__:
        error = error.__cause__
    return getattr(error, "orig", None) or error


_DAMAGE = ("SQLITE_NOTADB", "SQLITE_CORRUPT")
"""Names of SQLite's errors for a damaged file."""

_NO_ACCESS = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")
"""Names of SQLite's errors for a file that does not exist or cannot be written."""


def _fault(cause: BaseException, url: str | None, folder: Path) -> str:
    """Describe why the storage cannot be opened or read, and what to do."""
    parsed = None if url is None else parse_storage(url)
    where = str(folder / JOURNAL) if parsed is None else str(public_storage(url))
    if parsed is not None and parsed.get_backend_name() == "sqlite":
        where = str(parsed.database)
    reason = " ".join(str(cause).split()).rstrip(".") or type(cause).__name__
    for secret in () if parsed is None else (parsed.password, *parsed.query.values()):
        if secret and str(secret) not in where:
            reason = reason.replace(str(secret), "***")
    name = getattr(cause, "sqlite_errorname", "")
    if isinstance(cause, ImportError):
        return f"{where} cannot be opened: {reason}: pip install 'march-search[postgres]'."
    if name.startswith(_NO_ACCESS) or isinstance(cause, OSError):
        return f"{where} cannot be opened: {reason}: check that it exists and is writable."
    if name.startswith(_DAMAGE) or isinstance(cause, ValueError | TypeError | LookupError | AssertionError):
        return f"{where} is damaged: {reason}. {RESTORE}"
    if "password" in reason:
        reason += ". The study folder does not keep it: name the study's TOML file, or set PGPASSWORD"
    return f"{where} cannot be opened: {reason}."


def check(url: str | None, folder: Path) -> None:
    """Check that the storage opens; a journal that does not exist yet is not created.

    Raises:
        StorageError: If it cannot be opened.
        ConfigError: If the URL refers to an environment variable that is not set.
    """
    if url is not None or (folder / JOURNAL).exists():
        opened(url, folder)


def check_unchanged(url: str | None, folder: Path) -> None:
    """Check that the storage can be opened, without creating or changing anything in it.

    Raises:
        StorageError: If it cannot be opened.
        ConfigError: If the URL is not valid or refers to an environment variable that is not set.
    """
    with _named_errors(url, folder):
        resolved = resolve_storage(url)
        if resolved is None:
            journal = folder / JOURNAL
            if journal.exists() and not os.access(journal, os.R_OK | os.W_OK):
                raise PermissionError("it cannot be read and written")
            return
        parsed = parse_storage(resolved)
        if parsed.drivername == "grpc":
            _proxy(parsed)
        elif parsed.get_backend_name() == "sqlite":
            _check_sqlite(parsed.database)
        else:
            _check_server(_with_driver(parsed))


def _check_sqlite(database: str | None) -> None:
    """Read the tables of an SQLite file; if there is none, check that its folder can be written."""
    import sqlite3
    from contextlib import closing

    path = Path(_sqlite_file(database))
    if not path.exists():
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"the folder {path.parent} does not exist or cannot be written")
        return
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        connection.execute("SELECT name FROM sqlite_master").fetchall()


def _check_server(url: "URL") -> None:
    """Connect to a database server."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect():
        pass


def _with_driver(url: "URL") -> "URL":
    """Return the URL with the driver of PostgreSQL that this program installs."""
    is_postgres = url.drivername in ("postgres", "postgresql")
    return url.set(drivername="postgresql+psycopg") if is_postgres else url


def _sqlite_file(database: str | None) -> str:
    """Return the path of an SQLite storage; raise StorageError if it is not a file."""
    if not database or database == ":memory:":
        raise StorageError("an SQLite storage must be a file: use sqlite:////absolute/path.db.")
    return database


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """Open the storage at `url`, or the journal in `folder` if it is None; safe to call concurrently."""
    if url is None:
        return open_journal((folder / JOURNAL).resolve())
    parsed = parse_storage(url)
    if parsed.drivername == "grpc":
        return _proxy(parsed)
    parsed = _with_driver(parsed)
    is_file = parsed.get_backend_name() == "sqlite"
    with _schema_lock(parsed):
        template = parsed.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        storage = optuna.storages.RDBStorage(template, engine_kwargs=_SQLITE if is_file else {"pool_pre_ping": True})
    weakref.finalize(storage, storage.engine.dispose)  # close its connections
    if is_file and os.access(str(parsed.database), os.W_OK):
        _begin_immediately(storage)
    return optuna.storages.get_storage(storage)


_SQLITE = {"connect_args": {"timeout": 60, "isolation_level": None}}
"""SQLAlchemy's settings for SQLite: it waits a minute for its lock."""


def _begin_immediately(storage: optuna.storages.RDBStorage) -> None:
    """Make SQLite transactions acquire the write lock, and wait for it, when they start.

    A transaction that reads first and writes later fails without waiting if another one has written in between.
    """
    from sqlalchemy import event

    @event.listens_for(storage.engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _proxy(url: "URL") -> BaseStorage:
    """Connect to the storage behind a gRPC proxy.

    Raises:
        StorageError: If no proxy answers.
    """
    host, port = url.host or "localhost", url.port or 13000
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
def _schema_lock(url: "URL") -> Iterator[None]:
    """Let one process at a time create tables, because Optuna fails if two create them at once."""
    import sqlalchemy

    if url.get_backend_name() == "sqlite":
        path = _sqlite_file(url.database)
        if Path(path).exists() and not os.access(path, os.W_OK):  # the tables exist, and this user only reads them
            yield
            return
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
        cause = _cause(error)
        reason = " ".join(str(cause.details() if hasattr(cause, "details") else cause).split()).rstrip(".")
        raise StorageError(
            f"the storage stopped working: {reason}: run the same command to resume once it is back."
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
    """Return Optuna's pruner with its arguments set explicitly; steps are tokens.

    `planning/rungs.py` decides on rungs; for them, this is a pruner that never stops a trial.
    """
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
