"""The confirmation eliminates finalists with a stated error, whenever it is looked at."""

import sys
from pathlib import Path

import numpy as np
import pytest

from march_search.analysis.seed_prior import SeedPrior
from march_search.analysis.separation import in_question, remaining, share

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from racing_errors import DEVIATIONS, PRIOR, SHAPES, moderated, noise, power, selected

ALL = dict.fromkeys("abc", PRIOR)


def test_the_shares_of_all_looks_sum_to_1() -> None:
    total = sum(share(seeds) for seeds in range(1, 20_000))
    assert 0.999 < total <= 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("deviations", DEVIATIONS)
@pytest.mark.parametrize("many", [3, 6])
def test_an_elimination_is_wrong_in_at_most_5_percent_of_studies(many: int, deviations: str, shape: str) -> None:
    losses_RAS = noise(shape, DEVIATIONS[deviations](many), 600, 10, np.random.default_rng(1))
    assert (~moderated(losses_RAS)).any(axis=1).mean() <= 0.05


def test_finalists_that_were_selected_by_a_seed_are_not_eliminated_for_it() -> None:
    assert max(selected(moderated, 400, np.random.default_rng(2)).values()) <= 0.05


def test_three_seeds_find_a_clear_winner() -> None:
    found = power(moderated, 400, np.random.default_rng(3))["0.03"]
    assert found["3"] > 0.7
    assert found["5"] > 0.95


def test_what_was_eliminated_stays_eliminated() -> None:
    rng = np.random.default_rng(4)
    losses_RAS = noise("normal", [0.006] * 4, 300, 6, rng) + np.array([0, 0.01, 0.02, 0.03])[:, None]
    before = np.ones((300, 4), bool)
    for seeds in range(1, 7):
        left = in_question(losses_RAS[:, :, :seeds], [PRIOR] * 4, 0.95)
        assert not (left & ~before).any()
        assert left.any(axis=1).all()
        gone = np.where(left[:, :, None], losses_RAS, np.nan)  # an eliminated one gets no further seeds
        gone[:, :, :seeds] = losses_RAS[:, :, :seeds]
        assert (in_question(gone, [PRIOR] * 4, 0.95) <= left).all()
        before = left


def test_the_finalists_in_question_are_those_that_no_other_one_eliminated() -> None:
    assert remaining({"a": [4.0, 4.001], "b": [5.0, 5.001], "c": [5.5, 5.501]}, priors=ALL) == ("a",)
    assert remaining({"a": [4.0, 4.001], "b": [5.0, 5.001], "c": [4.0015, 4.002]}, priors=ALL) == ("a", "c")
    assert remaining({"b": [4.1], "a": [4.0], "c": []}, priors=ALL) == ("a", "b")
    assert remaining({"a": [4.0], "b": [6.0]}, priors=ALL) == ("a",)
    assert remaining({"a": [4.0]}, priors=ALL) == ("a",)
    assert remaining({}, priors=ALL) == remaining({}) == ()
    assert remaining({"a": [4.0, 4.0], "b": [4.0, 4.0]}, priors=ALL) == ("a", "b")


def test_a_prior_is_never_trusted_far() -> None:
    tiny = [SeedPrior(deviation=1e-6, degrees=1000.0, source="far too sure")] * 3
    losses_RAS = noise("normal", [0.006] * 3, 600, 5, np.random.default_rng(5))
    assert (~in_question(losses_RAS, tiny, 0.95)).any(axis=1).mean() <= 0.05


def test_priors_come_from_the_names() -> None:
    names = [f"L{n}-D192-H4x32-F64-rope-V2048" for n in (2, 3)]
    assert remaining({names[0]: [4.0, 4.0], names[1]: [5.0, 5.0]}) == (names[0],)
    assert remaining({names[0]: [4.0, 4.0], names[1]: [4.001, 4.0]}) == tuple(names)
