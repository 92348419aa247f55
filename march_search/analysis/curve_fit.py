"""Extrapolate a learning curve by a power law: L(t) = floor + scale · t^-exponent.

For a given exponent, linear least squares gives the floor and scale (variable projection, Golub and Pereyra 1973). A
fit therefore tries every exponent of a grid and needs no initial guess. Residuals are relative, as in a fit of
logarithms, and large ones are down-weighted by Huber's rule (after Hoffmann et al. 2022, arXiv 2203.15556).

The early part of a curve fits many exponents equally well, and these disagree about its end. A fit therefore keeps all
exponents, weighted by likelihood, and resamples the residuals in blocks. The prior is flat on ln exponent within
published bounds, and each `BLOCK` of neighbouring evaluations counts as one, because their errors are correlated. The
power law itself is only approximate: the same fit to the first half of the tokens misses the last evaluation by some
amount, and a prediction may miss by as much per doubling of tokens. Fits with the same seed share their random numbers,
so that two parallel curves do not cross by chance.

Limitations: A plateau that a model has not left yet does not show in its curve. If the learning rate decays,
intermediate losses are not the final losses of shorter runs. `benchmarks/horizon.py` measures how often the intervals
contain the true loss.

Shape suffixes: B draws (the first is the central fit), G exponents, N evaluations, R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from march_search.analysis.comparison import CONFIDENCE, Interval

Array = NDArray[np.float64]

Curve = Sequence[tuple[float, float]]
"""(tokens, loss) pairs, ascending."""

EXPONENTS = np.geomspace(0.05, 1.0, 100)
"""Exponents to try; published ones lie between 0.05 (Kaplan et al. 2020) and 0.5."""

FEWEST = 4
"""Minimum number of evaluations for a fit."""

SKIPPED = 0.2
"""Initial share of the tokens whose evaluations are left out, because the first drop follows another law."""

HUBER = 1.345
"""Robust standard deviations beyond which residuals count linearly (Huber 1981)."""

DRAWS = 1000
"""Number of bootstrap draws."""

BLOCK = 3
"""Number of neighbouring evaluations whose residuals are drawn together."""


@dataclass(frozen=True, kw_only=True)
class CurveFit:
    """A fitted curve, as a sample of plausible power laws."""

    floor_B: Array
    """Asymptotic loss, in nats."""
    scale_B: Array
    """Nats above the floor at `unit` tokens."""
    exponent_B: Array
    miss_B: Array
    """Error added per doubling of tokens, in nats."""
    unit: float
    """Tokens at the last fitted evaluation."""

    def at(self, tokens: float) -> float:
        """Return the predicted loss at `tokens`."""
        return float(self.draws(tokens)[0])

    def draws(self, tokens: float) -> Array:
        """Return (B,) draws of the loss at `tokens`, the prediction first."""
        factor = tokens / self.unit
        smooth_B = self.floor_B + self.scale_B * factor**-self.exponent_B
        return np.asarray(smooth_B + self.miss_B * np.log2(max(factor, 1.0)), np.float64)

    def interval(self, tokens: float) -> Interval:
        """Return the central range that contains a share `CONFIDENCE` of the draws."""
        low, high = np.quantile(self.draws(tokens)[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Interval(float(low), float(high))


def fit_curve(curve: Curve, warmup_tokens: float = 0, seed: int = 0, miss: float | None = None) -> CurveFit | None:
    """Fit a curve; return None with fewer than `FEWEST` evaluations after warm-up and the first drop.

    Args:
        curve: (tokens, loss) pairs, ascending.
        warmup_tokens: Evaluations up to this many tokens are left out.
        seed: Random seed; fits with the same seed share their draws.
        miss: Prediction error in nats per doubling of tokens; None for the curve's `half_miss`, or 0 if it has none.
    """
    fit = _fit(curve, warmup_tokens)
    if fit is None:
        return None
    miss = half_miss(curve, warmup_tokens) if miss is None else miss
    rng = np.random.default_rng(seed)
    luck_B = np.append(0.5, rng.random(DRAWS))
    picked_B = np.minimum(np.searchsorted(np.cumsum(fit.chances_G), luck_B), len(EXPONENTS) - 1)
    miss_B = np.append(0.0, rng.standard_normal(DRAWS)) * (miss or 0.0)
    drawn_BN = fit.losses_N + np.vstack([np.zeros(len(fit.losses_N)), _blocks(rng, fit.residuals_N)])
    floor_B, scale_B = _linear(fit.powers_GN[picked_B], drawn_BN, fit.weights_N)
    return CurveFit(
        floor_B=floor_B, scale_B=scale_B, exponent_B=EXPONENTS[picked_B], miss_B=miss_B, unit=float(curve[-1][0])
    )


def half_miss(curve: Curve, warmup_tokens: float = 0) -> float | None:
    """Return the error of a fit to the first half of the tokens, in nats per doubling; None if it is too short."""
    half = [(tokens, loss) for tokens, loss in curve if tokens <= curve[-1][0] / 2]
    fit = _fit(half, warmup_tokens)
    if fit is None:
        return None
    middle = int(np.searchsorted(np.cumsum(fit.chances_G), 0.5))
    floor_B, scale_B = _linear(fit.powers_GN[[middle]], fit.losses_N[None], fit.weights_N)
    factor = curve[-1][0] / half[-1][0]
    predicted = floor_B[0] + scale_B[0] * factor ** -EXPONENTS[middle]
    return abs(float(predicted - curve[-1][1])) / float(np.log2(factor))


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """Fits of all exponents to one curve."""

    losses_N: Array
    powers_GN: Array
    weights_N: Array
    """Huber weights of the evaluations."""
    chances_G: Array
    """Probabilities of the exponents; they sum to 1."""
    residuals_N: Array
    """Residuals of the most likely exponent."""


def _fit(curve: Curve, warmup_tokens: float) -> _Fit | None:
    """Fit every exponent to the evaluations after warm-up and the first drop; return None if there are too few."""
    start = max(warmup_tokens, SKIPPED * curve[-1][0]) if curve else 0.0
    late = [(tokens, loss) for tokens, loss in curve if tokens > start]
    if len(late) < FEWEST:
        return None
    tokens_N, losses_N = np.transpose(np.asarray(late, float))
    powers_GN = (tokens_N / tokens_N[-1]) ** -EXPONENTS[:, None]
    weights_N, chances_G, residuals_N = _robust(powers_GN, losses_N)
    return _Fit(
        losses_N=losses_N, powers_GN=powers_GN, weights_N=weights_N, chances_G=chances_G, residuals_N=residuals_N
    )


def _robust(powers_GN: Array, losses_N: Array, rounds: int = 5) -> tuple[Array, Array, Array]:
    """Return Huber weights of evaluations, probabilities of exponents and residuals of the most likely exponent."""
    weights_N = losses_N**-2.0
    for _ in range(rounds):
        floor_G, scale_G = _linear(powers_GN, losses_N, weights_N)
        residuals_GN = losses_N - floor_G[:, None] - scale_G[:, None] * powers_GN
        costs_G = residuals_GN**2 @ weights_N + 1e-12
        residuals_N = residuals_GN[costs_G.argmin()]
        relative_N = np.abs(residuals_N) / losses_N + 1e-12
        weights_N = losses_N**-2.0 * np.minimum(1, HUBER * np.median(relative_N) / 0.6745 / relative_N)
    chances_G = (costs_G / costs_G.min()) ** (-len(losses_N) / BLOCK / 2)
    return weights_N, chances_G / chances_G.sum(), residuals_N


def _blocks(rng: np.random.Generator, residuals_N: Array) -> Array:
    """Return (`DRAWS`, N) residuals in random blocks with random signs, scaled to the size of out-of-sample errors."""
    many = len(residuals_N)
    starts = rng.integers(0, many - BLOCK + 1, (DRAWS, -(-many // BLOCK)))
    picked = (starts[:, :, None] + np.arange(BLOCK)).reshape(DRAWS, -1)[:, :many]
    signs = np.repeat(rng.choice([-1.0, 1.0], starts.shape), BLOCK, axis=1)[:, :many]
    return np.asarray(residuals_N[picked] * signs * np.sqrt(many / (many - 3)), np.float64)


def _linear(x_RN: Array, y_RN: Array, weights_N: Array) -> tuple[Array, Array]:
    """Return (R,) floors and (R,) scales of row-wise weighted least squares, both at least 0."""
    weights_N = weights_N / weights_N.sum()
    x_R, y_R = x_RN @ weights_N, y_RN @ weights_N
    xx_R, xy_R = x_RN**2 @ weights_N, (x_RN * y_RN) @ weights_N
    scale_R = np.maximum((xy_R - x_R * y_R) / np.maximum(xx_R - x_R**2, 1e-300), 0)
    floor_R = y_R - scale_R * x_R
    return np.maximum(floor_R, 0), np.where(floor_R < 0, xy_R / xx_R, scale_R)
