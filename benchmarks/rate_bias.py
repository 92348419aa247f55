"""Simulate the bias of choosing the best of several learning rates, and what its correction leaves.

    python benchmarks/rate_bias.py [--studies 4000]

Losses have normal noise over seeds of 0.006 nats. Part 1: one shape with several rates among three shapes with one
rate each; all are equally good at their best rate, so the shape should lead in 0.25 of studies. The true loss depends
on the rate not at all (`flat`) or by a curvature in nats per squared step, with the optimum off the grid. The deviation
that the correction is given may be wrong. Part 2: six shapes with five rates each, of which one is the best.
"""

import argparse

import numpy as np

from march_search.analysis.rate_bias import rate_corrections

DEVIATION = 0.006


def true_losses(curve: str, rates: int) -> np.ndarray:
    """Return the true losses at each rate, above that of the best one."""
    steps = np.arange(rates) - (rates - 1) / 2
    if curve == "flat":
        return np.zeros(rates)
    if curve == "steep above":
        losses = np.where(steps < 0.2, 0.004, 0.03) * (steps - 0.2) ** 2
    else:
        losses = float(curve) * (steps - 0.3) ** 2
    return losses - losses.min()


def one_among_single(
    curve: str, rates: int, studies: int, assumed: float = DEVIATION, seed: int = 0
) -> tuple[float, float, float, float]:
    """Return the bias and the share of studies led, without and with correction, of one shape with several rates."""
    rng, true = np.random.default_rng(seed), true_losses(curve, rates)
    losses = true + rng.normal(0, DEVIATION, (studies, rates))
    rivals = rng.normal(0, DEVIATION, (studies, 3)).min(axis=1)
    chosen, lowest = losses.argmin(axis=1), losses.min(axis=1)
    corrected = lowest + [rate_corrections([own], [assumed])[0] for own in losses.tolist()]
    results = [(np.mean(values - true[chosen]), np.mean(values < rivals)) for values in (lowest, corrected)]
    return tuple(float(value) for pair in results for value in pair)  # type: ignore[return-value]


def equal_effort(spread: float, studies: int, seed: int = 0, shapes: int = 6) -> tuple[float, float, float, float]:
    """Return how often the best shape leads, and the regret in nats, without and with correction; five rates each."""
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(studies):
        steps = np.arange(5) - 2 - rng.uniform(-1.2, 1.2, (shapes, 1))
        curvature = np.exp(rng.uniform(np.log(0.0005), np.log(0.03), (shapes, 1)))
        true = rng.normal(0, spread, (shapes, 1)) + curvature * steps**2
        losses = true + rng.normal(0, DEVIATION, true.shape)
        reached = true[np.arange(shapes), losses.argmin(axis=1)]
        lowest = losses.min(axis=1)
        corrected = lowest + rate_corrections(losses.tolist(), [DEVIATION] * shapes)
        for leader in (lowest.argmin(), corrected.argmin()):
            results.append((reached[leader] == reached.min(), reached[leader] - reached.min()))
    table = np.array(results, float).reshape(studies, 4).mean(axis=0)
    return tuple(table.tolist())


def main() -> None:
    """Print both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=4000, help="simulated studies per line")
    studies = parser.parse_args().studies
    print("one shape with several rates: bias and share of studies led, without; with correction")
    for rates in (2, 3, 5):
        for curve in ("flat", "0.001", "0.003", "0.01", "0.03", "steep above"):
            for assumed in (DEVIATION, 0.004, 0.009) if rates == 5 else (DEVIATION,):
                bias, led, left, leads = one_among_single(curve, rates, studies, assumed)
                print(f"{rates} rates, {curve}, {assumed} assumed: {bias:+.4f} {led:.3f}; {left:+.4f} {leads:.3f}")
    print("six shapes with five rates each: best shape leads, regret, without; with correction")
    for spread in (0.003, 0.006, 0.02):
        hit, regret, hits, regrets = equal_effort(spread, studies // 2)
        print(f"true spread {spread}: {hit:.3f} {regret:.5f}; {hits:.3f} {regrets:.5f}")


if __name__ == "__main__":
    main()
