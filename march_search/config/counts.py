"""Parse the numbers that people write: counts such as `220M` or `2.2e8`, named budgets, and tolerances."""

import re
from fractions import Fraction

from march_search.errors import BudgetError, nearest, shown

NAMED = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-v1_1-small": 76_961_152,
    "t5-v1_1-base": 247_577_856,
}
"""Exact parameter counts of public checkpoints (Raffel et al. 2020, and T5 1.1 by the same authors)."""

DEFAULT_TOLERANCE = "1.5%"
"""Default tolerance: T5-base (+1.32%) meets 220M, and T5-large (-0.32%) meets 740M."""

LIMIT = 10**15
"""Bound above every count."""

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}

_NUMBER = re.compile(
    r"(?P<whole>[1-9]\d{0,2}(?:,\d{3})+|\d{1,40}(?:_\d{1,40}){0,9})(?P<point>\.\d{1,40})?"
    r"(?:(?P<power>e\+?\d{1,2})|\s*(?P<unit>[KMBGT]))?",
    re.ASCII | re.IGNORECASE,
)

_TOLERANCE = re.compile(r"(?:±|\+-|\+/-)?\s*(\d{1,40}(?:\.\d{1,40})?)\s*(%?)", re.ASCII)


def parse_count(text: str, noun: str, unit: str = "tokens", otherwise: str = "", least: int = 1) -> int:
    """Parse a whole number: `220M`, `220 M`, `1.3B`, `2.2e8`, `222_903_552` or `222,903,552`.

    A unit is K, M, B or G (10^9), or T. A point starts the decimals. A comma stands only between groups of three
    digits, because `0,22B` would be 22 billion to some readers and 0.22 billion to others.

    Args:
        text: Text from the user.
        noun: Name of the quantity, for the error message.
        unit: Unit of the quantity, for the error message.
        otherwise: End of the error message, with any other accepted forms.
        least: Smallest value.

    Raises:
        BudgetError: If the text has another form, or the number is not whole, below `least`, or 10^15 or more.
    """
    word = text.strip()
    match = _NUMBER.fullmatch(word) if len(word) <= 100 else None
    if not match:
        if "," in word and _NUMBER.fullmatch(word.replace(",", "")):
            point = word.replace(",", ".", 1)
            instead = f"use a decimal point, as in {point}" if _NUMBER.fullmatch(point) else "remove the commas"
            raise BudgetError(
                f"invalid {noun} {shown(text)}: a comma may only stand between groups of three digits, as in "
                f"222,903,552; {instead}."
            )
        raise BudgetError(
            f"invalid {noun} {shown(text)}: use a number such as 220M, 1.3B, 2.2e8 or 222_903_552{otherwise or '.'}"
        )
    digits = match["whole"].replace(",", "") + (match["point"] or "") + (match["power"] or "")
    value = Fraction(digits) * _UNITS[(match["unit"] or "").upper()]
    if value.denominator != 1 or not least <= value < LIMIT:
        raise BudgetError(
            f"invalid {noun} {shown(text)}: use a whole number of {unit}, at least {least} and below 10^15, such as "
            "220M or 1.3B."
        )
    return int(value)


def parse_parameters(text: str) -> int:
    """Parse a number of parameters: a count (see `parse_count`) or a name in `NAMED`.

    Raises:
        BudgetError: If the text has another form, or the number is not whole or is out of range.
    """
    word = text.strip().lower()
    if word in NAMED:
        return NAMED[word]
    return parse_count(text, "parameter budget", "parameters", f", or a name. {nearest(word, NAMED)}")


def parse_tolerance(text: str) -> Fraction:
    """Parse a tolerance: `1.5%`, `±1%` or a fraction such as `0.015`.

    Raises:
        BudgetError: If the text has another form or is not below 100%.
    """
    match = _TOLERANCE.fullmatch(text.strip())
    value = Fraction(match[1]) / (100 if match[2] else 1) if match else Fraction(1)
    if value >= 1:
        raise BudgetError(
            f"invalid tolerance {shown(text)}: use a percentage below 100 such as 1.5%, or a fraction such as 0.015."
        )
    return value
