"""Text to shards: tokenises once, goes on where a writer was stopped, and writes broken shards again."""

import importlib.metadata
import itertools
import json
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from march_search.config import DataConfig
from march_search.data import shards
from march_search.data import tokenizer as bpe
from march_search.data.corpora import documents
from march_search.data.shards import SPLITS, Shard
from march_search.data.tokenise import Document, Encoder, default_workers, tokenise
from march_search.errors import DataError
from march_search.files import write_json

Progress = Callable[[int, int, int | None], None]
"""Is told training tokens and text bytes that are written, and how many tokens are wanted (None: the whole text)."""

REPAIR = ".repair-"
"""How folders begin, inside a store, in which broken shards are written again."""


@dataclass(frozen=True)
class Writing:
    """What a store is made from."""

    config: DataConfig
    base: Path
    """Where relative paths of local corpora start."""
    tokenizer: Any
    wanted: int | None
    """Training tokens to stop at; None reads the whole text."""
    workers: int | None = None
    """Threads that tokenise; None for one a core. The bytes are the same."""
    progress: Progress | None = None

    @property
    def encoder(self) -> Encoder:
        """How documents become tokens."""
        dtype = np.dtype("<u2" if self.config.vocab_size <= 1 << 16 else "<u4")
        special = bpe.special_of(self.tokenizer, "the tokenizer")
        return Encoder(self.tokenizer, special, dtype, self.config.validation_fraction)

    def documents(self, first: int) -> Generator[Document, None, None]:
        """Tokenised documents from number `first` on."""
        texts = itertools.islice(documents(self.config, self.base), first, None)
        return tokenise(texts, self.encoder, self.workers or default_workers())


def write(folder: Path, job: Writing) -> dict[str, Any]:
    """Writes tokenizer.json and all shards that `folder` does not hold yet; the part of the index they determine."""
    write_tokenizer(folder, job)
    done = shards.whole(folder)
    told = _Told(job, done)
    with closing(_until_enough(job, done)) as found:
        for first in found:
            done.append(shards.write(folder, len(done), itertools.chain([first], found), told.add))
    return {
        "dtype": job.encoder.dtype.str,
        "tokenizer_sha256": bpe.sha256(job.tokenizer),
        "special": job.encoder.special._asdict(),
        "splits": {split: _total(done, split) for split in SPLITS},
        "shards": done,
        "versions": {name: importlib.metadata.version(name) for name in ("datasets", "tokenizers", "numpy")},
    }


class _Told:
    """Counts what is written and passes it on now and then."""

    def __init__(self, job: Writing, done: list[Shard]) -> None:
        self._job, self._calls = job, 0
        self.tokens = sum(shard["train"]["tokens"] for shard in done)
        self.text_bytes = sum(shard[split]["text_bytes"] for shard in done for split in SPLITS)

    def add(self, tokens: int, text_bytes: int) -> None:
        """One more document."""
        self.tokens += tokens
        self.text_bytes += text_bytes
        if self._job.progress and self._calls % 64 == 0:
            self._job.progress(self.tokens, self.text_bytes, self._job.wanted)
        self._calls += 1


def _until_enough(job: Writing, done: list[Shard]) -> Generator[Document, None, None]:
    """Documents behind the shards that are `done`, until there are as many tokens as wanted."""
    needed = job.config.validation_sequences * job.config.sequence_length
    train, validation = (sum(shard[split]["tokens"] for shard in done) for split in SPLITS)
    if job.wanted is not None and train >= job.wanted and validation >= needed:
        return
    with closing(job.documents(sum(map(shards.documents, done)))) as found:
        for document in found:
            yield document
            if document.is_validation:
                validation += len(document.ids)
            else:
                train += len(document.ids)
            if job.wanted is not None and train >= job.wanted and validation >= needed:
                return


def _total(done: list[Shard], split: shards.Split) -> dict[str, int]:
    """Counts of a whole split."""
    return {key: sum(shard[split][key] for shard in done) for key in ("documents", "tokens", "text_bytes")}


def write_tokenizer(folder: Path, job: Writing) -> None:
    """Writes the tokenizer beside the tokens it made."""
    write_json(folder / "tokenizer.json", json.loads(job.tokenizer.to_str()))


def rewrite(folder: Path, job: Writing, index: dict[str, Any], numbers: list[int]) -> None:
    """Tokenises the documents of these shards again and puts their files back.

    Raises:
        DataError: the text makes other tokens than those the index has.
    """
    for number in numbers:
        first = sum(map(shards.documents, index["shards"][:number]))
        count = shards.documents(index["shards"][number])
        with (
            tempfile.TemporaryDirectory(prefix=REPAIR, dir=folder) as made_in,
            closing(job.documents(first)) as found,
        ):
            made = shards.write(Path(made_in), number, itertools.islice(found, count), lambda *_: None)
            if made != index["shards"][number]:
                raise DataError(
                    f"{folder}: the text makes another shard {number} now; delete the folder and prepare again."
                )
            for split in SPLITS:
                name = shards.name(split, number)
                (Path(made_in) / name).replace(folder / name)
