"""Parse the numbers that people write: counts such as `220M` or `2.2e8`, named budgets, and tolerances."""

import re
from fractions import Fraction

from march_search.errors import BudgetError, shown

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


_BYTES = re.compile(r"(.{1,60}?)\s*([KMGT]?)(i?)B?", re.ASCII | re.IGNORECASE)


def parse_operations(text: str, noun: str) -> Fraction:
    """Parse a number of floating-point operations: `600M`, `1.5T`, `1e19` or `222_903_552`.

    Raises:
        BudgetError: If the text has another form, or the number is not above 0 and below 10^30.
    """
    return _positive(text, text, noun, "600M, 1.5T or 1e19", Fraction(10**30))


def parse_bytes(text: str, noun: str) -> Fraction:
    """Parse a number of bytes: `24GB`, `40KB`, `80GiB` or `16000`.

    Raises:
        BudgetError: If the text has another form, or the number is not above 0 and below 10^15.
    """
    match = _BYTES.fullmatch(text.strip())
    word, unit, is_binary = (match[1], match[2].upper(), bool(match[3])) if match else (text, "", False)
    base = 1024 if is_binary else 1000
    factor = base ** "KMGT".index(unit) * base if unit else 1
    if is_binary and not unit:
        word = text
    return factor * _positive(word, text, noun, "24GB, 40KB or 80GiB", Fraction(LIMIT, factor), units="")


def parse_hours(text: str, noun: str) -> Fraction:
    """Parse a number of hours: `48` or `0.5`.

    Raises:
        BudgetError: If the text has another form, or the number is not above 0 and below 10^15.
    """
    return _positive(text, text, noun, "48 or 0.5", Fraction(LIMIT), units="")


def _positive(
    word: str, text: str, noun: str, examples: str, below: Fraction, units: str = "".join(_UNITS)
) -> Fraction:
    """Return the number that `word`, a part of `text`, writes; raise a BudgetError that shows the whole text."""
    word = word.strip()
    match = _NUMBER.fullmatch(word) if len(word) <= 100 else None
    value = Fraction(0)
    if match and (match["unit"] or "").upper() in units:
        digits = match["whole"].replace(",", "") + (match["point"] or "") + (match["power"] or "")
        value = Fraction(digits) * _UNITS[(match["unit"] or "").upper()]
    if not 0 < value < below:
        raise BudgetError(f"invalid {noun} {shown(text)}: use a number above 0 such as {examples}.")
    return value


def parse_parameters(text: str) -> int:
    """Parse a number of parameters: a count (see `parse_count`) or a public model in `CHECKPOINTS`.

    Raises:
        BudgetError: If the text has another form, or the number is not whole or is out of range.
    """
    word = text.strip().lower()
    if not (word[:1].isascii() and word[:1].isalpha()):
        return parse_count(text, "parameter budget", "parameters", ", or a public model such as t5-base or gpt2.")
    from march_search.architecture.checkpoints import CHECKPOINTS, nearest_checkpoint, read_architecture

    if word in CHECKPOINTS:
        return read_architecture(word).num_params
    raise BudgetError(
        f"invalid parameter budget {shown(text)}: use a number such as 220M, 1.3B, 2.2e8 or 222_903_552, or a public "
        f"model. {nearest_checkpoint(word)}"
    )


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
