"""Per-example validation losses, and which document each example belongs to."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search.data.store import Store
from march_search.errors import DataError
from march_search.evidence.noise import Array
from march_search.evidence.trials import TrialRecord

BLOCK = 8
"""Neighbouring examples that are taken for one document where documents cannot be read."""


@dataclass(frozen=True)
class Documents:
    """The document of each validation example."""

    numbers_N: NDArray[np.int64]
    kind: str
    """What they are, in words, with their number: `57 documents`."""


def read_documents(trial: TrialRecord, examples: int) -> Documents:
    """The document that holds most of each example; blocks of `BLOCK` examples where the store is gone.

    Examples are consecutive slices of the validation text, each document followed by its end. What examples share
    beside their largest document is ignored.
    """
    length = trial.config.data.sequence_length
    try:
        store = Store.open(trial.store)
        tokens_NR = store.tokens("validation").rows(np.arange(examples) * length, length)
    except (DataError, OSError, IndexError):
        numbers_N = np.arange(examples) // BLOCK
        return Documents(numbers_N, f"{numbers_N[-1] + 1:,} blocks of {BLOCK} examples (their text is gone)")
    numbers_N = document_numbers(tokens_NR, store.special.eos)
    return Documents(numbers_N, f"{len(np.unique(numbers_N)):,} documents")


def document_numbers(tokens_NR: NDArray[Any], eos: int) -> NDArray[np.int64]:
    """(N,) number of the document that holds most of each example, the first of equals; `eos` ends a document."""
    is_end = (tokens_NR == eos).ravel()
    documents_NR = (np.cumsum(is_end) - is_end).reshape(tokens_NR.shape)
    return np.array([np.bincount(row - row[0]).argmax() + row[0] for row in documents_NR], np.int64)


def example_losses(trials: Sequence[TrialRecord]) -> Array | None:
    """(N,) loss of each validation example at the end of these trials, averaged over them; None if one has none."""
    found: list[Array] = []
    for trial in trials:
        file = trial.folder / "validation" / f"{trial.tokens:015d}.npy"
        own = _read(file)
        if own is None or (found and len(own) != len(found[0])):
            return None
        found.append(own)
    return np.mean(found, axis=0) if found else None


def _read(file: Path) -> Array | None:
    """One array of losses; None if it is missing, damaged or not finite."""
    try:
        own = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return own.astype(np.float64) if own.ndim == 1 and np.isfinite(own).all() else None
