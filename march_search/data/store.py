"""The token store: a folder of tokens on disk, prepared once, opened by every trial with numpy alone."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search.config import DataConfig
from march_search.data import shards
from march_search.data.files import file_sha256
from march_search.data.ids import Special
from march_search.data.shards import SPLITS, Shard, Split
from march_search.errors import DataError

SCHEMA_VERSION = 2
MEND = "mend it: march-search data prepare STUDY --repair"
"""Way out of every damage."""


@dataclass(frozen=True)
class Tokens:
    """All tokens of a split, mapped from disk, read-only: one array in several files."""

    parts: Sequence[NDArray[Any]]

    def __len__(self) -> int:
        """Tokens of all files."""
        return int(self._starts[-1])

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where each file starts, then where the last one ends."""
        return np.array([0, *itertools.accumulate(len(part) for part in self.parts)], np.int64)

    def rows(self, starts_B: NDArray[np.int64], length: int) -> NDArray[Any]:
        """`length` tokens from each of `starts_B` on, as rows."""
        rows_BR = np.empty((len(starts_B), length), self.parts[0].dtype)
        files_B = np.searchsorted(self._starts, starts_B, side="right") - 1
        within_B = starts_B - self._starts[files_B]
        for row_R, file, start in zip(rows_BR, files_B.tolist(), within_B.tolist(), strict=True):
            found = self.parts[file][start : start + length]
            row_R[: len(found)] = found
            while len(found) < length:  # the row goes on in the next file
                file, start = file + 1, len(found)  # noqa: PLW2901
                found = np.append(found, self.parts[file][: length - start])
                row_R[start : len(found)] = found[start:]
        return rows_BR


@dataclass(frozen=True)
class Store:
    """A prepared folder: shards of documents, each document followed by its end, tokenizer and index."""

    folder: Path
    index: dict[str, Any]
    """index.json: source, settings, counts, hashes and library versions."""

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """The store in `folder`, its index and file sizes checked; the tokens stay on disk.

        Raises:
            DataError: the folder holds no store, one of another version, or a damaged one.
        """
        store = cls.read(folder)
        for number, shard in enumerate(store.shards):
            for split in SPLITS:
                store._check_size(folder / shards.name(split, number), shard[split]["tokens"])
        return store

    @classmethod
    def read(cls, folder: Path) -> "Store":
        """The store in `folder`, its index checked and nothing else.

        Raises:
            DataError: the index is missing, damaged or of another version.
        """
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            version = index["schema_version"]
        except FileNotFoundError:
            raise DataError(f"{folder}: is no token store: it has no index.json; {MEND}.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: index.json cannot be read ({error}); {MEND}.") from None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{folder}: has schema version {version}, this program reads {SCHEMA_VERSION}; delete the folder and "
                "prepare again."
            )
        return cls(folder, index)

    def _check_size(self, file: Path, tokens: int) -> None:
        expected = tokens * self.dtype.itemsize
        if not file.is_file():
            raise DataError(f"{self.folder}: {file.name} is missing; {MEND}.")
        size = file.stat().st_size
        if size != expected:
            state = "cut" if size < expected else "too long"
            raise DataError(f"{self.folder}: {file.name} is {state}: {size:,} bytes, {expected:,} expected; {MEND}.")

    @property
    def shards(self) -> list[Shard]:
        """What the index says of each shard."""
        return list(self.index["shards"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian uint16, or uint32 for a vocabulary above 65,536."""
        dtype: np.dtype[Any] = np.dtype(str(self.index["dtype"]))
        return dtype

    @property
    def vocab_size(self) -> int:
        """Tokens of the models' vocabulary, special ones included."""
        return int(self.index["data"]["vocab_size"])

    @property
    def special(self) -> Special:
        """Ids of the end and the sentinels."""
        return Special(**self.index["special"])

    @property
    def tokenizer_sha256(self) -> str:
        """Hash of the tokenizer (`tokenizer.sha256`)."""
        return str(self.index["tokenizer_sha256"])

    def num_tokens(self, split: Split) -> int:
        """Tokens of a split, the documents' ends included."""
        return int(self.index["splits"][split]["tokens"])

    def tokens(self, split: Split) -> Tokens:
        """All tokens of a split."""
        found: list[NDArray[Any]] = []
        for number, shard in enumerate(self.shards):
            if shard[split]["tokens"]:  # an empty file cannot be mapped
                file = self.folder / shards.name(split, number)
                found.append(np.asarray(np.memmap(file, self.dtype, "r", shape=(shard[split]["tokens"],))))
        return Tokens(found or [np.empty(0, self.dtype)])

    def verify(self) -> None:
        """Compares the content of every shard with its hash, which `open` does not.

        Raises:
            DataError: a file is not what was written.
        """
        for number, shard in enumerate(self.shards):
            for split in shards.broken(self.folder, number, shard):
                raise DataError(
                    f"{self.folder}: {shards.name(split, number)} has changed since it was written; {MEND}."
                )
        if not self.has_its_tokenizer():
            raise DataError(f"{self.folder}: tokenizer.json has changed since it was written; {MEND}.")

    def has_its_tokenizer(self) -> bool:
        """Whether tokenizer.json is there and is what was written."""
        file = self.folder / "tokenizer.json"
        return file.is_file() and file_sha256(file) == self.index["tokenizer_file_sha256"]

    def require(self, config: DataConfig) -> None:
        """Refuses a store that is too small for the examples that `config` asks for.

        Raises:
            DataError: no whole training sequence, or fewer validation sequences than wanted.
        """
        train, held = self.num_tokens("train"), self.num_tokens("validation")
        if train < config.sequence_length:
            raise DataError(f"{self.folder}: {train:,} training tokens make no sequence of {config.sequence_length:,}.")
        wanted = config.validation_sequences * config.sequence_length
        if held < wanted:
            fraction, fits = wanted / (train + held) * 1.1, held // config.sequence_length
            raise DataError(
                f"{config.corpus}: the validation split holds {held:,} tokens, but validation_sequences "
                f"{config.validation_sequences:,} x sequence_length {config.sequence_length:,} is {wanted:,}: "
                + (f"raise validation_fraction to about {fraction:.2g}, " if fraction < 0.5 else "")
                + (f"lower validation_sequences to {fits:,} or " if fits > 1 else "give more text or ")
                + "shorten sequence_length."
            )
