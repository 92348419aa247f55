"""Compare settings with those that a study or a trial began with."""

import json
from collections.abc import Iterator, Set
from typing import Any

SHOWN = 4
"""Number of differences that a message lists."""


def filled(old: Any, defaults: Any) -> Any:
    """Return `old` with defaults for all settings that did not exist when it was written."""
    if not isinstance(old, dict) or not isinstance(defaults, dict):
        return old
    return json.loads(json.dumps(defaults)) | {key: filled(value, defaults.get(key)) for key, value in old.items()}


def differences(old: Any, new: Any, free: Set[str], where: str = "") -> Iterator[str]:
    """Yield each key whose value differs between two settings, as `training.seed was 1 and is now 2`.

    Args:
        old: Settings as JSON values.
        new: The same keys, as JSON values.
        free: Names of settings that may differ.
        where: Dotted path of the settings, ending in a full stop.
    """
    name = where.rstrip(".")
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new} - free):
            yield from differences(old.get(key), new.get(key), free, f"{where}{key}.")
    elif isinstance(old, list) and isinstance(new, list) and len(old) != len(new):
        yield f"{name} had {len(old)} entries and now has {len(new)}"
    elif isinstance(old, list) and isinstance(new, list):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, free, f"{name}[{index}].")
    elif old != new:
        yield f"{name} was {old!r} and is now {new!r}"


def in_words(changes: list[str]) -> str:
    """Return the first `SHOWN` differences, and how many there are besides."""
    return "; ".join(changes[:SHOWN]) + (f"; and {len(changes) - SHOWN} more" if len(changes) > SHOWN else "")
