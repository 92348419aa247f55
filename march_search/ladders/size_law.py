"""Fit the losses of a ladder's arms over its sizes, and forecast them at another size.

Each arm has a power law with an offset, `L = E + B N^-α` (Hestness et al. 2017; Hoffmann et al. 2022), where N is the
parameter budget and tokens are in a fixed proportion to it. `E` and `B` are the arm's own; the arms of one ladder share
the exponent, because three sizes do not show it for one arm alone. Every exponent from `LEAST` to `MOST` is equally
likely before; the offset of the mean arm is not negative, so the law lies between one without an offset and one with an
exponent of `MOST`. With two sizes, the losses do not show the exponent, and the forecast has all of these.

Errors are draws of each arm's losses given what its seeds show, with the variance of the noise drawn, too, and the arms
drawn towards one another (`size_shrinkage.py`).

Shape suffixes: S sizes, A arms, B draws, K draws of the seed variances, G exponents.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from march_search.analysis.comparison import CONFIDENCE, Interval
from march_search.analysis.noise import Array
from march_search.errors import UsageError
from march_search.ladders.size_draws import SizeLosses
from march_search.ladders.size_shrinkage import Ends, shrunk_ends

LEAST, MOST = 0.02, 1.0
"""Smallest and largest exponent."""

EXPONENTS = np.linspace(LEAST, MOST, 50)

DRAWS, VARIANCES = 4000, 32
"""Number of draws of the noise, and of the seed variances."""


@dataclass(frozen=True, kw_only=True)
class SizeForecast:
    """Losses of a ladder's arms at a size, from the law over other sizes."""

    parameters: int
    """Parameters of the size."""
    losses_A: Array
    """Expected loss of each arm: the median."""
    intervals: tuple[Interval, ...]
    """Interval of each arm's expected loss over seeds."""
    best_A: Array
    """Probability of each arm to have the lowest expected loss."""
    exponent: float
    """Exponent of the law: the median."""
    exponent_interval: Interval
    offsets: tuple[Interval, ...]
    """Interval of each arm's offset, the loss of an endless model."""
    draws_BA: Array
    """Draws of the expected losses."""

    def probability(self, better: int, worse: int) -> float:
        """Return the probability that one arm has a lower expected loss than another, by their indices."""
        return float((self.draws_BA[:, better] < self.draws_BA[:, worse]).mean())


@dataclass(frozen=True, kw_only=True)
class ForecastCheck:
    """Forecast of the largest size from the smaller ones, compared with what was trained."""

    forecast: SizeForecast
    intervals: tuple[Interval, ...]
    """Interval of each arm's mean loss over as many new seeds as were trained."""
    held: tuple[bool, ...]
    """Whether the interval of each arm has the loss that was seen."""
    accuracy: float
    """Share of the pairs of arms whose order was forecast."""


def forecast(sizes: Sequence[SizeLosses], parameters: int, seed: int = 0) -> SizeForecast:
    """Forecast the expected losses at a size.

    Args:
        sizes: Losses at two or more sizes, smallest first.
        parameters: Parameters of the size to forecast.
        seed: Seed of the draws.

    Raises:
        UsageError: If there are fewer than two sizes, or if losses do not fall with the size.
    """
    if len(sizes) < 2:
        raise UsageError("a forecast needs at least two complete sizes: train another one first.")
    rng = np.random.default_rng(seed)
    seen_SA = np.stack([size.means_A for size in sizes])
    if seen_SA[0].mean() <= seen_SA[-1].mean():
        raise UsageError(f"losses do not fall from {sizes[0].size} to {sizes[-1].size}: there is no law to extend.")
    counts_S = np.array([size.parameters for size in sizes], float)
    shape_GS, at_G, end_G = _shapes(counts_S, parameters)
    noise_SKA = np.stack([size.variances(rng, VARIANCES) for size in sizes])
    weight_KG = _likelihood(seen_SA, noise_SKA, shape_GS)
    fitted = _fit(seen_SA[:, None], noise_SKA.mean(axis=1)[:, None], shape_GS.T[:, :, None])
    first_G, last_G = fitted.x.mean(axis=1), fitted.y.mean(axis=1)
    allowed_G = last_G + (first_G - last_G) * end_G >= 0
    if not allowed_G.any():
        raise UsageError("losses fall faster than any power law: there is no law to extend.")
    weight_KG[:, ~allowed_G] = -np.inf
    share = np.exp(weight_KG - weight_KG.max()).ravel()
    k, g = np.unravel_index(rng.choice(share.size, DRAWS, p=share / share.sum()), weight_KG.shape)
    mean = _fit(seen_SA, noise_SKA.mean(axis=1), shape_GS[np.bincount(g).argmax()][:, None])
    first_BA, last_BA = shrunk_ends(rng, mean, _fit(seen_SA[:, None], noise_SKA[:, k], shape_GS[g].T[:, :, None]))
    draws_BA = last_BA + (first_BA - last_BA) * at_G[g][:, None]
    offsets_BA = last_BA + (first_BA - last_BA) * end_G[g][:, None]
    many = seen_SA.shape[1]
    return SizeForecast(
        parameters=parameters,
        losses_A=np.median(draws_BA, axis=0),
        intervals=intervals(draws_BA),
        best_A=np.bincount(draws_BA.argmin(axis=1), minlength=many) / DRAWS,
        exponent=float(np.median(EXPONENTS[g])),
        exponent_interval=intervals(EXPONENTS[g][:, None])[0],
        offsets=intervals(offsets_BA),
        draws_BA=draws_BA,
    )


def _shapes(counts_S: Array, parameters: int) -> tuple[Array, Array, Array]:
    """Return the law's shape by exponent: 1 at the smallest size, 0 at the largest.

    Returns:
        (G, S) values at the sizes, (G,) values at the size to forecast, and (G,) values of an endless model.
    """
    powers_GS = (counts_S / counts_S[0]) ** -EXPONENTS[:, None]
    last_G, span_G = powers_GS[:, -1], 1 - powers_GS[:, -1]
    at_G = ((parameters / counts_S[0]) ** -EXPONENTS - last_G) / span_G
    return (powers_GS - last_G[:, None]) / span_G[:, None], at_G, -last_G / span_G


def _fit(seen: Array, noise: Array, shape: Array) -> Ends:
    """Return the weighted least-squares losses at the smallest and the largest size, with their error variances.

    The first axis of the arguments is the size; the others are broadcast.
    """
    a, b, weight = shape, 1 - shape, 1 / noise
    aa, bb, ab = (weight * a * a).sum(0), (weight * b * b).sum(0), (weight * a * b).sum(0)
    ay, by = (weight * a * seen).sum(0), (weight * b * seen).sum(0)
    determinant = aa * bb - ab**2
    return Ends(
        x=(bb * ay - ab * by) / determinant,
        y=(aa * by - ab * ay) / determinant,
        xx=bb / determinant,
        yy=aa / determinant,
        xy=-ab / determinant,
    )


def _likelihood(seen_SA: Array, noise_SKA: Array, shape_GS: Array) -> Array:
    """Return the (K, G) log likelihoods of seed variances and exponents, with the arms' own losses integrated out.

    Before, all losses at the smallest and at the largest size are equally likely, whatever the exponent.
    """
    seen, noise, shape = seen_SA[:, None, None], noise_SKA[:, :, None], shape_GS.T[:, None, :, None]
    fitted = _fit(seen, noise, shape)
    squares = ((seen - fitted.y - (fitted.x - fitted.y) * shape) ** 2 / noise).sum(axis=0)
    a, b = shape, 1 - shape
    determinant = (a * a / noise).sum(0) * (b * b / noise).sum(0) - np.square((a * b / noise).sum(0))
    return np.asarray(-(squares + np.log(determinant) + np.log(noise).sum(axis=0)).sum(axis=-1) / 2, float)


def intervals(draws_BA: Array) -> tuple[Interval, ...]:
    """Return the central interval of each column."""
    tail = (1 - CONFIDENCE) / 2
    return tuple(Interval(float(low), float(high)) for low, high in np.quantile(draws_BA, [tail, 1 - tail], axis=0).T)


def trained_intervals(found: SizeForecast, like: SizeLosses, seed: int = 1) -> tuple[Interval, ...]:
    """Return the interval of each arm's mean loss over new seeds, whose number and noise are those of another size."""
    rng = np.random.default_rng(seed)
    return intervals(found.draws_BA + like.errors_A * rng.standard_t(like.degrees_A, found.draws_BA.shape))


def check_forecast(sizes: Sequence[SizeLosses], seed: int = 0) -> ForecastCheck:
    """Forecast the largest size from the others, and compare.

    Raises:
        UsageError: If there are fewer than three sizes, or if losses do not fall.
    """
    last = sizes[-1]
    found = forecast(sizes[:-1], last.parameters, seed)
    expected = trained_intervals(found, last, seed + 1)
    rows, columns = np.triu_indices(len(last.means_A), 1)
    signs = [np.sign(losses[rows] - losses[columns]) for losses in (found.losses_A, last.means_A)]
    return ForecastCheck(
        forecast=found,
        intervals=expected,
        held=tuple(bool(i.low <= seen <= i.high) for i, seen in zip(expected, last.means_A, strict=True)),
        accuracy=float((signs[0] == signs[1]).mean()),
    )
