"""Documents -> tokens on every core, in order, a few batches ahead; memory does not grow with the text."""

import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from march_search.data.ids import Special
from march_search.data.vocabulary import is_validation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_CHARACTERS = 1 << 17
"""Text that one thread takes at once, unless a document is longer."""
PIECE_CHARACTERS = 1 << 17
"""A longer document is tokenised in pieces: a token takes about 100 bytes while `tokenizers` holds it."""


class Document(NamedTuple):
    """One tokenised document."""

    ids: NDArray[Any]
    """Its tokens, the end included."""
    is_validation: bool
    """Which split it belongs to."""
    text_bytes: int
    """Its length in UTF-8."""


@dataclass(frozen=True)
class Encoder:
    """How documents become tokens."""

    tokenizer: "Tokenizer"
    special: Special
    dtype: np.dtype[Any]
    validation_fraction: float

    def batch(self, texts: list[str]) -> list[Document]:
        """Documents in order; a text that spells a special token of a loaded vocabulary loses it there."""
        if len(texts) == 1:
            parts = [self._encode([piece])[0] for piece in pieces(texts[0])]
            return [self._document(texts[0], np.concatenate(parts))]
        return [self._document(*pair) for pair in zip(texts, self._encode(texts), strict=True)]

    def _encode(self, texts: list[str]) -> list[NDArray[Any]]:
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in encoded]

    def _document(self, text: str, ids: NDArray[Any]) -> Document:
        forged = self.special.is_sentinel(ids) | (ids == self.special.eos)
        if forged.any():
            ids = ids[~forged]
        ended = np.append(ids, self.dtype.type(self.special.eos))
        return Document(ended, is_validation(text, self.validation_fraction), len(text.encode()))


def pieces(text: str) -> list[str]:
    """`text` in pieces of about `PIECE_CHARACTERS`, cut before a space between words where there is one.

    Byte-level BPE makes the same tokens of the pieces as of the whole: a word never reaches over such a space.
    """
    if len(text) <= PIECE_CHARACTERS:
        return [text]
    made, start = [], 0
    while len(text) - start > PIECE_CHARACTERS:
        stop = start + PIECE_CHARACTERS
        place = _SPACE.search(text, start + PIECE_CHARACTERS // 2, stop)
        stop = stop if place is None else place.start() + 1
        made.append(text[start:stop])
        start = stop
    return [*made, text[start:]]


_SPACE = re.compile(r"\S(?= \S)")


def default_workers() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tokenise(texts: Iterable[str], encoder: Encoder, workers: int) -> Generator[Document, None, None]:
    """Documents in the order of `texts`, made by `workers` threads: `tokenizers` works outside Python's lock."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a call, as many calls as workers
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
    """Texts in groups of about `BATCH_CHARACTERS`; one that is longer stands alone."""
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
