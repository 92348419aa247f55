"""Shards: pieces of a store, each whole or not there, so that a stopped writer goes on and a broken one is found."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Literal

from march_search.data.files import file_sha256
from march_search.data.tokenise import Document
from march_search.files import read_json, write_json

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
Shard = dict[str, dict[str, Any]]
"""For each split: `documents`, `tokens`, `text_bytes` (UTF-8, without the ends) and `sha256` of its file."""

SHARD_BYTES = 1 << 25
"""A shard ends with the document that brings its text to so many bytes."""


def name(split: Split, number: int) -> str:
    """File of a split's tokens in one shard."""
    return f"{split}-{number:05d}.bin"


def write(folder: Path, number: int, documents: Iterator[Document], wrote: Callable[[int, int], None]) -> Shard:
    """Takes documents until the shard is full or none is left; its files and their record appear whole.

    Args:
        folder: where to.
        number: of the shard.
        documents: what to write; those that do not fit are not taken.
        wrote: is told training tokens and text bytes of each document.
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
    """One token file, counted and hashed while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self._documents = self._tokens = self._text_bytes = 0

    def add(self, document: Document) -> None:
        """Appends one document."""
        data = document.ids.tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._documents += 1
        self._tokens += len(document.ids)
        self._text_bytes += document.text_bytes

    def record(self) -> dict[str, Any]:
        """What the index says about it."""
        counts = {"documents": self._documents, "tokens": self._tokens, "text_bytes": self._text_bytes}
        return counts | {"sha256": self._hash.hexdigest()}

    def sync(self) -> None:
        """Brings it to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())


def whole(folder: Path) -> list[Shard]:
    """The shards that a stopped writer finished, from the first on."""
    found: list[Shard] = []
    for number in itertools.count():
        shard = read_json(_record(folder, number))
        if not isinstance(shard, dict) or broken(folder, number, shard):
            return found
        found.append(shard)
    raise AssertionError


def broken(folder: Path, number: int, shard: Shard) -> list[Split]:
    """The splits whose file is missing or not what was written."""
    return [
        split
        for split in SPLITS
        if not (file := folder / name(split, number)).is_file() or file_sha256(file) != shard[split]["sha256"]
    ]


def forget_records(folder: Path) -> None:
    """Removes what only a writer that goes on needs."""
    for path in folder.glob("shard-*.json"):
        path.unlink()


def documents(shard: Shard) -> int:
    """Documents of both splits."""
    return sum(int(shard[split]["documents"]) for split in SPLITS)


def _record(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.json"
