"""Parameter budgets: parse a target such as "220M", "t5-base" or "222_903_552", and a tolerance."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from march_search.errors import BudgetError, nearest

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
"""Default tolerance: T5-base (+1.32 %) meets 220M, and T5-large (-0.32 %) meets 740M."""

Count = Literal["total", "non-embedding"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}

_NUMBER = re.compile(r"(\d[\d_,]*(?:\.\d+)?)([KMBG]?)", re.ASCII | re.IGNORECASE)

_TOLERANCE = re.compile(r"(?:±|\+-|\+/-)?\s*(\d+(?:\.\d+)?)\s*(%?)", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """The number of parameters that an architecture may have."""

    parameters: int
    """Target number of parameters."""
    tolerance: Fraction = Fraction(15, 1000)
    """Allowed difference from the target on either side, as a fraction of the target."""
    count: Count = "total"
    """Counted parameters: `total`, or `non-embedding` (without token embedding, learned positions, output layer)."""

    @classmethod
    def parse(cls, text: str, tolerance: str = DEFAULT_TOLERANCE, count: Count = "total") -> "Budget":
        """Parse a budget and its tolerance.

        Raises:
            BudgetError: If either text is not valid.
        """
        return cls(parse_parameters(text), parse_tolerance(tolerance), count)

    @property
    def low(self) -> int:
        """Smallest number of parameters allowed."""
        return math.ceil(self.parameters * (1 - self.tolerance))

    @property
    def high(self) -> int:
        """Largest number of parameters allowed."""
        return math.floor(self.parameters * (1 + self.tolerance))

    def difference_percent(self, num_params: int) -> float:
        """Return the difference of `num_params` from the target in percent; positive above the target."""
        return 100 * (num_params - self.parameters) / self.parameters

    def __str__(self) -> str:
        counted = "" if self.count == "total" else " non-embedding"
        return f"{self.parameters:,}{counted} parameters ± {float(100 * self.tolerance):g}%"


def parse_parameters(text: str) -> int:
    """Parse a number of parameters: `220M`, `1.3B`, `222_903_552` or a name in `NAMED`.

    Raises:
        BudgetError: If the text has another form, or the number is not whole or is out of range.
    """
    word = text.strip().lower()
    if word in NAMED:
        return NAMED[word]
    return parse_count(text, "parameter budget", "parameters", f", or a name. {nearest(word, NAMED)}")


def parse_count(text: str, noun: str, unit: str = "tokens", otherwise: str = ".") -> int:
    """Parse a number such as `220M`, `1.3B` or `222_903_552`.

    Args:
        text: Text from the user.
        noun: Name of the quantity, for the error message.
        unit: Unit of the quantity, for the error message.
        otherwise: End of the error message, with any other accepted forms.

    Raises:
        BudgetError: If the text has another form, or the number is not whole, below 1, or 10^15 or more.
    """
    match = _NUMBER.fullmatch(text.strip())
    if not match:
        raise BudgetError(f'invalid {noun} "{text}": use a number such as 220M, 1.3B or 222_903_552{otherwise}')
    value = Decimal(match[1].replace("_", "").replace(",", "")) * _UNITS[match[2].upper()]
    if value != int(value) or value < 1 or value >= 10**15:
        raise BudgetError(
            f'"{text}" is {value:f} {unit}: use a whole number of at least 1 and below 10^15, such as 220M or 1.3B.'
        )
    return int(value)


def parse_tolerance(text: str) -> Fraction:
    """Parse a tolerance: `1.5%`, `±1%` or a fraction such as `0.015`.

    Raises:
        BudgetError: If the text has another form or is not below 100 %.
    """
    match = _TOLERANCE.fullmatch(text.strip())
    value = Fraction(match[1]) / (100 if match[2] else 1) if match else Fraction(1)
    if value >= 1:
        raise BudgetError(
            f'invalid tolerance "{text}": use a percentage below 100 such as 1.5%, or a fraction such as 0.015.'
        )
    return value
