"""Writer of token stores: tokenises text into shards, resumes an interrupted writer and rewrites damaged shards."""

import importlib.metadata
import itertools
import json
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from march_search.config import DataConfig
from march_search.data import shards
from march_search.data import tokenizer as bpe
from march_search.data.corpora import documents
from march_search.data.rows import RowCount
from march_search.data.shards import SPLITS, Shard
from march_search.data.store import token_type
from march_search.data.tokenise import Document, Encoder, default_workers, tokenise
from march_search.errors import DataError
from march_search.files.json_tables import write_json

Progress = Callable[[int, int, int | None], None]
"""Called with the training tokens and text bytes written so far, and the tokens wanted (None for the whole text)."""

REPAIR = ".repair-"
"""Prefix of the temporary folders inside a store in which damaged shards are rewritten."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """The inputs and settings from which a store is written."""

    config: DataConfig
    base: Path
    """Folder against which relative paths of local corpora are resolved."""
    tokenizer: Any
    special: bpe.Special
    """Ids of the end token and the sentinels."""
    wanted: int | None
    """Number of training tokens after which writing stops; None reads the whole text."""
    workers: int | None = None
    """Number of tokenising threads; None for one per core. It does not affect the bytes written."""
    progress: Progress | None = None

    @property
    def encoder(self) -> Encoder:
        """Encoder of the documents."""
        dtype = np.dtype(token_type(self.config.vocab_size))
        return Encoder(self.tokenizer, self.special, dtype, self.config.validation_fraction)

    def documents(self, first: int, count: RowCount | None = None) -> Generator[Document, None, None]:
        """Yield the tokenised documents from number `first` on; `count` counts the rows, from the first on."""
        texts = itertools.islice(documents(self.config, self.base, count), first, None)
        return tokenise(texts, self.encoder, self.workers or default_workers())


def write(folder: Path, job: Writing) -> dict[str, Any]:
    """Write tokenizer.json and the missing shards to `folder`; return the part of the index that they determine."""
    write_tokenizer(folder, job)
    done = shards.whole(folder)
    totals, count = _Totals(job, done), RowCount()
    with closing(_until_enough(job, done, count)) as remaining:
        for first in remaining:
            done.append(shards.write(folder, len(done), itertools.chain([first], remaining), totals.add))
    return {
        "dtype": job.encoder.dtype.str,
        "tokenizer_sha256": bpe.sha256(job.tokenizer),
        "special": job.special._asdict(),
        "splits": {split: _total(done, split) for split in SPLITS},
        "shards": done,
        "versions": _versions(),
    } | ({"skipped": count.record()} if count.unusable else {})


def _versions() -> dict[str, str]:
    """Return the versions of the libraries that read and write text. `datasets` may be missing: text needs none."""
    found = {}
    for name in ("datasets", "tokenizers", "numpy"):
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


class _Totals:
    """Running totals of tokens and bytes, reported to `Writing.progress` every 64 documents."""

    def __init__(self, job: Writing, done: list[Shard]) -> None:
        self._job, self._calls = job, 0
        self.tokens = sum(shard["train"]["tokens"] for shard in done)
        self.text_bytes = sum(shard[split]["text_bytes"] for shard in done for split in SPLITS)

    def add(self, tokens: int, text_bytes: int) -> None:
        """Add one document."""
        self.tokens += tokens
        self.text_bytes += text_bytes
        if self._job.progress and self._calls % 64 == 0:
            self._job.progress(self.tokens, self.text_bytes, self._job.wanted)
        self._calls += 1


def _until_enough(job: Writing, done: list[Shard], count: RowCount) -> Generator[Document, None, None]:
    """Yield the documents after the finished shards, until there are as many tokens as wanted."""
    needed = job.config.validation_sequences * job.config.sequence_length
    train, validation = (sum(shard[split]["tokens"] for shard in done) for split in SPLITS)
    if job.wanted is not None and train >= job.wanted and validation >= needed:
        return
    with closing(job.documents(sum(map(shards.documents, done)), count)) as remaining:
        for document in remaining:
            yield document
            if document.is_validation:
                validation += len(document.ids)
            else:
                train += len(document.ids)
            if job.wanted is not None and train >= job.wanted and validation >= needed:
                return


def _total(done: list[Shard], split: shards.Split) -> dict[str, int]:
    """Return the totals of a split over all shards."""
    return {key: sum(shard[split][key] for shard in done) for key in ("documents", "tokens", "text_bytes")}


def write_tokenizer(folder: Path, job: Writing) -> None:
    """Write the tokenizer to the folder of the store."""
    write_json(folder / "tokenizer.json", json.loads(job.tokenizer.to_str()))


def rewrite(folder: Path, job: Writing, index: dict[str, Any], numbers: list[int]) -> None:
    """Tokenise the documents of the given shards again and replace the files of these shards.

    Raises:
        DataError: If the text no longer gives the tokens recorded in the index.
    """
    for number in numbers:
        first = sum(map(shards.documents, index["shards"][:number]))
        count = shards.documents(index["shards"][number])
        with (
            tempfile.TemporaryDirectory(prefix=REPAIR, dir=folder) as temporary,
            closing(job.documents(first)) as documents_from_first,
        ):
            shard = shards.write(
                Path(temporary), number, itertools.islice(documents_from_first, count), lambda *_: None
            )
            if shard != index["shards"][number]:
                raise DataError(
                    f"{folder}: the text of shard {number} has changed; delete the folder and prepare the text again."
                )
            for split in SPLITS:
                name = shards.name(split, number)
                (Path(temporary) / name).replace(folder / name)
