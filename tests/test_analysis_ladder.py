"""The statistics of a ladder on simulated families whose exponents and flips are known."""

import math
from itertools import combinations

import numpy as np
import pytest
from helpers.ladders import NOISE, SIZES, Family, observed

from march_search.errors import UsageError
from march_search.ladders.size_draws import SizeLosses, size_draws
from march_search.ladders.size_law import check_forecast, forecast
from march_search.ladders.size_order import agreement, changes, deming_angles, detectable_turn, separated_pairs

EXACT = 1e-6
"""Noise, in nats, that hides nothing."""


def family(seed: int, exponent: float = 0.3) -> Family:
    """Return six arms that share an exponent."""
    return Family.drawn(np.random.default_rng(seed), arms=6, exponent=exponent, spread=0.02)


def exact(*losses: list[float]) -> list[SizeLosses]:
    """Return sizes with these losses and hardly any noise."""
    return [
        SizeLosses(
            size=str(index),
            parameters=SIZES[index],
            means_A=np.array(row),
            errors_A=np.full(len(row), EXACT),
            degrees_A=np.full(len(row), 50.0),
        )
        for index, row in enumerate(losses)
    ]


def test_without_noise_every_figure_is_exact() -> None:
    small, large = exact([3.0, 3.1, 3.3, 3.6], [2.0, 2.2, 2.1, 2.5])
    found = agreement(small, large)
    assert (found.pairs, found.accuracy) == (6, pytest.approx(5 / 6))
    assert found.kendall == pytest.approx(2 / 3)
    assert found.accuracy_interval.low == found.accuracy_interval.high == found.accuracy
    (double,) = [agreement(*exact([3.0, 3.1, 3.3], [2.0, 2.2, 2.6]))]
    assert double.slope == pytest.approx(2, abs=1e-4)
    assert double.slope_interval is not None
    assert double.slope_interval.low == pytest.approx(2, abs=1e-3)
    assert double.slope_interval.high == pytest.approx(2, abs=1e-3)


def test_kendalls_tau_is_that_of_scipy() -> None:
    from scipy.stats import kendalltau

    rng = np.random.default_rng(0)
    rows = rng.normal(3, 0.1, (2, 7)).tolist()
    assert agreement(*exact(*rows)).kendall == pytest.approx(float(kendalltau(*rows)[0]))


@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_the_deming_line_is_that_of_a_numerical_search(ratio: float) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(0, 1, (2, 1, 8))
    y = y + 1.5 * x
    slope = math.tan(float(deming_angles(x, y, ratio)[0]))
    slopes = np.linspace(-10, 10, 400_001)
    centred = [values[0] - values.mean() for values in (x, y)]
    squares = sum((b - slopes * a) ** 2 for a, b in zip(*centred, strict=True)) / (ratio + slopes**2)
    assert slope == pytest.approx(slopes[squares.argmin()], abs=1e-3)


def test_close_arms_are_drawn_towards_each_other() -> None:
    small, large = observed(np.array([[3.0] * 6, [2.5] * 6]), np.random.default_rng(2))
    draws = size_draws(small, large)
    first_BA, second_BA = draws.first_BA, draws.second_BA
    assert first_BA.shape == second_BA.shape == (2000, 6)
    assert np.median(first_BA.std(axis=1)) < small.means_A.std() + small.errors_A.mean()
    assert agreement(small, large).accuracy_interval.high > 0.6
    assert agreement(small, large).accuracy_interval.low < 0.4
    assert agreement(small, large).slope_interval is None


def test_agreement_covers_the_truth() -> None:
    rng, held, slopes = np.random.default_rng(3), 0, 0
    studies = 40
    for _ in range(studies):
        truth = rng.normal([[3.0], [2.5]], 0.03, (2, 6))
        truth[1] = 2.5 + 0.7 * (truth[0] - 3.0) + 0.7 * (truth[1] - 2.5)
        small, large = observed(truth, rng)
        found = agreement(small, large)
        signs = [np.sign(np.subtract.outer(row, row))[np.triu_indices(6, 1)] for row in truth]
        accuracy = float((signs[0] == signs[1]).mean())
        held += found.accuracy_interval.low - 1e-9 <= accuracy <= found.accuracy_interval.high + 1e-9
        ratio = float(np.square(large.errors_A).mean() / np.square(small.errors_A).mean())
        slope = math.tan(float(deming_angles(truth[:1], truth[1:], ratio)[0]))
        slopes += found.slope_interval is None or found.slope_interval.low <= slope <= found.slope_interval.high
    assert held >= 0.9 * studies
    assert slopes >= 0.88 * studies


def test_changes_are_named_by_their_direction() -> None:
    small, large = exact([3.0, 3.1, 3.1, 2.9, 3.2], [2.0, 2.2, 2.05, 2.1, 2.2])
    found = changes(small, large, [(k, 0) for k in range(1, 5)])
    assert [change.change for change in found] == ["grows", "shrinks", "turns", ""]
    assert found[2].effects == (pytest.approx(-0.1), pytest.approx(0.1))
    assert found[3].p > 0.9
    assert {change.arms for change in changes(small, large) if change.change == "turns"} >= {(0, 3)}


def test_a_turn_within_noise_is_not_claimed() -> None:
    rng, claims = np.random.default_rng(4), 0
    for _ in range(200):
        small, large = observed(np.array([[3.0] * 6, [2.5] * 6]), rng)
        claims += any(change.change for change in changes(small, large))
    assert claims <= 0.05 * 200


def test_a_turn_of_the_promised_size_is_found() -> None:
    rng, sizes = np.random.default_rng(5), []
    for _ in range(50):
        small, large = observed(np.array([[3.0] * 6, [2.5] * 6]), rng)
        sizes.append(detectable_turn(small, large, 15))
    size = float(np.median(sizes))
    truth = np.array([[3.0 + 0.1 * k for k in range(6)], [2.5 + 0.1 * k for k in range(6)]])
    truth[0, 5], truth[1, 5] = truth[0, 0] + size, truth[1, 0] - size
    found = 0
    for _ in range(200):
        small, large = observed(truth, rng)
        found += any(change.arms == (0, 5) and change.change == "turns" for change in changes(small, large))
    assert found >= 0.8 * 200


def test_the_law_is_recovered_without_noise() -> None:
    known = family(6)
    truth = known.losses(SIZES)
    found = forecast(exact(*truth.tolist()), 4_000_000)
    assert found.exponent == pytest.approx(0.3, abs=0.02)
    assert found.losses_A == pytest.approx(known.losses([4_000_000])[0], abs=2e-3)
    assert found.best_A.argmax() == known.losses([4_000_000])[0].argmin()


def test_forecasts_and_the_check_cover_the_truth() -> None:
    rng = np.random.default_rng(7)
    held, exponents, checked = [], [], []
    for seed in range(25):
        known = family(seed)
        sizes = observed(known.losses(SIZES), rng)
        found = forecast(sizes, 2 * SIZES[-1])
        truth = known.losses([2 * SIZES[-1]])[0]
        held += [i.low <= loss <= i.high for i, loss in zip(found.intervals, truth, strict=True)]
        exponents.append(found.exponent_interval.low <= 0.3 <= found.exponent_interval.high)
        checked += check_forecast(sizes).held
    assert np.mean(held) >= 0.9
    assert np.mean(exponents) >= 0.9
    assert np.mean(checked) >= 0.93


def test_the_probability_of_an_order_is_how_often_it_comes_true() -> None:
    rng = np.random.default_rng(11)
    stated, came = [], []
    for seed in range(40):
        known = family(seed)
        found = forecast(observed(known.losses(SIZES), rng), 2 * SIZES[-1])
        truth = known.losses([2 * SIZES[-1]])[0]
        for a, b in combinations(np.argsort(found.losses_A).tolist(), 2):
            stated.append(found.probability(a, b))
            came.append(truth[a] < truth[b])
    assert np.mean(came) == pytest.approx(np.mean(stated), abs=0.05)
    sure = np.array(stated) > 0.97
    assert sure.sum() > 100
    assert np.mean(np.array(came)[sure]) > 0.97


def test_pairs_are_separated_beyond_noise_only() -> None:
    [size] = exact([2.0, 2.1, 2.1])
    assert separated_pairs(size) == [(0, 1), (0, 2)]
    [alone] = exact([2.0])
    assert separated_pairs(alone) == []
    rng = np.random.default_rng(12)
    assert sum(bool(separated_pairs(observed(np.full((1, 6), 2.0), rng)[0])) for _ in range(100)) <= 5
    apart = [separated_pairs(observed(np.array([[2.0, 2.2]]), rng)[0]) for _ in range(20)]
    assert apart == [[(0, 1)]] * 20


def test_two_sizes_give_the_range_between_no_offset_and_the_largest_exponent() -> None:
    small, large = exact([3.0, 3.1, 3.2], [2.4, 2.48, 2.56])
    [held, *_] = forecast([small, large], SIZES[1] * SIZES[1] // SIZES[0]).intervals
    assert held.low == pytest.approx(2.4**2 / 3.0, abs=0.01)
    assert 2.0 < held.high < 2.4


def test_without_a_falling_loss_there_is_no_forecast() -> None:
    with pytest.raises(UsageError, match="losses do not fall from 0 to 1"):
        forecast(exact([2.0, 2.1, 2.2], [2.5, 2.6, 2.7]), 4_000_000)
    with pytest.raises(UsageError, match="at least two complete sizes"):
        forecast(exact([2.0, 2.1, 2.2]), 4_000_000)
    with pytest.raises(UsageError, match="faster than any power law"):
        forecast(exact([3.0, 3.0, 3.0], [0.1, 0.1, 0.1]), 4_000_000)


def test_noise_is_that_of_recorded_arms() -> None:
    sizes = observed(np.full((2, 400), 3.0), np.random.default_rng(8))
    assert sizes[0].means_A.std() == pytest.approx(NOISE / math.sqrt(2), rel=0.25)
