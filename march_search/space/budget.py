"""Parameter budgets: a target such as "220M" or "t5-base", and a tolerance."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from march_search.architecture.architecture import Architecture
from march_search.config.counts import DEFAULT_TOLERANCE, parse_parameters, parse_tolerance

Count = Literal["total", "non-embedding"]


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

    def counted(self, a: Architecture) -> int:
        """Return the parameters of an architecture, counted as the budget does."""
        return a.num_params if self.count == "total" else a.num_params_non_embedding

    def holds(self, a: Architecture) -> bool:
        """Return whether an architecture meets the budget."""
        return self.low <= self.counted(a) <= self.high

    def difference_percent(self, num_params: int) -> float:
        """Return the difference of `num_params` from the target in percent; positive above the target."""
        return 100 * (num_params - self.parameters) / self.parameters

    def __str__(self) -> str:
        counted = "" if self.count == "total" else " non-embedding"
        return f"{self.parameters:,}{counted} parameters ± {float(100 * self.tolerance):g}%"
