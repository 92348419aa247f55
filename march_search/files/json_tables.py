"""JSON files of this program: strict reads that name the fault, seals, and tolerant reads."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from march_search.errors import MarchSearchError, StorageError, shown
from march_search.files.atomic import write_text

DEEPEST = 32
"""Number of levels to which lists and tables may be nested in a JSON file. No file of this program has ten."""

Kinds = type | tuple[type, ...]
"""Types of a JSON value that are accepted."""

KINDS = {
    str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "a table",
    NoneType: "null",
}  # fmt: skip
"""Types of JSON values in words."""

NUMBER = (int, float)
"""Types of a number."""

MAYBE_NUMBER = (int, float, NoneType)
"""Types of a number that may be unknown."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically (see `write_text`)."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return the text that `write_json` writes for `value`."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def sealed(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return `table` with the key `sha256`: the hash of all other keys as JSON, sorted and without spaces."""
    content = {name: value for name, value in table.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return content | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def parse_json(text: str) -> Any:
    """Return the value of a JSON text whose numbers fit 64 bits and whose nesting is at most `DEEPEST`.

    Raises:
        ValueError: If the text is anything else. The message completes the sentence "the file ...".
    """
    try:
        value = json.loads(text, parse_int=_whole_number, parse_float=_finite_number, parse_constant=_finite_number)
        too_deep = text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST
    except json.JSONDecodeError as error:
        raise ValueError(f"is not valid JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        too_deep = True
    if too_deep:
        raise ValueError(f"is nested more than {DEEPEST} levels deep")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("has text that is not valid Unicode") from None
    return value


def _whole_number(text: str) -> int:
    """Return a whole number of at most 64 bits; raise ValueError for any other."""
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"has a number of {len(text.lstrip('-'))} digits, which does not fit 64 bits")
    return int(text)


def _finite_number(text: str) -> float:
    """Return a finite number; raise ValueError for any other."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"has a number that is not finite ({text[:20]})")
    return value


def _depth(value: Any) -> int:
    """Return how deeply lists and tables are nested in a JSON value."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)


def read_table(
    path: Path,
    expected: Mapping[str, Kinds] | None = None,
    remedy: str = "Restore it from a copy.",
    error: type[MarchSearchError] = StorageError,
) -> dict[str, Any]:
    """Return the table in a JSON file that this program wrote. If it has a `sha256`, that must be the one of `sealed`.

    Args:
        path: The file.
        expected: Types of the values that the caller reads, by key. Keys that end in "?" may be missing.
        remedy: What the user can do if the file is damaged, as a sentence.
        error: Type of the exception.

    Raises:
        MarchSearchError: If the file cannot be read or is not such a table. The message names the fault and `remedy`.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"must be a table of keys, not {_kind_of(value)}")
        if fault := table_fault(value, expected or {}):
            raise ValueError(fault)
        if "sha256" in value and sealed(value) != value:
            raise ValueError("does not match its sha256, so it was changed after it was written")
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror}. {remedy}") from None
    except UnicodeDecodeError as reason:
        raise error(f"{path}: is damaged: it is not UTF-8 text (byte {reason.start}). {remedy}") from None
    except ValueError as reason:
        raise error(f"{path}: is damaged: it {reason}. {remedy}") from None
    return value


def find_table(
    path: Path,
    expected: Mapping[str, Kinds] | None = None,
    remedy: str = "Restore it from a copy.",
    error: type[MarchSearchError] = StorageError,
) -> dict[str, Any] | None:
    """Return the table in a JSON file as `read_table` does, or None if there is no such file."""
    return read_table(path, expected, remedy, error) if os.path.lexists(path) else None


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that a new one can be written, and return its new path: `NAME.damaged`.

    Raises:
        StorageError: If the folder cannot be written.
    """
    kept = path.with_name(f"{path.name}.damaged")
    try:
        return path.replace(kept)
    except OSError as error:
        raise StorageError(f"{path}: cannot be renamed: {error.strerror}.") from None


def table_fault(table: Mapping[str, Any], expected: Mapping[str, Kinds]) -> str:
    """Return what is wrong with the first key that is missing or has another type; empty if none is wrong."""
    for name, kinds in expected.items():
        key, allowed = name.removesuffix("?"), kinds if isinstance(kinds, tuple) else (kinds,)
        if key not in table:
            if name.endswith("?"):
                continue
            return f'has no "{key}"'
        value = table[key]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            kinds_in_words = [KINDS[kind] for kind in allowed if kind is not int or float not in allowed]
            return f'must have {" or ".join(kinds_in_words)} as "{key}", not {shown(value)}'
    return ""


def _kind_of(value: Any) -> str:
    """Return the kind of a JSON value in words."""
    return KINDS[type(value)]


def read_json(path: Path) -> Any:
    """Return the value in a JSON file, or None if the file is missing or damaged. Use `read_table` if it matters."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
