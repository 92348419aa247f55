"""Find where the loss of a compute budget is lowest: the compute-optimal parameters and tokens of one arm.

The law is `L(N, D) = E + A N^-a + B D^-b` with parameters N and tokens D (Hoffmann et al. 2022, approach 3), fitted
at the parameters, tokens and losses of each point, over all budgets of the arm together. For given exponents it is
linear in E, A and B (variable projection, Golub and Pereyra 1973; for this law Czech et al. 2026, arXiv 2603.22339).
One budget with four sizes does not show the exponents, so they are integrated over: each pair from `LEAST` to `MOST`
is equally likely before, and weighs by its likelihood. Losses at three of the points are uniform before, and E, A and
B are not negative.

A parabola in log N (Hoffmann et al. 2022, approach 2) is the special case of small ranges. Its minimum is biased where
exponents differ, sizes reach far or lie to one side of the minimum (Czech et al. 2026). `ladder.py --isoflop` in
`benchmarks/` simulates both.

The noise of seeds is that of a ladder: the variance of each mean is drawn, and the losses around it.

Shape suffixes: P points, K draws of the seed variances, G pairs of exponents, B draws, X numbers of parameters between
the smallest and the largest size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from march_search.analysis.comparison import CONFIDENCE
from march_search.analysis.noise import Array
from march_search.errors import UsageError

LEAST, MOST = 0.05, 1.0
"""Smallest and largest exponent."""

STEPS, ZOOMS, FAR = 16, 3, 15.0
"""Number of values of each exponent, how often their range is narrowed, and the log likelihood ratio left out."""

DRAWS, VARIANCES, POINTS = 2000, 16, 400
"""Number of draws of the law, of draws of the seed variances, and of points of the curve."""

ROUNDS = 20
"""How many times `DRAWS` laws are drawn until enough have no negative part."""


@dataclass(frozen=True, kw_only=True)
class ArmPoints:
    """What was trained of one arm, in the order of budgets, then of parameters."""

    flops_P: Array
    """Training FLOPs of the budget of each point."""
    parameters_P: Array
    tokens_P: Array
    per_token_P: Array
    """FLOPs per token."""
    means_P: Array
    """Mean loss over seeds, in nats."""
    errors_P: Array
    """Standard error of each mean over seeds."""
    degrees_P: Array
    """Degrees of freedom of each error."""

    def variances(self, rng: np.random.Generator, number: int) -> Array:
        """Return (number, P) draws of the variance of each mean over seeds."""
        chi_KP = rng.chisquare(self.degrees_P, (number, len(self.means_P)))
        return np.asarray(np.square(self.errors_P) * self.degrees_P / chi_KP, float)


@dataclass(frozen=True, kw_only=True)
class OptimumDraws:
    """Draws of the lowest loss of one compute budget, between the smallest and the largest size."""

    parameters_X: Array
    """Parameters at which the curves were computed."""
    tokens_X: Array
    """Tokens at these parameters: the budget divided by the FLOPs per token of the arm, a parabola in log-log, because
    shapes of small steps have uneven ones."""
    best_B: Array
    """Index of the parameters with the lowest loss; 0 and the last are the ends of the sizes."""
    loss_B: Array
    """Lowest loss."""
    curves_3X: Array
    """Lower end, median and upper end of the 95% interval of the expected loss at each of `parameters_X`."""

    @property
    def ends(self) -> tuple[int, int, int]:
        """Indices of the parameters at the lower end, the median and the upper end of the 95% interval."""
        tail = (1 - CONFIDENCE) / 2
        low, middle, high = np.quantile(self.best_B, [tail, 0.5, 1 - tail], method="inverted_cdf")
        return int(low), int(middle), int(high)

    @property
    def is_open(self) -> tuple[bool, bool]:
        """Whether the minimum may be below the smallest size, and above the largest."""
        low, _, high = self.ends
        return low == 0, high == len(self.parameters_X) - 1


@dataclass(frozen=True, kw_only=True)
class ArmFit:
    """The law of one arm."""

    optima: dict[float, OptimumDraws]
    """Draws of the lowest loss of each budget, by its FLOPs."""
    misfit: float | None
    """Sum of squares of the best law's standardized residuals divided by its degrees of freedom; None if the points are
    as few as the law's parameters."""
    misfit_p: float | None
    """p-value of a misfit at least as large by the noise of seeds."""


def fit_arm(points: ArmPoints, budgets: Sequence[float], seed: int = 0) -> ArmFit:
    """Fit the law of one arm and find the minimum of each budget.

    Args:
        points: What was trained, at four or more sizes per budget.
        budgets: Training FLOPs of the budgets.
        seed: Seed of the draws.

    Raises:
        UsageError: If no law without a negative part fits the losses.
    """
    rng = np.random.default_rng(seed)
    units = float(points.parameters_P[0]), float(points.tokens_P[0])
    noise_KP = points.variances(rng, VARIANCES)
    ranges: tuple[tuple[float, float], ...] = ((LEAST, MOST), (LEAST, MOST))
    for _ in range(ZOOMS):  # the likelihood of many points is narrower than the steps of a wide grid
        pairs_G2 = _pairs(ranges)
        basis_GP3 = _basis(points.parameters_P / units[0], points.tokens_P / units[1], pairs_G2)
        ranges = _zoomed(_fits(points, noise_KP.mean(axis=0)[None], basis_GP3)[0][0], ranges)
    pairs_G2 = _pairs(ranges)
    basis_GP3 = _basis(points.parameters_P / units[0], points.tokens_P / units[1], pairs_G2)
    weight_KG, center, precision = _fits(points, noise_KP, basis_GP3)
    share = np.exp(weight_KG - weight_KG.max()).ravel()
    spread = np.linalg.cholesky(np.linalg.inv(precision))
    theta_B3, g_B = _draw(rng, share / share.sum(), center, spread)
    optima = {
        flops: _optimum(points, flops, units, theta_B3, pairs_G2[g_B]) for flops in dict.fromkeys(map(float, budgets))
    }
    misfit, p = _misfit(rng, points, basis_GP3, units)
    return ArmFit(optima=optima, misfit=misfit, misfit_p=p)


def _pairs(ranges: Sequence[tuple[float, float]]) -> Array:
    """Return the (G, 2) pairs of exponents in some ranges."""
    grid = np.meshgrid(*(np.linspace(low, high, STEPS) for low, high in ranges), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 2)


def _zoomed(weight_G: Array, ranges: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Return the ranges of the exponents that are not far less likely than the best pair, one step wider."""
    weight_2 = weight_G.reshape(STEPS, STEPS)
    new = []
    for axis, (low, high) in enumerate(ranges):
        likely = np.flatnonzero(weight_2.max(axis=1 - axis) > weight_2.max() - FAR)
        step = (high - low) / (STEPS - 1)
        new.append((max(low, low + step * (likely[0] - 1)), min(high, low + step * (likely[-1] + 1))))
    return tuple(new)


def _fits(points: ArmPoints, noise_KP: Array, basis_GP3: Array) -> tuple[Array, Array, Array]:
    """Return the (K, G) log likelihoods with E, A and B integrated out, their (K, G, 3) best values and precisions."""
    weighted_KGP3 = basis_GP3 / noise_KP[:, None, :, None]
    precision = np.swapaxes(weighted_KGP3, -1, -2) @ basis_GP3
    center = np.linalg.solve(precision, (np.swapaxes(weighted_KGP3, -1, -2) @ points.means_P)[..., None])[..., 0]
    residuals = points.means_P - (basis_GP3 @ center[..., None])[..., 0]
    squares_KG = (residuals**2 / noise_KP[:, None]).sum(axis=-1)
    prior_G = np.linalg.slogdet(basis_GP3[:, _corners(points)])[1]
    parts_KG = squares_KG + np.linalg.slogdet(precision)[1] + np.log(noise_KP).sum(axis=-1)[:, None]
    return np.asarray(prior_G - parts_KG / 2, float), np.asarray(center, float), np.asarray(precision, float)


def _basis(parameters_P: Array, tokens_P: Array, pairs_G2: Array) -> Array:
    """Return the (G, P, 3) values of 1, N^-a and D^-b, in relative units."""
    a, b = pairs_G2[:, 0, None], pairs_G2[:, 1, None]
    parts = np.exp(-a * np.log(parameters_P)), np.exp(-b * np.log(tokens_P))
    return np.stack([np.ones_like(parts[0]), *parts], axis=-1)


def _corners(points: ArmPoints) -> list[int]:
    """Return three points whose losses are uniform before: the ends of the smallest budget, and one elsewhere."""
    first = np.flatnonzero(points.flops_P == points.flops_P[0])
    last = np.flatnonzero(points.flops_P == points.flops_P[-1])
    third = int(last[0]) if last[0] > first[-1] else int(first[len(first) // 2])
    return [int(first[0]), int(first[-1]), third]


def _draw(rng: np.random.Generator, share_KG: Array, center: Array, spread: Array) -> tuple[Array, Array]:
    """Return (B, 3) draws of E, A and B, none of them negative, and the (B,) index of their exponents.

    Raises:
        UsageError: If no draw has only parts that are not negative.
    """
    many = center.shape[1]
    kept, pairs, number = [], [], 0
    for _ in range(ROUNDS):
        k, g = np.divmod(rng.choice(share_KG.size, DRAWS, p=share_KG), many)
        theta = center[k, g] + (spread[k, g] @ rng.standard_normal((DRAWS, 3, 1)))[..., 0]
        is_law = (theta >= 0).all(axis=1)
        kept.append(theta[is_law])
        pairs.append(g[is_law])
        number += int(is_law.sum())
        if number >= DRAWS:
            break
    if number < 50:
        raise UsageError(
            "the losses do not follow E + A N^-a + B D^-b: they do not fall with parameters at equal tokens and with "
            "tokens at equal parameters."
        )
    return np.concatenate(kept)[:DRAWS], np.concatenate(pairs)[:DRAWS]


def _optimum(
    points: ArmPoints, flops: float, units: tuple[float, float], theta_B3: Array, pairs_B2: Array
) -> OptimumDraws:
    """Return the draws of the lowest loss of a budget."""
    order = np.unique(points.parameters_P, return_index=True)[1]
    sizes, per_token = np.log(points.parameters_P[order]), np.log(points.per_token_P[order])
    logs_X = np.linspace(sizes[0], sizes[-1], POINTS)
    tokens_X = np.log(flops) - np.polyval(np.polyfit(sizes, per_token, 2), logs_X)
    first = theta_B3[:, 1, None] * np.exp(-pairs_B2[:, :1] * (logs_X - np.log(units[0])))
    second = theta_B3[:, 2, None] * np.exp(-pairs_B2[:, 1:] * (tokens_X - np.log(units[1])))
    losses_BX = theta_B3[:, :1] + first + second
    tail = (1 - CONFIDENCE) / 2
    return OptimumDraws(
        parameters_X=np.exp(logs_X),
        tokens_X=np.exp(tokens_X),
        best_B=losses_BX.argmin(axis=1),
        loss_B=losses_BX.min(axis=1),
        curves_3X=np.quantile(losses_BX, [tail, 0.5, 1 - tail], axis=0),
    )


def _misfit(
    rng: np.random.Generator, points: ArmPoints, basis_GP3: Array, units: tuple[float, float]
) -> tuple[float | None, float | None]:
    """Return the misfit of the law with the best exponents and its p-value; None with too few points.

    Each standardized residual has a Student distribution, because its error is estimated from few seeds. The sum of
    their squares is compared with draws of that noise without what the law's five parameters take up, linearised.
    """
    free = len(points.means_P) - 5
    if free < 1:
        return None, None
    root_P = 1 / points.errors_P
    scaled_GP3, seen_P = basis_GP3 * root_P[:, None], points.means_P * root_P
    crossed_GP3 = np.swapaxes(scaled_GP3, -1, -2)
    fitted = np.linalg.solve(crossed_GP3 @ scaled_GP3, (crossed_GP3 @ seen_P)[..., None])
    squares_G = ((seen_P - (scaled_GP3 @ fitted)[..., 0]) ** 2).sum(axis=-1)
    best = int(squares_G.argmin())
    logs = np.log(points.parameters_P / units[0]), np.log(points.tokens_P / units[1])
    slopes = [scaled_GP3[best][:, k] * log for k, log in zip((1, 2), logs, strict=True)]
    taken_P5 = np.linalg.qr(np.column_stack([scaled_GP3[best], *slopes]))[0]
    noise_BP = rng.standard_t(points.degrees_P, (DRAWS, len(seen_P)))
    drawn_B = ((noise_BP - noise_BP @ taken_P5 @ taken_P5.T) ** 2).sum(axis=1)
    squares = float(squares_G[best])
    return squares / free, float((1 + (drawn_B >= squares).sum()) / (1 + DRAWS))


def growth(optima: Mapping[float, OptimumDraws]) -> tuple[Array, Array] | None:
    """Return (B,) draws of the exponents with which optimal parameters and tokens grow with the training FLOPs.

    They are the slopes of the least-squares lines over the logarithms, of the budgets whose optimum is inside the
    sizes; None with fewer than two of these.
    """
    inside = {flops: optimum for flops, optimum in optima.items() if not any(optimum.is_open)}
    if len(inside) < 2:
        return None
    x = np.log(list(inside))
    x -= x.mean()
    parameters, tokens = (
        np.log([at[optimum.best_B] for at, optimum in pairs])
        for pairs in (
            [(optimum.parameters_X, optimum) for optimum in inside.values()],
            [(optimum.tokens_X, optimum) for optimum in inside.values()],
        )
    )
    weights = x / (x**2).sum()
    return np.asarray(weights @ parameters, float), np.asarray(weights @ tokens, float)
