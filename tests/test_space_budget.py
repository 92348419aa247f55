"""Parameter budgets and tolerances as text."""

from fractions import Fraction

import pytest

from march_search import Architecture
from march_search.errors import BudgetError
from march_search.space.budget import DEFAULT_TOLERANCE, Budget, parse_parameters, parse_tolerance


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("220M", 220_000_000),
        ("740m", 740_000_000),
        ("1.3B", 1_300_000_000),
        ("222_903_552", 222_903_552),
        ("222,903,552", 222_903_552),
        ("t5-base", 222_903_552),
        ("T5-Large", 737_668_096),
        ("60.506624M", 60_506_624),
    ],
)
def test_a_budget_is_a_number_with_a_unit_or_a_name(text: str, parameters: int) -> None:
    assert parse_parameters(text) == parameters


@pytest.mark.parametrize("text", ["", "abc", "M", "-5M", "1.5", "0", "1e400M", "220MB", "２２０M", "999999999B"])
def test_an_invalid_budget_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BudgetError, match="220M"):
        parse_parameters(text)


def test_a_misspelt_name_suggests_the_nearest() -> None:
    with pytest.raises(BudgetError, match='Did you mean "t5-base"'):
        parse_parameters("t5-bas")


@pytest.mark.parametrize(
    ("text", "value"), [("1.5%", Fraction(15, 1000)), ("±1%", Fraction(1, 100)), ("0.02", Fraction(1, 50))]
)
def test_a_tolerance_is_a_percentage_or_a_fraction(text: str, value: Fraction) -> None:
    assert parse_tolerance(text) == value


@pytest.mark.parametrize("text", ["2", "100%", "x", "-1%", ""])
def test_an_invalid_tolerance_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match=r"use a percentage below 100 such as 1\.5%"):
        parse_tolerance(text)


def test_the_default_tolerance_admits_t5_base_and_t5_large() -> None:
    large = Architecture(num_layers=24, d_model=1024, num_heads=16, d_ff=4096)
    for text, a in (("220M", Architecture()), ("740M", large)):
        budget = Budget.parse(text, DEFAULT_TOLERANCE)
        assert budget.low <= a.num_params <= budget.high


def test_both_ends_of_a_budget_are_exact() -> None:
    budget = Budget.parse("1000", "0.1%")
    assert (budget.low, budget.high) == (999, 1001)
