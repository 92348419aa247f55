"""What models lose that know nothing but token frequencies, or pairs of tokens: lines that every trial has to beat."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search.config import DataConfig
from march_search.data.batches import Batches
from march_search.data.store import Store

TRAIN_TOKENS = 1 << 22
"""Training tokens that are counted at most, from the first on."""
START = 0
"""What stands before the first token: what a decoder reads first."""


def unigram_nats(train_V: NDArray[np.int64], tokens_N: NDArray[Any]) -> float:
    """Nats per token of `tokens_N` under these frequencies, with one added to each count."""
    logs_V = np.log((train_V + 1) / (train_V.sum() + len(train_V)))
    return float(-logs_V[tokens_N].mean())


def bigram_nats(train_rows: NDArray[Any], rows: NDArray[Any], vocab_size: int) -> float:
    """Nats per token of `rows`, each token predicted from the one before it in its row, or from `START`.

    Counts come from `train_rows`; Witten-Bell smoothing mixes a context's counts with unigram frequencies, as heavily
    as the context had different followers (Witten and Bell 1991).
    """
    unigrams_V = np.bincount(train_rows.ravel(), minlength=vocab_size)
    pairs_P, counts_P = np.unique(_pairs(train_rows, vocab_size), return_counts=True)
    totals_V = np.bincount(pairs_P // vocab_size, counts_P, minlength=vocab_size)
    followers_V = np.bincount(pairs_P // vocab_size, minlength=vocab_size)
    asked_N = _pairs(rows, vocab_size)
    place_N = np.minimum(np.searchsorted(pairs_P, asked_N), len(pairs_P) - 1)
    seen_N = np.where(pairs_P[place_N] == asked_N, counts_P[place_N], 0)
    before_N, token_N = np.divmod(asked_N, vocab_size)
    unigram_N = (unigrams_V[token_N] + 1) / (unigrams_V.sum() + vocab_size)
    weight_N = np.maximum(followers_V[before_N], 1)  # a context that was never seen: unigrams alone
    probability_N = (seen_N + weight_N * unigram_N) / (totals_V[before_N] + weight_N)
    return float(-np.log(probability_N).mean())


def _pairs(rows: NDArray[Any], vocab_size: int) -> NDArray[np.int64]:
    """Each token with the one before it, as one number."""
    tokens = rows.astype(np.int64)
    before = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=START)
    return (before * vocab_size + tokens).ravel()


def reference_nats(store: Store, config: DataConfig) -> dict[str, Any]:
    """Cross-entropies of unigram and bigram models in nats per token, always the same for a store and `config`.

    Both count the first training examples, at most `TRAIN_TOKENS` tokens of text, and predict the validation examples.

    Returns:
        `target_unigram_nats`, `target_bigram_nats`: on the targets of span corruption, sentinels and ends included:
        comparable to an encoder-decoder's validation loss. `text_unigram_nats`, `text_bigram_nats`: on the text:
        comparable to a decoder-only model's.
    """
    told: dict[str, Any] = {}
    for name, structure in (("target", "encoder-decoder"), ("text", "decoder-only")):
        batches = Batches(store, config, 0, structure)
        examples = max(1, min(batches.num_train, TRAIN_TOKENS // config.sequence_length))
        train_rows = batches.train(0, examples)[1]
        rows = batches.validation(0, batches.num_validation)[1]
        counts_V = np.bincount(train_rows.ravel(), minlength=store.vocab_size)
        told[f"{name}_unigram_nats"] = unigram_nats(counts_V, rows)
        told[f"{name}_bigram_nats"] = bigram_nats(train_rows, rows, store.vocab_size)
    return told
