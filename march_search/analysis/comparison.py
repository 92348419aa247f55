"""Test which differences between mean losses exceed noise, and estimate which architecture is the best.

Pairs are compared by a t-test without a shared variance (after Welch 1947). The variance of a difference is the sum of
the two architectures' own seed variances, each moderated by its prior, and of the paired document variance. The
correction for all pairs is by the distribution of the largest difference (`simultaneous.py`): the probability of
splitting any true tie is at most `1 - CONFIDENCE`. Tie groups are named by letters: architectures that share one are
not separated (compact letter display, Piepho 2004).

"Is the leader the best" is a single question, and needs no correction over all pairs: the leader is compared with each
rival at the two-sided level, and the largest p-value counts. Choosing the leader by the same losses costs at most the
second side of the test (Gutmann and Maymin 1987; Hung and Fithian 2019).
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from march_search.analysis.best import probability_best
from march_search.analysis.noise import Array, DataNoise, SeedNoise
from march_search.analysis.simultaneous import adjusted_p_values

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letters(count: int, separated: Iterable[Sequence[int]]) -> tuple[str, ...]:
    """Return the letters of `count` architectures, best first; `a` is the leader's group.

    Two architectures share a letter if and only if the pair is not in `separated` (insert-and-absorb algorithm).
    """
    groups = [frozenset(range(count))]
    for pair in sorted(tuple(sorted(p)) for p in separated):
        split = [group - {member} for group in groups if set(pair) <= group for member in pair]
        merged = [group for group in groups if not set(pair) <= group]
        for group in split:
            if not any(group <= other for other in merged):
                merged = [other for other in merged if not other <= group] + [group]
        groups = merged
    groups.sort(key=sorted)
    return tuple("".join(_letter(n) for n, group in enumerate(groups) if i in group) for i in range(count))


def shifted_letters(named: Sequence[str], used: Sequence[str]) -> list[str]:
    """Return letters that continue the alphabet after those in `used`."""
    start = 1 + max((number for text in used for number in _numbers(text)), default=-1)
    return ["".join(_letter(start + number) for number in _numbers(text)) for text in named]


def short_letters(named: str) -> str:
    """Return letters in the short form for tables: a run of four or more becomes `c-h`."""
    own, numbers = _LETTER.findall(named), _numbers(named)
    is_run = len(own) > 3 and numbers[-1] - numbers[0] == len(own) - 1
    return f"{own[0]}-{own[-1]}" if is_run else named


_LETTER = re.compile(r"[a-zA-Z]|\(\d+\)")


def _numbers(named: str) -> list[int]:
    """Return the numbers of the letters in `named`."""
    own = _LETTER.findall(named)
    return [int(letter[1:-1]) - 1 if letter.startswith("(") else ALPHABET.index(letter) for letter in own]


def _letter(number: int) -> str:
    """Return `a` to `z`, then `A` to `Z`, then numbers in parentheses."""
    return ALPHABET[number] if number < len(ALPHABET) else f"({number + 1})"


CONFIDENCE = 0.95
"""Confidence level of intervals and tie groups."""


@dataclass(frozen=True)
class Interval:
    """A range that contains the true value with probability `CONFIDENCE`."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Pairwise comparison of architectures, best first."""

    p_AA: Array
    """Uncorrected two-sided p-value of each pair; 1 on the diagonal."""
    adjusted_AA: Array
    """p-value of each pair after the correction for all pairs."""
    letters: tuple[str, ...]
    """Tie groups: architectures that share a letter are not separated."""
    best: tuple[float, ...]
    """Probability of having the lowest loss, over new seeds and documents (`best.py`); empty if not estimated."""
    leader_p: float
    """p-value of the claim that the leader is the best: its largest `p_AA` with a rival; 1 without rivals."""


def compare(
    means: Sequence[float],
    counts: Sequence[int],
    seeds: SeedNoise | None,
    data: DataNoise | None,
    with_best: bool = True,
) -> Comparison | None:
    """Compare architectures, best first; return None if neither noise is known.

    Args:
        means: Mean losses, ascending.
        counts: Number of seeds behind each mean.
        seeds: Training noise of each architecture; None to leave it out.
        data: Data noise; None if it was not measured.
        with_best: Whether to estimate the probabilities of being the best.
    """
    if seeds is None and data is None:
        return None
    variance_AA, degrees_AA = difference_variances(counts, seeds, data)
    difference_AA = np.subtract.outer(means, means)
    p_AA = two_sided(difference_AA, variance_AA, degrees_AA)
    adjusted_AA = np.maximum(p_AA, adjusted_p_values(difference_AA, variance_AA, degrees_AA, counts, seeds, data))
    separated_AA = adjusted_AA < 1 - CONFIDENCE
    return Comparison(
        p_AA=p_AA,
        adjusted_AA=adjusted_AA,
        letters=letters(len(means), np.argwhere(np.triu(separated_AA, 1)).tolist()),
        best=limited(probability_best(means, counts, seeds, data), separated_AA[0]) if with_best else (),
        leader_p=float(p_AA[0, 1:].max(initial=0.0)) if len(means) > 1 else 1.0,
    )


def difference_variances(counts: Sequence[int], seeds: SeedNoise | None, data: DataNoise | None) -> tuple[Array, Array]:
    """Return the variance of the difference of each pair of means and its degrees of freedom."""
    parts: list[tuple[Array | float, Array | float]] = [(0.0, math.inf)]
    if seeds is not None:
        variance_A, degrees_A = np.square(seeds.deviations) / np.asarray(counts, float), np.array(seeds.degrees, float)
        parts += [(variance_A[:, None], degrees_A[:, None]), (variance_A, degrees_A)]
    if data is not None:
        own_A = np.diag(data.covariance_AA)
        parts.append((np.maximum(0.0, own_A[:, None] + own_A - 2 * data.covariance_AA), data.degrees))
    return pooled_variance(parts)


def difference_variance(
    i: int, k: int, counts: Sequence[int], seeds: SeedNoise | None, data: DataNoise | None
) -> tuple[float, float]:
    """Return the variance of the difference of two means and its degrees of freedom."""
    parts: list[tuple[Array | float, Array | float]] = [(0.0, math.inf)]
    if seeds is not None:
        parts += [(seeds.deviations[n] ** 2 / counts[n], seeds.degrees[n]) for n in (i, k)]
    if data is not None:
        parts.append((data.variance(i, k), data.degrees))
    variance, degrees = pooled_variance(parts)
    return float(variance), float(degrees)


def pooled_variance(parts: Sequence[tuple[Array | float, Array | float]]) -> tuple[Array, Array]:
    """Return the sum of variances, each with its degrees of freedom, and the degrees of freedom of the sum.

    These are the mean of the parts' degrees, harmonic and weighted by variance (in the manner of Cochran 1964). The
    formula of Satterthwaite (1946) would add them up, which is right for independent estimates, but the degrees of a
    prior are not seeds: if variances follow their priors, it splits two tied architectures in 8% of studies.
    """
    total = np.asarray(sum(variance for variance, _ in parts), float)
    spread = np.asarray(sum(variance / degrees for variance, degrees in parts), float)
    return total, np.divide(total, spread, out=np.full_like(total, np.inf), where=spread > 0)


def two_sided(difference: Array | float, variance: Array | float, degrees: Array | float) -> Array:
    """Return the p-value of a difference under Student's t; if the variance is 0, every difference is significant."""
    from scipy.special import stdtr

    with np.errstate(divide="ignore", invalid="ignore"):
        t_value = np.where(np.equal(difference, 0), 0.0, -np.abs(difference) / np.sqrt(variance))
    return np.asarray(np.minimum(1.0, 2 * stdtr(degrees, t_value)), float)


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values adjusted by Holm's step-down method (1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return np.asarray(adjusted[np.argsort(order, kind="stable")], np.float64)


def limited(best_A: Array, separated_A: Array) -> tuple[float, ...]:
    """Return probabilities of being the best that never contradict the tie groups.

    The letters hold for all pairs together, with an error of at most `1 - CONFIDENCE`; a probability alone does not.
    Architectures that are separated from the leader get together at most `1 - CONFIDENCE`, and an architecture that is
    tied with the leader at most `CONFIDENCE`. What exceeds a limit goes to others tied with the leader, in proportion.

    Args:
        best_A: Probability of each architecture to be the best; the leader is first.
        separated_A: Whether the test separates each from the leader.
    """
    limited_A, tied_A = np.array(best_A, float), ~np.asarray(separated_A, bool)
    excess = max(0.0, float(limited_A[~tied_A].sum()) - (1 - CONFIDENCE))
    if excess:
        limited_A[~tied_A] *= (1 - CONFIDENCE) / limited_A[~tied_A].sum()
        limited_A[tied_A] += excess * _shares(limited_A[tied_A])
    top = int(limited_A.argmax())
    excess = float(limited_A[top]) - CONFIDENCE
    others_A = tied_A & (np.arange(len(limited_A)) != top)
    if excess > 0 and tied_A[top] and others_A.any():
        limited_A[top] = CONFIDENCE
        limited_A[others_A] += excess * _shares(limited_A[others_A])
    return tuple(limited_A.tolist())


def _shares(values: Array) -> Array:
    """Return the share of each value in their sum; equal shares if all are 0."""
    total = values.sum()
    return np.asarray(values / total if total > 0 else np.full(len(values), 1 / len(values)), float)


def mean_interval(index: int, mean: float, count: int, seeds: SeedNoise | None) -> Interval | None:
    """Return the interval of an architecture's expected loss over seeds on these examples; None without seed noise.

    The interval of a single seed is that of the prior alone.
    """
    from scipy.special import stdtrit

    if seeds is None:
        return None
    half = float(stdtrit(seeds.degrees[index], (1 + CONFIDENCE) / 2)) * seeds.deviations[index] / math.sqrt(count)
    return Interval(mean - half, mean + half)
