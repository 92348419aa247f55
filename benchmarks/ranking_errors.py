"""Simulate studies of known truth and count the errors of a ranking: intervals, ties, the leader, P(best), +seeds.

    python benchmarks/ranking_errors.py [--studies 600]

Arms are small encoder-decoders, so their prior is that of 30 recorded arms (0.007 nats, 3 degrees of freedom). Seed
noise has a standard deviation of 0.0079 nats, as recorded, unless the name says otherwise:

- normal; t3: Student's t with 3 degrees of freedom; jumps: a tenth of the seeds is worse by four standard deviations;
- recorded: the variance of each arm is drawn from the distribution fitted to recorded arms; prior: from the prior;
- unequal: every second arm has 0.0015, the others 0.015.

The first table has tied arms: how often the ± of an arm, and of the leader, covers its expected loss; how often any
pair is separated (letters), and how often the leader is claimed to be the best. The second has arms of a true spread
below, at and above the noise, also three finalists chosen among 12 or 24 by an early loss that shares the noise of the
first seed: the probability that the leader is the best, as printed and as it was. The third checks the range of +seeds.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from march_search.analysis.best import probability_best
from march_search.analysis.comparison import CONFIDENCE, difference_variances, limited, mean_interval, two_sided
from march_search.analysis.further_seeds import further_seeds, seeds_needed
from march_search.analysis.noise import DataNoise, SeedNoise, data_noise, seed_noise
from march_search.analysis.simultaneous import adjusted_p_values
from march_search.architecture.architecture import Architecture

ARM = Architecture(num_layers=2, d_model=128, num_heads=4, d_kv=32, d_ff=600, vocab_size=512, position="rotary")

SIGMA = 0.0079

DOCUMENTS = 40


def deviations(kind: str, arms: int, rng: np.random.Generator) -> np.ndarray:
    """Return the true standard deviation over seeds of each arm."""
    if kind == "unequal":
        return np.asarray(rng.permutation(np.where(np.arange(arms) % 2, 0.0015, 0.015)))
    scale, degrees = {"recorded": (0.0069, 7.75), "prior": (0.007, 3.0)}.get(kind, (SIGMA, math.inf))
    if math.isinf(degrees):
        return np.full(arms, scale)
    return np.asarray(scale * np.sqrt(degrees / rng.chisquare(degrees, arms)))


def standard_noise(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return noise with mean 0 and standard deviation 1."""
    if kind == "t3":
        return np.asarray(rng.standard_t(3, shape) / math.sqrt(3))
    if kind == "jumps":
        values = rng.standard_normal(shape) + 4 * (rng.random(shape) < 0.1) - 0.4
        return np.asarray(values / math.sqrt(1 + 16 * 0.1 * 0.9))
    return rng.standard_normal(shape)


@dataclass(frozen=True)
class Study:
    """A simulated study, in the order of its mean losses."""

    truth: np.ndarray
    """Expected loss of each arm over seeds, on the documents of the study."""
    expected: np.ndarray
    """Expected loss of each arm over seeds and documents."""
    means: np.ndarray
    counts: list[int]
    seeds: SeedNoise
    data: DataNoise | None

    def separated(self) -> tuple[np.ndarray, float]:
        """Return which pairs the letters separate, and the p-value of the leader."""
        variances, degrees = difference_variances(self.counts, self.seeds, self.data)
        differences = np.subtract.outer(self.means, self.means)
        adjusted = adjusted_p_values(differences, variances, degrees, self.counts, self.seeds, self.data, 1000)
        return adjusted < 1 - CONFIDENCE, float(two_sided(differences, variances, degrees)[0, 1:].max())


def study(
    kind: str, truth: np.ndarray, seeds: int, rng: np.random.Generator, documents: bool, chosen: int = 0
) -> Study:
    """Simulate a study; `chosen` keeps this many arms by an early loss."""
    own = deviations(kind, len(truth), rng)[:, None]
    noise = own * standard_noise(kind, (len(truth), seeds), rng)
    if chosen:
        early = truth + noise[:, 0] + own[:, 0] * rng.standard_normal(len(truth))
        kept = np.argsort(early)[:chosen]
        truth, noise = truth[kept], noise[kept]
    losses, data = truth[:, None] + noise, None
    if documents:  # examples of one document share what the document does to an arm, and to all arms
        numbers = np.repeat(np.arange(DOCUMENTS), rng.integers(1, 6, DOCUMENTS))
        effect = 0.02 * rng.standard_normal((len(truth), DOCUMENTS)) + 0.3 * rng.standard_normal(DOCUMENTS)
        examples = losses.mean(axis=1, keepdims=True) + effect[:, numbers]
        examples = examples + 0.01 * rng.standard_normal(examples.shape)
        data = data_noise(examples, numbers)
        moved = examples.mean(axis=1, keepdims=True) - losses.mean(axis=1, keepdims=True)
        losses, on_these = losses + moved, truth + moved[:, 0]
    else:
        on_these = truth
    order = np.argsort(losses.mean(axis=1), kind="stable")
    if data is not None:
        data = DataNoise(data.covariance_AA[np.ix_(order, order)], data.degrees)
    own_seeds = seed_noise([ARM] * len(order), losses[order].tolist())
    counts = [seeds] * len(order)
    return Study(on_these[order], truth[order], losses[order].mean(axis=1), counts, own_seeds, data)


def tied_errors(
    kind: str, arms: int, seeds: int, studies: int, documents: bool = False, spread: float = 0.0, seed: int = 0
) -> list[float]:
    """Return coverage over arms, coverage of the leader, any separation, and claims that the leader is the best.

    With a `spread` of the true losses (relative to `SIGMA`), separations and claims may be true.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(studies):
        one = study(kind, spread * SIGMA * rng.standard_normal(arms), seeds, rng, documents)
        ends = [mean_interval(n, mean, seeds, one.seeds) for n, mean in enumerate(one.means.tolist())]
        covered = [end is not None and end.low <= t <= end.high for end, t in zip(ends, one.truth, strict=True)]
        separated, leader_p = one.separated()
        found.append((np.mean(covered), covered[0], separated.any(), leader_p < 1 - CONFIDENCE))
    return np.mean(np.array(found, float), axis=0).tolist()


def best_calibration(
    kind: str,
    arms: int,
    seeds: int,
    spread: float,
    studies: int,
    documents: bool = False,
    chosen: int = 0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities to be the best, leader first, and whether each arm was: one row per study.

    Args:
        kind: Kind of seed noise.
        arms: Number of arms.
        seeds: Seeds per arm.
        spread: Standard deviation of the true losses, relative to `SIGMA`.
        studies: Number of studies.
        documents: Whether validation documents add noise.
        chosen: Number of finalists; 0 for all arms.
        seed: Seed of the simulation.
    """
    rng, printed, was = np.random.default_rng(seed), [], []
    for number in range(studies):
        truth = spread * SIGMA * rng.standard_normal(arms)
        one = study(kind, truth, seeds, rng, documents, chosen)
        best = probability_best(one.means, one.counts, one.seeds, one.data, draws=500, seed=number)
        printed.append(limited(best, one.separated()[0][0]))
        was.append(one.expected == one.expected.min())
    return np.array(printed), np.array(was)


def seeds_coverage(seeds: int, studies: int, seed: int = 0) -> tuple[float, float]:
    """Return how often the range of +seeds contains the number that the true gap needs, and how often it is bounded.

    The pair is the leader and the next of six arms with a true spread of twice the noise.
    """
    rng, inside, bounded = np.random.default_rng(seed), [], []
    for _ in range(studies):
        truth, own = 2 * SIGMA * rng.standard_normal(6), deviations("recorded", 6, rng)
        losses = truth[:, None] + own[:, None] * rng.standard_normal((6, seeds))
        pair = np.argsort(losses.mean(axis=1))[:2]
        known = seed_noise([ARM] * 2, losses[pair].tolist())
        true = SeedNoise(
            deviations=tuple(own[pair]), degrees=known.degrees, is_measured=known.is_measured, source="the truth"
        )
        counts, seen = [seeds] * 2, float(losses[pair].mean(axis=1) @ [-1, 1])
        needed = _number(seeds_needed(abs(float(truth[pair] @ [-1, 1])), 0, 1, counts, true, None))
        found = further_seeds(0, 1, seen, counts, known, None)
        low, high = _number(found.low), _number(found.high)
        inside.append(low <= needed <= high)
        bounded.append(math.isfinite(high))
    return float(np.mean(inside)), float(np.mean(bounded))


def _number(seeds: int | None) -> float:
    return math.inf if seeds is None else seeds


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=600, help="studies per row (default: 600); P(best): half")
    studies = parser.parse_args(arguments).studies
    print(
        "tied arms        seeds  | 6 arms:  ±  leader's ±  any pair  leader | 20 arms:  ±  leader's ±  any pair  leader"
    )
    rows = [(kind, False) for kind in ("normal", "t3", "jumps", "recorded", "prior", "unequal")] + [("normal", True)]
    for kind, documents in rows:
        for seeds in (1, 2, 3, 5):
            text = f"{kind + ', documents' * documents:18s} {seeds:3d}"
            for arms in (6, 20):
                cells = tied_errors(kind, arms, seeds, studies, documents)
                text += "  |  " + "  ".join(f"{value:.3f}" for value in cells)
            print(text, flush=True)
    print("\nthe leader's ± if the true spread is 3 times the noise: 6 arms, 20 arms")
    for kind in ("recorded", "unequal"):
        for seeds in (1, 2, 3, 5):
            text = " ".join(f"{tied_errors(kind, arms, seeds, studies, spread=3)[1]:.3f}" for arms in (6, 20))
            print(f"{kind:18s} {seeds:3d}  |  {text}")
    print("\nP(best) of the leader, printed and true    spread/noise 1/3          1               3")
    printed, was = [], []
    designs = [(6, 0), (20, 0), (12, 3), (24, 3)]
    for kind, documents in (("recorded", False), ("recorded", True), ("unequal", False)):
        for arms, chosen in designs:
            for seeds in (1, 2, 5) if kind == "recorded" and not documents else (2,):
                text = f"{kind + ', documents' * documents:20s} {f'{chosen} of ' * (chosen > 0)}{arms}, {seeds} seeds"
                for spread in (1 / 3, 1, 3):
                    best, is_best = best_calibration(kind, arms, seeds, spread, studies // 2, documents, chosen)
                    text += f"    {best[:, 0].mean():.2f} {is_best[:, 0].mean():.2f}"
                    if kind == "recorded":
                        printed.append(best.ravel())
                        was.append(is_best.ravel())
                print(text, flush=True)
    best, is_best = np.concatenate(printed), np.concatenate(was)
    print("\nall arms of recorded noise, by printed probability")
    for low, high in ((0, 0.05), (0.05, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 0.95), (0.95, 1.01)):
        here = (best >= low) & (best < high)
        print(f"{low:.2f} to {min(high, 1):.2f}: printed {best[here].mean():.3f}, true {is_best[here].mean():.3f}")
    print("\n+seeds: range contains the true number; range is bounded")
    for seeds in (1, 2, 3, 5):
        inside, bounded = seeds_coverage(seeds, studies // 2)
        print(f"{seeds} seeds: {inside:.2f}  {bounded:.2f}")


if __name__ == "__main__":
    main()
