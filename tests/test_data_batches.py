"""Batches: examples by number, epochs that permute, a validation set that never changes, a thread that runs ahead."""

import dataclasses
import itertools
import math
import threading
import time

import numpy as np
import pytest

from march_search.config import DataConfig
from march_search.data.batches import Batches, prefetch
from march_search.data.corruption import restore
from march_search.data.reference import cross_entropy_nats, unigram_nats
from march_search.data.store import Store
from march_search.errors import DataError

CONFIG = DataConfig(vocab_size=1000, sequence_length=16, noise_density=0.25, mean_span_length=1, validation_sequences=4)
N = 10


@pytest.fixture
def store(tmp_path) -> Store:
    """Ten training sequences and a bit: the tokens count up from 2."""
    tokens = {"train": np.arange(2, 2 + 16 * N + 5), "validation": np.arange(300, 300 + 16 * 6)}
    for split, ids in tokens.items():
        ids.astype("<u2").tofile(tmp_path / f"{split}.bin")
    index = {
        "dtype": "<u2",
        "data": {"vocab_size": 1000},
        "splits": {split: {"tokens": len(ids)} for split, ids in tokens.items()},
        "text_unigram_nats": 5.0,
    }
    return Store(tmp_path, index)


def sequences(batch) -> list[int]:
    """Which sequence of the store each example is made from."""
    return [(restore(i, t, 1000)[0].item() - 2) // 16 for i, t in zip(*batch, strict=True)]


def test_an_epoch_visits_each_sequence_once_and_the_next_in_another_order(store):
    batches = Batches(store, CONFIG, seed=1)
    first, second = sequences(batches.train(0, N)), sequences(batches.train(N, N))
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second


def test_a_batch_may_straddle_epochs(store):
    batches = Batches(store, CONFIG, seed=1)
    whole = batches.train(0, 4 * N)
    parts = [Batches(store, CONFIG, seed=1).train(start, 5) for start in range(0, 4 * N, 5)]
    for side in (0, 1):
        assert np.array_equal(np.concatenate([part[side] for part in parts]), whole[side])
    assert np.array_equal(batches.train(7, 6)[0], whole[0][7:13])


def test_the_ranks_of_a_batch_make_the_batch(store):
    batches = Batches(store, CONFIG, seed=1)
    whole, parts = batches.train(8, 4), [batches.train(8 + rank * 2, 2) for rank in (0, 1)]
    assert np.array_equal(np.concatenate([inputs for inputs, _ in parts]), whole[0])


def test_the_seed_decides_order_and_spans(store):
    same, other = Batches(store, CONFIG, seed=1).train(0, N), Batches(store, CONFIG, seed=2).train(0, N)
    assert np.array_equal(Batches(store, CONFIG, seed=1).train(0, N)[0], same[0])
    assert sequences(same) != sequences(other)


def test_an_epoch_later_a_sequence_has_other_spans(store):
    batches = Batches(store, CONFIG, seed=1)
    inputs_BI, _ = batches.train(0, 30 * N)
    assert len(np.unique(inputs_BI, axis=0)) > 3 * N


def test_validation_is_the_same_for_all_seeds(store):
    for side in (0, 1):
        one, two = (Batches(store, CONFIG, seed=seed).validation(0, 4)[side] for seed in (1, 2))
        assert np.array_equal(one, two)
    batches = Batches(store, CONFIG, seed=1)
    assert np.array_equal(batches.validation(2, 9)[1], batches.validation(0, 4)[1][2:])
    inputs_BI, targets_BT = batches.validation(0, 9)
    assert [restore(i, t, 1000)[0] for i, t in zip(inputs_BI, targets_BT, strict=True)] == [300, 316, 332, 348]


def test_epochs_count_how_often_a_budget_repeats_the_text(store):
    batches = Batches(store, CONFIG, seed=1)
    assert (batches.num_train, batches.num_validation) == (N, 4)
    assert batches.epochs(16 * N * 3) == 3


def test_a_store_too_small_says_what_to_change(store):
    with pytest.raises(DataError) as caught:
        Batches(store, dataclasses.replace(CONFIG, validation_sequences=8), seed=0)
    assert str(caught.value) == (
        "wikipedia-summaries: the validation split holds 96 tokens, but validation_sequences 8 x sequence_length 16 is "
        "128: lower validation_sequences to 6 or shorten sequence_length."
    )
    with pytest.raises(DataError, match="165 training tokens make no sequence of 170"):
        Batches(store, dataclasses.replace(CONFIG, sequence_length=170), seed=0)


def test_unigram_losses_are_those_of_token_frequencies(store):
    assert cross_entropy_nats(np.array([2, 0]), np.array([1, 1])) == pytest.approx(
        -(math.log(3 / 4) + math.log(1 / 4)) / 2
    )
    assert cross_entropy_nats(np.array([1]), np.array([0])) is None
    nats = unigram_nats(store, CONFIG)
    assert nats == unigram_nats(store, CONFIG)
    assert nats["text_unigram_nats"] == 5.0
    assert 0 < nats["target_unigram_nats"] < math.log(1000) + 1


def test_prefetch_gives_every_item_in_order():
    assert list(prefetch(iter(range(100)))) == list(range(100))
    assert list(prefetch(iter([]))) == []


def test_prefetch_passes_an_exception_on_in_its_place():
    def failing():
        yield 1
        raise KeyError("here")

    items = prefetch(failing())
    assert next(items) == 1
    with pytest.raises(KeyError, match="here"):
        next(items)


def test_prefetch_runs_ahead_by_its_depth_and_closes_what_it_reads():
    made, closed = [], threading.Event()

    def source():
        try:
            for i in itertools.count():
                made.append(i)
                yield i
        finally:
            closed.set()

    before = threading.active_count()
    items = prefetch(source(), depth=2)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert made == [0, 1, 2]
    items.close()
    assert closed.is_set()
    assert threading.active_count() == before
