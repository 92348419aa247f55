"""Shards of a token store. They are complete or absent, so a writer can resume and damage can be detected."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Literal

from march_search.data.tokenise import Document
from march_search.files.atomic import file_sha256
from march_search.files.json_tables import read_json, write_json

Split = Literal["train", "validation"]

SPLITS: tuple[Split, Split] = ("train", "validation")

Shard = dict[str, dict[str, Any]]
"""Per split: `documents`, `tokens`, `text_bytes` (UTF-8, without end tokens) and `sha256` of the file."""

SHARD_BYTES = 1 << 25
"""Bytes of text after which a shard ends, at the end of a document."""


def name(split: Split, number: int) -> str:
    """Return the name of the file that holds the tokens of a split in a shard."""
    return f"{split}-{number:05d}.bin"


def write(folder: Path, number: int, documents: Iterator[Document], wrote: Callable[[int, int], None]) -> Shard:
    """Write documents until the shard is full or none are left, then its record; a shard without record is incomplete.

    Args:
        folder: Folder of the store.
        number: Number of the shard.
        documents: Documents to write. Only those that fit are consumed.
        wrote: Called with the number of training tokens and text bytes of each document.

    Returns:
        The record of the shard.
    """
    with ExitStack() as stack:
        files = {split: _SplitFile(stack.enter_context((folder / name(split, number)).open("wb"))) for split in SPLITS}
        text_bytes = 0
        for document in documents:
            files[SPLITS[document.is_validation]].add(document)
            wrote(0 if document.is_validation else len(document.ids), document.text_bytes)
            text_bytes += document.text_bytes
            if text_bytes >= SHARD_BYTES:
                break
        shard: Shard = {split: files[split].record() for split in SPLITS}
        for split in SPLITS:
            files[split].sync()
    write_json(_record(folder, number), shard)
    return shard


class _SplitFile:
    """A token file that is counted and hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self._documents = self._tokens = self._text_bytes = 0

    def add(self, document: Document) -> None:
        """Append a document."""
        data = document.ids.tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._documents += 1
        self._tokens += len(document.ids)
        self._text_bytes += document.text_bytes

    def record(self) -> dict[str, Any]:
        """Return the entry of this file in the index."""
        counts = {"documents": self._documents, "tokens": self._tokens, "text_bytes": self._text_bytes}
        return counts | {"sha256": self._hash.hexdigest()}

    def sync(self) -> None:
        """Flush the file to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())


def whole(folder: Path) -> list[Shard]:
    """Return the records of the consecutive complete shards, from the first on, that an interrupted writer left."""
    complete: list[Shard] = []
    for number in itertools.count():
        shard = read_json(_record(folder, number))
        if not isinstance(shard, dict) or broken(folder, number, shard):
            return complete
        complete.append(shard)
    raise AssertionError


def broken(folder: Path, number: int, shard: Shard) -> list[Split]:
    """Return the splits whose file is missing or has changed."""
    return [split for split in SPLITS if not is_intact(folder, number, split, shard)]


def is_intact(folder: Path, number: int, split: Split, shard: Shard) -> bool:
    """Return whether the file of a split exists and has not changed since it was written."""
    file = folder / name(split, number)
    return file.is_file() and file_sha256(file) == shard[split]["sha256"]


def forget_records(folder: Path) -> None:
    """Remove the shard records, which only a resumed writer needs."""
    for path in folder.glob("shard-*.json"):
        path.unlink()


def documents(shard: Shard) -> int:
    """Return the number of documents in both splits."""
    return sum(int(shard[split]["documents"]) for split in SPLITS)


def _record(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.json"
