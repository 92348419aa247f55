"""The best of several learning rates is too low by chance: a subset of `benchmarks/rate_bias.py`."""

import sys
from pathlib import Path

import pytest

from march_search.analysis.rate_bias import rate_corrections, winner_noise

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import rate_bias


@pytest.mark.parametrize("curve", ["flat", "0.003", "0.03", "steep above"])
def test_a_shape_with_five_rates_leads_no_more_often_than_by_chance(curve: str) -> None:
    bias, led, left, leads = rate_bias.one_among_single(curve, rates=5, studies=1500)
    assert bias < 0
    assert abs(left) < 0.0015
    assert leads <= 0.25 + 0.03
    assert led > leads


def test_equal_effort_keeps_its_order() -> None:
    hit, regret, hits, regrets = rate_bias.equal_effort(0.006, studies=200)
    assert (hit, regret) == (hits, regrets)
    assert hit > 1 / 6


def test_the_expected_noise_of_the_best_of_several() -> None:
    assert winner_noise([1.0] * 5) == pytest.approx(-1.163, abs=0.03)  # expected minimum of five normal values
    assert winner_noise([0.0, 100.0]) == pytest.approx(0.0, abs=0.05)
    assert rate_corrections([[4.0], [4.0, 4.0]], [0.01, 0.01]) == pytest.approx([0.0, 0.0056], abs=0.0003)
    assert rate_corrections([[4.0, 4.1]], [0.0]) == [0.0]
