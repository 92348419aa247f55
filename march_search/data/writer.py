"""Text to token files: splits documents, trains the tokenizer, tokenises once through `datasets`, counts as it goes."""

import hashlib
import importlib.metadata
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from march_search.config import DataConfig
from march_search.data import tokenizer as bpe
from march_search.data.corpora import documents
from march_search.data.ids import EOS
from march_search.data.reference import cross_entropy_nats
from march_search.data.store import SPLITS, Progress

BATCH = 256
"""Documents that are in memory at once."""


def is_validation(text: str, fraction: float) -> bool:
    """Whether a document belongs to the validation split: its hash decides, so copies of a text stay together."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < fraction * 2.0**64


def tokenizer_texts(config: DataConfig, base: Path) -> Iterator[str]:
    """The first training documents, until they hold `tokenizer_bytes` bytes."""
    left = config.tokenizer_bytes
    for text in documents(config, base):
        if left <= 0:
            return
        if not is_validation(text, config.validation_fraction):
            left -= len(text.encode())
            yield text


def write(
    folder: Path, config: DataConfig, base: Path, wanted: int | None, progress: Progress | None
) -> dict[str, Any]:
    """Writes tokenizer.json and both token files into `folder`; the part of the index that they determine."""
    tokenizer = bpe.train(tokenizer_texts(config, base), config.vocab_size)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    dtype = np.dtype("<u2" if config.vocab_size <= 1 << 16 else "<u4")
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{split}.bin").open("wb")) for split in SPLITS]
        train, validation = (_SplitWriter(file, config.vocab_size) for file in files)
        needed = config.validation_sequences * config.sequence_length
        for i, row in enumerate(_rows(config, base, tokenizer, dtype)):
            (validation if row["is_validation"] else train).add(row["ids"], row["text_bytes"])
            if progress and i % BATCH == 0:
                progress(train.tokens, wanted)
            if wanted is not None and train.tokens >= wanted and validation.tokens >= needed:
                break
    return {
        "dtype": dtype.str,
        "tokenizer_sha256": bpe.sha256(tokenizer),
        "splits": {"train": train.counts(), "validation": validation.counts()},
        "text_unigram_nats": cross_entropy_nats(train.unigrams_V, validation.unigrams_V),
        "versions": {name: importlib.metadata.version(name) for name in ("datasets", "tokenizers", "numpy")},
    }


class _SplitWriter:
    """One token file, counted and hashed while it is written."""

    def __init__(self, file: BinaryIO, vocab_size: int) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.documents = self.tokens = self.text_bytes = 0
        self.unigrams_V = np.zeros(vocab_size, np.int64)

    def add(self, ids: NDArray[Any], text_bytes: int) -> None:
        """Appends one document, which ends with `</s>`."""
        data = ids.tobytes()
        self._file.write(data)
        self._hash.update(data)
        np.add.at(self.unigrams_V, ids, 1)
        self.documents += 1
        self.tokens += len(ids)
        self.text_bytes += text_bytes

    def counts(self) -> dict[str, Any]:
        """The split's part of the index; `text_bytes` are UTF-8 bytes of the documents."""
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "text_bytes": self.text_bytes,
            "sha256": self._hash.hexdigest(),
        }


def _rows(config: DataConfig, base: Path, tokenizer: Any, dtype: np.dtype[Any]) -> Iterator[dict[str, Any]]:
    """Each document's `ids` with `</s>`, `is_validation` and `text_bytes`; memory stays at one batch of documents."""
    import datasets

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        texts = batch["text"]
        encoded = tokenizer.encode_batch_fast(texts)
        return {
            "ids": [np.array([*encoding.ids, EOS], dtype) for encoding in encoded],
            "is_validation": [is_validation(text, config.validation_fraction) for text in texts],
            "text_bytes": [len(text.encode()) for text in texts],
        }

    stream = datasets.IterableDataset.from_generator(_text_rows, gen_kwargs={"config": config, "base": base})
    return iter(stream.map(tokenise, batched=True, batch_size=BATCH, remove_columns=["text"]))


def _text_rows(config: DataConfig, base: Path) -> Iterator[dict[str, str]]:
    """Documents in the form that `datasets` takes."""
    for text in documents(config, base):
        yield {"text": text}
