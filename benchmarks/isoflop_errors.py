"""Simulate compute budgets of known laws, and count how often intervals of the optimum hold (`ladder.py --isoflop`).

Losses follow E + A N^-a + B D^-b with 6 N D FLOPs; at the optimum, the part of the parameters is 0.8 nats and that of
the tokens follows. Sizes are at equal ratios over a range; their middle is the optimum, or a factor off it. Seeds vary
as those of recorded arms.

The first table has one budget: how often the 95% interval of the optimal parameters covers the truth (an open end
covers everything beyond the sizes), its width as a factor, how often both ends are inside the sizes, the same of the
lowest loss, and the median of the estimate divided by the truth. The last two columns are those of a parabola in log N,
with a parametric bootstrap. The second table has three budgets a factor of four apart, and the exponents of the growth.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from march_search.analysis.noise import seed_noise
from march_search.architecture.architecture import Architecture
from march_search.ladders.isoflop_fit import ArmPoints, fit_arm, growth

ARM = Architecture(num_layers=2, d_model=128, num_heads=4, d_kv=32, d_ff=600, vocab_size=512, position="rotary")

SCALE, DEGREES, SEEDS = 0.0069, 7.75, 2
"""Distribution of the true seed deviations, as fitted to recorded arms, and the number of seeds."""

FLOPS, BEST = 1e14, 2e6
"""The budget and its optimal parameters."""


class Law:
    """A law whose optimum at `FLOPS` is `BEST`."""

    def __init__(self, a: float, b: float) -> None:
        """Set the exponents."""
        self.a, self.b = a, b

    def loss(self, parameters: np.ndarray, flops: np.ndarray | float) -> np.ndarray:
        """Return the expected losses."""
        tokens = flops / (6 * parameters) / (FLOPS / 6 / BEST)
        return np.asarray(1.5 + 0.8 * (parameters / BEST) ** -self.a + 0.8 * self.a / self.b * tokens**-self.b)

    def best(self, flops: float) -> float:
        """Return the optimal parameters."""
        return float(BEST * (flops / FLOPS) ** (self.b / (self.a + self.b)))


def observed(law: Law, sizes: np.ndarray, budgets: Sequence[float], rng: np.random.Generator) -> ArmPoints:
    """Return what a ladder with two seeds sees of a law."""
    flops, parameters = np.repeat(budgets, len(sizes)), np.tile(sizes, len(budgets))
    many = len(flops)
    deviations = SCALE * np.sqrt(DEGREES / rng.chisquare(DEGREES, many))
    losses = law.loss(parameters, flops)[:, None] + deviations[:, None] * rng.standard_normal((many, SEEDS))
    noise = seed_noise([ARM] * many, losses.tolist())
    return ArmPoints(
        flops_P=flops,
        parameters_P=parameters,
        tokens_P=flops / (6 * parameters),
        per_token_P=6 * parameters,
        means_P=losses.mean(axis=1),
        errors_P=np.array(noise.deviations) / math.sqrt(SEEDS),
        degrees_P=np.array(noise.degrees, float),
    )


def parabola(points: ArmPoints, rng: np.random.Generator) -> tuple[float, float, float]:
    """Return the minimum of the parabola in log N and the ends of its 95% interval; open ends are 0 and infinity."""
    x = np.log(points.parameters_P)
    draws = points.means_P + np.sqrt(points.variances(rng, 1000)) * rng.standard_normal((1000, len(x)))
    square, slope, _ = np.polyfit(x - x.mean(), draws.T, 2)
    at = np.where(square > 0, -slope / (2 * np.where(square > 0, square, 1)), np.sign(-slope) * np.inf)
    best = np.clip(at + x.mean(), x[0], x[-1])
    low, middle, high = np.quantile(best, [0.025, 0.5, 0.975], method="inverted_cdf")
    return float(np.exp(middle)), float(np.exp(low)) * (low > x[0]), float(np.exp(high)) if high < x[-1] else math.inf


def optimum_table(ladders: int) -> None:
    """Print how often intervals of the optimum of one budget cover the truth."""
    print("| a, b | sizes | range | off by | interval | width | closed | loss | estimate | parabola | its estimate |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    designs = [*product(((0.34, 0.28), (0.25, 0.5), (0.5, 0.25)), ((4, 8), (6, 16)), (1, 2))]
    for (a, b), (number, reach), off in designs:
        rng, rows, law = np.random.default_rng(5), [], Law(a, b)
        sizes = BEST * off * np.geomspace(reach**-0.5, reach**0.5, number)
        for _ in range(ladders):
            points = observed(law, sizes, [FLOPS], rng)
            optimum = fit_arm(points, [FLOPS], seed=int(rng.integers(2**31))).optima[FLOPS]
            low, middle, high = (float(optimum.parameters_X[index]) for index in optimum.ends)
            opened = optimum.is_open
            ends = np.quantile(optimum.loss_B, [0.025, 0.975])
            lowest = float(law.loss(np.array([BEST]), FLOPS)[0])
            point, left, right = parabola(points, rng)
            rows.append(
                (
                    (opened[0] or low <= BEST * 1.01) and (opened[1] or high * 1.01 >= BEST),
                    high / low,
                    not any(opened),
                    ends[0] <= lowest <= ends[1],
                    middle / BEST,
                    left <= BEST * 1.01 and right * 1.01 >= BEST,
                    point / BEST,
                )
            )
        table = np.array(rows, float)
        means, medians = table.mean(axis=0), np.median(table, axis=0)
        shown = [f"{means[0]:.3f}", f"{medians[1]:.2f}", f"{means[2]:.2f}", f"{means[3]:.3f}", f"{medians[4]:.2f}"]
        shown += [f"{means[5]:.3f}", f"{medians[6]:.2f}"]
        print(f"| {a}, {b} | {number} | {reach} | {off} | {' | '.join(shown)} |", flush=True)


def growth_table(ladders: int) -> None:
    """Print how often intervals of the growth of the optimum cover the truth."""
    print("\n| a, b | sizes | optima | parameters' exponent | its width | tokens' exponent | known | misfit claimed |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    budgets = [FLOPS / 4, FLOPS, 4 * FLOPS]
    for (a, b), number in product(((0.34, 0.28), (0.25, 0.5), (0.5, 0.25)), (5,)):
        rng, rows, covered, law, claims = np.random.default_rng(6), [], [], Law(a, b), []
        sizes = BEST * np.geomspace(1 / 6, 6, number)
        for _ in range(ladders):
            fit = fit_arm(observed(law, sizes, budgets, rng), budgets, seed=int(rng.integers(2**31)))
            for flops, optimum in fit.optima.items():
                low, _, high = (float(optimum.parameters_X[index]) for index in optimum.ends)
                opened, best = optimum.is_open, law.best(flops)
                covered.append((opened[0] or low <= best * 1.01) and (opened[1] or best <= high * 1.01))
            found = growth(fit.optima)
            truths = b / (a + b), a / (a + b)
            ends = [np.quantile(slopes, [0.025, 0.975]) for slopes in found] if found else []
            held = [low <= truth <= high for (low, high), truth in zip(ends, truths, strict=False)] or [True, True]
            rows.append((*held, ends[0][1] - ends[0][0] if ends else math.nan, bool(ends)))
            claims.append(fit.misfit_p is not None and fit.misfit_p < 0.05)
        table = np.array(rows, float)
        shown = [f"{np.mean(covered):.3f}", f"{table[:, 0].mean():.3f}", f"{np.nanmedian(table[:, 2]):.2f}"]
        shown += [f"{table[:, 1].mean():.3f}", f"{table[:, 3].mean():.2f}", f"{np.mean(claims):.3f}"]
        print(f"| {a}, {b} | {number} | {' | '.join(shown)} |", flush=True)
