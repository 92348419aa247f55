"""Reads TOML or JSON into a frozen dataclass; a wrong key or type names the file, the key and the way out."""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from march_search.errors import ConfigError

T = TypeVar("T")


def nearest(word: str, known: Iterable[str]) -> str:
    """Tail of an error line: the nearest known word if one is near, else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f'Did you mean "{close[0]}"?' if close else f"Known: {', '.join(known)}."


def read_file(path: Path) -> dict[str, Any]:
    """The table in a TOML or JSON file.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8 or not valid TOML or JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}).") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is not valid {path.suffix.lstrip('.').upper()}: {error}.") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: must hold a table of keys, not a {type(table).__name__}.")
    return table


def build(cls: type[T], table: Mapping[str, Any], source: str, where: str = "") -> T:
    """An instance of the dataclass `cls` from `table`; absent keys take the field's default.

    Args:
        cls: a frozen dataclass whose fields are bool, int, float, str, Literal, X | None, tuple[X, ...], dict or
            dataclasses of the same kind.
        table: what the file holds.
        source: file name for error lines.
        where: dotted path of `table` in the file, for error lines.

    Raises:
        ConfigError: unknown key, missing key, wrong type, or a value that the dataclass itself refuses.
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
            raise ConfigError(f'{source}: the key "{where}{name}" is missing.')
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def _convert(hint: Any, value: Any, source: str, key: str) -> Any:
    """`value` as the type `hint`, or a ConfigError that says what was expected."""
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
    """A type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in args if a is not type(None))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple:
        return f"a list, each item {_describe(args[0])}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a table"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}
    return words.get(hint, str(hint))
