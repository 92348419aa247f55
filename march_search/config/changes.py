"""Compare settings with those that a study or a trial began with, and read those of earlier versions."""

import json
from collections.abc import Iterator, Mapping, Set
from typing import Any

SHOWN = 4
"""Number of differences that a message lists."""


def in_current_keys(settings: Mapping[str, Any], is_started: bool = False) -> dict[str, Any]:
    """Return a study's settings with the keys of today: `race` of `[search]` became `[confirm]` without a limit.

    A study that was started before `[confirm]` existed gets `max_seeds = 1`, so that it ends with its search, unless it
    had a `race`.
    """
    search, confirm = settings.get("search"), settings.get("confirm")
    race = search.get("race") if isinstance(search, dict) else None
    if isinstance(search, dict) and "race" in search and confirm is None:
        search = {key: value for key, value in search.items() if key != "race"}
        confirm = None if race is None else {"confidence": race, "max_seeds": 0}
    if is_started and confirm is None:
        confirm = {"max_seeds": 1}
    changed = {"search": search, "confirm": confirm}
    return {**settings} | {key: value for key, value in changed.items() if value is not None}


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
