"""T5's span corruption for whole batches, with fixed lengths and no padding (Raffel et al. 2020, section 3.1.4).

An example's spans depend on its seed and its number alone, through a counter-based hash: every slice of a batch, cut on
any rank or machine, is corrupted alike.

Shape suffixes: B examples, R raw tokens, I input tokens, T target tokens, S spans, P places for a divider.
"""

import numpy as np
from numpy.typing import NDArray

from march_search.data.ids import Special
from march_search.spans import SpanLengths

Tokens = NDArray[np.int64]
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def corrupt(
    tokens_BR: NDArray[np.integer],
    example_ids_B: NDArray[np.integer],
    seed: int,
    lengths: SpanLengths,
    special: Special,
) -> tuple[Tokens, Tokens]:
    """Inputs and targets of T5's denoising task.

    The input is the text with span k replaced by sentinel k, then the end; the target is sentinel k and the tokens of
    span k, for each k, then the end. The text begins with a kept segment and ends with a span; each way of cutting the
    noise into spans, and the rest into segments, is equally likely.

    Returns:
        `inputs_BI` with I = `lengths.input`, and `targets_BT` with T = `lengths.target`.
    """
    B, R = tokens_BR.shape
    noise, spans = lengths.noise, lengths.spans
    keys_B = _keys(example_ids_B, seed)
    noise_BS = _compositions(keys_B, noise, spans, first_counter=1)
    kept_BS = _compositions(keys_B, R - noise, spans, first_counter=1 + noise)
    noise_end_BS, kept_end_BS = noise_BS.cumsum(1), kept_BS.cumsum(1)

    rows_B1, order_S = np.arange(B)[:, None], np.arange(spans)
    edges_BR = np.zeros((B, R + 1), np.int8)  # +1 where a span starts, -1 where it has ended
    edges_BR[rows_B1, kept_end_BS + noise_end_BS - noise_BS] = 1
    edges_BR[rows_B1, kept_end_BS + noise_end_BS] = -1
    is_noise_BR = edges_BR[:, :R].cumsum(1, dtype=np.int8).astype(bool)

    sentinels_S = special.first_sentinel + special.step * order_S
    inputs_BI = _lay(tokens_BR[~is_noise_BR], kept_end_BS + order_S, sentinels_S, lengths.input, special.eos)
    targets_BT = _lay(
        tokens_BR[is_noise_BR], noise_end_BS - noise_BS + order_S, sentinels_S, lengths.target, special.eos
    )
    return inputs_BI, targets_BT


def restore(inputs_I: NDArray[np.integer], targets_T: NDArray[np.integer], special: Special) -> Tokens:
    """The text that one example was made from: each sentinel of the input gives way to its span of the target."""
    input_I, target_T = np.asarray(inputs_I[:-1], np.int64), np.asarray(targets_T[:-1], np.int64)
    kept = np.split(input_I, np.flatnonzero(special.is_sentinel(input_I)))
    taken = np.split(target_T, np.flatnonzero(special.is_sentinel(target_T)))[1:]
    pieces = [kept[0]]
    for span, segment in zip(taken, kept[1:], strict=True):
        assert span[0] == segment[0], "a target that belongs to another input"
        pieces += [span[1:], segment[1:]]
    return np.concatenate(pieces)


def _lay(
    words: NDArray[np.integer],
    sentinel_places_BS: NDArray[np.integer],
    sentinels_S: NDArray[np.integer],
    length: int,
    eos: int,
) -> Tokens:
    """Rows of `length`: sentinels at their places, `eos` at the end, the words in order everywhere else."""
    B = len(sentinel_places_BS)
    laid_BL = np.empty((B, length), np.int64)
    is_word_BL = np.ones((B, length), bool)
    is_word_BL[:, -1] = False
    np.put_along_axis(is_word_BL, sentinel_places_BS, False, axis=1)
    laid_BL[is_word_BL] = words
    np.put_along_axis(laid_BL, sentinel_places_BS, np.broadcast_to(sentinels_S, sentinel_places_BS.shape), axis=1)
    laid_BL[:, -1] = eos
    return laid_BL


def _compositions(keys_B: NDArray[np.uint64], total: int, parts: int, first_counter: int) -> NDArray[np.int64]:
    """For each key, `total` as an ordered sum of `parts` numbers above 0, each such sum equally likely.

    The `parts - 1` dividers stand at those of the `total - 1` places whose hashes are smallest. The low bits of a hash
    are the place itself, so that no two are equal and the result does not depend on how a library sorts.
    """
    places_P = np.arange(total - 1, dtype=np.uint64)
    bits = np.uint64((1 << total.bit_length()) - 1)
    hashes_BP = _mix(keys_B[:, None] + (places_P + np.uint64(first_counter)) * np.uint64(_GOLDEN))
    hashes_BP = (hashes_BP & ~bits) | places_P
    if 1 < parts < total:
        hashes_BP = np.partition(hashes_BP, parts - 2, axis=1)
    dividers_BS = np.sort(hashes_BP[:, : parts - 1] & bits, axis=1).astype(np.int64) + 1
    return np.diff(dividers_BS, axis=1, prepend=0, append=total)


def _keys(example_ids_B: NDArray[np.integer], seed: int) -> NDArray[np.uint64]:
    """One 64-bit key for each example."""
    start_1 = _mix(np.array([(seed * _GOLDEN + 1) & _MASK], np.uint64))
    return _mix(start_1 + _mix(np.asarray(example_ids_B).astype(np.uint64) * np.uint64(_GOLDEN)))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), a bijection of 64-bit numbers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
