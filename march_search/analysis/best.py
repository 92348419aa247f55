"""Estimate the probability of each architecture to be the best, by shrinkage over the architectures (empirical Bayes).

The lowest of several noisy means is biased low, so a probability from the means alone is too high. The true losses are
therefore assumed to be normal around a common mean with a standard deviation `τ` (Lindley and Smith 1972; Efron and
Morris 1975), which is estimated from the same losses: all values of `τ` are kept, weighted by their likelihood and by a
weak prior, half-Cauchy with twice the standard error of a mean as its scale (Gelman 2006). If the means differ by no
more than noise, `τ` is small, and every architecture is about as likely to be the best as the others.

Shape suffixes: A architectures, B draws, T values of `τ`, R right-hand sides.
"""

from collections.abc import Sequence

import numpy as np

from march_search.analysis.noise import Array, DataNoise, SeedNoise

DRAWS = 4000
"""Number of draws of the true losses."""

MOST_JOINT = 32
"""Number of architectures up to which data noise is drawn jointly. With more, it counts as independent between them,
because the time of joint draws grows with the cube of their number."""

CERTAINTY = 3.0
"""Factor on the degrees of freedom of the variances that are drawn. The priors have fewer degrees than recorded
variances do (`seed_prior.py`), so that tests err on the side of ties; a probability must not err to either side."""

SPREADS = 40
"""Number of values of `τ`."""

FIRST_DRAWS = 16
"""Number of draws from which the likelihood of each `τ` is estimated first."""


def probability_best(
    means: Sequence[float],
    counts: Sequence[int],
    seeds: SeedNoise | None,
    data: DataNoise | None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Array:
    """Return the probability of each architecture to have the lowest true loss, by the losses alone.

    The variance of each architecture over seeds is drawn (scaled inverse χ²); data noise is jointly normal. Draws are
    weighted by their likelihood (importance sampling).

    Args:
        means: Mean losses.
        counts: Number of seeds behind each mean.
        seeds: Training noise of each architecture; None to leave it out.
        data: Data noise; None if it was not measured.
        draws: Number of draws.
        seed: Seed of the draws.
    """
    rng, many = np.random.default_rng(seed), len(means)
    loss_A = np.asarray(means, float) - np.mean(means)
    variance_BA = np.zeros((draws, many))
    if seeds is not None:
        degrees_A = CERTAINTY * np.array(seeds.degrees)
        scale_A = np.square(seeds.deviations) / np.asarray(counts, float)
        variance_BA = scale_A * degrees_A / rng.chisquare(degrees_A, (draws, many))
    covariance_AA = None
    if data is not None:  # noise that all architectures share does not matter
        covariance_AA = data.covariance_AA - data.covariance_AA.mean(axis=0)
        covariance_AA = covariance_AA - covariance_AA.mean(axis=1, keepdims=True)
        if many > MOST_JOINT:
            variance_BA += np.diag(covariance_AA)
            covariance_AA = None
    own_A = np.median(variance_BA, axis=0) + (0 if covariance_AA is None else np.diag(covariance_AA))
    error = float(np.sqrt(np.median(own_A)))
    if many == 1 or error == 0:
        return np.asarray(np.arange(many) == np.argmin(loss_A), float)

    spread_T = np.geomspace(0.05 * error, 20 * max(error, np.ptp(loss_A)), SPREADS)
    first_BA = variance_BA[:FIRST_DRAWS]
    likelihood_TB = np.array([_log_likelihood(loss_A, first_BA + spread**2, covariance_AA) for spread in spread_T])
    likelihood_T = np.logaddexp.reduce(likelihood_TB, axis=1)
    posterior_T = likelihood_T + np.log(spread_T) - np.log1p((spread_T / (2 * error)) ** 2)  # a grid of logarithms
    weight_T = np.exp(posterior_T - posterior_T.max())
    chosen_B = rng.choice(SPREADS, draws, p=weight_T / weight_T.sum())
    spread_B1 = spread_T[chosen_B, None]
    total_BA = variance_BA + spread_B1**2
    weight_B = _log_likelihood(loss_A, total_BA, covariance_AA) - likelihood_T[chosen_B]
    weight_B = np.exp(weight_B - weight_B.max())

    true_BA = spread_B1 * rng.standard_normal((draws, many))  # a draw of the model, then moved to the losses seen
    noise_BA = np.sqrt(variance_BA) * rng.standard_normal((draws, many))
    if covariance_AA is not None:
        noise_BA += rng.multivariate_normal(np.zeros(many), covariance_AA, draws, method="eigh")
    rest_BA = loss_A - true_BA - noise_BA
    solved_BAR = _solve(total_BA, covariance_AA, np.stack([np.ones_like(rest_BA), rest_BA], axis=2))
    mean_B1 = solved_BAR[:, :, 1].sum(axis=1, keepdims=True) / solved_BAR[:, :, 0].sum(axis=1, keepdims=True)
    true_BA += mean_B1 + spread_B1**2 * (solved_BAR[:, :, 1] - mean_B1 * solved_BAR[:, :, 0])
    return np.asarray(np.bincount(true_BA.argmin(axis=1), weight_B, many) / weight_B.sum(), float)


def _log_likelihood(loss_A: Array, total_BA: Array, covariance_AA: Array | None) -> Array:
    """Return the log likelihood of the losses for each draw of the variances, over all common means (Harville 1974)."""
    right_BAR = np.broadcast_to(np.stack([np.ones_like(loss_A), loss_A], axis=1), (*total_BA.shape, 2))
    solved_BAR = _solve(total_BA, covariance_AA, right_BAR)
    weight_B, moment_B = solved_BAR[:, :, 0].sum(axis=1), solved_BAR[:, :, 1].sum(axis=1)
    square_B = solved_BAR[:, :, 1] @ loss_A - moment_B**2 / weight_B
    log_det_B = (
        np.log(total_BA).sum(axis=1)
        if covariance_AA is None
        else np.linalg.slogdet(_matrices(total_BA, covariance_AA))[1]
    )
    return np.asarray(-(log_det_B + np.log(weight_B) + square_B) / 2, float)


def _solve(total_BA: Array, covariance_AA: Array | None, right_BAR: Array) -> Array:
    """Solve the linear equations of each draw."""
    if covariance_AA is None:
        return np.asarray(right_BAR / total_BA[:, :, None], float)
    return np.asarray(np.linalg.solve(_matrices(total_BA, covariance_AA), right_BAR), float)


def _matrices(total_BA: Array, covariance_AA: Array) -> Array:
    """Return the covariance matrix of each draw."""
    return np.asarray(covariance_AA + total_BA[:, :, None] * np.eye(total_BA.shape[1]), float)
