"""One learning curve continued: L(t) = floor + scale · t^-exponent.

For a given exponent, floor and scale are the answer of linear least squares (variable projection, Golub and Pereyra
1973), so every exponent of a grid is tried, none is missed, and no start has to be guessed. Residuals are relative, as
in a fit of logarithms, and large ones count by Huber's rule (after Hoffmann et al. 2022, arXiv 2203.15556).

The beginning of a curve fits many exponents equally well, and they disagree about its end. So a fit is not the best
exponent but all of them, by how likely each makes the curve (flat prior on ln exponent within published bounds,
neighbouring evaluations counted as one in `BLOCK` because they err together), and each with residuals drawn again in
blocks. And no power law is the whole truth: the same fit to the first half of the tokens misses the last evaluation by
some amount, and a prediction may miss by as much for every doubling of tokens. Curves drawn with the same seed have the
same luck: what is unknown about the law is shared, so that two parallel curves do not cross by chance.

Pitfalls: a plateau that a model has not left is not in its curve. Evaluations of a run whose learning rate decays are
no ends of shorter runs. `benchmarks/horizon.py` tells how often the intervals hold.

Shape suffixes: B draws, the first one the middle of the fit; G exponents, N evaluations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from march_search.evidence.comparison import CONFIDENCE, Interval

Array = NDArray[np.float64]
Curve = Sequence[tuple[float, float]]
"""(tokens, loss), ascending."""
EXPONENTS = np.geomspace(0.05, 1.0, 100)
"""Exponents that are tried; published ones lie between 0.05 (Kaplan et al. 2020) and 0.5."""
FEWEST = 4
"""Evaluations that a fit needs."""
SKIPPED = 0.2
"""Share of the tokens seen whose evaluations are left out: the first fall follows another law."""
HUBER = 1.345
"""Residuals beyond so many robust standard deviations count linearly (Huber 1981)."""
DRAWS = 1000
"""Bootstrap draws."""
BLOCK = 3
"""Evaluations whose residuals are drawn together."""


@dataclass(frozen=True)
class CurveFit:
    """A fitted curve: a sample of what it may be."""

    floor_B: Array
    """Where it ends, in nats."""
    scale_B: Array
    """Nats above the floor at `unit` tokens."""
    exponent_B: Array
    miss_B: Array
    """What is added for every doubling of tokens, in nats."""
    unit: float
    """Tokens of the last evaluation that was fitted."""

    def at(self, tokens: float) -> float:
        """The predicted loss."""
        return float(self.draws(tokens)[0])

    def draws(self, tokens: float) -> Array:
        """(B,) losses that it may have there, the prediction first."""
        factor = tokens / self.unit
        smooth_B = self.floor_B + self.scale_B * factor**-self.exponent_B
        return np.asarray(smooth_B + self.miss_B * np.log2(max(factor, 1.0)), np.float64)

    def interval(self, tokens: float) -> Interval:
        """Range of the middle `CONFIDENCE` of the draws."""
        low, high = np.quantile(self.draws(tokens)[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Interval(float(low), float(high))


def fit_curve(curve: Curve, warmup_tokens: float = 0, seed: int = 0, miss: float | None = None) -> CurveFit | None:
    """Fits (tokens, loss) pairs, ascending; None with fewer than `FEWEST` after warm-up and first fall.

    Args:
        curve: what was evaluated.
        warmup_tokens: evaluations up to there are left out.
        seed: fits with the same one are drawn together.
        miss: nats by which a prediction may miss for every doubling; None for the curve's own `half_miss`, 0 without.
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
    return CurveFit(floor_B, scale_B, EXPONENTS[picked_B], miss_B, float(curve[-1][0]))


def half_miss(curve: Curve, warmup_tokens: float = 0) -> float | None:
    """What the first half of the tokens misses the last loss by, per doubling of tokens; None where that is too few."""
    half = [(tokens, loss) for tokens, loss in curve if tokens <= curve[-1][0] / 2]
    fit = _fit(half, warmup_tokens)
    if fit is None:
        return None
    middle = int(np.searchsorted(np.cumsum(fit.chances_G), 0.5))
    floor_B, scale_B = _linear(fit.powers_GN[[middle]], fit.losses_N[None], fit.weights_N)
    factor = curve[-1][0] / half[-1][0]
    predicted = floor_B[0] + scale_B[0] * factor ** -EXPONENTS[middle]
    return abs(float(predicted - curve[-1][1])) / float(np.log2(factor))


@dataclass(frozen=True)
class _Fit:
    """All exponents for one curve."""

    losses_N: Array
    powers_GN: Array
    weights_N: Array
    """Huber's."""
    chances_G: Array
    """Of the exponents; they sum to 1."""
    residuals_N: Array
    """Of the likeliest exponent."""


def _fit(curve: Curve, warmup_tokens: float) -> _Fit | None:
    """Every exponent fitted to what is left after warm-up and first fall; None if that is too little."""
    start = max(warmup_tokens, SKIPPED * curve[-1][0]) if curve else 0.0
    kept = [(tokens, loss) for tokens, loss in curve if tokens > start]
    if len(kept) < FEWEST:
        return None
    tokens_N, losses_N = np.transpose(np.asarray(kept, float))
    powers_GN = (tokens_N / tokens_N[-1]) ** -EXPONENTS[:, None]
    weights_N, chances_G, residuals_N = _robust(powers_GN, losses_N)
    return _Fit(losses_N, powers_GN, weights_N, chances_G, residuals_N)


def _robust(powers_GN: Array, losses_N: Array, rounds: int = 5) -> tuple[Array, Array, Array]:
    """Weights of the evaluations by Huber's rule, chances of the exponents, residuals of the likeliest."""
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
    """(`DRAWS`, N) residuals in drawn blocks with drawn signs, as large as those of points that were not fitted."""
    many = len(residuals_N)
    starts = rng.integers(0, many - BLOCK + 1, (DRAWS, -(-many // BLOCK)))
    picked = (starts[:, :, None] + np.arange(BLOCK)).reshape(DRAWS, -1)[:, :many]
    signs = np.repeat(rng.choice([-1.0, 1.0], starts.shape), BLOCK, axis=1)[:, :many]
    return np.asarray(residuals_N[picked] * signs * np.sqrt(many / (many - 3)), np.float64)


def _linear(x_RN: Array, y_RN: Array, weights_N: Array) -> tuple[Array, Array]:
    """(R,) floors and scales of weighted least squares, row by row, both at least 0."""
    weights_N = weights_N / weights_N.sum()
    x_R, y_R = x_RN @ weights_N, y_RN @ weights_N
    xx_R, xy_R = x_RN**2 @ weights_N, (x_RN * y_RN) @ weights_N
    scale_R = np.maximum((xy_R - x_R * y_R) / np.maximum(xx_R - x_R**2, 1e-300), 0)
    floor_R = y_R - scale_R * x_R
    return np.maximum(floor_R, 0), np.where(floor_R < 0, xy_R / xx_R, scale_R)
