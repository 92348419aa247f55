"""Makes a token store once: one process writes while others wait, a stopped writer goes on, damage is mended."""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from march_search.config import DataConfig
from march_search.data import corpora, shards, vocabulary
from march_search.data.files import file_sha256
from march_search.data.folders import discard, replacing
from march_search.data.store import SCHEMA_VERSION, Store
from march_search.data.writer import REPAIR, Progress, Writing, rewrite, write, write_tokenizer
from march_search.errors import DataError, StorageError
from march_search.files import lock, read_json, write_json


def prepare(
    config: DataConfig,
    root: Path,
    base: Path,
    *,
    tokens: int,
    workers: int | None = None,
    progress: Progress | None = None,
    mended: Callable[[list[str]], None] | None = None,
) -> Path:
    """The folder of the store of `config` under `root/data`, made if it is not there yet, its content checked.

    One process writes while others wait; what is not finished is never read, and a writer that was stopped goes on with
    the shard it was at. An embedded or local corpus is read whole. A hub corpus is read until `tokens` training tokens
    and the validation sequences are there; without a pinned `hub_revision` the newest at that moment is taken and
    recorded, and the store then stays as it is.

    Args:
        config: which text and tokenizer. `sequence_length` and noise may change without preparing again.
        root: folder of studies; the caches of `datasets` stay below it, too.
        base: where relative paths of local corpora start.
        tokens: training tokens wanted from a hub corpus.
        workers: threads that tokenise, None for one a core; the bytes are the same for any number.
        progress: is called now and then while tokens are written.
        mended: is told which files of the store are broken, and they are written again; None refuses a broken store.

    Raises:
        DataError: the corpus cannot be used or is too small, or the store is damaged.
        StorageError: `root` cannot be written.
    """
    with _storage_errors(root / "data"), _caches(root):
        (root / "data").mkdir(parents=True, exist_ok=True)
        job = _job(config, root, base, tokens, workers, progress)
        folder = _folder(job, root)
        with lock(folder.parent / f".{folder.name}.lock"):
            if mended and folder.is_dir():
                mended(_mend(folder, job))
            with replacing(folder) as partial:
                if partial:
                    _fill(partial, job)
    store = Store.open(folder)
    store.verify()
    store.require(config)
    return folder


def find(config: DataConfig, root: Path, base: Path, *, tokens: int) -> Path:
    """The folder that `prepare` made with the same arguments.

    Raises:
        DataError: it did not; nothing is made.
    """
    is_trained = config.tokenizer is not None or vocabulary.trained_file(config, root, base).is_file()
    folder = _folder(_job(config, root, base, tokens), root) if is_trained else None
    if folder is None or not folder.is_dir():
        raise DataError(f"{config.corpus}: is not prepared below {root}: march-search data prepare STUDY")
    return folder


def _job(
    config: DataConfig,
    root: Path,
    base: Path,
    tokens: int,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Writing:
    """What is to be written, its tokenizer trained if it is not yet."""
    wanted = tokens if corpora.source(config, base).is_stream else None
    return Writing(config, base, vocabulary.obtain(config, root, base), wanted, workers, progress)


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    """A disk that is full or cannot be written, in one line."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror or error}.") from None


def _caches(root: Path) -> contextlib.AbstractContextManager[None]:
    from march_search.data import hub  # datasets is needed here and nowhere else

    return hub.caches(root / "data" / ".cache")


def _folder(job: Writing, root: Path) -> Path:
    """Where the store of this text, these settings and this tokenizer is."""
    from march_search.data.tokenizer import sha256

    told = [SCHEMA_VERSION, _settings(job), sha256(job.tokenizer), corpora.source(job.config, job.base).identity()]
    key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    slug = re.sub(r"[^a-z0-9]+", "-", job.config.corpus.lower()).strip("-")[-40:].strip("-") or "corpus"
    return root / "data" / f"{slug}-{key[:12]}"


def _settings(job: Writing) -> dict[str, Any]:
    """Settings that decide which tokens a store holds; a stream is also cut by how much is wanted of it."""
    config = job.config
    settings: dict[str, Any] = {name: getattr(config, name) for name in ("vocab_size", "validation_fraction")}
    if job.wanted is not None:
        needed = config.validation_sequences * config.sequence_length
        settings |= {"tokens": job.wanted, "validation_tokens": needed}
    return settings


def _fill(folder: Path, job: Writing) -> None:
    """Writes what `folder` does not hold yet, the index last."""
    try:
        pinned = _pinned(folder, job)
        index = write(folder, pinned)
        source = corpora.describe(pinned.config, pinned.base)
    except DataError:
        if job.wanted is None:  # local text has to be changed, and is another one then; a stream may come back
            discard(folder)
        raise
    told = {"schema_version": SCHEMA_VERSION, "data": _settings(job), "source": source}
    tokenizer = {"tokenizer_file_sha256": file_sha256(folder / "tokenizer.json")}
    write_json(folder / "index.json", told | index | tokenizer)
    shards.forget_records(folder)
    (folder / "plan.json").unlink()


def _pinned(folder: Path, job: Writing) -> Writing:
    """`job` at the revision that a stopped writer took, else at the newest, which is written down first."""
    plan = read_json(folder / "plan.json")
    if isinstance(plan, dict):
        config = dataclasses.replace(job.config, hub_revision=plan["hub_revision"])
    else:
        config = corpora.pinned(job.config, job.base)
        write_json(folder / "plan.json", {"hub_revision": config.hub_revision})
    return dataclasses.replace(job, config=config)


def _mend(folder: Path, job: Writing) -> list[str]:
    """Writes again what is broken in a store, and nothing else; a store without a readable index is removed.

    Returns:
        Names of the files that were broken.

    Raises:
        DataError: the text makes other tokens than it did.
    """
    for left in folder.glob(f"{REPAIR}*"):  # by a repair that was killed
        discard(left)
    try:
        store = Store.read(folder)
    except DataError:
        discard(folder)
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
