"""What happens at other budgets: recorded changes of order, and the compute-equivalent gain, on known laws."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from march_search.analysis.gain import FARTHEST, compute_equivalent_gain, local_law
from march_search.analysis.order_changes import CHECKED, RATIOS, TABLE, changes_at, later_differences
from march_search.display.regime_sentences import RECORDED

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import horizon


@pytest.fixture(scope="module")
def pairs() -> list[horizon.Pair]:
    """Return all recorded pairs."""
    return horizon.march_pairs() + horizon.own_pairs()


def test_the_shipped_table_is_that_of_the_recorded_runs(pairs: list[horizon.Pair]) -> None:
    for ratio, found in horizon.table(pairs).items():
        assert TABLE[ratio].kept == pytest.approx(found.kept, abs=0.001)
        assert TABLE[ratio].quantiles == pytest.approx(found.quantiles, abs=0.001)


def test_what_is_said_about_early_orders_is_that_of_the_recorded_runs() -> None:
    march, own = horizon.recorded_orders().values()
    assert f"of the {march.pairs} pairs of the 2023 study, {march.kept_order:.0%} kept it" in RECORDED
    assert f"of {own.pairs} pairs in studies/results" in RECORDED
    assert f"{own.kept_order:.0%} kept it over five times the tokens" in RECORDED
    assert f"fell to {march.kept_difference:.0%} in the median" in RECORDED
    assert f"differences fell to {own.kept_difference:.0%}" in RECORDED


@pytest.mark.parametrize("source", ["2023", "own"])
def test_intervals_hold_for_held_out_families_and_studies(pairs: list[horizon.Pair], source: str) -> None:
    means = {}
    own = [p for p in pairs if p.source == source]
    groups = sorted({group for p in own for group in p.groups})
    for group in groups:
        used = [p for p in pairs if p.source != source or group not in p.groups]
        for ratio, share in horizon.coverage([p for p in own if group in p.groups], used).items():
            means[ratio] = means.get(ratio, 0.0) + share / len(groups)
    assert len(means) == len(RATIOS) - (source == "own")
    assert min(means.values()) > 0.93


def test_changes_grow_with_the_ratio_from_none() -> None:
    ratios = [1.0, 1.1, *RATIOS]
    found = [changes_at(ratio) for ratio in ratios]
    assert (found[0].kept, max(found[0].quantiles)) == (1.0, 0.0)
    assert all(a.kept >= b.kept for a, b in itertools.pairwise(found))
    assert all(a.quantiles[4] <= b.quantiles[4] for a, b in itertools.pairwise(found))
    assert found[-1] == TABLE[CHECKED]


def test_draws_of_later_differences_have_the_recorded_quantiles() -> None:
    draws = later_differences(np.array([0.0, 0.1]), np.zeros((2, 20_000)), 2.0)
    changes = TABLE[2.0]
    rest = np.abs(draws[1] - changes.kept * 0.1) / 0.25
    assert np.quantile(rest, [0.5, 0.95]) == pytest.approx([changes.quantiles[1], changes.quantiles[4]], rel=0.05)
    assert np.corrcoef(draws)[0, 1] == pytest.approx(0.5, abs=0.05)  # both differences are to one leader


def test_the_gain_on_a_known_law_holds_its_identity_in_95_percent() -> None:
    rng, deviation, covered, errors = np.random.default_rng(0), 0.006, [], []
    while len(covered) < 400:
        exponent, above, many = rng.uniform(0.1, 0.5), rng.uniform(0.5, 2.5), int(rng.choice([5, 10, 50]))
        difference = rng.uniform(-0.5, 0.8) * exponent * above
        truth = (above / (above - difference)) ** (1 / exponent)  # compute of the reference for the same loss
        if not 1 / 8 < truth < 8:
            continue
        shares = np.arange(1, many + 1) / many
        losses = 2.0 + above * shares**-exponent + rng.normal(0, 0.005, many)
        law = local_law([(int(1e9 * share), loss) for share, loss in zip(shares, losses, strict=True)])
        variance = 2 * deviation**2 * rng.chisquare(10) / 10
        gain = compute_equivalent_gain(difference + rng.normal(0, 2**0.5 * deviation), 1.0, law, variance, 10)
        assert gain is not None
        low, high = gain.low or 0.0, gain.high or math.inf
        covered.append(low <= truth <= high)
        errors.append(math.log(gain.point / truth))
    assert 0.93 <= np.mean(covered) <= 0.985
    assert abs(np.mean(errors)) < 0.02


def test_gains_are_refused_where_the_law_does_not_reach() -> None:
    falling = [(10**6 * n, 2 + 2 * n**-0.3) for n in range(1, 11)]
    law = local_law(falling)
    assert law is not None
    assert law.slope == pytest.approx(0.3 * 2 * 10**-0.3, rel=0.1)
    same = compute_equivalent_gain(0.0, 2.0, law)
    assert same is not None
    assert same.point == pytest.approx(2.0)
    assert compute_equivalent_gain(0.9, 1.0, law) is None  # below any floor: too far
    near = compute_equivalent_gain(0.45, 1.0, law, variance=0.1**2)
    assert near is not None
    assert near.low is not None
    assert (near.point < FARTHEST, near.high) == (True, None)
    assert local_law([(10**6 * n, 4 + 0.1 * n) for n in range(1, 11)]) is None
    assert local_law(falling[-2:]) is None
    assert local_law(falling, warmup_tokens=9e6) is None
    assert compute_equivalent_gain(0.1, 1.0, None) is None
