"""Examples by number: which sequence of the store each one is, ready for a model: corrupted, or the text as it is.

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
from march_search.data.shards import SPLITS, Split
from march_search.data.store import Store

T = TypeVar("T")
Batch = tuple[Tokens | None, Tokens]
"""`inputs_BI` and `targets_BT`, int64; a decoder-only model has no inputs."""
VALIDATION_SEED = 0x5EED_0F_7A11
"""Seed of the validation set's spans: all trials of all seeds share them."""


class Batches:
    """Training examples, numbered without end, and a fixed validation set.

    Sequence i of a split is its tokens from `i * sequence_length` on, across documents. Example e is sequence
    `order[e % num_train]`, with a new order in each epoch `e // num_train` and with spans of its own. Examples depend
    on the seed and their number alone: to resume is to go on at a number, and a rank takes its slice of the numbers.
    """

    def __init__(self, store: Store, config: DataConfig, seed: int, structure: str = "encoder-decoder") -> None:
        """Opens the token files for models of this `structure`: a decoder-only model's target is the text itself.

        Raises:
            DataError: the store is too small for `config`.
        """
        store.require(config)
        self._config, self._seed, self._special = config, seed, store.special
        self._is_text = structure == "decoder-only"
        self._tokens = {split: store.tokens(split) for split in SPLITS}
        self._orders: dict[int, NDArray[np.uint32]] = {}

    @property
    def num_train(self) -> int:
        """Sequences of the training split: the examples of one epoch."""
        return len(self._tokens["train"]) // self._config.sequence_length

    @property
    def num_validation(self) -> int:
        """Examples of the validation set."""
        return self._config.validation_sequences

    def epochs(self, tokens: int) -> float:
        """How often a budget of raw `tokens` goes through the training split."""
        return tokens / (self.num_train * self._config.sequence_length)

    def train(self, first_example: int, count: int) -> Batch:
        """Examples `first_example` to `first_example + count - 1`; they may lie in several epochs.

        Returns:
            Inputs and targets: B = `count`, I = `config.lengths.input`, T = `config.lengths.target`; for a decoder-only
            model None and the text, T = `config.sequence_length`.
        """
        examples_B = np.arange(first_example, first_example + count)
        epochs_B, places_B = np.divmod(examples_B, self.num_train)
        sequences_B = np.empty(count, np.int64)
        for epoch in np.unique(epochs_B).tolist():
            here_B = epochs_B == epoch
            sequences_B[here_B] = self._order(epoch)[places_B[here_B]]
        return self._batch("train", sequences_B, examples_B, self._seed)

    def validation(self, start: int, count: int) -> Batch:
        """Validation examples from `start` on, at most `count`: the same for every seed."""
        examples_B = np.arange(start, min(start + count, self.num_validation))
        return self._batch("validation", examples_B, examples_B, VALIDATION_SEED)

    def _batch(self, split: Split, sequences_B: NDArray[np.int64], examples_B: NDArray[np.int64], seed: int) -> Batch:
        """These sequences as examples of these numbers."""
        length = self._config.sequence_length
        tokens_BR = self._tokens[split].rows(sequences_B * length, length)
        if self._is_text:
            return None, tokens_BR.astype(np.int64)
        return corrupt(tokens_BR, examples_B, seed, self._config.lengths, self._special)

    def _order(self, epoch: int) -> NDArray[np.uint32]:
        """The permutation of an epoch; that of the epoch before is kept, older ones are dropped."""
        if epoch not in self._orders:
            key = np.array([self._seed % 2**64, epoch], np.uint64)
            order_N = np.random.Generator(np.random.Philox(key=key)).permutation(self.num_train).astype(np.uint32)
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1} | {epoch: order_N}
        return self._orders[epoch]


def prefetch(iterator: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The items of `iterator`, made by a daemon thread that runs up to `depth` items ahead.

    The thread starts with the first item. An exception of `iterator` is raised here, in its place. Closing this
    generator stops the thread, and closes `iterator` if that is a generator.
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
    """Puts items, then how it ended: None or an exception."""
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
