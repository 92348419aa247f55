"""Parameter budgets: "220M", "t5-base" or "222_903_552", a tolerance, and what is counted."""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from march_search.errors import BudgetError
from march_search.settings import nearest

NAMED = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-v1_1-small": 76_961_152,
    "t5-v1_1-base": 247_577_856,
}
"""Exact parameters of public checkpoints (Raffel et al. 2020; the 1.1 release of the same authors)."""

DEFAULT_TOLERANCE = "1.5%"
"""Lets T5-base (+1.32 %) into 220M and T5-large (-0.32 %) into 740M."""

Count = Literal["total", "non-embedding"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9}
_NUMBER = re.compile(r"(\d[\d_,]*(?:\.\d+)?)([KMBG]?)", re.ASCII | re.IGNORECASE)
_TOLERANCE = re.compile(r"(?:±|\+-|\+/-)?\s*(\d+(?:\.\d+)?)\s*(%?)", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """How many parameters an architecture may have."""

    parameters: int
    """The target."""
    tolerance: Fraction = Fraction(15, 1000)
    """Allowed distance from the target on either side, as a fraction of it."""
    count: Count = "total"
    """`total`, or `non-embedding`: without token embedding, learned positions and output layer."""

    @classmethod
    def parse(cls, text: str, tolerance: str = DEFAULT_TOLERANCE, count: Count = "total") -> "Budget":
        """A budget from a person's text.

        Raises:
            BudgetError: either text cannot be read.
        """
        return cls(parse_parameters(text), parse_tolerance(tolerance), count)

    @property
    def low(self) -> int:
        """Fewest parameters allowed."""
        return math.ceil(self.parameters * (1 - self.tolerance))

    @property
    def high(self) -> int:
        """Most parameters allowed."""
        return math.floor(self.parameters * (1 + self.tolerance))

    def difference_percent(self, num_params: int) -> float:
        """Distance of `num_params` from the target, in percent of it; positive above."""
        return 100 * (num_params - self.parameters) / self.parameters

    def __str__(self) -> str:
        counted = "" if self.count == "total" else " non-embedding"
        return f"{self.parameters:,}{counted} parameters ± {float(100 * self.tolerance):g}%"


def parse_parameters(text: str) -> int:
    """A number of parameters from `220M`, `1.3B`, `222_903_552` or a name of `NAMED`.

    Raises:
        BudgetError: none of these, or not a whole number of at least 1.
    """
    word = text.strip().lower()
    if word in NAMED:
        return NAMED[word]
    return parse_count(text, "parameter budget", "parameters", f" or a name. {nearest(word, NAMED)}")


def parse_count(text: str, noun: str, unit: str = "tokens", otherwise: str = ".") -> int:
    """A number from `220M`, `1.3B` or `222_903_552`.

    Args:
        text: what a person wrote.
        noun: what it should be, for the error line.
        unit: what is counted, for the error line.
        otherwise: what else can be written, and the end of that line.

    Raises:
        BudgetError: not of this form, or not a whole number from 1 to 10^15.
    """
    match = _NUMBER.fullmatch(text.strip())
    if not match:
        raise BudgetError(f'"{text}" is no {noun}: write 220M, 1.3B, 222_903_552{otherwise}')
    value = Decimal(match[1].replace("_", "").replace(",", "")) * _UNITS[match[2].upper()]
    if value != int(value) or value < 1 or value >= 10**15:
        raise BudgetError(
            f'"{text}" is {value:f} {unit}: a budget is a whole number from 1 to 10^15. Write 220M or 1.3B.'
        )
    return int(value)


def parse_tolerance(text: str) -> Fraction:
    """A tolerance from `1.5%`, `±1%` or the fraction `0.015`.

    Raises:
        BudgetError: neither, or not below 100 %.
    """
    match = _TOLERANCE.fullmatch(text.strip())
    value = Fraction(match[1]) / (100 if match[2] else 1) if match else Fraction(1)
    if value >= 1:
        raise BudgetError(
            f'"{text}" is no tolerance: write a percentage below 100 such as 1.5%, or a fraction such as 0.015.'
        )
    return value
