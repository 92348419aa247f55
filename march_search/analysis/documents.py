"""Read per-example validation losses and find the document of each example."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search.analysis.noise import Array
from march_search.analysis.study_record import TrialRecord
from march_search.data.store import Store
from march_search.errors import DataError
from march_search.trial.result import VALIDATION_SEAL, check_file, validation_file

BLOCK = 8
"""Number of neighbouring examples that count as one document if the documents cannot be read."""

SAME_NATS = 1e-4
"""Largest distance, in nats, of the mean over float32 losses from the mean that their evaluation recorded."""


@dataclass(frozen=True)
class Documents:
    """Document numbers of the validation examples."""

    numbers_N: NDArray[np.int64]
    kind: str
    """Count and kind, in words: `57 documents`."""


def read_documents(trial: TrialRecord, examples: int) -> Documents:
    """Return the main document of each example, or blocks of `BLOCK` examples if the token store cannot be read.

    Examples are consecutive slices of the validation text, in which an end token follows each document. Only the
    largest document in an example counts.
    """
    length = trial.config.data.sequence_length
    try:
        store = Store.open(trial.store)
        tokens_NR = store.tokens("validation").rows(np.arange(examples) * length, length)
    except (DataError, OSError, IndexError):
        numbers_N = np.arange(examples) // BLOCK
        return Documents(numbers_N, f"{numbers_N[-1] + 1:,} blocks of {BLOCK} examples (validation text is missing)")
    numbers_N = document_numbers(tokens_NR, store.special.eos)
    return Documents(numbers_N, f"{len(np.unique(numbers_N)):,} documents")


def document_numbers(tokens_NR: NDArray[Any], eos: int) -> NDArray[np.int64]:
    """Return (N,) number of the largest document in each example, the first if tied; `eos` ends a document."""
    is_end = (tokens_NR == eos).ravel()
    documents_NR = (np.cumsum(is_end) - is_end).reshape(tokens_NR.shape)
    return np.array([np.bincount(row - row[0]).argmax() + row[0] for row in documents_NR], np.int64)


def example_losses(trials: Sequence[TrialRecord], tokens: int) -> Array | None:
    """Return (N,) loss of each validation example after `tokens` tokens, averaged over trials.

    Returns None if the losses of a trial are missing or do not belong to its evaluation.
    """
    losses: list[Array] = []
    for trial in trials:
        trial_losses = _read(trial, tokens)
        if trial_losses is None or (losses and len(trial_losses) != len(losses[0])):
            return None
        losses.append(trial_losses)
    return np.mean(losses, axis=0) if losses else None


def _read(trial: TrialRecord, tokens: int) -> Array | None:
    """Return the losses of one trial's examples; None if they are missing, damaged or not finite.

    Only the last evaluation of a complete trial has a seal. Before that, the mean of the losses must be that of the
    evaluation.
    """
    file, mean = validation_file(trial.folder, tokens, trial.is_branch), trial.loss_at(tokens)
    is_sealed = trial.result is not None and tokens == trial.tokens
    try:
        check_file(file, trial.result if trial.result and is_sealed else {}, VALIDATION_SEAL)
        losses = np.load(file, allow_pickle=False)
    except (DataError, OSError, ValueError, EOFError):
        return None
    if losses.ndim != 1 or losses.dtype.kind != "f" or not np.isfinite(losses).all():
        return None
    losses = np.asarray(losses, np.float64)
    if not is_sealed and (mean is None or abs(losses.mean() - mean) > SAME_NATS):
        return None
    return losses
