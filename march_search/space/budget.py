"""Parameter budgets: a target such as "220M" or "t5-base", and a tolerance."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from march_search.architecture.architecture import Architecture
from march_search.config.counts import DEFAULT_TOLERANCE, parse_parameters, parse_tolerance

Count = Literal["total", "non-embedding", "active"]


@dataclass(frozen=True)
class Budget:
    """The number of parameters that an architecture may have."""

    parameters: int
    """Target number of parameters."""
    tolerance: Fraction = Fraction(15, 1000)
    """Allowed difference from the target on either side, as a fraction of the target."""
    count: Count = "total"
    """Counted parameters: `total`, `non-embedding` (without token embedding, learned positions, output layer), or
    `active` (those that one position is multiplied by, which are fewer than all with a user's block)."""

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

    def counted(self, architecture: Architecture) -> int:
        """Return the parameters of an architecture that the budget counts."""
        names = {"total": "num_params", "non-embedding": "num_params_non_embedding", "active": "num_active_params"}
        return int(getattr(architecture, names[self.count]))

    def holds(self, architecture: Architecture) -> bool:
        """Return whether an architecture meets the budget."""
        return self.low <= self.counted(architecture) <= self.high

    def difference_percent(self, num_params: int) -> float:
        """Return the difference of `num_params` from the target in percent; positive above the target."""
        return 100 * (num_params - self.parameters) / self.parameters

    @property
    def noun(self) -> str:
        """What is counted: `parameters`, `non-embedding parameters` or `active parameters`."""
        return "parameters" if self.count == "total" else f"{self.count} parameters"

    def __str__(self) -> str:
        return f"{self.parameters:,} {self.noun} ± {float(100 * self.tolerance):g}%"
