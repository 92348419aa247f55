"""Numbered training and validation examples, cut from the token store and ready for a model.

Shape suffixes: N sequences of a split, B examples, R raw tokens, I input tokens, T target tokens.
"""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from march_search.config import DataConfig
from march_search.data.corruption import Tokens, corrupt
from march_search.data.document_starts import document_starts
from march_search.data.shards import SPLITS, Split
from march_search.data.store import Store
from march_search.errors import DataError

T = TypeVar("T")

Batch = tuple[Tokens | None, Tokens]
"""`inputs_BI` and `targets_BT`, int64. `inputs_BI` is None for decoder-only models."""

VALIDATION_SEED = 0x5EED_0F_7A11
"""Seed of the validation spans, which are the same for all trials and seeds."""


class Batches:
    """An endless, numbered sequence of training examples and a fixed validation set.

    Sequence i of a split is its `sequence_length` tokens from `i * sequence_length` on; it may span documents. Example
    e is sequence `order[e % num_train]`. Every epoch `e // num_train` has a new order, and every example has different
    spans. An example depends only on the seed and its number, so a resumed trial continues at the next number, and each
    rank takes a slice of the numbers.
    """

    def __init__(self, store: Store, config: DataConfig, seed: int, structure: str = "encoder-decoder") -> None:
        """Open the token files for models of this `structure`. The target of a decoder-only model is the text itself.

        Raises:
            DataError: If the store is too small for `config`, or lacks the sentinels of encoder-decoders.
            ConfigError: If models of this structure cannot read the examples (`DataConfig.check_structure`).
        """
        config.check_structure(structure)
        if structure != "decoder-only" and store.special.first_sentinel is None:
            raise DataError(f"{store.folder}: the vocabulary has no sentinels, which encoder-decoders need.")
        store.require(config)
        self._config, self._seed, self._special = config, seed, store.special
        self._is_text = structure == "decoder-only"
        self._tokens = {split: store.tokens(split) for split in SPLITS}
        self._orders: dict[int, NDArray[np.uint32]] = {}

    @property
    def num_train(self) -> int:
        """Number of sequences in the training split, which is the number of examples per epoch."""
        return len(self._tokens["train"]) // self._config.sequence_length

    @property
    def num_validation(self) -> int:
        """Number of examples in the validation set."""
        return self._config.validation_sequences

    def epochs(self, tokens: int) -> float:
        """Return how many times a budget of `tokens` raw tokens reads the training split."""
        return tokens / (self.num_train * self._config.sequence_length)

    def train(self, first_example: int, count: int) -> Batch:
        """Return training examples `first_example` to `first_example + count - 1`, which may span several epochs.

        Returns:
            Inputs and targets, with B = `count`, I = `config.lengths.input` and T = `config.lengths.target`. For a
            decoder-only model, None and the text, with T = `config.sequence_length`.
        """
        examples_B = np.arange(first_example, first_example + count)
        epochs_B, positions_B = np.divmod(examples_B, self.num_train)
        sequences_B = np.empty(count, np.int64)
        for epoch in np.unique(epochs_B).tolist():
            in_epoch_B = epochs_B == epoch
            sequences_B[in_epoch_B] = self._order(epoch)[positions_B[in_epoch_B]]
        return self._batch("train", sequences_B, examples_B, self._seed)

    def validation(self, start: int, count: int) -> Batch:
        """Return up to `count` validation examples from `start` on. They are the same for every seed."""
        examples_B = np.arange(start, min(start + count, self.num_validation))
        return self._batch("validation", examples_B, examples_B, VALIDATION_SEED)

    def document_starts(self, texts_BT: Tokens) -> Tokens | None:
        """Return for each token of decoder-only examples where its document begins; None if documents are joined.

        The model then sees only this document (see `data.documents.document_starts`).
        """
        is_masked = self._config.documents == "masked"
        return document_starts(texts_BT, self._special.eos) if is_masked else None

    def _batch(self, split: Split, sequences_B: NDArray[np.int64], examples_B: NDArray[np.int64], seed: int) -> Batch:
        """Return the given sequences as the examples with the given numbers."""
        length = self._config.sequence_length
        tokens_BR = self._tokens[split].rows(sequences_B * length, length)
        if self._is_text:
            return None, tokens_BR.astype(np.int64)
        return corrupt(tokens_BR, examples_B, seed, self._config.lengths, self._special)

    def _order(self, epoch: int) -> NDArray[np.uint32]:
        """Return the order of an epoch. Only this order and that of the previous epoch stay in memory."""
        if epoch not in self._orders:
            key = np.array([self._seed % 2**64, epoch], np.uint64)
            order_N = np.random.Generator(np.random.Philox(key=key)).permutation(self.num_train).astype(np.uint32)
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1} | {epoch: order_N}
        return self._orders[epoch]


def prefetch(iterator: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """Yield the items of `iterator`, which a daemon thread computes up to `depth` items ahead.

    The thread starts when the first item is requested. An exception raised by `iterator` is raised here after the items
    before it. Closing this generator stops the thread and closes `iterator` if it has a `close` method.
    """
    done: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    room, stopped = threading.Semaphore(depth), threading.Event()
    thread = threading.Thread(target=_run_ahead, args=(iterator, done, room, stopped), name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            is_item, value = done.get()
            if not is_item:
                if value is not None:
                    raise value
                return
            room.release()
            yield value
    finally:
        stopped.set()
        room.release()
        thread.join()


def _run_ahead(
    iterator: Iterator[Any],
    done: "queue.SimpleQueue[tuple[bool, Any]]",
    room: threading.Semaphore,
    stopped: threading.Event,
) -> None:
    """Put every item into `done` as (True, item), then (False, exception), or (False, None) at the end."""
    try:
        while room.acquire() and not stopped.is_set():
            done.put((True, next(iterator)))
    except StopIteration:
        done.put((False, None))
    except BaseException as error:
        done.put((False, error))
    finally:
        if hasattr(iterator, "close"):
            iterator.close()
