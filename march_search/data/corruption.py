"""T5's span corruption for whole batches, with fixed lengths and no padding (Raffel et al. 2020, section 3.1.4).

The spans of an example depend only on the seed and its number, through a counter-based hash. An example is therefore
corrupted in the same way in every batch, on every rank and machine.

Shape suffixes: B examples, R raw tokens, I input tokens, T target tokens, S spans, E = S + 1 span boundaries,
P positions of dividers.
"""

import numpy as np
from numpy.typing import NDArray

from march_search.architecture.spans import SpanLengths
from march_search.data.tokenizer import Special

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
    """Return the inputs and targets of T5's denoising task.

    The input is the text with span k replaced by sentinel k, followed by the end token. The target is sentinel k and
    the tokens of span k, for each k, followed by the end token. The text starts with a kept segment and ends with a
    span. All ways to divide the noise into spans are equally likely, and so are all ways to divide the rest into
    segments.

    Returns:
        `inputs_BI` with I = `lengths.input`, and `targets_BT` with T = `lengths.target`.
    """
    B, R = tokens_BR.shape
    noise, spans = lengths.noise, lengths.spans
    counters_P = np.arange(1, R, dtype=np.uint64) * np.uint64(_GOLDEN)
    hashes_BP = (_mix(_keys(example_ids_B, seed)[:, None] + counters_P) >> np.uint64(32)).astype(np.uint32)
    noise_BE = _cumulated_cuts(hashes_BP[:, : noise - 1], noise, spans)
    kept_BE = _cumulated_cuts(hashes_BP[:, noise:], R - noise, spans)

    order_S = np.arange(spans)
    edges = np.zeros(B * (R + 1), np.int8)  # +1 at the first token of a span, -1 at the first token after it
    starts_B1 = np.arange(B)[:, None] * (R + 1)
    edges[starts_B1 + kept_BE[:, 1:] + noise_BE[:, :-1]] = 1
    edges[starts_B1 + kept_BE[:, 1:] + noise_BE[:, 1:]] = -1
    is_noise_BR = edges.cumsum(dtype=np.int8).view(bool).reshape(B, R + 1)[:, :R]  # the edges of a row add up to 0

    sentinels_S = special.sentinel(0) + special.step * order_S
    inputs_BI = _lay(tokens_BR[~is_noise_BR], kept_BE[:, 1:] + order_S, sentinels_S, lengths.input, special.eos)
    targets_BT = _lay(tokens_BR[is_noise_BR], noise_BE[:, :-1] + order_S, sentinels_S, lengths.target, special.eos)
    return inputs_BI, targets_BT


def restore(inputs_I: NDArray[np.integer], targets_T: NDArray[np.integer], special: Special) -> Tokens:
    """Return the text of one example: the input with each sentinel replaced by its span from the target."""
    input_I, target_T = np.asarray(inputs_I[:-1], np.int64), np.asarray(targets_T[:-1], np.int64)
    kept = np.split(input_I, np.flatnonzero(special.is_sentinel(input_I)))
    taken = np.split(target_T, np.flatnonzero(special.is_sentinel(target_T)))[1:]
    pieces = [kept[0]]
    for span, segment in zip(taken, kept[1:], strict=True):
        assert span[0] == segment[0], "the target belongs to another input"
        pieces += [span[1:], segment[1:]]
    return np.concatenate(pieces)


def _lay(
    kept: NDArray[np.integer],
    sentinel_positions_BS: NDArray[np.integer],
    sentinels_S: NDArray[np.integer],
    length: int,
    eos: int,
) -> Tokens:
    """Return rows of `length`: sentinels at their positions, `eos` at the end, `kept` in order everywhere else."""
    B = len(sentinel_positions_BS)
    flat_BS = sentinel_positions_BS + np.arange(B)[:, None] * length  # positions in the concatenated rows
    is_kept = np.ones(B * length, bool)
    is_kept[flat_BS] = False
    is_kept[length - 1 :: length] = False
    laid = np.empty(B * length, np.int64)
    laid[is_kept] = kept
    laid[flat_BS] = sentinels_S
    laid[length - 1 :: length] = eos
    return laid.reshape(B, length)


def _cumulated_cuts(hashes_BP: NDArray[np.uint32], total: int, parts: int) -> NDArray[np.int64]:
    """Divide `total` into `parts` positive numbers in each row, uniformly at random; return 0 and the cumulative sums.

    The `parts - 1` dividers are at those of the `total - 1` positions with the smallest hashes. The low bits of each
    hash are replaced by its position, so hashes are distinct and the result does not depend on the sorting algorithm.
    The other bits, 23 for 512 positions, are random.
    """
    bits = np.uint32((1 << total.bit_length()) - 1)
    hashes_BP = (hashes_BP & ~bits) | np.arange(total - 1, dtype=np.uint32)
    if 1 < parts < total:
        hashes_BP = np.partition(hashes_BP, parts - 2, axis=1)
    sums_BE = np.empty((len(hashes_BP), parts + 1), np.int64)
    sums_BE[:, 0], sums_BE[:, -1] = 0, total
    sums_BE[:, 1:-1] = np.sort(hashes_BP[:, : parts - 1] & bits, axis=1)
    sums_BE[:, 1:-1] += 1
    return sums_BE


def _keys(example_ids_B: NDArray[np.integer], seed: int) -> NDArray[np.uint64]:
    """Return one 64-bit key per example."""
    start_1 = _mix(np.array([(seed * _GOLDEN + 1) & _MASK], np.uint64))
    return _mix(start_1 + _mix(np.asarray(example_ids_B).astype(np.uint64) * np.uint64(_GOLDEN)))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the finaliser of splitmix64 (Steele, Lea and Flood 2014), a bijection on 64-bit integers."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
