"""Settings on the command line that replace those of a study's file: `training.tokens=2M devices.ranks=4`."""

import re
import tomllib
from collections.abc import Sequence
from typing import Any

from march_search.errors import UsageError, shown

_KEY = re.compile(r"[A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*", re.ASCII)


def with_overrides(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the content of a study's file with the values of `overrides`.

    Args:
        table: Content of the file; it is not changed.
        overrides: `KEY=VALUE` each: the dotted path of a key, and its value as in a TOML file. Text needs no quotes.

    Raises:
        UsageError: If one has another form, if a key is given twice, or if a key is inside a value that is not a table.
    """
    changed, given = table, set[str]()
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not _KEY.fullmatch(key) or not text.strip():
            raise UsageError(
                f"{shown(override)} is not KEY=VALUE: use the dotted path of a key, such as training.tokens=2M. "
                "To see all keys, run march-search keys."
            )
        if key in given:
            raise UsageError(f"{key} is given twice: remove one of them.")
        given.add(key)
        changed = _with(changed, key.split("."), _value(text), override)
    return changed


def _with(table: dict[str, Any], path: Sequence[str], value: Any, override: str) -> dict[str, Any]:
    """Return `table` with one value replaced."""
    if len(path) == 1:
        return {**table, path[0]: value}
    inner = table.get(path[0], {})
    if not isinstance(inner, dict):
        raise UsageError(f"{shown(override)}: {path[0]} is not a table, but {shown(inner)}.")
    return {**table, path[0]: _with(inner, path[1:], value, override)}


def _value(text: str) -> Any:
    """Return a value as TOML reads it; text that is not TOML is text, also inside a list: `[a, b]`."""
    text = text.strip()
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        table = {}
    if table.keys() == {"value"}:
        return table["value"]
    if text.startswith("[") and text.endswith("]") and "[" not in text[1:]:
        return [_value(item) for item in text[1:-1].split(",") if item.strip()]
    return text
