"""Checks shared by all settings tables."""

import math
from dataclasses import fields
from typing import Any

from march_search.errors import ConfigError


def check_finite(settings: Any, table: str) -> None:
    """Check that every float in `settings` is finite.

    Raises:
        ConfigError: If a number is infinite or NaN.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"[{table}]: {field.name} must be a finite number, not {number}.")
