"""Draw the laws of a ladder's arms towards one another, as far as the noise of their losses asks for it.

Flat priors leave every arm where its losses are, so the arm that looks best is expected to be too good, and an order
within noise looks too sure. The arms of a ladder are therefore taken as draws of one normal distribution of their
losses at the smallest and at the largest size, whose means, spreads and correlation are unknown: uniform, as in
`size_draws` (hierarchical normal model, Gelman et al. 2013, Bayesian Data Analysis, chapter 5).
The spreads and the correlation are drawn by their likelihood at the best exponent with the mean noise.

Shape suffixes: A arms, B draws, G combinations of spreads and correlation.
"""

from dataclasses import dataclass

import numpy as np

from march_search.analysis.noise import Array
from march_search.ladders.size_draws import CORRELATIONS, SPREADS, normal_pairs


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Fitted losses at the smallest (x) and the largest (y) size, with their error variances and covariance."""

    x: Array
    y: Array
    xx: Array
    yy: Array
    xy: Array

    def inverse(self, spread: tuple[Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        """Return the parts xx, yy and xy of the inverse of errors plus spread, and the determinant of their sum."""
        xx, yy, xy = (own + between for own, between in zip((self.xx, self.yy, self.xy), spread, strict=True))
        determinant = xx * yy - xy**2
        return yy / determinant, xx / determinant, -xy / determinant, determinant


def shrunk_ends(rng: np.random.Generator, mean: Ends, drawn: Ends) -> tuple[Array, Array]:
    """Return (B, A) draws of the arms' losses at the smallest and at the largest size.

    Args:
        rng: Random numbers.
        mean: Estimates of the (A,) arms with the mean noise, which show how far the arms differ.
        drawn: (B, A) estimates with the noise and the exponent of each draw.
    """
    spread_G = _spreads(mean)
    total, means, squares = _center(mean, tuple(part[:, None] for part in spread_G))
    scale = np.log(spread_G[0] * spread_G[1]) / 2  # spreads are at equal ratios, and uniform before
    edges = np.concatenate([[-1.0], (np.array(CORRELATIONS[1:]) + CORRELATIONS[:-1]) / 2, [1.0]])
    prior_G = scale + np.log(np.resize(np.diff(edges), scale.shape))
    weight_G = prior_G - (squares + np.log(total[0] * total[1] - total[2] ** 2)) / 2
    share_G = np.exp(weight_G - weight_G.max())
    chosen = rng.choice(share_G.size, len(drawn.x), p=share_G / share_G.sum())
    spread = tuple(part[chosen, None] for part in spread_G)
    total, means, _ = _center(drawn, spread)
    whole = total[0] * total[1] - total[2] ** 2
    center_B2 = normal_pairs(rng, *means, total[1] / whole, total[0] / whole, -total[2] / whole)
    gaps = drawn.x - center_B2[:, :1], drawn.y - center_B2[:, 1:]
    xx, yy, xy, _ = drawn.inverse((spread[0], spread[1], spread[2]))
    weights = (  # of the gaps at both sizes, for the losses at each: spread times inverse
        (spread[0] * xx + spread[2] * xy, spread[0] * xy + spread[2] * yy),
        (spread[2] * xx + spread[1] * xy, spread[2] * xy + spread[1] * yy),
    )
    losses = normal_pairs(
        rng,
        center_B2[:, :1] + weights[0][0] * gaps[0] + weights[0][1] * gaps[1],
        center_B2[:, 1:] + weights[1][0] * gaps[0] + weights[1][1] * gaps[1],
        spread[0] - weights[0][0] * spread[0] - weights[0][1] * spread[2],
        spread[1] - weights[1][0] * spread[2] - weights[1][1] * spread[1],
        spread[2] - weights[0][0] * spread[2] - weights[0][1] * spread[1],
    )
    return losses[:, 0], losses[:, 1]


def _spreads(mean: Ends) -> tuple[Array, Array, Array]:
    """Return the (G,) variances of the arms at both sizes, and their covariances."""
    scales = [
        float(np.sqrt(max(seen.var(ddof=1), errors.mean()))) for seen, errors in ((mean.x, mean.xx), (mean.y, mean.yy))
    ]
    grid = np.meshgrid(*(np.array(SPREADS) * scale for scale in scales), CORRELATIONS, indexing="ij")
    first_G, second_G, correlation_G = (axis.ravel() for axis in grid)
    return first_G**2, second_G**2, correlation_G * first_G * second_G


def _center(ends: Ends, spread: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, Array], Array]:
    """Return the precision of the mean arm (xx, yy, xy), its losses, and minus twice the arms' log likelihood."""
    xx, yy, xy, determinant = ends.inverse((spread[0], spread[1], spread[2]))
    total = tuple(part.sum(axis=-1) for part in (xx, yy, xy))
    pulls = (xx * ends.x + xy * ends.y).sum(axis=-1), (xy * ends.x + yy * ends.y).sum(axis=-1)
    whole = total[0] * total[1] - total[2] ** 2
    means = (total[1] * pulls[0] - total[2] * pulls[1]) / whole, (total[0] * pulls[1] - total[2] * pulls[0]) / whole
    x, y = ends.x - means[0][..., None], ends.y - means[1][..., None]
    squares = (xx * x**2 + 2 * xy * x * y + yy * y**2 + np.log(determinant)).sum(axis=-1)
    return total, means, squares
