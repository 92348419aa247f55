"""Simulate ladders of known truth, and compare strategies that search at smaller sizes first with those that do not.

    python benchmarks/size_search.py [--ladders 400] [--seed 0] [--curves FILE]

Nothing is trained and nothing is recorded: the tables say what would be seen if ladders were as simulated. The figures
depend on the seed and not on the machine. `--curves` writes one simulated ladder as a table that `replay` reads.

A ladder has twelve arms at three sizes, 20 tokens per parameter, and 6 FLOPs per parameter and token. The expected
last losses of the arms have a standard deviation of 0.03 nats at each size, and a known correlation between
neighbouring sizes, which orders a share of the pairs alike. A seed adds 0.007 nats. A curve lies above its end by
`f^-b - 1` nats after the fraction `f` of its tokens, where `b` is 0.15 and varies by 3% between arms and sizes. It is
evaluated 50 times, with 0.003 nats of noise.

The rules were stated before they were tried on any ladder: the default of `sizes`, half of the arms; a quarter; halves
over three sizes; a quarter from the smallest size; and the default rungs, promotion ASHA and full training at the
largest size alone. The last table has the rule of a study, which drops arms only where `dropped_risk` is at most
`max_risk`.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from march_search.analysis.noise import seed_noise
from march_search.architecture.architecture import Architecture
from march_search.config.halving import Halving, SizeHalving
from march_search.config.ladder_config import LadderConfig
from march_search.ladders.size_draws import SizeLosses
from march_search.ladders.size_survivors import correlation, dropped_risk
from march_search.replay.asha import Asha, replay_asha
from march_search.replay.learning_curves import Curve, Curves, LearningCurves, Replayed
from march_search.replay.pools import share_interval
from march_search.replay.sizes import replay_sizes
from march_search.replay.strategies import replay_rungs

ARM = Architecture(num_layers=2, d_model=128, num_heads=4, d_kv=32, d_ff=600, vocab_size=512, position="rotary")
"""Shape of all arms, which gives the prior of their seed noise."""

SMALLEST = 1_000_000
SPREAD, SEED_NOISE, EVALUATION_NOISE = 0.03, 0.007, 0.003
EVALUATIONS = 50


@dataclass(frozen=True)
class Ladder:
    """One simulated ladder."""

    parameters: tuple[int, ...]
    truth_SA: np.ndarray
    """Expected last loss of each arm at each size."""
    seen_SAK: np.ndarray
    """Last losses of its seeds."""
    curves_SAE: np.ndarray
    """Curve of the first seed."""

    def fractions(self) -> np.ndarray:
        """Return the evaluations as fractions of the tokens."""
        return np.arange(1, EVALUATIONS + 1) / EVALUATIONS

    def curves(self) -> Curves:
        """Return the curves at the largest size, with those of the smaller sizes; regret is by the expected losses."""
        sizes = []
        for count, truth_A, curves_AE in zip(self.parameters, self.truth_SA, self.curves_SAE, strict=True):
            tokens = tuple((20 * count * self.fractions()).tolist())
            many = len(truth_A)
            sizes.append(
                Curves(
                    tokens=(tokens,) * many,
                    losses=tuple(map(tuple, curves_AE.tolist())),
                    rates=(6.0 * count,) * many,
                    final=tuple(truth_A.tolist()),
                    flops=(6.0 * count,) * many,
                    smaller=tuple(sizes),
                )
            )
        return sizes[-1]

    def size_losses(self, index: int) -> SizeLosses:
        """Return what a ladder sees at a size."""
        seen_AK = self.seen_SAK[index]
        noise = seed_noise([ARM] * len(seen_AK), seen_AK.tolist())
        return SizeLosses(
            size=str(self.parameters[index]),
            parameters=self.parameters[index],
            means_A=seen_AK.mean(axis=1),
            errors_A=np.array(noise.deviations) / math.sqrt(seen_AK.shape[1]),
            degrees_A=np.array(noise.degrees, float),
        )


def simulated(rng: np.random.Generator, accuracy: float, factor: int, arms: int = 12, seeds: int = 2) -> Ladder:
    """Draw a ladder whose neighbouring sizes order a known share of the pairs alike, a factor apart."""
    own, places = correlation(accuracy), [rng.standard_normal(arms)]
    for _ in range(2):
        places.append(own * places[-1] + math.sqrt(1 - own**2) * rng.standard_normal(arms))
    truth_SA = np.array([[3.5], [3.2], [2.9]]) + SPREAD * np.array(places)
    seen_SAK = truth_SA[..., None] + SEED_NOISE * rng.standard_normal((3, arms, seeds))
    fractions = np.arange(1, EVALUATIONS + 1) / EVALUATIONS
    powers_SA1 = 0.15 * (1 + 0.03 * rng.standard_normal((3, arms, 1)))
    curves_SAE = seen_SAK[..., :1] + fractions**-powers_SA1 - 1
    curves_SAE += EVALUATION_NOISE * rng.standard_normal(curves_SAE.shape)
    return Ladder(tuple(SMALLEST * factor**k for k in range(3)), truth_SA, seen_SAK, curves_SAE)


def by_sizes(*keep: float) -> Callable[[Curves], Replayed]:
    """Return the rule that trains these shares of the arms at the last sizes."""
    return lambda curves: replay_sizes(curves, range(len(curves.final)), 1, SizeHalving(keep))


RULES: dict[str, Callable[[Curves], Replayed]] = {
    "sizes, half of the arms (the default)": by_sizes(1.0, 0.5),
    "sizes, a quarter": by_sizes(1.0, 0.25),
    "sizes, half, then a quarter": by_sizes(1.0, 0.5, 0.25),
    "sizes, a quarter from the smallest size": by_sizes(1.0, 0.0, 0.25),
    "sizes, only the best of the size before": by_sizes(1.0, 1e-9),
    "rungs": lambda curves: replay_rungs(curves, range(len(curves.final)), 1, Halving()),
    "rungs, three finalists": lambda curves: replay_rungs(curves, range(len(curves.final)), 1, Halving(finalists=3)),
    "asha": lambda curves: replay_asha(curves, range(len(curves.final)), 1, Asha()),
    "all train to the end": lambda curves: replay_rungs(curves, range(len(curves.final)), 1, Halving((1.0,))),
}


def cells(regrets: list[float], spent: list[float]) -> str:
    """Return the share of ladders without regret, the mean regret, and the cost."""
    found = sum(value == 0 for value in regrets)
    low, high = share_interval(found, len(regrets))
    error = 1.96 * float(np.std(regrets, ddof=1)) / math.sqrt(len(regrets))
    share = f"{found / len(regrets):.0%} ({100 * low:.0f}–{100 * high:.0f})"
    return f"{share} | {np.mean(regrets):.4f} ± {error:.4f} | {np.mean(spent):.1%}"


def rule_table(ladders: int, seed: int) -> None:
    """Print what each rule finds and costs."""
    print("| sizes apart | same order | rule | best found | mean regret, nats | FLOPs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for factor in (2, 4):
        for accuracy in (0.7, 0.8, 0.9, 0.95):
            drawn = [simulated(np.random.default_rng([seed, factor, n]), accuracy, factor) for n in range(ladders)]
            all_curves = [ladder.curves() for ladder in drawn]
            for name, rule in RULES.items():
                done = [rule(curves) for curves in all_curves]
                pairs = list(zip(all_curves, done, strict=True))
                regrets = [curves.final[one.choice] - min(curves.final) for curves, one in pairs]
                spent = [one.cost / curves.total() for curves, one in pairs]
                print(f"| {factor} times | {accuracy:.0%} | {name} | {cells(regrets, spent)} |", flush=True)


def guard_table(ladders: int, seed: int) -> None:
    """Print how often a study would drop arms at the largest size, what it risks, and what that costs."""
    limit = LadderConfig().max_risk
    print(f"\n| arms | same order | drops arms (risk at most {limit:.0%}) | stated risk | best dropped | if always "
          "dropped: stated | best dropped | FLOPs of the largest size |")  # fmt: skip
    print("| --- " * 8 + "|")
    for arms in (6, 12):
        for accuracy in (0.7, 0.8, 0.9, 0.95):
            rows = []
            for n in range(ladders):
                ladder = simulated(np.random.default_rng([seed + 1, arms, n]), accuracy, 4, arms)
                sides = [ladder.size_losses(index) for index in (0, 1)]
                best = np.argsort(sides[1].means_A)[: SizeHalving(finalists=3).count(arms, 1)].tolist()
                kept = sorted({0, *best})
                risk = dropped_risk(sides, kept, None, seed=n)
                rows.append((risk, int(ladder.truth_SA[2].argmin()) not in kept, len(kept) / arms))
            risk_L, missed_L, share_L = np.array(rows, float).T
            drops_L = risk_L <= limit
            found = ["–", "–"] if not drops_L.any() else [f"{x[drops_L].mean():.3f}" for x in (risk_L, missed_L)]
            cost = np.where(drops_L, share_L, 1.0).mean()
            always = f"{risk_L.mean():.3f} | {missed_L.mean():.3f}"
            shown = [str(arms), f"{accuracy:.0%}", f"{drops_L.mean():.0%}", *found, always, f"{cost:.0%}"]
            print(f"| {' | '.join(shown)} |", flush=True)


def write_curves(path: Path, seed: int) -> None:
    """Write one simulated ladder, whose sizes order 80% of the pairs alike, as a table for `replay`."""
    rng = np.random.default_rng([seed, 99])
    ladder = simulated(rng, 0.8, 4)
    runs = []
    for count, seen_AK, curves_AE in zip(ladder.parameters, ladder.seen_SAK, ladder.curves_SAE, strict=True):
        tokens = 20 * count * ladder.fractions()
        for arm, (losses_K, curve_E) in enumerate(zip(seen_AK, curves_AE, strict=True)):
            for number, loss in enumerate(losses_K):
                shifted_E = curve_E + loss - losses_K[0]
                runs.append(
                    Curve(
                        name=f"{count // 1_000_000}M-arm{arm}-s{number}",
                        evaluations=tuple(
                            (float(t), round(float(x), 4)) for t, x in zip(tokens, shifted_E, strict=True)
                        ),
                        arm=f"arm{arm}",
                        size=f"{count // 1_000_000}M",
                        seed=number,
                        num_params=count,
                        flops_per_token=6.0 * count,
                    )
                )
    source = f"Simulated by benchmarks/size_search.py, seed {seed}: no model was trained."
    path.write_text(json.dumps(asdict(LearningCurves(2, source, "nats", tuple(runs)))) + "\n")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ladders", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--curves", type=Path, help="only write one simulated ladder to this file")
    arguments = parser.parse_args()
    if arguments.curves:
        write_curves(arguments.curves, arguments.seed)
        return
    rule_table(arguments.ladders, arguments.seed)
    guard_table(arguments.ladders, arguments.seed)


if __name__ == "__main__":
    main()
