"""Parallel tokenisation of documents, in order, with memory use that does not grow with the text."""

import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from march_search.data.tokenizer import Special
from march_search.data.vocabulary import is_validation

if TYPE_CHECKING:
    from tokenizers import Tokenizer


BATCH_CHARACTERS = 1 << 17
"""Characters per batch of documents. A longer document is a batch alone."""

PIECE_CHARACTERS = 1 << 17
"""Characters per piece of a long document. Pieces limit memory: `tokenizers` needs about 100 bytes per token."""


class Document(NamedTuple):
    """A tokenised document."""

    ids: NDArray[Any]
    """Token ids, including the end token."""
    is_validation: bool
    """Whether the document belongs to the validation split."""
    text_bytes: int
    """Length of the text in bytes of UTF-8."""


@dataclass(frozen=True)
class Encoder:
    """Encoder that turns documents into tokens."""

    tokenizer: "Tokenizer"
    special: Special
    dtype: np.dtype[Any]
    validation_fraction: float

    def batch(self, texts: list[str]) -> list[Document]:
        """Tokenise documents, in order. End tokens and sentinels that the tokenizer finds inside a text are removed."""
        if len(texts) == 1:
            parts = [self._encode([piece])[0] for piece in pieces(texts[0])]
            return [self._document(texts[0], np.concatenate(parts))]
        return [self._document(*pair) for pair in zip(texts, self._encode(texts), strict=True)]

    def _encode(self, texts: list[str]) -> list[NDArray[Any]]:
        """Return the token ids of each text."""
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in encoded]

    def _document(self, text: str, ids: NDArray[Any]) -> Document:
        """Return the document of a text and its token ids."""
        forged = self.special.is_sentinel(ids) | (ids == self.special.eos)
        if forged.any():
            ids = ids[~forged]
        ended = np.append(ids, self.dtype.type(self.special.eos))
        return Document(ended, is_validation(text, self.validation_fraction), len(text.encode()))


def pieces(text: str) -> list[str]:
    """Split `text` into pieces of about `PIECE_CHARACTERS`, before a space between words if possible.

    Byte-level BPE gives the same tokens for the pieces as for the whole text, because words do not cross such spaces.
    """
    if len(text) <= PIECE_CHARACTERS:
        return [text]
    parts, start = [], 0
    while len(text) - start > PIECE_CHARACTERS:
        stop = start + PIECE_CHARACTERS
        match = _SPACE.search(text, start + PIECE_CHARACTERS // 2, stop)
        stop = stop if match is None else match.start() + 1
        parts.append(text[start:stop])
        start = stop
    return [*parts, text[start:]]


_SPACE = re.compile(r"\S(?= \S)")


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tokenise(texts: Iterable[str], encoder: Encoder, workers: int) -> Generator[Document, None, None]:
    """Yield tokenised documents in the order of `texts`. `workers` threads run `tokenizers`, which releases the GIL."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per call; the pool runs the calls in parallel
    waiting: deque[Future[list[Document]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tokenise")
    try:
        for batch in _batches(texts):
            waiting.append(pool.submit(encoder.batch, batch))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        os.environ["TOKENIZERS_PARALLELISM"] = before or "true"


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Group texts into batches of up to `BATCH_CHARACTERS`. A longer text is a batch alone."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and size + len(text) > BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch
