"""The token store: a folder of tokens on disk, prepared once, opened by every trial with numpy alone."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from march_search.config import DataConfig
from march_search.data import corpora
from march_search.data.files import file_sha256
from march_search.data.folders import replacing, sync
from march_search.errors import DataError, StorageError
from march_search.files import lock

SCHEMA_VERSION = 1
Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
Progress = Callable[[int, int | None], None]
"""Is told how many training tokens are written, and how many are wanted (None: the whole text)."""


@dataclass(frozen=True)
class Store:
    """A prepared folder: `train.bin` and `validation.bin` (documents, each followed by `</s>`), tokenizer and index."""

    folder: Path
    index: dict[str, Any]
    """index.json: source, settings, counts, hashes, reference losses and library versions."""

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """The store in `folder`, its index and file sizes checked; the tokens stay on disk.

        Raises:
            DataError: the folder holds no store, one of another version, or a damaged one.
        """
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            version = index["schema_version"]
        except FileNotFoundError:
            raise DataError(f"{folder}: is no token store: it has no index.json.") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: index.json cannot be read ({error}); {_AGAIN}.") from None
        if version != SCHEMA_VERSION:
            raise DataError(f"{folder}: has schema version {version}, this program reads {SCHEMA_VERSION}; {_AGAIN}.")
        store = cls(folder, index)
        for split in SPLITS:
            store._check_size(split)
        return store

    def _check_size(self, split: Split) -> None:
        file = self.folder / f"{split}.bin"
        expected = self.num_tokens(split) * self.dtype.itemsize
        size = file.stat().st_size if file.is_file() else 0
        if size != expected:
            state = "cut" if size < expected else "too long"
            raise DataError(f"{self.folder}: {file.name} is {state}: {size:,} bytes, {expected:,} expected; {_AGAIN}.")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian uint16, or uint32 for a vocabulary above 65,536."""
        dtype: np.dtype[Any] = np.dtype(str(self.index["dtype"]))
        return dtype

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, special ones included."""
        return int(self.index["data"]["vocab_size"])

    @property
    def tokenizer_sha256(self) -> str:
        """Hash of the tokenizer (`tokenizer.sha256`)."""
        return str(self.index["tokenizer_sha256"])

    def num_tokens(self, split: Split) -> int:
        """Tokens of a split, `</s>` included."""
        return int(self.index["splits"][split]["tokens"])

    def tokens(self, split: Split) -> np.memmap[Any, np.dtype[Any]]:
        """All tokens of a split, one-dimensional, mapped from disk and read-only."""
        return np.memmap(self.folder / f"{split}.bin", dtype=self.dtype, mode="r", shape=(self.num_tokens(split),))

    def verify(self) -> None:
        """Compares the content of both token files with their hashes, which `open` does not.

        Raises:
            DataError: a file is not what was written.
        """
        for split in SPLITS:
            if file_sha256(self.folder / f"{split}.bin") != self.index["splits"][split]["sha256"]:
                raise DataError(f"{self.folder}: {split}.bin has changed since it was written; {_AGAIN}.")

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
            fraction = wanted / (train + held) * 1.1
            raise DataError(
                f"{config.corpus}: the validation split holds {held:,} tokens, but validation_sequences "
                f"{config.validation_sequences:,} x sequence_length {config.sequence_length:,} is {wanted:,}: "
                + (f"raise validation_fraction to about {fraction:.2g}, " if fraction < 0.5 else "")
                + f"lower validation_sequences to {held // config.sequence_length:,} or shorten sequence_length."
            )


_AGAIN = "delete the folder and prepare again"


def prepare(config: DataConfig, root: Path, base: Path, *, tokens: int, progress: Progress | None = None) -> Path:
    """The folder of the store of `config` under `root/data`, which is made if it is not there yet.

    One process writes while others wait; what is not finished is never read. An embedded or local corpus is read whole.
    A hub corpus is read until `tokens` training tokens and the validation sequences are there; without a pinned
    `hub_revision` the newest at that moment is taken and recorded, and the store then stays as it is.

    Args:
        config: which text and tokenizer. `sequence_length` and noise may change without preparing again.
        root: folder of the study; the caches of `datasets` stay below it, too.
        base: where relative paths of local corpora start.
        tokens: training tokens wanted from a hub corpus.
        progress: is called now and then while tokens are written.

    Raises:
        DataError: the corpus cannot be used or is too small.
        StorageError: `root` cannot be written.
    """
    source = corpora.source(config, base)
    wanted = tokens if source.is_stream else None
    settings = _settings(config, wanted)
    key = hashlib.sha256(json.dumps([SCHEMA_VERSION, settings, source.identity()], sort_keys=True).encode()).hexdigest()
    slug = re.sub(r"[^a-z0-9]+", "-", config.corpus.lower()).strip("-")[-40:].strip("-") or "corpus"
    folder = root / "data" / f"{slug}-{key[:12]}"
    try:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with lock(folder.parent / f".{folder.name}.lock"), replacing(folder) as partial:
                if partial:
                    index = _fill(partial, config, base, wanted, progress)
                    _finish(partial, {"schema_version": SCHEMA_VERSION, "data": settings} | index)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror or error}.") from None
    Store.open(folder).require(config)
    return folder


def _settings(config: DataConfig, wanted: int | None) -> dict[str, Any]:
    """The settings that decide which tokens a store holds; a stream is also cut by how much is wanted of it."""
    names = ("vocab_size", "tokenizer_bytes", "validation_fraction")
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    if wanted is not None:
        settings |= {"tokens": wanted, "validation_tokens": config.validation_sequences * config.sequence_length}
    return settings


def _fill(
    folder: Path, config: DataConfig, base: Path, wanted: int | None, progress: Progress | None
) -> dict[str, Any]:
    """Writes tokenizer and tokens into `folder`; what the index says about them and their source."""
    from march_search.data import hub, writer  # datasets and tokenizers are needed here and nowhere else

    with hub.caches(folder.parent / ".cache"):
        pinned = corpora.pinned(config, base)
        index = writer.write(folder, pinned, base, wanted, progress)
        return {"source": corpora.describe(pinned, base)} | index


def _finish(folder: Path, index: dict[str, Any]) -> None:
    """Writes the index and brings the whole folder to the disk."""
    (folder / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for path in [*folder.iterdir(), folder]:
        sync(path)
