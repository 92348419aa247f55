"""The token store: a folder of tokens, written once and read by every trial with numpy only."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search.config import DataConfig
from march_search.data import shards
from march_search.data.shards import SPLITS, Shard, Split
from march_search.data.tokenizer import Special
from march_search.errors import DataError
from march_search.files.atomic import file_sha256
from march_search.files.json_tables import read_table

SCHEMA_VERSION = 3
"""Version of the index that is written. It has a seal, the key `sha256` (see `files.sealed`)."""

UNSEALED_VERSION = 2
"""Version of an index without a seal. It is checked against itself, the tokenizer and the hashes of the shards."""

MEND = "repair it: march-search data prepare STUDY --repair"
"""What to do about a damaged store, for error messages."""


@dataclass(frozen=True)
class Tokens:
    """All tokens of a split: a read-only memory-mapped array that is stored in several files."""

    parts: Sequence[NDArray[Any]]

    def __len__(self) -> int:
        """Return the number of tokens in all files."""
        return int(self._starts[-1])

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Position of the first token of each file, followed by the total number of tokens."""
        return np.array([0, *itertools.accumulate(len(part) for part in self.parts)], np.int64)

    def rows(self, starts_B: NDArray[np.int64], length: int) -> NDArray[Any]:
        """Return one row per start, with the `length` tokens from there on."""
        rows_BR = np.empty((len(starts_B), length), self.parts[0].dtype)
        files_B = np.searchsorted(self._starts, starts_B, side="right") - 1
        within_B = starts_B - self._starts[files_B]
        for row_R, file, start in zip(rows_BR, files_B.tolist(), within_B.tolist(), strict=True):
            tokens_R = self.parts[file][start : start + length]
            row_R[: len(tokens_R)] = tokens_R
            while len(tokens_R) < length:  # the row continues in the next file
                file, start = file + 1, len(tokens_R)  # noqa: PLW2901
                tokens_R = np.append(tokens_R, self.parts[file][: length - start])
                row_R[start : len(tokens_R)] = tokens_R[start:]
        return rows_BR


@dataclass(frozen=True)
class Store:
    """A folder with tokenised documents in shards, the tokenizer and an index. An end token follows each document."""

    folder: Path
    index: dict[str, Any]
    """Content of index.json: source, settings, counts, hashes and library versions."""
    _tokens: dict[Split, Tokens] = field(default_factory=dict, repr=False, compare=False)
    """Splits whose files have been checked and mapped."""

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Open the store in `folder` and check its index, tokenizer and file sizes. The tokens stay on disk.

        Raises:
            DataError: If the folder does not hold a store, or the store is damaged or has another version.
        """
        store = cls.read(folder)
        for number, shard in enumerate(store.shards):
            for split in SPLITS:
                store._check_size(folder / shards.name(split, number), shard[split]["tokens"])
        store.check_tokenizer()
        return store

    @classmethod
    def read(cls, folder: Path) -> "Store":
        """Open the store in `folder` and check only its index.

        Raises:
            DataError: If the index is missing or damaged, or has another version.
        """
        file = folder / "index.json"
        if not file.is_file():
            raise DataError(f"{folder}: not a token store: index.json is missing; {MEND}.")
        index = read_table(file, {"schema_version": int}, f"{MEND[0].upper()}{MEND[1:]}.", DataError)
        version = index["schema_version"]
        if version not in (UNSEALED_VERSION, SCHEMA_VERSION):
            raise DataError(
                f"{folder}: expected schema version {SCHEMA_VERSION}, got {version}; delete the folder and prepare the "
                "text again."
            )
        if "sha256" not in index and not (version == UNSEALED_VERSION and _agrees(index)):
            raise DataError(f"{folder}: index.json has changed since it was written; {MEND}.")
        return cls(folder, index)

    def _check_size(self, file: Path, tokens: int) -> None:
        """Check that a token file exists and holds `tokens` tokens; raise DataError otherwise."""
        expected = tokens * self.dtype.itemsize
        if not file.is_file():
            raise DataError(f"{self.folder}: {file.name} is missing; {MEND}.")
        size = file.stat().st_size
        if size != expected:
            state = "too short" if size < expected else "too long"
            raise DataError(
                f"{self.folder}: {file.name} is {state}: expected {expected:,} bytes, got {size:,}; {MEND}."
            )

    @property
    def shards(self) -> list[Shard]:
        """Record of each shard in the index."""
        return list(self.index["shards"])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a token: little-endian uint16, or uint32 for a vocabulary above 65,536."""
        dtype: np.dtype[Any] = np.dtype(str(self.index["dtype"]))
        return dtype

    @property
    def vocab_size(self) -> int:
        """Vocabulary size of the models, including special tokens."""
        return int(self.index["data"]["vocab_size"])

    @property
    def special(self) -> Special:
        """Ids of the end token and of any sentinels."""
        return Special(**self.index["special"])

    @property
    def tokenizer_sha256(self) -> str:
        """Hash of the tokenizer, as returned by `tokenizer.sha256`."""
        return str(self.index["tokenizer_sha256"])

    def num_tokens(self, split: Split) -> int:
        """Return the number of tokens in a split, including end tokens."""
        return int(self.index["splits"][split]["tokens"])

    def tokens(self, split: Split, beat: Callable[[], None] = lambda: None) -> Tokens:
        """Return all tokens of a split. Its files are checked against their hashes, once, before they are mapped.

        Args:
            split: The split.
            beat: Called before each file is read.

        Raises:
            DataError: If a file has changed since it was written.
        """
        if split not in self._tokens:
            self._tokens[split] = self._mapped(split, beat)
        return self._tokens[split]

    def _mapped(self, split: Split, beat: Callable[[], None]) -> Tokens:
        parts: list[NDArray[Any]] = []
        for number, shard in enumerate(self.shards):
            beat()
            name = shards.name(split, number)
            if not shards.is_intact(self.folder, number, split, shard):
                raise DataError(f"{self.folder}: {name} has changed since it was written; {MEND}.")
            if shard[split]["tokens"]:  # an empty file cannot be mapped
                file = self.folder / name
                parts.append(np.asarray(np.memmap(file, self.dtype, "r", shape=(shard[split]["tokens"],))))
        return Tokens(parts or [np.empty(0, self.dtype)])

    def verify(self, beat: Callable[[], None] = lambda: None) -> None:
        """Check the tokens of both splits (see `tokens`), which `open` does not do.

        Raises:
            DataError: If a file has changed since it was written.
        """
        for split in SPLITS:
            self.tokens(split, beat)

    def check_tokenizer(self) -> None:
        """Check that tokenizer.json has not changed, and that the special ids of an index without a seal fit it.

        Raises:
            DataError: If they do not.
        """
        if not self.has_its_tokenizer():
            raise DataError(f"{self.folder}: tokenizer.json has changed since it was written; {MEND}.")
        if "sha256" not in self.index and not self._matches_its_tokenizer():
            raise DataError(f"{self.folder}: index.json does not match tokenizer.json; {MEND}.")

    def has_its_tokenizer(self) -> bool:
        """Return whether tokenizer.json exists and has not changed since it was written."""
        file = self.folder / "tokenizer.json"
        return file.is_file() and file_sha256(file) == self.index["tokenizer_file_sha256"]

    def _matches_its_tokenizer(self) -> bool:
        """Return whether the special ids and the vocabulary size of an index without a seal fit the tokenizer."""
        from march_search.data import tokenizer as bpe

        loaded = bpe.load(self.folder / "tokenizer.json", self.vocab_size)
        special = bpe.special_of(loaded, str(self.folder / "tokenizer.json"))
        return special == self.special and bpe.size(loaded) <= self.vocab_size

    def require(self, config: DataConfig) -> None:
        """Check that the store is large enough for the examples of `config`.

        Raises:
            DataError: If there is not one complete training sequence, or there are too few validation sequences.
        """
        train, held = self.num_tokens("train"), self.num_tokens("validation")
        if train < config.sequence_length:
            raise DataError(
                f"{self.folder}: {train:,} training tokens are fewer than sequence_length {config.sequence_length:,}: "
                "add text or shorten sequence_length."
            )
        wanted = config.validation_sequences * config.sequence_length
        if held < wanted:
            fraction, fits = wanted / (train + held) * 1.1, held // config.sequence_length
            raise DataError(
                f"{config.corpus}: the validation split has {held:,} tokens, but validation_sequences "
                f"{config.validation_sequences:,} x sequence_length {config.sequence_length:,} needs {wanted:,}: "
                + (f"raise validation_fraction to about {fraction:.2g}, " if fraction < 0.5 else "")
                + (f"lower validation_sequences to {fits:,} or " if fits > 1 else "add text or ")
                + "shorten sequence_length."
            )


def _agrees(index: dict[str, Any]) -> bool:
    """Return whether an index without a seal has the keys that are read, and agrees with itself."""
    keys = ("documents", "tokens", "text_bytes")
    try:
        totals = {split: {key: sum(shard[split][key] for shard in index["shards"]) for key in keys} for split in SPLITS}
        hashes = [
            index["tokenizer_file_sha256"],
            *(shard[split]["sha256"] for shard in index["shards"] for split in SPLITS),
        ]
        return (
            index["splits"] == totals
            and index["dtype"] == token_type(index["data"]["vocab_size"])
            and all(isinstance(i, int) for i in Special(**index["special"]))
            and all(isinstance(value, str) for value in hashes)
        )
    except (KeyError, TypeError, AttributeError):
        return False


def token_type(vocab_size: int) -> str:
    """Return the NumPy type of the tokens of a vocabulary: little-endian uint16 if that is enough, else uint32."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"
