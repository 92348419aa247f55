"""Predict the end of the learning curves of the 2023 study from their beginnings, and measure the errors.

    python benchmarks/horizon.py [--shares 0.3 0.5 0.7] [--skipped 0.1 0.2 0.3]

The benchmark fits the first part of each of the 25 curves (tests/reference/march-2023-curves.json) and predicts the
loss after 1000 steps. `alone` fits each curve separately and estimates the error from the first half of the same curve.
`study` uses all 25 curves together, as `rank --horizon` does.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from helpers.reference import march_curves

from march_search.analysis import curve_fit as fitting
from march_search.analysis.horizon import learn_mix, predicted_losses


def main() -> None:
    """Print errors, interval coverage and order for each fraction of the curves that is used and skipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.5, 0.7], help="parts of the curves to use")
    parser.add_argument(
        "--skipped", type=float, nargs="+", default=[0.1, fitting.SKIPPED, 0.3], help="parts of these to skip"
    )
    options = parser.parse_args()
    for skipped in options.skipped:
        fitting.SKIPPED = skipped
        for share in options.shares:
            print_errors(skipped, share)


def print_errors(skipped: float, share: float) -> None:
    """Print errors, interval coverage and order of the predictions from the first `share` of each curve."""
    curves = march_curves()
    end = curves[0][-1][0]
    recorded = np.array([curve[-1][1] for curve in curves])
    beginnings = [[(t, loss) for t, loss in curve if t <= share * end * (1 + 1e-9)] for curve in curves]
    current = np.array([curve[-1][1] for curve in beginnings])
    alone = np.array([fitting.fit_curve(curve).draws(end) for curve in beginnings])
    mix = learn_mix(beginnings)
    assert mix is not None
    study = predicted_losses(beginnings, [fitting.fit_curve(curve, miss=0.0) for curve in beginnings], mix, end)
    tau = kendalltau(current, recorded)[0]
    print(f"first {share:.0%}, of which {skipped:.0%} skipped; current order: Kendall {tau:.2f}")
    for name, draws in (("alone", alone), ("study", study)):
        error = draws[:, 0] - recorded
        low, high = np.quantile(draws[:, 1:], [0.025, 0.975], axis=1)
        num_inside = np.sum((low <= recorded) & (recorded <= high))
        print(
            f"  {name}: error median {np.median(np.abs(error)):.3f}, largest {np.abs(error).max():.3f}, mean "
            f"{error.mean():+.3f}; {num_inside} of {len(recorded)} losses inside their 95% intervals, "
            f"width {np.median(high - low):.2f}; Kendall {kendalltau(draws[:, 0], recorded)[0]:.2f}"
        )
    first, second = np.triu_indices(len(recorded), 1)
    probability = (study[first, 1:] < study[second, 1:]).mean(axis=1)
    probability_of_recorded_order = np.where(recorded[first] < recorded[second], probability, 1 - probability)
    is_confident = np.maximum(probability, 1 - probability) > 0.95
    leader = current.argmin()
    change_probability = 1 - np.mean(study[:, 1:].argmin(axis=0) == leader)
    print(
        f"  mix {mix.share:.2f}; pairs ordered with 95% confidence: {is_confident.sum()} of {len(is_confident)}, "
        f"{np.mean(probability_of_recorded_order[is_confident] > 0.5):.1%} of them correctly; "
        f"probability of another leader: {change_probability:.0%}; "
        f"the leader {'changed' if leader != recorded.argmin() else 'did not change'}"
    )


if __name__ == "__main__":
    main()
