"""What all tables of settings refuse."""

import math
from dataclasses import fields
from typing import Any

from march_search.errors import ConfigError


def check_finite(settings: Any, table: str) -> None:
    """Refuses a number that is infinite or no number."""
    for one in fields(settings):
        value = getattr(settings, one.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"[{table}]: {one.name} must be a finite number, not {number}.")
