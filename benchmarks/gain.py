"""Simulate the compute-equivalent gain on curves of a known law, and how often its interval holds the true gain.

    python benchmarks/gain.py [--studies 500]

The reference follows L(t) = floor + above · (t / T)^-exponent, with `above` from 0.5 to 2.5 nats, and is evaluated at
equal steps with noise of 0.005 nats. A rival's true loss differs so that the true gain, ((L_reference - floor) /
(L - floor))^(1/exponent), lies between 1/8 and 8. Both losses have seed noise of 0.006 nats, which is estimated with 10
degrees of freedom. `line` is the gain by a straight line in ln(tokens) through the last half of the tokens.
"""

import argparse
import math

import numpy as np

from march_search.analysis.gain import compute_equivalent_gain, local_law

DEVIATION, EVALUATION = 0.006, 0.005


def simulate(evaluations: int, exponents: tuple[float, float], studies: int, seed: int = 0) -> dict[str, float]:
    """Return coverage, width and errors over simulated studies, the last three in units of ln(gain)."""
    rng = np.random.default_rng(seed)
    covered, widths, errors, lines = [], [], [], []
    while len(covered) < studies:
        exponent, above = rng.uniform(*exponents), rng.uniform(0.5, 2.5)
        difference = rng.uniform(-0.5, 0.8) * exponent * above
        truth = (above / (above - difference)) ** (1 / exponent)
        if not 1 / 8 < truth < 8:
            continue
        shares = np.arange(1, evaluations + 1) / evaluations
        losses = 2 + above * shares**-exponent + rng.normal(0, EVALUATION, evaluations)
        seen = difference + rng.normal(0, math.sqrt(2) * DEVIATION)
        law = local_law([(int(1e9 * share), loss) for share, loss in zip(shares, losses, strict=True)])
        gain = compute_equivalent_gain(seen, 1.0, law, 2 * DEVIATION**2 * rng.chisquare(10) / 10, 10)
        if gain is None:
            raise SystemExit("a simulated gain was refused")
        low, high = gain.low or 0.1, gain.high or 10.0
        covered.append((gain.low is None or low <= truth) and (gain.high is None or truth <= high))
        widths.append(math.log(high / low))
        errors.append(math.log(gain.point / truth))
        late = shares >= 0.5
        lines.append(-seen / np.polyfit(np.log(shares[late]), losses[late], 1)[0] - math.log(truth))
    return {
        "coverage": float(np.mean(covered)),
        "width": float(np.median(widths)),
        "bias": float(np.mean(errors)),
        "error": float(np.sqrt(np.mean(np.square(errors)))),
        "line": float(np.sqrt(np.mean(np.square(lines)))),
    }


def main() -> None:
    """Print one line per number of evaluations and range of exponents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500, help="simulated studies per line")
    studies = parser.parse_args().studies
    for evaluations in (5, 10, 50):
        for exponents in ((0.1, 0.2), (0.2, 0.35), (0.35, 0.5)):
            found = simulate(evaluations, exponents, studies)
            values = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
            print(f"{evaluations} evaluations, exponent {exponents[0]} to {exponents[1]}: {values}")


if __name__ == "__main__":
    main()
