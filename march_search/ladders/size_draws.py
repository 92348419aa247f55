"""Draw the expected losses of a ladder's arms at two sizes from what their seeds show.

The losses of close arms are in a random order, and a draw of the noise around them would mix them a second time. So the
arms of the ladder are taken as draws of a normal distribution whose spread at each size, and whose correlation between
the sizes, are unknown, too: uniform in the two standard deviations and in the correlation (Gelman 2006; Lewandowski,
Kurowicka and Joe 2009). The variance of each arm's seed noise is drawn as well (scaled inverse χ²). Draws weigh each
combination of these by its likelihood, with the mean of all arms integrated out.

Shape suffixes: A arms, B draws, K draws of the seed variances, G combinations of spreads and correlation.
"""

from dataclasses import dataclass

import numpy as np

from march_search.analysis.noise import Array

DRAWS = 2000
"""Number of draws."""

VARIANCES = 16
"""Number of draws of the seed variances."""

SPREADS = tuple(float(x) for x in np.geomspace(0.04, 4, 12))
"""Standard deviations of the arms, relative to that of their means."""

CORRELATIONS = (-0.98, -0.9, -0.7, -0.4, -0.1, 0.2, 0.45, 0.65, 0.8, 0.9, 0.96, 0.99)
"""Correlations between the sizes; closer together where orders differ most."""


@dataclass(frozen=True, kw_only=True)
class SizeLosses:
    """Losses of a ladder's arms at one size, in the order of the ladder's arms."""

    size: str
    """Name of the size."""
    parameters: int
    """Parameter budget of the size."""
    means_A: Array
    """Mean loss over seeds, in nats."""
    errors_A: Array
    """Standard error of each mean over seeds."""
    degrees_A: Array
    """Degrees of freedom of each error."""

    def variances(self, rng: np.random.Generator, number: int) -> Array:
        """Return (number, A) draws of the variance of each mean over seeds."""
        chi_KA = rng.chisquare(self.degrees_A, (number, len(self.means_A)))
        return np.asarray(np.square(self.errors_A) * self.degrees_A / chi_KA, float)


@dataclass(frozen=True)
class SizeDraws:
    """Draws of what two sizes show."""

    first_BA: Array
    """Expected losses of the arms at the small size."""
    second_BA: Array
    """Expected losses at the large size."""
    correlations_B: Array
    """Correlation between the sizes over all arms that the ladder's arms stand for."""
    scores_BA: Array
    """Expected losses at the large size, in standard deviations above the mean of all these arms."""


def size_draws(small: SizeLosses, large: SizeLosses, seed: int = 0) -> SizeDraws:
    """Return draws of the arms' expected losses at two sizes and of the correlation between the sizes.

    Args:
        small: Losses at one size.
        large: Losses at the other size.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng(seed)
    seen_2A = np.stack([small.means_A, large.means_A])
    noise_2KA = np.stack([side.variances(rng, VARIANCES) for side in (small, large)])
    errors = [np.square(side.errors_A).mean() for side in (small, large)]
    scales = np.sqrt(np.maximum(seen_2A.var(axis=1, ddof=1), errors))
    edges = np.concatenate([[-1.0], (np.array(CORRELATIONS[1:]) + CORRELATIONS[:-1]) / 2, [1.0]])
    grid = np.meshgrid(*(np.array(SPREADS) * scale for scale in scales), CORRELATIONS, indexing="ij")
    first_G, second_G, correlation_G = (axis.ravel() for axis in grid)
    prior_G = np.log(np.resize(np.diff(edges), first_G.shape) * first_G * second_G)  # spreads are at equal ratios
    shared_G = correlation_G * first_G * second_G
    xx = np.square(first_G)[:, None] + noise_2KA[0][:, None]  # (K, G, A) covariances of what was seen
    yy, xy = np.square(second_G)[:, None] + noise_2KA[1][:, None], shared_G[:, None]
    determinant = xx * yy - np.square(xy)
    inverse = yy / determinant, xx / determinant, -xy / determinant
    total = [part.sum(axis=-1) for part in inverse]
    pulls = [
        (inverse[0] * seen_2A[0] + inverse[2] * seen_2A[1]).sum(axis=-1),
        (inverse[2] * seen_2A[0] + inverse[1] * seen_2A[1]).sum(axis=-1),
    ]
    whole = total[0] * total[1] - np.square(total[2])
    means = (
        (total[1] * pulls[0] - total[2] * pulls[1]) / whole,
        (total[0] * pulls[1] - total[2] * pulls[0]) / whole,
    )
    x, y = (seen_A - mean[..., None] for seen_A, mean in zip(seen_2A, means, strict=True))
    squares = (inverse[0] * x**2 + 2 * inverse[2] * x * y + inverse[1] * y**2).sum(axis=-1)
    weight = prior_G - (np.log(determinant).sum(axis=-1) + squares + np.log(whole)) / 2
    share = np.exp(weight - weight.max()).ravel()
    k, g = np.unravel_index(rng.choice(share.size, DRAWS, p=share / share.sum()), weight.shape)
    center_B2 = normal_pairs(
        rng, *(part[k, g] for part in (*means, total[1] / whole, total[0] / whole, -total[2] / whole))
    )
    gaps = [seen_A - center_B2[:, side, None] for side, seen_A in enumerate(seen_2A)]
    own = [part[k, g] for part in inverse]
    spread = np.square(first_G[g])[:, None], np.square(second_G[g])[:, None], shared_G[g][:, None]
    weights = (  # of the gaps at both sizes, for the losses at each: spread times inverse
        (spread[0] * own[0] + spread[2] * own[2], spread[0] * own[2] + spread[2] * own[1]),
        (spread[2] * own[0] + spread[1] * own[2], spread[2] * own[2] + spread[1] * own[1]),
    )
    drawn = normal_pairs(
        rng,
        center_B2[:, 0, None] + weights[0][0] * gaps[0] + weights[0][1] * gaps[1],
        center_B2[:, 1, None] + weights[1][0] * gaps[0] + weights[1][1] * gaps[1],
        spread[0] - weights[0][0] * spread[0] - weights[0][1] * spread[2],
        spread[1] - weights[1][0] * spread[2] - weights[1][1] * spread[1],
        spread[2] - weights[0][0] * spread[2] - weights[0][1] * spread[1],
    )
    scores_BA = (drawn[:, 1] - center_B2[:, 1, None]) / second_G[g][:, None]
    return SizeDraws(drawn[:, 0], drawn[:, 1], correlation_G[g], scores_BA)


def normal_pairs(rng: np.random.Generator, x: Array, y: Array, xx: Array, yy: Array, xy: Array) -> Array:
    """Return draws of pairs with means x and y, variances xx and yy, and covariance xy, stacked along axis 1."""
    first = np.sqrt(np.maximum(xx, 1e-18))
    slope = xy / first
    second = np.sqrt(np.maximum(yy - slope**2, 0.0))
    a, b = rng.standard_normal((2, *np.shape(x)))
    return np.stack([x + first * a, y + slope * a + second * b], axis=1)
