"""Batches: examples by number, shuffled epochs, a fixed validation set, prefetching, and n-gram losses."""

import dataclasses
import itertools
import math
import threading
import time
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from march_search.config import DataConfig
from march_search.data import ngrams
from march_search.data.batches import Batches, prefetch
from march_search.data.corruption import restore
from march_search.data.document_starts import document_starts
from march_search.data.ngrams import bigram_nats, reference_nats, unigram_nats
from march_search.data.store import Store
from march_search.data.tokenizer import Special, trained
from march_search.errors import ConfigError, DataError
from march_search.files.atomic import file_sha256

CONFIG = DataConfig(vocab_size=1000, sequence_length=16, noise_density=0.25, mean_span_length=1, validation_sequences=4)
N = 10


@pytest.fixture
def store(tmp_path) -> Store:
    """Ten training sequences and a remainder in three shards; the tokens count up from 2."""
    return make_store(tmp_path, [(0, 40), (40, 40), (40, 165)])


def make_store(folder, cuts) -> Store:
    """Make a store with tokens that count up, one shard per (start, stop); validation tokens are in the first shard."""
    shards = []
    for number, (start, stop) in enumerate(cuts):
        tokens = {"train": np.arange(2 + start, 2 + stop), "validation": np.arange(300, 300 + 16 * 6 * (number == 0))}
        for split, ids in tokens.items():
            ids.astype("<u2").tofile(folder / f"{split}-{number:05d}.bin")
        shards.append(
            {
                split: {"tokens": len(ids), "sha256": file_sha256(folder / f"{split}-{number:05d}.bin")}
                for split, ids in tokens.items()
            }
        )
    totals = {split: {"tokens": sum(shard[split]["tokens"] for shard in shards)} for split in ("train", "validation")}
    special = trained(1000)._asdict()
    index = {"dtype": "<u2", "data": {"vocab_size": 1000}, "special": special, "splits": totals, "shards": shards}
    return Store(folder, index)


def sequences(batch) -> list[int]:
    """Return the number of the sequence that each example is made from."""
    return [(restore(i, t, trained(1000))[0].item() - 2) // 16 for i, t in zip(*batch, strict=True)]


def test_an_epoch_visits_each_sequence_once_and_the_next_epoch_in_another_order(store):
    batches = Batches(store, CONFIG, seed=1)
    first, second = sequences(batches.train(0, N)), sequences(batches.train(N, N))
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second


def test_a_batch_may_cross_epochs(store):
    batches = Batches(store, CONFIG, seed=1)
    whole = batches.train(0, 4 * N)
    parts = [Batches(store, CONFIG, seed=1).train(start, 5) for start in range(0, 4 * N, 5)]
    for side in (0, 1):
        assert np.array_equal(np.concatenate([part[side] for part in parts]), whole[side])
    assert np.array_equal(batches.train(7, 6)[0], whole[0][7:13])


def test_the_parts_of_the_ranks_make_the_batch(store):
    batches = Batches(store, CONFIG, seed=1)
    whole, parts = batches.train(8, 4), [batches.train(8 + rank * 2, 2) for rank in (0, 1)]
    assert np.array_equal(np.concatenate([inputs for inputs, _ in parts]), whole[0])


def test_the_seed_determines_order_and_spans(store):
    same, other = Batches(store, CONFIG, seed=1).train(0, N), Batches(store, CONFIG, seed=2).train(0, N)
    assert np.array_equal(Batches(store, CONFIG, seed=1).train(0, N)[0], same[0])
    assert sequences(same) != sequences(other)


def test_spans_change_from_epoch_to_epoch(store):
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
    assert [restore(i, t, trained(1000))[0] for i, t in zip(inputs_BI, targets_BT, strict=True)] == [300, 316, 332, 348]


def test_epochs_count_the_repetitions_of_the_text(store):
    batches = Batches(store, CONFIG, seed=1)
    assert (batches.num_train, batches.num_validation) == (N, 4)
    assert batches.epochs(16 * N * 3) == 3


def test_a_store_that_is_too_small_names_the_settings_to_change(store):
    with pytest.raises(DataError) as caught:
        Batches(store, dataclasses.replace(CONFIG, validation_sequences=8), seed=0)
    assert str(caught.value) == (
        "wikipedia-summaries: the validation split has 96 tokens, but validation_sequences 8 x sequence_length 16 "
        "needs 128: lower validation_sequences to 6 or shorten sequence_length."
    )
    with pytest.raises(DataError, match="165 training tokens are fewer than sequence_length 170"):
        Batches(store, dataclasses.replace(CONFIG, sequence_length=170), seed=0)


def test_shards_are_read_as_one_text(tmp_path, store):
    (tmp_path / "whole").mkdir()
    whole = make_store(tmp_path / "whole", [(0, 165)])
    for structure in ("encoder-decoder", "decoder-only"):
        one, other = (Batches(s, CONFIG, 1, structure).train(0, 2 * N) for s in (whole, store))
        assert all(a is b or np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    tokens = store.tokens("train")
    assert len(tokens) == 165
    assert tokens.rows(np.array([0, 35, 160]), 5).tolist() == [[*range(2, 7)], [*range(37, 42)], [*range(162, 167)]]
    (tmp_path / "tiny").mkdir()
    tiny = make_store(tmp_path / "tiny", [(i, i + 1) for i in range(40)]).tokens("train")
    assert tiny.rows(np.array([3]), 37).tolist() == [[*range(5, 42)]]


def test_a_decoder_only_model_reads_the_text_in_the_same_order(store):
    text = Batches(store, CONFIG, 1, "decoder-only")
    inputs, targets_BT = text.train(0, N)
    assert inputs is None
    assert targets_BT.dtype == np.int64
    assert targets_BT.shape == (N, CONFIG.sequence_length)
    assert ((targets_BT[:, 0] - 2) // 16).tolist() == sequences(Batches(store, CONFIG, 1).train(0, N))
    assert all(row.tolist() == [*range(row[0], row[0] + 16)] for row in targets_BT)
    assert text.validation(0, 9)[1][:, 0].tolist() == [300, 316, 332, 348]


def test_the_order_is_pinned(store):
    batches = Batches(store, CONFIG, seed=3)
    assert sequences(batches.train(0, 2 * N)) == GOLDEN_ORDER


GOLDEN_ORDER = [6, 8, 4, 1, 3, 5, 9, 7, 0, 2, 2, 4, 0, 5, 8, 1, 3, 9, 7, 6]


def test_unigram_losses_follow_token_frequencies():
    assert unigram_nats(np.array([2, 0]), np.array([0, 1])) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)


@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=8))
@settings(deadline=None)
def test_bigram_probabilities_sum_to_one_after_every_token(rows):
    train_rows = np.array(rows)
    for before in range(5):
        probabilities = [np.exp(-_second(train_rows, before, token)) for token in range(5)]
        assert sum(probabilities) == pytest.approx(1)


def _second(train_rows, before: int, token: int) -> float:
    """Return the loss of the second token of a row, in nats."""
    both = bigram_nats(train_rows, np.array([[before, token]]), 5)
    return 2 * both - bigram_nats(train_rows, np.array([[before]]), 5)


def test_a_bigram_model_predicts_the_next_token():
    train_rows = np.tile([1, 2, 3, 4], (500, 1))
    assert bigram_nats(train_rows, train_rows[:5], 5) < 0.01
    assert unigram_nats(np.bincount(train_rows.ravel(), minlength=5), train_rows) == pytest.approx(
        math.log(4), abs=0.01
    )


def test_reference_losses_are_deterministic(store):
    nats = reference_nats(store, CONFIG)
    assert nats == reference_nats(store, CONFIG)
    assert set(nats) == {f"{on}_{model}_nats" for on in ("target", "text") for model in ("unigram", "bigram")}
    assert all(0 < value < math.log(1000) + 1 for value in nats.values())


def test_prefetch_keeps_every_item_in_order():
    assert list(prefetch(iter(range(100)))) == list(range(100))
    assert list(prefetch(iter([]))) == []


def test_prefetch_raises_an_exception_at_its_position():
    def failing():
        yield 1
        raise KeyError("here")

    items = prefetch(failing())
    assert next(items) == 1
    with pytest.raises(KeyError, match="here"):
        next(items)


def test_prefetch_runs_ahead_by_its_depth_and_closes_its_source():
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


def test_only_span_corruption_needs_sentinels(tmp_path):
    config = dataclasses.replace(CONFIG, sequence_length=2048, noise_density=0.15, mean_span_length=3.0)
    with pytest.raises(ConfigError, match="2048 tokens give 102 spans, but there are only 100 sentinels: decrease"):
        config.check_structure("encoder-decoder")
    with pytest.raises(ConfigError, match="only 100 sentinels"):
        Batches(make_store(tmp_path, [(0, 40)]), config, seed=0)
    folder = tmp_path / "long"
    folder.mkdir()
    store = make_store(folder, [(0, 165)])
    config = dataclasses.replace(
        CONFIG, sequence_length=8, noise_density=0.5, mean_span_length=1, validation_sequences=2
    )
    with mock.patch.multiple("march_search.config.data_config", SENTINELS=3), mock.patch.object(ngrams, "SENTINELS", 3):
        inputs, targets = Batches(store, config, 0, "decoder-only").train(0, 2)
        assert inputs is None
        assert targets.shape == (2, 8)
        assert set(reference_nats(store, config)) == {"text_unigram_nats", "text_bigram_nats"}


def test_the_document_of_each_token_begins_after_the_last_end_token():
    tokens = np.array([[5, 1, 6, 7, 1, 1, 8], [1, 9, 9, 9, 9, 9, 1], [9] * 7])
    expected = [[0, 0, 2, 2, 2, 5, 6], [0, 1, 1, 1, 1, 1, 1], [0] * 7]
    assert document_starts(tokens, 1).tolist() == expected
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (50, 40))
    for row, starts in zip(tokens.tolist(), document_starts(tokens, 3).tolist(), strict=True):
        start = 0
        for position, token in enumerate(row):
            assert starts[position] == start
            start = position + 1 if token == 3 else start


def test_batches_know_where_documents_begin_only_if_they_are_masked(tmp_path):
    joined = Batches(make_store(tmp_path, [(0, 165)]), CONFIG, 0, "decoder-only")
    assert joined.document_starts(np.zeros((2, 16), np.int64)) is None
    config = dataclasses.replace(CONFIG, documents="masked")
    index = make_store(tmp_path, [(0, 165)]).index
    store = Store(tmp_path, index | {"special": Special(37, 999)._asdict()})
    masked = Batches(store, config, 0, "decoder-only")
    for first in (0, 8):
        texts = masked.train(first, 8)[1]
        assert texts.tolist() == joined.train(first, 8)[1].tolist()  # the same examples in the same order
        starts = masked.document_starts(texts)
        for row, positions in zip(texts.tolist(), starts.tolist(), strict=True):
            cut = row.index(37) + 1 if 37 in row else 16
            assert positions == [0] * cut + [cut] * (16 - cut)
    with pytest.raises(ConfigError, match='documents = "masked" needs decoder-only models: a corrupted span may hold'):
        Batches(store, config, 0, "encoder-decoder")


def test_bigrams_of_masked_documents_begin_with_the_start_token():
    train, rows = np.array([[5, 1, 6, 5, 1, 7]]), np.array([[5, 1, 7, 1, 6]])
    joined, masked = bigram_nats(train, rows, 10), bigram_nats(train, rows, 10, end_token=1)
    assert masked != pytest.approx(joined)
    counts = {(0, 5): 1, (0, 6): 1, (0, 7): 1, (5, 1): 2, (6, 5): 1}
    totals, kinds = {0: 3, 5: 2, 6: 1}, {0: 3, 5: 1, 6: 1}
    unigrams = np.bincount(train.ravel(), minlength=10)
    logs = []
    for before, token in ((0, 5), (5, 1), (0, 7), (7, 1), (0, 6)):
        unigram = (unigrams[token] + 1) / (unigrams.sum() + 10)
        if before in totals:
            seen = counts.get((before, token), 0) + kinds[before] * unigram
            logs.append(math.log(seen / (totals[before] + kinds[before])))
        else:
            logs.append(math.log(unigram))
    assert masked == pytest.approx(-np.mean(logs))
