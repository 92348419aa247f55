"""Reference losses of unigram and bigram models, which every trial should beat."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from march_search.architecture.huggingface import START_TOKEN
from march_search.config import DataConfig
from march_search.config.data_config import SENTINELS
from march_search.data.batches import Batches
from march_search.data.store import Store
from march_search.data.text_bytes import bits_per_nat

TRAIN_TOKENS = 1 << 22
"""Maximum number of training tokens that are counted, starting with the first."""


def unigram_nats(train_V: NDArray[np.int64], tokens_N: NDArray[Any]) -> float:
    """Return the nats per token of `tokens_N` under the counts `train_V`, with add-one smoothing."""
    logs_V = np.log((train_V + 1) / (train_V.sum() + len(train_V)))
    return float(-logs_V[tokens_N].mean())


def bigram_nats(
    train_rows: NDArray[Any],
    rows: NDArray[Any],
    vocab_size: int,
    end_token: int | None = None,
    start: int = START_TOKEN,
) -> float:
    """Return the nats per token of `rows`, with each token predicted from the one before it, the first from `start`.

    With masked documents, the first token of each document is predicted from `start` too, not from the `end_token`
    before it.

    Counts come from `train_rows`. Witten-Bell smoothing mixes the counts of a context with unigram frequencies. Their
    weight is the number of different tokens that follow the context (Witten and Bell 1991).
    """
    unigrams_V = np.bincount(train_rows.ravel(), minlength=vocab_size)
    pairs_P, counts_P = np.unique(_pairs(train_rows, vocab_size, end_token, start), return_counts=True)
    totals_V = np.bincount(pairs_P // vocab_size, counts_P, minlength=vocab_size)
    followers_V = np.bincount(pairs_P // vocab_size, minlength=vocab_size)
    pairs_N = _pairs(rows, vocab_size, end_token, start)
    index_N = np.minimum(np.searchsorted(pairs_P, pairs_N), len(pairs_P) - 1)
    seen_N = np.where(pairs_P[index_N] == pairs_N, counts_P[index_N], 0)
    before_N, token_N = np.divmod(pairs_N, vocab_size)
    unigram_N = (unigrams_V[token_N] + 1) / (unigrams_V.sum() + vocab_size)
    weight_N = np.maximum(followers_V[before_N], 1)  # an unseen context uses unigrams only
    probability_N = (seen_N + weight_N * unigram_N) / (totals_V[before_N] + weight_N)
    return float(-np.log(probability_N).mean())


def _pairs(rows: NDArray[Any], vocab_size: int, end_token: int | None, start: int) -> NDArray[np.int64]:
    """Return each token and the one before it, encoded as one number; `start` stands in for an `end_token` before."""
    tokens = rows.astype(np.int64)
    before = np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=start)
    if end_token is not None:
        before[before == end_token] = start
    return (before * vocab_size + tokens).ravel()


def reference_nats(store: Store, config: DataConfig) -> dict[str, Any]:
    """Return the cross-entropies of unigram and bigram models, in nats per token.

    Both models count the first training examples, up to `TRAIN_TOKENS` tokens of text, and predict the validation
    examples. The result is deterministic for a store and `config`.

    Returns:
        `target_unigram_nats` and `target_bigram_nats` on the targets of span corruption, including sentinels and end
        tokens, comparable to the validation loss of an encoder-decoder. `text_unigram_nats` and `text_bigram_nats` on
        the text, comparable to the validation loss of a decoder-only model. `target_bits_per_nat` and
        `text_bits_per_nat` turn them into bits per byte. Without those on targets if examples are too long for span
        corruption, documents are masked, or the vocabulary has no sentinels.
    """
    losses: dict[str, Any] = {}
    end_token = store.special.eos if config.documents == "masked" else None
    has_targets = config.lengths.spans <= SENTINELS and end_token is None and store.special.first_sentinel is not None
    for name, structure in (("target", "encoder-decoder"), ("text", "decoder-only")):
        if name == "target" and not has_targets:
            continue
        batches = Batches(store, config, 0, structure)
        examples = max(1, min(batches.num_train, TRAIN_TOKENS // config.sequence_length))
        train_rows = batches.train(0, examples)[1]
        rows = batches.validation(0, batches.num_validation)[1]
        counts_V = np.bincount(train_rows.ravel(), minlength=store.vocab_size)
        losses[f"{name}_unigram_nats"] = unigram_nats(counts_V, rows)
        losses[f"{name}_bigram_nats"] = bigram_nats(train_rows, rows, store.vocab_size, end_token, store.special.start)
        if (factor := bits_per_nat(store, rows)) is not None:
            losses[f"{name}_bits_per_nat"] = factor
    return losses
