"""Preparation of a token store: written once by one process, resumed after an interruption, repaired on request."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from march_search.config import DataConfig
from march_search.data import corpora, shards, vocabulary
from march_search.data.rows import skipped
from march_search.data.store import SCHEMA_VERSION, Store
from march_search.data.tokenizer import ENDS
from march_search.data.writer import REPAIR, Progress, Writing, rewrite, write, write_tokenizer
from march_search.errors import DataError, StorageError
from march_search.files.atomic import discard_folder, file_sha256, lock, replacing_folder
from march_search.files.json_tables import read_json, sealed, write_json

IDENTITY_VERSION = 2
"""Part of the name of a store's folder. It changes only if the same text and settings give other tokens."""

_LOGGER = logging.getLogger(__name__)


def prepare(
    config: DataConfig,
    root: Path,
    base: Path,
    *,
    tokens: int,
    workers: int | None = None,
    progress: Progress | None = None,
    repaired: Callable[[list[str]], None] | None = None,
) -> Path:
    """Return the folder of the token store of `config` below `root/data`; write the store first if it does not exist.

    One process writes while others wait. Unfinished stores are never read, and an interrupted writer resumes with the
    shard it was writing. An installed or local corpus is read completely. A Hub corpus is read until there are `tokens`
    training tokens and enough validation tokens. If `hub_revision` is not set, the newest revision at that time is used
    and recorded; later revisions do not change the store. The content of the store is verified in all cases.

    Args:
        config: Text and tokenizer. The noise settings do not affect the store. `sequence_length` affects only the store
            of a Hub corpus, through the number of validation tokens.
        root: Folder of studies. The caches of `datasets` are also kept below it.
        base: Folder against which relative paths of local corpora are resolved.
        tokens: Number of training tokens to read from a Hub corpus.
        workers: Number of tokenising threads; None for one per core. It does not affect the bytes written.
        progress: Called regularly while tokens are written.
        repaired: Called with the names of the damaged files once they are repaired. None disables repair, so that a
            damaged store raises an error.

    Raises:
        DataError: If the corpus cannot be used or is too small, or the store is damaged.
        StorageError: If `root` is not writable.
    """
    with _storage_errors(root / "data"), _caches(root):
        (root / "data").mkdir(parents=True, exist_ok=True)
        job = _job(config, root, base, tokens, workers, progress)
        folder = _folder(job, root)
        with lock(folder.parent / f".{folder.name}.lock"):
            if repaired and folder.is_dir():
                repaired(_repair(folder, job))
            with replacing_folder(folder) as partial:
                if partial:
                    _fill(partial, job)
    store = Store.open(folder)
    store.verify()
    store.require(config)
    return folder


def find_store(config: DataConfig, root: Path, base: Path, *, tokens: int) -> Path:
    """Return the folder of the store that `prepare` wrote with the same arguments. Nothing is written.

    Raises:
        DataError: If the store does not exist.
    """
    is_trained = config.tokenizer is not None or vocabulary.trained_file(config, root, base).is_file()
    folder = _folder(_job(config, root, base, tokens), root) if is_trained else None
    if folder is None or not folder.is_dir():
        raise DataError(f"{config.corpus}: not prepared under {root}; run: march-search data prepare STUDY")
    return folder


def _job(
    config: DataConfig,
    root: Path,
    base: Path,
    tokens: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Writing:
    """Return what to write. The tokenizer is trained first if it does not exist."""
    wanted = tokens if corpora.source(config, base).is_stream else None
    tokenizer = vocabulary.obtain(config, root, base)
    return Writing(
        config=config,
        base=base,
        tokenizer=tokenizer,
        special=vocabulary.special(tokenizer, config, base),
        wanted=wanted,
        workers=workers,
        progress=progress,
    )


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError, such as a full or read-only disk, into a one-line StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror or error}.") from None


def _caches(root: Path) -> contextlib.AbstractContextManager[None]:
    """Keep the caches of `datasets` below `root`."""
    from march_search.data import hub

    return hub.caches(root / "data" / ".cache")


def _folder(job: Writing, root: Path) -> Path:
    """Return the folder of the store for this text, these settings and this tokenizer."""
    from march_search.data.tokenizer import sha256

    identity = [
        IDENTITY_VERSION,
        _settings(job),
        sha256(job.tokenizer),
        corpora.source(job.config, job.base).identity(),
    ]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    slug = re.sub(r"[^a-z0-9]+", "-", job.config.corpus.lower()).strip("-")[-40:].strip("-") or "corpus"
    return root / "data" / f"{slug}-{key[:12]}"


def _settings(job: Writing) -> dict[str, Any]:
    """Return the settings that determine the tokens of a store; for a stream these include the number of tokens."""
    config = job.config
    settings: dict[str, Any] = {name: getattr(config, name) for name in ("vocab_size", "validation_fraction")}
    ends = (token for token in ENDS if job.tokenizer.token_to_id(token) is not None)
    if (end := job.tokenizer.id_to_token(job.special.eos)) != next(ends, None):
        settings["end_token"] = end
    if job.wanted is not None:
        needed = config.validation_sequences * config.sequence_length
        settings |= {"tokens": job.wanted, "validation_tokens": needed}
    return settings


def _fill(folder: Path, job: Writing) -> None:
    """Write what is missing in `folder`, the index last."""
    try:
        pinned = _pinned(folder, job)
        index = write(folder, pinned)
        source = corpora.describe(pinned.config, pinned.base)
    except DataError:
        # A stream may work on the next attempt. Local text must be changed first, and its store is then another folder.
        if job.wanted is None:
            discard_folder(folder)
        raise
    header = {"schema_version": SCHEMA_VERSION, "data": _settings(job), "source": source}
    tokenizer = {"tokenizer_file_sha256": file_sha256(folder / "tokenizer.json")}
    write_json(folder / "index.json", sealed(header | index | tokenizer))
    if "skipped" in index:
        _LOGGER.warning(f"{pinned.config.corpus}: {skipped(index['skipped'])}.")
    shards.forget_records(folder)
    (folder / "plan.json").unlink()


def _pinned(folder: Path, job: Writing) -> Writing:
    """Return `job` with the revision of the interrupted writer, or else with the newest, which is recorded first."""
    plan = read_json(folder / "plan.json")
    if isinstance(plan, dict):
        config = dataclasses.replace(job.config, hub_revision=plan["hub_revision"])
    else:
        config = corpora.pinned(job.config, job.base)
        write_json(folder / "plan.json", {"hub_revision": config.hub_revision})
    return dataclasses.replace(job, config=config)


def _repair(folder: Path, job: Writing) -> list[str]:
    """Rewrite the damaged files of a store; remove a store whose index is not readable.

    Returns:
        Names of the damaged files.

    Raises:
        DataError: If the text no longer gives the same tokens.
    """
    for left in folder.glob(f"{REPAIR}*"):  # of a repair that was killed
        discard_folder(left)
    try:
        store = Store.read(folder)
        if (store.special, store.index["data"]) != (job.special, _settings(job)):  # in an index without a seal
            raise DataError(f"{folder}: index.json does not match tokenizer.json.")
    except DataError:
        discard_folder(folder)
        return ["index.json"]
    broken = [(number, shards.broken(folder, number, shard)) for number, shard in enumerate(store.shards)]
    names = [shards.name(split, number) for number, splits in broken for split in splits]
    revision = store.index["source"].get("revision", job.config.hub_revision)
    job = dataclasses.replace(job, config=dataclasses.replace(job.config, hub_revision=revision))
    rewrite(folder, job, store.index, [number for number, splits in broken if splits])
    if not store.has_its_tokenizer():
        write_tokenizer(folder, job)
        names.append("tokenizer.json")
    return names
