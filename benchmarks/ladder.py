"""Simulate ladders of known truth and count how often the figures of a ladder hold, and how often turns are found.

    python benchmarks/ladder.py [--ladders 200] [--isoflop]

A ladder has six arms with two seeds at 0.25M, 0.5M and 1M parameters. The arms are small encoder-decoders, so their
prior is that of 30 recorded arms. Seed noise is that of the kind:

- recorded: the variance of each arm and size is drawn from the distribution fitted to recorded arms;
- prior: it is drawn from the prior; equal: all arms have 0.0079 nats, the pooled deviation of recorded arms.

The first table has two sizes whose arms differ by a spread and whose orders have a correlation: how often the intervals
of the accuracy and of the Deming slope cover the truth of these arms, and how often the slope has an interval.

The second has arms with laws of one known exponent, or of exponents that differ by a tenth: how often the intervals
cover the expected loss at 2M, the offset and the exponent, and how often the check of 1M from two sizes holds.

The third has the orders at 2M: the mean probability that forecasts state for a pair of arms, how often these orders
come true, and the same for pairs with more than 0.97.

The fourth has turns: how often any of 15 pairs of equal arms is claimed to turn, grow or shrink, and how often a
pair is found that turns by the printed effect, in ladders whose other pairs keep their order.
"""

import argparse
import math
from collections.abc import Sequence
from itertools import combinations

import isoflop_errors
import numpy as np

from march_search.analysis.noise import seed_noise
from march_search.architecture.architecture import Architecture
from march_search.ladders.size_draws import SizeLosses
from march_search.ladders.size_law import check_forecast, forecast
from march_search.ladders.size_order import POWER, agreement, changes, deming_angles, detectable_turn

ARM = Architecture(num_layers=2, d_model=128, num_heads=4, d_kv=32, d_ff=600, vocab_size=512, position="rotary")

ARMS, SEEDS = 6, 2

SIZES = (250_000, 500_000, 1_000_000)

TARGET = 2_000_000

KINDS = {"recorded": (0.0069, 7.75), "prior": (0.007, 3.0), "equal": (0.0079, math.inf)}
"""Scale and degrees of freedom of the true seed deviations."""


def observed(truth_SA: np.ndarray, kind: str, rng: np.random.Generator) -> list[SizeLosses]:
    """Return what a ladder sees of the expected losses."""
    scale, degrees = KINDS[kind]
    sizes = []
    for index, truth_A in enumerate(truth_SA):
        many = len(truth_A)
        factor_A = np.ones(many) if math.isinf(degrees) else np.sqrt(degrees / rng.chisquare(degrees, many))
        losses = truth_A[:, None] + scale * factor_A[:, None] * rng.standard_normal((many, SEEDS))
        noise = seed_noise([ARM] * many, losses.tolist())
        sizes.append(
            SizeLosses(
                size=str(SIZES[index]),
                parameters=SIZES[index],
                means_A=losses.mean(axis=1),
                errors_A=np.array(noise.deviations) / math.sqrt(SEEDS),
                degrees_A=np.array(noise.degrees, float),
            )
        )
    return sizes


def accuracy(rows: Sequence[np.ndarray]) -> float:
    """Return the share of pairs that two rows of losses put in the same order."""
    signs = [np.sign(np.subtract.outer(row, row))[np.triu_indices(len(row), 1)] for row in rows]
    return float((signs[0] == signs[1]).mean())


def agreement_table(ladders: int) -> None:
    """Print how often the intervals of accuracy and slope cover the truth."""
    print("| noise | spread, nats | correlation | accuracy | its width | slope | slope has an interval |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in ("recorded", "prior"):
        for spread in (0.005, 0.02, 0.05):
            for correlation in (0.5, 0.9):
                rng, held = np.random.default_rng(1), []
                for _ in range(ladders):
                    first, other = rng.normal(0, spread, (2, ARMS))
                    second = correlation * first + math.sqrt(1 - correlation**2) * other
                    small, large = observed(np.stack([3 + first, 2.5 + second]), kind, rng)
                    found = agreement(small, large, seed=int(rng.integers(2**31)))
                    ratio = float(np.square(large.errors_A).mean() / np.square(small.errors_A).mean())
                    slope = math.tan(float(deming_angles(first[None], second[None], ratio)[0]))
                    low, high = found.accuracy_interval.low, found.accuracy_interval.high
                    own = found.slope_interval
                    held.append(
                        (
                            low - 1e-9 <= accuracy([first, second]) <= high + 1e-9,
                            high - low,
                            own is None or own.low <= slope <= own.high,
                            own is not None,
                        )
                    )
                a, width, s, known = np.mean(held, axis=0)
                print(
                    f"| {kind} | {spread} | {correlation} | {a:.3f} | {width:.2f} | {s:.3f} | {known:.2f} |", flush=True
                )


def law_table(ladders: int) -> None:
    """Print how often the intervals of the law cover the truth."""
    print("\n| noise | exponent | differs by | loss at 2M | its width, nats | offset | exponent | check at 1M |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for kind in ("recorded", "prior"):
        for exponent in (0.15, 0.3, 0.5, 0.8):
            for variation in (0.0, 0.1):
                rng, losses, offsets, exponents, checks, widths = np.random.default_rng(2), [], [], [], [], []
                for _ in range(ladders):
                    own_A = exponent * (1 + variation * rng.standard_normal(ARMS))
                    offset_A, scale_A = 1.5 + rng.normal(0, 0.02, ARMS), 0.9 + rng.normal(0, 0.02, ARMS)
                    ratios = np.array([*SIZES, TARGET])[:, None] / SIZES[0]
                    truth = offset_A + scale_A * ratios**-own_A
                    sizes = observed(truth[:-1], kind, rng)
                    found = forecast(sizes, TARGET, seed=int(rng.integers(2**31)))
                    losses += [i.low <= x <= i.high for i, x in zip(found.intervals, truth[-1], strict=True)]
                    offsets += [i.low <= x <= i.high for i, x in zip(found.offsets, offset_A, strict=True)]
                    exponents.append(found.exponent_interval.low <= exponent <= found.exponent_interval.high)
                    widths += [i.high - i.low for i in found.intervals]
                    checks += check_forecast(sizes).held
                shares = [f"{np.mean(x):.3f}" for x in (losses, widths, offsets, exponents, checks)]
                print(f"| {kind} | {exponent} | {variation:.0%} | {' | '.join(shares)} |", flush=True)


def order_table(ladders: int) -> None:
    """Print how often forecast orders come true, beside their probability."""
    print("\n| noise | spread, nats | stated | came true | stated, of sure pairs | came true |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for kind in ("recorded", "prior"):
        for spread in (0.005, 0.02, 0.05):
            rng, rows = np.random.default_rng(4), []
            for _ in range(ladders):
                offset_A, scale_A = 1.5 + rng.normal(0, spread, ARMS), 0.9 + rng.normal(0, spread, ARMS)
                truth = offset_A + scale_A * (np.array([*SIZES, TARGET])[:, None] / SIZES[0]) ** -0.3
                found = forecast(observed(truth[:-1], kind, rng), TARGET, seed=int(rng.integers(2**31)))
                pairs = combinations(np.argsort(found.losses_A).tolist(), 2)
                rows += [(found.probability(a, b), truth[-1, a] < truth[-1, b]) for a, b in pairs]
            stated, came = np.array(rows, float).T
            sure = stated > 0.97
            shares = [f"{x.mean():.3f}" if len(x) else "–" for x in (stated, came, stated[sure], came[sure])]
            print(f"| {kind} | {spread} | {' | '.join(shares)} |", flush=True)


def turn_table(ladders: int) -> None:
    """Print how often changes are claimed without cause, and how often turns of the printed size are found."""
    print(f"\n| noise | any false claim | printed turn, nats | found (promised: {POWER}) |")
    print("| --- | ---: | ---: | ---: |")
    for kind in KINDS:
        rng, claims, sizes = np.random.default_rng(3), 0, []
        for _ in range(ladders):
            small, large = observed(np.stack([np.full(ARMS, 3.0), np.full(ARMS, 2.5)]), kind, rng)
            claims += any(change.change for change in changes(small, large))
            sizes.append(detectable_turn(small, large, math.comb(ARMS, 2)))
        size, found = float(np.median(sizes)), 0
        base = np.arange(ARMS) * 3 * size
        truth = np.stack([3 + base, 2.5 + base])
        truth[0, -1], truth[1, -1] = truth[0, 0] + size, truth[1, 0] - size
        for _ in range(ladders):
            small, large = observed(truth, kind, rng)
            found += any(c.arms == (0, ARMS - 1) and c.change == "turns" for c in changes(small, large))
        print(f"| {kind} | {claims / ladders:.3f} | ±{size:.3f} | {found / ladders:.3f} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ladders", type=int, default=200, help="ladders per row; five times as many for turns")
    parser.add_argument("--isoflop", action="store_true", help="simulate compute budgets instead")
    options = parser.parse_args()
    ladders = options.ladders
    if options.isoflop:
        isoflop_errors.optimum_table(ladders)
        isoflop_errors.growth_table(ladders)
        return
    agreement_table(ladders)
    law_table(ladders)
    order_table(ladders)
    turn_table(5 * ladders)


if __name__ == "__main__":
    main()
