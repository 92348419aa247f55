"""Opens the Optuna study of a folder: a journal file by default, any storage URL otherwise."""

import fcntl
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from march_search.config import PrunerConfig
from march_search.errors import StorageError

JOURNAL = "optuna-journal.log"


def open_study(name: str, folder: Path, url: str | None, pruner: PrunerConfig, seed: int) -> optuna.Study:
    """The Optuna study `name`, made if it does not exist.

    Raises:
        StorageError: the storage cannot be opened; a password in its URL is not repeated.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage: Any = url or _journal((folder / JOURNAL).resolve())
        return optuna.create_study(
            study_name=name,
            storage=storage,
            direction="minimize",
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=seed),
            pruner=make_pruner(pruner),
        )
    except Exception as error:
        where = f"{urlsplit(url).scheme} storage" if url else str(folder / JOURNAL)
        raise StorageError(
            f"the {where} cannot be opened ({type(error).__name__}): check that it exists and is writable."
        ) from None


def release_stale_lock(folder: Path) -> None:
    """Removes the journal's lock that a killed run left. The caller holds the study's lock, so nobody else has this."""
    for stale in folder.glob(f"{JOURNAL}.lock*"):
        stale.unlink(missing_ok=True)


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
    """Optuna's pruner of these settings, its arguments written out; steps are tokens."""
    if config.kind == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=config.startup_trials,
            n_warmup_steps=config.warmup_tokens,
            interval_steps=1,
            n_min_trials=1,
        )
    if config.kind == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=max(1, config.warmup_tokens),
            reduction_factor=config.reduction_factor,
            min_early_stopping_rate=0,
        )
    return optuna.pruners.NopPruner()


def _journal(path: Path) -> JournalStorage:
    """A journal file, its torn end cut off first: a line cut by a kill would swallow the next one written."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            file.seek(end - 1)
            if file.read(1) == b"\n":
                break
            end -= 1
        if end < size:
            file.truncate(end)
    return JournalStorage(JournalFileBackend(str(path)))
