"""Combine loss and compute in one number, the compute-equivalent gain (Davidson et al. 2023, arXiv 2312.07413).

The gain is the compute that the reference architecture would need to reach a trial's loss, divided by the trial's own:

    gain = (F_reference / F) · (t / T)

F is FLOPs per token of text, T the tokens that all trials used, and t the tokens at which the reference's loss equals
the trial's. A gain of 2 means that the reference would need twice the compute; the gain of the reference itself is 1.

Near its end, the reference's loss is taken to follow a power law with a floor, L(t) = floor + s / α · (t / T)^-α, where
s is its drop per e-fold of tokens at T. With a loss difference d = L_reference - L this gives

    t / T = (1 - α · d / s)^(-1/α) = ((L_reference - floor) / (L - floor))^(1/α)

For α → 0 it is exp(d / s), a straight line in ln(tokens), which is too small for better trials. A few evaluations do
not determine α. All exponents of a grid are kept, with a flat prior on their logarithm within published bounds,
weighted by likelihood; given α, the law is linear and has a Student posterior. Draws of these and of the losses give
the interval. It does not account for a plateau that longer training would leave, and a decayed learning rate makes s
too steep.

Shape suffixes: B draws, G exponents, N evaluations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from march_search.analysis.comparison import CONFIDENCE
from march_search.analysis.noise import Array

FARTHEST = 10.0
"""Largest factor in tokens, in either direction, for which a gain is given."""

EXPONENTS = np.geomspace(0.05, 1.0, 60)
"""Exponents to try; published ones lie between 0.05 (Kaplan et al. 2020) and 0.5 (Hoffmann et al. 2022)."""

SKIPPED = 0.2
"""Initial share of the tokens that is left out, because the first drop follows another law."""

FEWEST = 3
"""Fewest evaluations after that share."""

EVALUATION_NATS, EVALUATION_DEGREES = 0.005, 3.0
"""Prior of the noise of one evaluation around its curve: deviation in nats, and degrees of freedom."""

DRAWS = 4000
"""Number of draws."""


@dataclass(frozen=True)
class LocalLaw:
    """Draws of the law that the reference's loss follows near its end."""

    exponents_B: Array
    slopes_B: Array
    """Drop per e-fold of tokens at the end, in nats."""

    @property
    def slope(self) -> float:
        """Median drop per e-fold of tokens, in nats."""
        return float(np.median(self.slopes_B))


@dataclass(frozen=True)
class Gain:
    """A compute-equivalent gain with its 95% interval; an end is None beyond a factor of `FARTHEST` in tokens."""

    point: float
    low: float | None
    high: float | None


def local_law(curve: Sequence[tuple[int, float]], warmup_tokens: float = 0) -> LocalLaw | None:
    """Return the law of a curve near its end; None with too few evaluations, or if the loss does not surely fall.

    Args:
        curve: (tokens, loss) pairs, ascending.
        warmup_tokens: Evaluations before this many tokens are left out.
    """
    start = max(warmup_tokens, SKIPPED * curve[-1][0]) if curve else 0.0
    late = [(tokens, loss) for tokens, loss in curve if tokens > start]
    if len(late) < FEWEST:
        return None
    tokens_N, losses_N = np.transpose(np.asarray(late, float))
    powers_GN = ((tokens_N / tokens_N[-1]) ** -EXPONENTS[:, None] - 1) / EXPONENTS[:, None]
    means_G, spreads_G = powers_GN.mean(axis=1), powers_GN.var(axis=1) * len(late)
    slopes_G = (powers_GN - means_G[:, None]) @ (losses_N - losses_N.mean()) / spreads_G
    left_GN = losses_N - losses_N.mean() - slopes_G[:, None] * (powers_GN - means_G[:, None])
    squares_G = EVALUATION_DEGREES * EVALUATION_NATS**2 + np.square(left_GN).sum(axis=1)
    degrees = EVALUATION_DEGREES + len(late) - 2
    logs_G = -np.log(spreads_G) / 2 - degrees / 2 * np.log(squares_G)
    chances_G = np.exp(logs_G - logs_G.max())
    rng = np.random.default_rng(0)
    drawn_B = rng.choice(len(EXPONENTS), DRAWS, p=chances_G / chances_G.sum())
    errors_B = np.sqrt(squares_G / degrees / spreads_G)[drawn_B] * rng.standard_t(degrees, DRAWS)
    slopes_B = slopes_G[drawn_B] + errors_B
    if np.mean(slopes_B <= 0) > (1 - CONFIDENCE) / 2:
        return None
    return LocalLaw(EXPONENTS[drawn_B], np.maximum(slopes_B, 1e-12))


def compute_equivalent_gain(
    difference: float, flops_ratio: float, law: LocalLaw | None, variance: float = 0.0, degrees: float = math.inf
) -> Gain | None:
    """Return the gain of a trial by the formula above; None beyond a factor of `FARTHEST`, or without a law.

    Args:
        difference: Final loss of the reference minus that of the trial, in nats.
        flops_ratio: FLOPs per token of the reference divided by those of the trial.
        law: `local_law` of the reference.
        variance: Variance of `difference`, in nats².
        degrees: Degrees of freedom of `variance`.
    """
    if law is None:
        return Gain(flops_ratio, None, None) if difference == 0 else None
    rng = np.random.default_rng(1)
    normal_B = rng.standard_normal(DRAWS)
    scale_B = np.sqrt(degrees / rng.chisquare(degrees, DRAWS)) if math.isfinite(degrees) else 1.0
    drawn_B = difference + math.sqrt(variance) * normal_B * scale_B
    low, high = np.quantile(_log_tokens(drawn_B, law), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], method="nearest")
    middle = float(np.median(_log_tokens(np.full(DRAWS, difference), law)))
    limit = math.log(FARTHEST)
    if abs(middle) > limit:
        return None
    ends = [flops_ratio * math.exp(end) if abs(end) <= limit else None for end in (low, high)]
    return Gain(flops_ratio * math.exp(middle), *ends)


def _log_tokens(differences_B: Array, law: LocalLaw) -> Array:
    """Return (B,) draws of ln(t / T); infinite where the loss lies below the floor."""
    left_B = 1 - law.exponents_B * differences_B / law.slopes_B
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(left_B > 0, -np.log(np.maximum(left_B, 1e-300)) / law.exponents_B, np.inf)
