"""Span corruption: reversible, fixed lengths, independent of the batch, and uniform over all segmentations."""

from collections import Counter
from math import comb

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from march_search.architecture.spans import SpanLengths, span_lengths
from march_search.data.corruption import corrupt, restore
from march_search.data.tokenizer import EOS, Special, trained

VOCAB = 500
SPECIAL = trained(VOCAB)


@st.composite
def examples(draw):
    lengths_of = draw(st.integers(2, 300)), draw(st.floats(0.01, 0.99)), draw(st.floats(1, 40))
    lengths = span_lengths(*lengths_of)
    assume(lengths.spans <= 100)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tokens_BR = rng.integers(1, VOCAB - 100, (draw(st.integers(1, 5)), lengths_of[0])).astype(np.uint16)
    first = draw(st.integers(0, 2**60))
    return tokens_BR, first + np.arange(len(tokens_BR)), draw(st.integers(-(2**70), 2**70)), lengths


@given(examples())
@settings(deadline=None, max_examples=200)
def test_input_and_target_restore_the_text(example):
    tokens_BR, _, _, lengths = example
    inputs_BI, targets_BT = corrupt(*example, SPECIAL)
    assert inputs_BI.shape == (len(tokens_BR), lengths.input)
    assert targets_BT.shape == (len(tokens_BR), lengths.target)
    assert inputs_BI.dtype == targets_BT.dtype == np.int64
    sentinels = [SPECIAL.sentinel(i) for i in range(lengths.spans)]
    for tokens_R, input_I, target_T in zip(tokens_BR, inputs_BI, targets_BT, strict=True):
        assert restore(input_I, target_T, SPECIAL).tolist() == tokens_R.tolist()
        for side in (input_I, target_T):
            assert side[-1] == EOS
            assert side[side >= VOCAB - 100].tolist() == sentinels
        assert input_I[0] == tokens_R[0]  # the text starts with an uncorrupted segment
        assert input_I[-2] == sentinels[-1]  # and ends with a span
        assert target_T[0] == sentinels[0]
        at = np.flatnonzero(input_I >= VOCAB - 100)
        assert np.all(np.diff(at) > 1)  # no segment and no span is empty
        assert np.all(np.diff(np.append(np.flatnonzero(target_T >= VOCAB - 100), lengths.target - 1)) > 1)


@given(examples(), st.integers(1, 4))
@settings(deadline=None)
def test_each_rank_makes_its_part_of_the_global_batch(example, ranks):
    tokens_BR, ids_B, seed, lengths = example
    whole = corrupt(tokens_BR, ids_B, seed, lengths, SPECIAL)
    for rank in range(ranks):
        part = corrupt(tokens_BR[rank::ranks], ids_B[rank::ranks], seed, lengths, SPECIAL)
        assert all(np.array_equal(a[rank::ranks], b) for a, b in zip(whole, part, strict=True))


@pytest.mark.parametrize("special", [Special(1, 32_099), Special(7, 400, 1)])
def test_sentinels_may_lie_anywhere_and_run_up_or_down(special):
    lengths = span_lengths(40, 0.3)
    tokens_BR = np.arange(10, 50)[None]
    (input_I,), (target_T,) = corrupt(tokens_BR, np.array([3]), 0, lengths, special)
    assert input_I[special.is_sentinel(input_I)].tolist() == [special.sentinel(i) for i in range(lengths.spans)]
    assert input_I[-1] == target_T[-1] == special.eos
    assert restore(input_I, target_T, special).tolist() == tokens_BR[0].tolist()


def test_the_spans_are_pinned():
    inputs_BI, targets_BT = corrupt(
        np.arange(10, 50).reshape(2, 20), np.array([0, 7]), 1, span_lengths(20, 0.3), SPECIAL
    )
    assert inputs_BI.tolist() == GOLDEN[0]
    assert targets_BT.tolist() == GOLDEN[1]


GOLDEN = (
    [
        [10, 11, 499, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 498, 1],
        [30, 31, 32, 33, 34, 35, 36, 37, 499, 40, 41, 42, 43, 44, 45, 498, 1],
    ],
    [[499, 12, 13, 14, 15, 16, 498, 29, 1], [499, 38, 39, 498, 46, 47, 48, 49, 1]],
)


@pytest.mark.parametrize(("seed", "example"), [(1, 0), (0, 1)])
def test_spans_depend_on_the_seed_and_the_example(seed, example):
    tokens_BR, lengths = np.arange(10, 138)[None] % 300 + 10, span_lengths(128)
    first = corrupt(tokens_BR, np.array([0]), 0, lengths, SPECIAL)
    other = corrupt(tokens_BR, np.array([example]), seed, lengths, SPECIAL)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(("noise", "kept", "spans"), [(7, 5, 3), (6, 9, 2), (9, 8, 8), (4, 8, 4)])
def test_every_segmentation_is_equally_likely(noise, kept, spans):
    draws, lengths = 30_000, SpanLengths(noise, spans, kept + spans + 1, noise + spans + 1)
    sides = corrupt(np.full((draws, noise + kept), 10), np.arange(draws), 5, lengths, SPECIAL)
    for side, total in zip(sides, (kept, noise), strict=True):
        seen = Counter(map(tuple, side.tolist()))
        cells = comb(total - 1, spans - 1)
        assert len(seen) == cells
        expected = draws / cells
        chi2 = sum((count - expected) ** 2 / expected for count in seen.values())
        assert chi2 < cells - 1 + 5 * (2 * cells) ** 0.5


def test_noise_is_even_in_the_middle_of_the_text():
    lengths = span_lengths(64)
    _, targets_BT = corrupt(np.tile(np.arange(10, 74), (20_000, 1)), np.arange(20_000), 3, lengths, SPECIAL)
    share_R = np.bincount(targets_BT.ravel(), minlength=VOCAB)[10:74] / 20_000
    assert share_R.sum() == pytest.approx(lengths.noise)
    assert share_R[0] == 0
    assert share_R[-1] == 1
    assert np.all(np.abs(share_R[20:50] - 0.147) < 0.06)
