"""Parameter budgets and tolerances as text."""

from fractions import Fraction

import pytest

from march_search import Architecture
from march_search.config.counts import DEFAULT_TOLERANCE, parse_count, parse_parameters, parse_tolerance
from march_search.errors import BudgetError
from march_search.space.budget import Budget


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
        ("220 M", 220_000_000),
        ("2.2e8", 220_000_000),
        ("2.2E+8", 220_000_000),
        ("220000000.0", 220_000_000),
        ("1,300M", 1_300_000_000),
        ("1.5T", 1_500_000_000_000),
    ],
)
def test_a_budget_is_a_number_with_a_unit_or_a_name(text: str, parameters: int) -> None:
    assert parse_parameters(text) == parameters


@pytest.mark.parametrize("text", ["", "abc", "M", "-5M", "1.5", "0", "1e400M", "220MB", "２２０M", "999999999B"])
def test_an_invalid_budget_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BudgetError, match="220M"):
        parse_parameters(text)


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("0,22B", "use a decimal point, as in 0.22B"),
        ("0,220B", "use a decimal point, as in 0.220B"),
        ("1,5 M", "use a decimal point, as in 1.5 M"),
        ("2,2e8", "use a decimal point, as in 2.2e8"),
        ("22,29,03,552", "remove the commas"),
        ("1,", "remove the commas"),
    ],
)
def test_a_comma_stands_only_between_groups_of_three_digits(text: str, instead: str) -> None:
    with pytest.raises(BudgetError) as caught:
        parse_parameters(text)
    message = f'invalid parameter budget "{text}": a comma may only stand between groups of three digits, as in '
    assert str(caught.value) == f"{message}222,903,552; {instead}."


@pytest.mark.parametrize(
    "text", ["2__2M", "2_", "_2", "1e-3", "1e999", "1e3M", "9" * 5000, "1." + "0" * 5000, "0x10", "1M\n2"]
)
def test_a_number_of_another_form_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(BudgetError, match="invalid horizon") as caught:
        parse_count(text, "horizon")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


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
