"""Load TOML or JSON files into frozen dataclasses. Errors name the file, the key and the nearest valid name."""

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from march_search.errors import ConfigError, nearest

T = TypeVar("T")


def read_file(path: Path) -> dict[str, Any]:
    """Return the top-level table of a TOML or JSON file.

    Raises:
        ConfigError: If the file is missing, unreadable, not UTF-8, or not valid TOML or JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    except ValueError as error:
        raise ConfigError(f"{path}: invalid {path.suffix.lstrip('.').upper()}: {error}.") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: expected a table of keys at the top level, got a {type(table).__name__}.")
    return table


def build(cls: type[T], table: Mapping[str, Any], source: str, where: str = "") -> T:
    """Build an instance of the dataclass `cls` from `table`. Missing keys take the default of their field.

    Args:
        cls: A frozen dataclass whose fields are bool, int, float, str, Literal, X | None, tuple[X, ...], dict or
            dataclasses of the same kind.
        table: Content of the file.
        source: File name for error messages.
        where: Dotted path of `table` in the file, for error messages.

    Raises:
        ConfigError: If a key is unknown or missing, a value has the wrong type, or the dataclass rejects a value.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in fields:
            raise ConfigError(f'{source}: unknown key "{where}{key}". {nearest(key, fields)}')
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _convert(hints[name], table[name], source, where + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f'{source}: missing key "{where}{name}".')
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    """Convert `value` to the type `hint`; raise a ConfigError if it has another type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return build(hint, value, source, f"{key}.")
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        if len(inner) == 1:
            return _convert(inner[0], value, source, key)
        if any(type(value) is a for a in inner):
            return value
    elif origin is Literal:
        if value in args and any(type(value) is type(a) for a in args):
            return value
        options = [a for a in args if isinstance(a, str)]
        if isinstance(value, str) and options:
            raise ConfigError(f'{source}: "{key}" cannot be "{value}". {nearest(value, options)}')
    elif origin is tuple and isinstance(value, list):
        return tuple(_convert(args[0], item, source, f"{key}[{i}]") for i, item in enumerate(value))
    elif (origin is dict or hint is dict) and isinstance(value, Mapping):
        return dict(value)
    elif hint is float and type(value) is int:
        return float(value)
    elif hint is Any or type(value) is hint:
        return value
    raise ConfigError(f'{source}: "{key}" must be {_describe(hint)}, not {value!r}.')


def _describe(hint: Any) -> str:
    """Describe a type in words, for error messages."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in args if a is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        return f"a list in which each item is {_describe(args[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a table"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}
    return words.get(hint, str(hint))


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
