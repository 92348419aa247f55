"""The statistics of a ranking, compared with simulated truth and with values computed by hand."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.trials import DATA

from march_search.analysis.comparison import (
    compare,
    difference_variance,
    difference_variances,
    holm,
    letters,
    mean_interval,
    short_letters,
)
from march_search.analysis.documents import document_numbers
from march_search.analysis.further_seeds import further_seeds
from march_search.analysis.noise import DataNoise, SeedNoise, data_noise, seed_noise
from march_search.analysis.seed_prior import seed_prior
from march_search.architecture.architecture import Architecture
from march_search.data.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from ranking_errors import best_calibration, tied_errors

SIGMA = 0.006

T5 = Architecture()


def known_noise(count: int, deviation: float = SIGMA) -> SeedNoise:
    """Return seed noise without uncertainty, the same for `count` architectures."""
    return SeedNoise(
        deviations=(deviation,) * count, degrees=(1e9,) * count, is_measured=(False,) * count, source="known"
    )


def drawn_sigmas(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw true deviations over seeds from the prior; shape (count, 1)."""
    prior = seed_prior(T5)
    return prior.deviation * np.sqrt(prior.degrees / rng.chisquare(prior.degrees, (count, 1)))


def simulated(rng: np.random.Generator, truth: np.ndarray, seeds: int, documents: int) -> tuple:
    """Simulate mean losses, seed noise, and data noise of unequal documents that each prefer some shapes."""
    numbers_N = np.repeat(np.arange(documents), rng.integers(1, 6, documents))
    losses_AS = rng.normal(truth[:, None], drawn_sigmas(rng, len(truth)), (len(truth), seeds))
    preference_AN = (
        rng.normal(0, 0.02, (len(truth), documents))[:, numbers_N] + rng.normal(0, 0.5, documents)[numbers_N]
    )
    examples_AN = losses_AS.mean(axis=1, keepdims=True) + preference_AN + rng.normal(0, 0.01, preference_AN.shape)
    noise = seed_noise([T5] * len(truth), losses_AS.tolist())
    return examples_AN.mean(axis=1), noise, data_noise(examples_AN, numbers_N)


@pytest.mark.parametrize("kind", ["normal", "t3", "jumps", "prior", "unequal"])
def test_intervals_ties_and_the_leader_of_simulated_studies(kind: str) -> None:
    coverage, _, split, claimed = tied_errors(kind, arms=6, seeds=2, studies=300)
    assert 0.91 <= coverage <= 0.995
    assert split <= 0.07  # at most 5%, and twice the standard error of 300 studies
    assert claimed <= 0.07


def test_documents_do_not_split_true_ties() -> None:
    coverage, _, split, claimed = tied_errors("recorded", arms=6, seeds=3, studies=300, documents=True)
    assert 0.91 <= coverage <= 0.995
    assert max(split, claimed) <= 0.07


def test_the_probability_of_being_the_best_is_calibrated() -> None:
    found = [best_calibration("recorded", arms=6, seeds=2, spread=spread, studies=150) for spread in (1 / 3, 1, 3)]
    for printed, was_best in found:
        assert printed[:, 0].mean() == pytest.approx(was_best[:, 0].mean(), abs=0.13)  # three times the standard error
    every, was_best = (np.concatenate(parts) for parts in zip(*found, strict=True))
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1)):
        here = (every >= low) & (every < high)
        assert every[here].mean() == pytest.approx(was_best[here].mean(), abs=0.09)


def test_intervals_of_differences_cover_the_truth() -> None:
    from scipy.special import stdtrit

    rng, truth, covered = np.random.default_rng(2), np.array([4.0, 4.01, 4.03]), []
    for _ in range(1500):
        means, seeds, data = simulated(rng, truth, 3, 40)
        variance, degrees = difference_variance(0, 2, [3, 3, 3], seeds, data)
        half = stdtrit(degrees, 0.975) * math.sqrt(variance)
        covered.append(abs(means[2] - means[0] - 0.03) <= half)
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("with_data", [False, True])
def test_the_variance_of_one_difference_is_that_of_all(with_data: bool) -> None:
    rng = np.random.default_rng(3)
    noise = SeedNoise(
        deviations=tuple(rng.uniform(0.001, 0.01, 5)), degrees=(4, 5, 6, 7, 8), is_measured=(True,) * 5, source=""
    )
    root_AA = rng.normal(0, 0.003, (5, 5))
    data = DataNoise(root_AA @ root_AA.T, 30) if with_data else None
    counts = [1, 2, 3, 1, 2]
    variance_AA, degrees_AA = difference_variances(counts, noise, data)
    for i, k in np.ndindex(5, 5):
        found = difference_variance(i, k, counts, noise, data)
        assert found == pytest.approx((variance_AA[i, k], degrees_AA[i, k]), rel=1e-12, abs=0)


def test_further_seeds_have_the_stated_power() -> None:
    from scipy.special import stdtrit

    noise = SeedNoise(deviations=(0.004, 0.009), degrees=(5, 4), is_measured=(True, False), source="")
    counts, data = (2, 1), DataNoise(np.diag([1e-6, 1e-6]), 40)
    more = further_seeds(0, 1, 0.012, counts, noise, data).point
    assert more is not None
    rng, many = np.random.default_rng(4), 40_000
    powers = []
    for added in (more, more - 1):
        own = [n + added for n in counts]
        known = replace(noise, degrees=tuple(degrees + added for degrees in noise.degrees))
        variance, degrees = difference_variance(0, 1, own, known, data)
        difference = rng.normal(0.012, math.sqrt(variance), many)
        found = variance * rng.chisquare(degrees, many) / degrees
        powers.append(np.mean(np.abs(difference) > stdtrit(degrees, 0.975) * np.sqrt(found)))
    assert powers[0] >= 0.79
    assert powers[1] < 0.81


def test_further_seeds_cannot_reduce_the_noise_of_documents() -> None:
    data = DataNoise(np.diag([0.004**2, 0.0]), 1000)
    assert further_seeds(0, 1, 0.004, (3, 3), known_noise(2), data).point is None
    assert further_seeds(0, 1, 0.0, (3, 3), known_noise(2), None).point is None
    assert further_seeds(0, 1, 0.1, (3, 3), known_noise(2), None).point == 0
    assert further_seeds(0, 1, 0.02, (1, 1), known_noise(2), None).point == 1


def test_letters_are_shared_exactly_by_pairs_that_are_not_separated() -> None:
    assert letters(3, []) == ("a", "a", "a")
    assert letters(3, [(0, 2)]) == ("a", "ab", "b")
    assert letters(4, [(0, 2), (0, 3), (1, 3)]) == ("a", "ab", "bc", "c")
    rng = np.random.default_rng(6)
    for _ in range(300):
        many = int(rng.integers(2, 9))
        pairs = [(i, k) for i in range(many) for k in range(i + 1, many)]
        separated = {pair for pair in pairs if rng.random() < 0.5}
        named = letters(many, separated)
        assert all(bool(set(named[i]) & set(named[k])) == ((i, k) not in separated) for i, k in pairs)
        assert "a" in named[0]


def test_many_letters_are_abbreviated() -> None:
    assert [short_letters(one) for one in ("", "a", "abc", "bcde", "abde", "yzABC")] == [
        "",
        "a",
        "abc",
        "b-e",
        "abde",
        "y-C",
    ]
    many = letters(60, [(i, k) for i in range(60) for k in range(i + 5, 60)])
    assert short_letters(many[-1]) == "(56)"
    assert short_letters(many[52]) == "W-(53)"


def test_the_method_of_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.9, 0.5])).tolist() == [1.0, 1.0]


def test_one_seed_has_the_interval_of_its_prior() -> None:
    from scipy.special import stdtrit

    prior, noise = seed_prior(T5), seed_noise([T5, T5], [[4.0], [4.1]])
    assert "Narang et al. 2021, Table 1" in noise.source
    assert (noise.deviations, noise.is_measured) == ((prior.deviation,) * 2, (False, False))
    interval = mean_interval(0, 4.0, 1, noise)
    assert interval is not None
    assert interval.high - 4.0 == pytest.approx(stdtrit(prior.degrees, 0.975) * prior.deviation)
    assert mean_interval(0, 4.0, 1, None) is None
    assert compare([4.0, 4.1], [1, 1], None, None) is None


def test_seed_noise_depends_on_the_seeds_of_one_architecture_only() -> None:
    prior = seed_prior(T5)
    noise = seed_noise([T5, T5, T5], [[1.0, 3.0], [5.0], [2.0, 2.0, 5.0]])
    assert noise.degrees == (prior.degrees + 1, prior.degrees, prior.degrees + 2)
    variance = (prior.degrees * prior.deviation**2 + 6) / (prior.degrees + 2)
    assert noise.deviations[2] == pytest.approx(math.sqrt(variance))
    assert seed_noise([T5], [[2.0, 2.0, 5.0]]).deviations == noise.deviations[2:]
    assert seed_noise([T5], [[2.0]], assumed=0.05).deviations == pytest.approx((0.05,))


def test_the_probability_of_being_the_best() -> None:
    found = compare([4.0, 4.0, 4.5], [1, 1, 1], known_noise(3), None)
    assert found is not None
    assert found.best == pytest.approx((0.5, 0.5, 0.0), abs=0.02)
    again = compare([4.0, 4.0, 4.5], [1, 1, 1], known_noise(3), None)
    assert again is not None
    assert again.best == found.best
    alone = compare([4.0, 4.004], [1, 1], known_noise(2), None)
    shared = compare([4.0, 4.004], [1, 1], known_noise(2), DataNoise(np.full((2, 2), 0.1), 50))
    assert shared is not None
    assert alone is not None
    assert shared.best == pytest.approx(alone.best, abs=0.03)  # noise that both share does not matter
    assert 0.5 < shared.best[0] < 0.68  # shrinkage: less than by the difference alone
    only = compare([4.0], [3], known_noise(1), None)
    assert only is not None
    assert (only.best, only.leader_p, only.letters) == ((1.0,), 1.0, ("a",))


def test_the_probability_of_being_the_best_never_contradicts_the_letters() -> None:
    rng = np.random.default_rng(8)
    for _ in range(60):
        count = int(rng.integers(2, 9))
        deviations, degrees = rng.uniform(0.001, 0.02, count), rng.uniform(2, 9, count)
        noise = SeedNoise(
            deviations=tuple(deviations), degrees=tuple(degrees), is_measured=(True,) * count, source="random"
        )
        draws = rng.normal(0, 0.005, (count, 30))
        data = data_noise(draws, np.arange(30)) if rng.random() < 0.3 else None
        means = np.sort(rng.normal(4, rng.choice([0.003, 0.02, 0.2]), count))
        found = compare(means.tolist(), [2] * count, noise, data)
        assert found is not None
        assert sum(found.best) == pytest.approx(1)
        is_tied = [bool(set(named) & set(found.letters[0])) for named in found.letters]
        assert sum(best for best, tied in zip(found.best, is_tied, strict=True) if not tied) <= 0.05 + 1e-9
        tied_best = [best for best, tied in zip(found.best, is_tied, strict=True) if tied]
        assert max(tied_best) <= 0.95 + 1e-9 or len(tied_best) == 1
        if len(tied_best) == 1:
            assert found.best[0] >= 0.95 - 1e-9
            assert found.leader_p < 0.05


def test_examples_of_one_document_count_once() -> None:
    rng = np.random.default_rng(7)
    by_document = rng.normal(0, 1, (2, 30))
    losses, documents = np.repeat(by_document, 10, axis=1), np.repeat(np.arange(30), 10)
    whole, each = data_noise(losses, documents), data_noise(by_document, np.arange(30))
    unaware = data_noise(losses, np.arange(300))
    assert whole is not None
    assert each is not None
    assert unaware is not None
    assert whole.variance(0, 1) == pytest.approx(each.variance(0, 1))
    difference = by_document[0] - by_document[1]
    assert whole.variance(0, 1) == pytest.approx(difference.var(ddof=1) / 30)
    assert unaware.variance(0, 1) < whole.variance(0, 1) / 9
    assert data_noise(losses, np.zeros(300, np.int64)) is None


def test_an_example_belongs_to_the_document_with_most_of_its_tokens() -> None:
    tokens = np.array([5, 5, 5, 1, 7, 7, 7, 7, 7, 7, 1, 8, 8, 8, 8, 8]).reshape(4, 4)
    assert document_numbers(tokens, eos=1).tolist() == [0, 1, 1, 2]


def test_documents_are_read_from_the_store(store) -> None:
    opened = Store.open(store)
    rows = opened.tokens("validation").rows(np.arange(24) * DATA.sequence_length, DATA.sequence_length)
    numbers = document_numbers(rows, opened.special.eos)
    ends = np.flatnonzero(rows.ravel() == opened.special.eos)
    middles = np.arange(24) * DATA.sequence_length + DATA.sequence_length // 2
    assert 1 < len(set(numbers.tolist())) <= len(ends) + 1
    assert np.abs(numbers - np.searchsorted(ends, middles)).max() <= 1
