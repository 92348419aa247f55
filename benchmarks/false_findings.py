"""Count false claims among the contrasts of studies/FINDINGS.md, on simulated trials of which the truth is known.

    OMP_NUM_THREADS=1 python benchmarks/false_findings.py

All arms of all studies have the same true loss. Seeds, documents and the learning rate move them, and so does the
small study from which the noise of the learning rate is estimated. A claim at 2e-3 is false if it says that a
difference exists at that rate; with the learning rate, if it says so for the mean over rates, or, where several rates
were measured, for each of them. The script prints the share of simulated repositories with at least one false claim.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import findings as page

from march_search.analysis.comparison import CONFIDENCE
from march_search.analysis.findings import Answer, family
from march_search.analysis.measurement import Trials
from march_search.analysis.noise import seed_noise
from march_search.analysis.rate_noise import RECORDED, RateNoise, rate_noise
from march_search.analysis.seed_prior import seed_prior
from march_search.analysis.statements import NOTHING_NATS
from march_search.architecture.architecture import Architecture

Draw = Callable[[np.random.Generator, Architecture], Callable[[int], np.ndarray]]
"""Takes an architecture, returns a function that draws the deviations of some seeds."""

RATES = (1.4e-3, 2e-3, 2.8e-3)


def _normal(rng: np.random.Generator, deviation: float) -> Callable[[int], np.ndarray]:
    return lambda many: rng.normal(0, deviation, many)


def _from_prior(rng: np.random.Generator, shape: Architecture) -> Callable[[int], np.ndarray]:
    prior = seed_prior(shape)
    return _normal(rng, prior.deviation * (prior.degrees / rng.chisquare(prior.degrees)) ** 0.5)


NOISES: dict[str, Draw] = {
    "variances as the prior has them": _from_prior,
    "one variance per kind": lambda rng, shape: _normal(rng, seed_prior(shape).deviation),
    "0.0015 or 0.015 at random": lambda rng, shape: _normal(rng, float(rng.choice([0.0015, 0.015]))),
    "t with 3 degrees": lambda rng, shape: lambda many: seed_prior(shape).deviation / 3**0.5 * rng.standard_t(3, many),
    "jumps of 0.03 in a tenth": lambda rng, shape: (
        lambda many: rng.normal(0, 0.004, many) - 0.03 * (rng.random(many) < 0.1)
    ),
}
"""Ways in which seeds vary, by name."""


def repository(
    rng: np.random.Generator, studies: Sequence[Trials], draw: Draw, moves: bool
) -> tuple[list[Trials], list[Trials], RateNoise]:
    """Return simulated trials of every study, the same without noise, and the noise of the learning rate."""
    shapes = {shape.name: shape for trials in studies for shape in trials.architectures}
    ladder = list(page.losses(page.LADDER_STUDY))
    slopes_R = rng.normal(0, RECORDED.per_doubling, 3) * moves
    truth: dict[str, dict[float, list[float]]] = {}
    losses: dict[str, dict[float, list[float]]] = {}
    for name, shape in shapes.items():
        seeds, own_R = draw(rng, shape), rng.normal(0, RECORDED.deviation, 3)
        true_R = slopes_R * np.log2(shape.d_model / 128) + own_R * moves
        rates = RATES if name in ladder else (2e-3,)
        truth[name] = {rate: [true_R[RATES.index(rate)]] for rate in rates}
        losses[name] = {rate: list(truth[name][rate][0] + seeds(2 if rate == 2e-3 else 1)) for rate in rates}
    grid_AR = np.array([[losses[name][rate][0] for rate in RATES] for name in ladder])
    simulated = []
    for trials in studies:
        documents_A = rng.multivariate_normal(np.zeros(len(trials.means)), trials.data.covariance_AA)
        simulated.append(_with_losses(trials, losses, documents_A))
    exact = [replace(_with_losses(t, truth, np.zeros(len(t.means))), seeds=None, data=None) for t in studies]
    return simulated, exact, rate_noise([shapes[name] for name in ladder], grid_AR, "simulated")


def _with_losses(trials: Trials, losses: dict[str, dict[float, list[float]]], documents_A: np.ndarray) -> Trials:
    """Return the trials of one study with other losses."""
    rates = [
        {rate: [loss + documents_A[n] for loss in values] for rate, values in losses[shape.name].items()}
        for n, shape in enumerate(trials.architectures)
    ]
    at_shared = [tuple(by_rate[2e-3]) for by_rate in rates]
    means = [statistics.fmean(values) for values in at_shared]
    return replace(trials, means=means, rates=rates, seeds=seed_noise(trials.architectures, at_shared))


def false_claims(answers: Sequence[Answer], exact: Sequence[Answer]) -> list[bool]:
    """Return whether a claim is false: at 2e-3 uncorrected and corrected, with the learning rate likewise."""
    found = np.zeros(4, bool)
    for answer, true_answer in zip(answers, exact, strict=True):
        margin = NOTHING_NATS if "cost" in answer.statement else 0.0
        for step, true_step in zip(answer.steps, true_answer.steps, strict=True):
            is_less = step.at_rate.difference < margin
            is_true = [is_less and margin > 0, is_less and margin > 0]
            if step.by_rate:
                signs = {difference < margin for difference in true_step.by_rate.values()}
                is_true[1] = signs == {is_less}
            p_values = (step.at_rate.p, step.adjusted_p_at_rate, step.over_rates.p, step.adjusted_p)
            found |= [p <= 1 - CONFIDENCE and not is_true[n // 2] for n, p in enumerate(p_values)]
    return found.tolist()


def shares(many: int, seed: int, name: str, moves: bool) -> np.ndarray:
    """Return the shares of `many` simulated repositories with a false claim, as `false_claims` orders them."""
    rng = np.random.default_rng(seed)
    studies = [page.trials(study) for study in page.studies()]
    found = []
    for _ in range(many):
        simulated, exact, noise = repository(rng, studies, NOISES[name], moves)
        tested, true = family(simulated, noise), family(exact, noise)
        found.append(false_claims([a for one in tested for a in one], [a for one in true for a in one]))
    return np.mean(found, axis=0)


def main() -> None:
    """Print one row per kind of seed noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repositories", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("share of repositories with a false claim: at 2e-3 uncorrected, corrected; with the rate likewise")
    for name in NOISES:
        at_rate = shares(options.repositories, options.seed, name, moves=False)[:2]
        over = shares(options.repositories, options.seed, name, moves=True)[2:]
        print(f"{name:34}", " ".join(f"{share:6.3f}" for share in [*at_rate, *over]))


if __name__ == "__main__":
    main()
