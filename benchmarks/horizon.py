"""Learning curves of the 2023 study cut short: how well does the rest follow from the beginning?

Fits the first share of each of the 25 curves (tests/reference/march-2023-curves.json), predicts the loss after 1000
steps. `alone`: each curve by itself, with its own first half to learn from. `study`: all 25 together, as
`rank --horizon` does.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from reference import march_curves

from march_search.analysis import curve_fit as fitting
from march_search.analysis.early_order import kendall
from march_search.analysis.horizon import learn_mix, predicted_losses


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    options.add_argument("--skipped", type=float, nargs="+", default=[0.1, fitting.SKIPPED, 0.3])
    told = options.parse_args()
    for skipped in told.skipped:
        fitting.SKIPPED = skipped
        for share in told.shares:
            one(skipped, share)


def one(skipped: float, share: float) -> None:
    """Prints two lines: errors, coverage, order."""
    whole = march_curves()
    end = whole[0][-1][0]
    truth = np.array([curve[-1][1] for curve in whole])
    begun = [[(t, loss) for t, loss in curve if t <= share * end * (1 + 1e-9)] for curve in whole]
    now = np.array([curve[-1][1] for curve in begun])
    alone = np.array([fitting.fit_curve(curve).draws(end) for curve in begun])
    mix = learn_mix(begun)
    study = predicted_losses(begun, [fitting.fit_curve(curve, miss=0.0) for curve in begun], mix, end)
    print(f"first {share:.0%}, of which {skipped:.0%} skipped; order now: Kendall {kendall(now, truth):.2f}")
    for name, drawn in (("alone", alone), ("study", study)):
        error = drawn[:, 0] - truth
        low, high = np.quantile(drawn[:, 1:], [0.025, 0.975], axis=1)
        print(
            f"  {name}: error median {np.median(np.abs(error)):.3f}, largest {np.abs(error).max():.3f}, mean "
            f"{error.mean():+.3f}; 95 % intervals hold {np.sum((low <= truth) & (truth <= high))} of {len(truth)}, "
            f"width {np.median(high - low):.2f}; Kendall {kendall(drawn[:, 0], truth):.2f}"
        )
    first, second = np.triu_indices(len(truth), 1)
    chance = (study[first, 1:] < study[second, 1:]).mean(axis=1)
    right = np.where(truth[first] < truth[second], chance, 1 - chance)
    sure = np.maximum(chance, 1 - chance) > 0.95
    leader = now.argmin()
    flip = 1 - np.mean(study[:, 1:].argmin(axis=0) == leader)
    print(
        f"  mix {mix.share:.2f}; pairs told at 95 %: {sure.sum()} of {len(sure)}, right "
        f"{np.mean(right[sure] > 0.5):.1%}; chance that the leader changes "
        f"{flip:.0%}, it {'did' if leader != truth.argmin() else 'did not'}"
    )


if __name__ == "__main__":
    main()
