"""Test which differences between mean losses exceed noise, and estimate which architecture is the best.

Pairs are compared by a t-test without a shared variance (Welch 1947). The variance of a difference is the sum of the
two architectures' own seed variances, each moderated by its prior, and of the paired document variance, with
Satterthwaite's degrees of freedom. Holm's method (1979) controls the error over all pairs: the probability of splitting
any true tie is at most `1 - CONFIDENCE`, whatever the dependence between the tests. Tie groups are named by letters:
architectures that share one are not separated (compact letter display, Piepho 2004).

"Is the leader the best" is a single question, and needs no correction over all pairs: the leader is compared with each
rival at the two-sided level, and the largest p-value counts. Choosing the leader by the same losses costs at most the
second side of the test (Gutmann and Maymin 1987; Hung and Fithian 2019).
"""

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from march_search.analysis.best import probability_best
from march_search.analysis.noise import Array, DataNoise, SeedNoise

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


def short_letters(named: str) -> str:
    """Return letters in the short form for tables: a run of four or more becomes `c-h`."""
    own = re.findall(r"[a-zA-Z]|\(\d+\)", named)
    numbers = [int(letter[1:-1]) - 1 if letter.startswith("(") else ALPHABET.index(letter) for letter in own]
    is_run = len(own) > 3 and numbers[-1] - numbers[0] == len(own) - 1
    return f"{own[0]}-{own[-1]}" if is_run else named


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
    """p-value of each pair after Holm's correction over all pairs."""
    letters: tuple[str, ...]
    """Tie groups: architectures that share a letter are not separated."""
    best: tuple[float, ...]
    """Probability of having the lowest loss, over new seeds and documents (`best.py`)."""
    leader_p: float
    """p-value of the claim that the leader is the best: its largest `p_AA` with a rival; 1 without rivals."""


def compare(
    means: Sequence[float], counts: Sequence[int], seeds: SeedNoise | None, data: DataNoise | None
) -> Comparison | None:
    """Compare architectures, best first; return None if neither noise is known.

    Args:
        means: Mean losses, ascending.
        counts: Number of seeds behind each mean.
        seeds: Training noise of each architecture; None to leave it out.
        data: Data noise; None if it was not measured.
    """
    if seeds is None and data is None:
        return None
    p_AA = pair_p_values(means, counts, seeds, data)
    upper = np.triu_indices(len(means), 1)
    adjusted_AA = np.ones_like(p_AA)
    adjusted_AA[upper] = holm(p_AA[upper])
    adjusted_AA = np.minimum(adjusted_AA, adjusted_AA.T)
    separated_AA = adjusted_AA < 1 - CONFIDENCE
    return Comparison(
        p_AA=p_AA,
        adjusted_AA=adjusted_AA,
        letters=letters(len(means), np.argwhere(np.triu(separated_AA, 1)).tolist()),
        best=probability_best(means, counts, seeds, data, separated_AA[0]),
        leader_p=float(p_AA[0, 1:].max(initial=0.0)) if len(means) > 1 else 1.0,
    )


def pair_p_values(
    means: Sequence[float], counts: Sequence[int], seeds: SeedNoise | None, data: DataNoise | None
) -> Array:
    """Return the uncorrected two-sided p-value of each pair; 1 on the diagonal."""
    p_AA = np.ones((len(means), len(means)))
    for i, k in itertools.combinations(range(len(means)), 2):
        variance, degrees = difference_variance(i, k, counts, seeds, data)
        p_AA[i, k] = p_AA[k, i] = two_sided(means[k] - means[i], variance, degrees)
    return p_AA


def difference_variance(
    i: int, k: int, counts: Sequence[int], seeds: SeedNoise | None, data: DataNoise | None
) -> tuple[float, float]:
    """Return the variance of the difference of two means and its degrees of freedom (Satterthwaite 1946)."""
    parts = []
    if seeds is not None:
        parts += [(seeds.deviations[n] ** 2 / counts[n], seeds.degrees[n]) for n in (i, k)]
    if data is not None:
        parts.append((data.variance(i, k), data.degrees))
    return pooled_variance(parts)


def pooled_variance(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the sum of variances, each with its degrees of freedom, and those of the sum (Satterthwaite 1946)."""
    total = sum(variance for variance, _ in parts)
    spread = sum(variance**2 / degrees for variance, degrees in parts)
    return total, total**2 / spread if spread else math.inf


def two_sided(difference: float, variance: float, degrees: float) -> float:
    """Return the p-value of a difference under Student's t; if the variance is 0, every difference is significant."""
    from scipy.special import stdtr

    if variance <= 0:
        return float(difference == 0)
    return float(min(1.0, 2 * stdtr(degrees, -abs(difference) / math.sqrt(variance))))


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return p-values adjusted by Holm's step-down method (1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return np.asarray(adjusted[np.argsort(order, kind="stable")], np.float64)


def mean_interval(index: int, mean: float, count: int, seeds: SeedNoise | None) -> Interval | None:
    """Return the interval of an architecture's expected loss over seeds on these examples; None without seed noise.

    The interval of a single seed is that of the prior alone.
    """
    from scipy.special import stdtrit

    if seeds is None:
        return None
    half = float(stdtrit(seeds.degrees[index], (1 + CONFIDENCE) / 2)) * seeds.deviations[index] / math.sqrt(count)
    return Interval(mean - half, mean + half)
