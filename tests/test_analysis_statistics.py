"""The statistics of a ranking, compared with simulated truth and with values computed by hand."""

import math

import numpy as np
import pytest
from helpers.trials import DATA

from march_search.analysis.comparison import (
    compare,
    difference_variance,
    holm,
    letters,
    mean_interval,
    pair_p_values,
    short_letters,
)
from march_search.analysis.documents import document_numbers
from march_search.analysis.further_seeds import further_seeds
from march_search.analysis.gain import compute_equivalent_gain, end_slope
from march_search.analysis.noise import DataNoise, SeedNoise, data_noise, seed_noise
from march_search.analysis.seed_prior import seed_prior
from march_search.architecture.architecture import Architecture
from march_search.data.store import Store

SIGMA = 0.006

T5 = Architecture()


def known_noise(count: int, deviation: float = SIGMA) -> SeedNoise:
    """Return seed noise without uncertainty, the same for `count` architectures."""
    return SeedNoise(
        deviations=(deviation,) * count, degrees=(1e9,) * count, is_measured=(False,) * count, source="known"
    )


def simulated(rng: np.random.Generator, truth: np.ndarray, seeds: int, documents: int) -> tuple:
    """Simulate mean losses, seed noise, and data noise of unequal documents that each prefer some shapes."""
    numbers_N = np.repeat(np.arange(documents), rng.integers(1, 6, documents))
    losses_AS = truth[:, None] + rng.normal(0, SIGMA, (len(truth), seeds))
    preference_AN = (
        rng.normal(0, 0.02, (len(truth), documents))[:, numbers_N] + rng.normal(0, 0.5, documents)[numbers_N]
    )
    examples_AN = losses_AS.mean(axis=1, keepdims=True) + preference_AN + rng.normal(0, 0.01, preference_AN.shape)
    noise = seed_noise([T5] * len(truth), losses_AS.tolist())
    return examples_AN.mean(axis=1), noise, data_noise(examples_AN, numbers_N)


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_intervals_of_means_cover_the_truth_in_95_percent_of_studies(seeds: int) -> None:
    rng, truth, covered, prior = np.random.default_rng(1), np.linspace(4.0, 4.02, 6), [], seed_prior(T5)
    for _ in range(1500):
        sigmas = prior.deviation * np.sqrt(prior.degrees / rng.chisquare(prior.degrees, (6, 1)))
        losses = rng.normal(truth[:, None], sigmas, (6, seeds))
        noise = seed_noise([T5] * 6, losses.tolist())
        found = [mean_interval(index, float(own.mean()), seeds, noise) for index, own in enumerate(losses)]
        covered += [one is not None and one.low <= t <= one.high for one, t in zip(found, truth, strict=True)]
    assert 0.93 <= np.mean(covered) <= 0.97


def test_intervals_of_differences_cover_the_truth() -> None:
    from scipy.special import stdtrit

    rng, truth, covered = np.random.default_rng(2), np.array([4.0, 4.01, 4.03]), []
    for _ in range(1500):
        means, seeds, data = simulated(rng, truth, 3, 40)
        variance, degrees = difference_variance(0, 2, [3, 3, 3], seeds, data)
        half = stdtrit(degrees, 0.975) * math.sqrt(variance)
        covered.append(abs(means[2] - means[0] - 0.03) <= half)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_a_true_tie_is_split_in_at_most_5_percent_of_studies() -> None:
    rng, split = np.random.default_rng(3), 0
    for _ in range(1000):
        means, seeds, data = simulated(rng, np.full(6, 4.0), 3, 40)
        p = pair_p_values(means, [3] * 6, seeds, data)
        split += bool(holm(p[np.triu_indices(6, 1)]).min() < 0.05)
    assert split <= 50


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
        variance = sum(s**2 / n for s, n in zip(noise.deviations, own, strict=True)) + data.variance(0, 1)
        scales = [
            s**2 / n * rng.chisquare(d + added, many) / (d + added)
            for s, n, d in zip(noise.deviations, own, noise.degrees, strict=True)
        ]
        found = sum(scales) + data.variance(0, 1)
        degrees = variance**2 / sum(
            (s**2 / n) ** 2 / (d + added) for s, n, d in zip(noise.deviations, own, noise.degrees, strict=True)
        )
        difference = rng.normal(0.012, math.sqrt(variance), many)
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
    noise = known_noise(3)
    found = compare([4.0, 4.0, 4.5], [1, 1, 1], noise, None)
    assert found is not None
    assert found.best == pytest.approx((0.5, 0.5, 0.0), abs=0.02)
    again = compare([4.0, 4.0, 4.5], [1, 1, 1], noise, None)
    assert again is not None
    assert again.best == found.best
    shared = compare([4.0, 4.004], [1, 1], known_noise(2), DataNoise(np.full((2, 2), 0.1), 50))
    assert shared is not None
    assert shared.best[0] == pytest.approx(0.681, abs=0.02)  # noise that both share does not matter


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


def test_the_compute_equivalent_gain_by_hand() -> None:
    curve = [(10**6 * n, 5 - 0.3 * math.log(n)) for n in range(1, 11)]
    slope = end_slope(curve)
    assert slope == pytest.approx(0.3)
    assert compute_equivalent_gain(4.0, 1e6, 4.0, 2e6, slope) == 2.0
    assert compute_equivalent_gain(4.0 - 0.3 * math.log(2), 1e6, 4.0, 1e6, slope) == pytest.approx(2.0)
    assert compute_equivalent_gain(3.0, 1e6, 4.0, 1e6, slope) is None  # e^3.3 times the tokens: too far
    assert end_slope([(1, 4.0), (2, 4.0), (3, 4.1), (4, 4.2)]) is None
    assert end_slope(curve[-1:]) is None
