"""What a model that knows nothing but token frequencies loses: the line every trial has to beat."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search.config import DataConfig
from march_search.data.batches import Batches
from march_search.data.store import Store

EXAMPLES = 4096
"""Training examples whose targets are counted."""


def cross_entropy_nats(train_V: NDArray[np.int64], validation_V: NDArray[np.int64]) -> float | None:
    """Nats per validation token under training frequencies with one added to each count; None without tokens."""
    total = int(validation_V.sum())
    if not total:
        return None
    logs_V = np.log((train_V + 1) / (train_V.sum() + len(train_V)))
    return float(-(validation_V * logs_V).sum() / total)


def unigram_nats(store: Store, config: DataConfig) -> dict[str, Any]:
    """Unigram cross-entropies in nats per token, always the same for a store and `config`.

    Returns:
        `target_unigram_nats`: on the targets of the validation examples, sentinels and `</s>` included, by frequencies
        in the targets of the first 4,096 training examples at seed 0. Comparable to a trial's validation loss.
        `text_unigram_nats`: on the raw tokens of the validation split, by frequencies in the whole training split.
    """
    batches = Batches(store, config, seed=0)
    _, train_BT = batches.train(0, min(EXAMPLES, batches.num_train))
    _, validation_BT = batches.validation(0, config.validation_sequences)
    counts = [np.bincount(targets.ravel(), minlength=store.vocab_size) for targets in (train_BT, validation_BT)]
    return {
        "target_unigram_nats": cross_entropy_nats(*counts),
        "text_unigram_nats": store.index["text_unigram_nats"],
    }
