"""Compare the order and the differences of a ladder's arms between two sizes, with the noise of seeds.

The arms are fixed: every figure is about these arms, and would have no error if each had endless seeds. Validation
documents are the same at all sizes, so figures are about these documents.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from march_search.analysis.comparison import CONFIDENCE, Interval, holm, pooled_variance, two_sided
from march_search.analysis.noise import Array
from march_search.ladders.size_draws import SizeLosses, size_draws

POWER = 0.8
"""Probability with which a turn of the printed size is found."""

Change = Literal["turns", "grows", "shrinks", ""]


@dataclass(frozen=True, kw_only=True)
class SizeAgreement:
    """How far a small size decides as a large one does."""

    small: str
    """Name of the small size."""
    large: str
    """Name of the large size."""
    pairs: int
    """Number of pairs of arms."""
    accuracy: float
    """Share of the pairs that both sizes put in the same order."""
    accuracy_interval: Interval
    kendall: float
    """Rank correlation (Kendall's tau-a)."""
    kendall_interval: Interval
    slope: float | None
    """Deming slope: nats of effect at the large size per nat of effect at the small size; None if it is vertical."""
    slope_interval: Interval | None
    """None if noise also allows a vertical line."""


@dataclass(frozen=True, kw_only=True)
class EffectChange:
    """How the difference between two arms changes from a small to a large size."""

    arms: tuple[int, int]
    """Indices of the arms; an effect is the loss of the first minus that of the second."""
    effects: tuple[float, float]
    """Effect at each size, in nats."""
    half_widths: tuple[float, float]
    """Half the width of each effect's interval."""
    change: Change
    """What is shown: the effect turns its sign, or becomes larger or smaller; empty if noise hides it."""
    p: float
    """p-value of what the effects seem to do, after Holm's correction over the comparisons."""


def agreement(small: SizeLosses, large: SizeLosses, seed: int = 0) -> SizeAgreement:
    """Compare the orders of two sizes.

    Intervals hold the central `CONFIDENCE` of the draws of `size_draws`, and what was seen. Without equal losses,
    Kendall's tau is twice the accuracy minus one, and so is its interval.
    """
    draws = size_draws(small, large, seed)
    first_BA, second_BA = draws.first_BA, draws.second_BA
    seen = float(_alike(small.means_A[None], large.means_A[None])[0])
    tail = (1 - CONFIDENCE) / 2
    ends = np.quantile(_alike(first_BA, second_BA), [tail, 1 - tail], method="inverted_cdf")
    low, high = min(float(ends[0]), seen), max(float(ends[1]), seen)
    ratio = float(np.square(large.errors_A).mean() / np.square(small.errors_A).mean())
    angle = float(deming_angles(small.means_A[None], large.means_A[None], ratio)[0])
    turns_B = (deming_angles(first_BA, second_BA, ratio) - angle + math.pi / 2) % math.pi - math.pi / 2
    bounds = [
        angle + min(0.0, float(np.quantile(turns_B, tail))),
        angle + max(0.0, float(np.quantile(turns_B, 1 - tail))),
    ]
    is_bounded = -math.pi / 2 < bounds[0] and bounds[1] < math.pi / 2
    return SizeAgreement(
        small=small.size,
        large=large.size,
        pairs=math.comb(len(small.means_A), 2),
        accuracy=seen,
        accuracy_interval=Interval(low, high),
        kendall=2 * seen - 1,
        kendall_interval=Interval(2 * low - 1, 2 * high - 1),
        slope=math.tan(angle) if abs(math.cos(angle)) > 1e-9 else None,
        slope_interval=Interval(math.tan(bounds[0]), math.tan(bounds[1])) if is_bounded else None,
    )


def _alike(first_BA: Array, second_BA: Array) -> Array:
    """Return the (B,) shares of pairs of arms that have the same order in both."""
    rows, columns = np.triu_indices(first_BA.shape[1], 1)
    signs = [np.sign(losses_BA[:, rows] - losses_BA[:, columns]) for losses_BA in (first_BA, second_BA)]
    return np.asarray((signs[0] == signs[1]).mean(axis=1), float)


def deming_angles(first_BA: Array, second_BA: Array, ratio: float) -> Array:
    """Return the (B,) angles, in (-π/2, π/2], of the Deming lines of the second losses on the first (Deming 1943).

    Args:
        first_BA: Losses at the small size.
        second_BA: Losses at the large size.
        ratio: Error variance at the large size divided by that at the small size.
    """
    x, y = (losses_BA - losses_BA.mean(axis=1, keepdims=True) for losses_BA in (first_BA, second_BA))
    xy = (x * y).sum(axis=1)
    gap = (y * y).sum(axis=1) - ratio * (x * x).sum(axis=1)
    angles = np.arctan2(gap + np.hypot(gap, 2 * math.sqrt(ratio) * xy), 2 * xy)
    return np.asarray(np.where(angles > math.pi / 2, angles - math.pi, angles), float)


def changes(
    small: SizeLosses, large: SizeLosses, pairs: Sequence[tuple[int, int]] | None = None
) -> tuple[EffectChange, ...]:
    """Return how the differences between pairs of arms change; by default, of all pairs.

    A turn needs both effects to differ from 0, with opposite signs. An effect grows if both the difference and the sum
    of the two effects have its sign, which is |large| > |small|, and shrinks if they have opposite signs. Each claim
    rests on two t-tests, of which the larger p-value counts (intersection-union, Berger 1982), with Holm's correction
    over the pairs.
    """
    chosen = list(combinations(range(len(small.means_A)), 2)) if pairs is None else list(pairs)
    tested = [_tested(small, large, pair) for pair in chosen]
    adjusted = holm(np.array([p for *_, p in tested]))
    return tuple(
        EffectChange(
            arms=pair,
            effects=effects,
            half_widths=half_widths,
            change=seeming if p < 1 - CONFIDENCE else "",
            p=float(p),
        )
        for pair, (effects, half_widths, seeming, _), p in zip(chosen, tested, adjusted, strict=True)
    )


def _tested(
    small: SizeLosses, large: SizeLosses, pair: tuple[int, int]
) -> tuple[tuple[float, float], tuple[float, float], Change, float]:
    """Return the effects of a pair at both sizes, half their intervals, what they seem to do, and its p-value."""
    from scipy.special import stdtrit

    first, second = (float(side.means_A[pair[0]] - side.means_A[pair[1]]) for side in (small, large))
    parts = [_parts(side, pair) for side in (small, large)]
    noise = [pooled_variance(own) for own in parts]
    widths = [float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * float(variance) ** 0.5 for variance, degrees in noise]
    if first * second < 0:
        seeming: Change = "turns"
        p = max(float(two_sided(effect, *own)) for effect, own in zip((first, second), noise, strict=True))
    else:
        seeming = "grows" if abs(second) > abs(first) else "shrinks"
        both = pooled_variance([*parts[0], *parts[1]])
        p = max(float(two_sided(second - first, *both)), float(two_sided(second + first, *both)))
    return (first, second), (widths[0], widths[1]), seeming, p


def _parts(side: SizeLosses, pair: tuple[int, int]) -> list[tuple[float, float]]:
    """Return the error variances of two arms, each with its degrees of freedom."""
    return [(float(side.errors_A[k]) ** 2, float(side.degrees_A[k])) for k in pair]


def separated_pairs(size: SizeLosses) -> list[tuple[int, int]]:
    """Return the pairs of arms whose losses differ beyond the noise of seeds, after Holm's correction."""
    pairs = list(combinations(range(len(size.means_A)), 2))
    p_values = [
        float(two_sided(size.means_A[a] - size.means_A[b], *pooled_variance(_parts(size, (a, b))))) for a, b in pairs
    ]
    return [pair for pair, p in zip(pairs, holm(np.array(p_values)), strict=True) if p < 1 - CONFIDENCE]


def detectable_turn(small: SizeLosses, large: SizeLosses, comparisons: int) -> float:
    """Return the effect, in nats, whose turn to the opposite is found with a probability of at least `POWER`.

    Both sizes must show it, each with the square root of that probability, after the correction for `comparisons`. The
    noisiest pair of arms counts.
    """
    from scipy.special import stdtrit

    largest = 0.0
    for side in (small, large):
        for pair in combinations(range(len(side.means_A)), 2):
            variance, degrees = pooled_variance(_parts(side, pair))
            quantiles = stdtrit(degrees, [1 - (1 - CONFIDENCE) / 2 / comparisons, POWER**0.5])
            largest = max(largest, float(variance) ** 0.5 * float(quantiles.sum()))
    return largest
