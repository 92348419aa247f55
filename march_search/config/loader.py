"""Load TOML or JSON files into frozen dataclasses. Errors name the file, the key and the nearest valid name."""

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

from march_search.config.counts import LIMIT, parse_count
from march_search.config.familiar_keys import REFUSED_VALUES, other_place, paths_of
from march_search.errors import BudgetError, ConfigError, MarchSearchError, nearest, shown
from march_search.files.atomic import one_line

T = TypeVar("T")

MOST_FLOPS = 1e30
"""Largest number that is read as text; counts have their own, smaller limit."""

NumberText = Annotated[str, "or a number"]
"""Text that a file may also give as a number: `"220M"` or `2.2e8`."""


def read_file(path: Path, parse: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Return the top-level table of a TOML or JSON file.

    Args:
        path: File in UTF-8, with or without a byte order mark.
        parse: Function that parses the text and raises ValueError; by default chosen by the suffix, `.json` or TOML.

    Raises:
        ConfigError: If the file is missing, unreadable, not UTF-8, or not valid TOML or JSON.
    """
    parse = parse or (json.loads if path.suffix == ".json" else tomllib.loads)
    try:
        table = parse(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: file not found.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}).") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
        raise ConfigError(f"{path}: invalid {path.suffix.lstrip('.').upper()}: {reason}.") from None
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: expected a table of keys at the top level, got a {type(table).__name__}.")
    return table


def build(cls: type[T], table: Any, source: str) -> T:
    """Build an instance of the dataclass `cls` from `table`. Missing keys take the default of their field.

    A count may be written as text or as a float: `"1B"` and `1e9` are whole numbers.

    Args:
        cls: A frozen dataclass whose fields are bool, int, float, str, `NumberText`, Literal, X | None, tuple[X, ...],
            dict or dataclasses of the same kind.
        table: Content of the file.
        source: File name for error messages.

    Raises:
        ConfigError: If keys are unknown or missing, or values have the wrong type or are rejected by the dataclass. The
            error lists all faults of the file.
    """
    faults: list[str] = []
    built = gather(cls, table, faults, elsewhere=paths_of(cls))
    if built is None or faults:
        raise ConfigError.of_file(source, faults)
    return built


def gather(
    cls: type[T],
    table: Any,
    faults: list[str],
    where: str = "",
    elsewhere: Mapping[str, str] = types.MappingProxyType({}),
) -> T | None:
    """Build `cls` as `build` does, but append the faults to `faults`; return None if there are any.

    A misspelt key counts as the key that it resembles, and a value of the wrong type as its default, so that one fault
    does not hide others.

    Args:
        cls: As in `build`.
        table: As in `build`.
        faults: List to append one sentence per fault to.
        where: Dotted path of `table` in the file, ending in a full stop, for the sentences.
        elsewhere: Dotted path of each key in the tables of the file, to name the right place of a misplaced key.
    """
    if not isinstance(table, Mapping):
        name = f'"{where.rstrip(".")}" must be' if where else "expected"
        faults.append(f"{name} a table of keys, not {shown(table)}.")
        return None
    known, hints = {f.name: f for f in fields(cls)}, typing.get_type_hints(cls, include_extras=True)  # type: ignore[arg-type]
    before, given = len(faults), {name: table[name] for name in known if name in table}
    for key in table:
        if key not in known:
            instead = other_place(str(key), elsewhere)
            faults.append(f"unknown key {shown(where + str(key))}{instead or f'. {nearest(str(key), known)}'}")
            similar = [] if instead else sorted(known.keys() - table.keys())
            for close in difflib.get_close_matches(str(key), similar, n=1):
                given.setdefault(close, table[key])
    values, wrong, required = {}, [], []
    for name, field in known.items():
        number = len(faults)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            required.append(name)
        if name in given:
            values[name] = _convert(hints[name], given[name], faults, where + name, elsewhere)
        elif name in required:
            faults.append(f'missing key "{where}{name}".')
        if len(faults) > number:
            values.pop(name, None)
            wrong.append(name)
    if not values.keys() >= set(required):
        return None
    try:
        built = cls(**values)
    except MarchSearchError as error:
        refused = error.faults if isinstance(error, ConfigError) else (str(error),)
        faults += [fault for fault in refused if not _follows_from(fault, wrong, hints)]
        return None
    return built if len(faults) == before else None


def _follows_from(fault: str, wrong: Sequence[str], hints: Mapping[str, Any]) -> bool:
    """Return whether a fault may result from the defaults that stand in for the keys in `wrong`."""
    between_tables = fault.startswith("[") and any(dataclasses.is_dataclass(hints[name]) for name in wrong)
    return between_tables or any(re.search(rf"\b{name}\b", fault) for name in wrong)


def _convert(hint: Any, value: Any, faults: list[str], key: str, elsewhere: Mapping[str, str]) -> Any:
    """Convert `value` to the type `hint`; append to `faults` if it has another type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return gather(hint, value, faults, f"{key}.", elsewhere)
    if hint is NumberText:
        hint, value = str, _as_text(value)
    if origin in (Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        if len(inner) == 1 and not (value is None and type(None) in args):
            return _convert(inner[0], value, faults, key, elsewhere)
        if any(type(value) is a for a in args):
            return value
    elif origin is Literal:
        return _choice(args, value, faults, key)
    elif origin is tuple and args[0] is NumberText and isinstance(_as_text(value), str):
        return (_as_text(value),)  # one number stands for a list of one
    elif origin is tuple and isinstance(value, list):
        return tuple(_convert(args[0], item, faults, f"{key}[{i}]", elsewhere) for i, item in enumerate(value))
    elif (origin is dict or hint is dict) and isinstance(value, Mapping):
        _check_plain(value, faults, key)
        return dict(value)
    elif hint is Any or (type(value) is hint and hint is not int):
        return value
    elif hint in (int, float) and (number := as_count(value)) is not None:
        return hint(number)
    elif hint in (int, float):
        faults.append(f'"{key}" {_number_fault(hint, value)}')
        return None
    faults.append(f'"{key}" must be {_describe(hint)}, not {shown(value)}.')
    return None


def _choice(options: Sequence[Any], value: Any, faults: list[str], key: str) -> Any:
    """Return `value` if it is one of `options`, with the same type; append to `faults` if not."""
    if any(value == option and type(value) is type(option) for option in options):
        return value
    words = [option for option in options if isinstance(option, str)]
    if reason := REFUSED_VALUES.get((key, str(value))):
        faults.append(f'"{key}" cannot be {shown(value)}: {reason}')
    elif isinstance(value, str) and words:
        faults.append(f'"{key}" cannot be {shown(value)}. {nearest(value[:60], words)}')
    else:
        faults.append(f'"{key}" must be one of {", ".join(map(repr, options))}, not {shown(value)}.')
    return None


def as_count(value: Any) -> int | None:
    """Return a whole number from an int, a float such as 1e9 or text such as "1B"; None for anything else."""
    if isinstance(value, str):
        try:
            return parse_count(value, "number", least=0)
        except BudgetError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LIMIT:
        return None
    return int(value) if value == int(value) else None


def _number_fault(hint: type, value: Any) -> str:
    """Return why `value` is not a number of the type `hint`, as the end of a sentence."""
    if isinstance(value, str) and "," in value:
        try:
            parse_count(value, "number", least=0)
        except BudgetError as error:
            return f"is refused: {error}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"must be below 10^15, not {shown(value)}."
    return f"must be {_describe(hint)}, not {shown(value)}."


def _as_text(value: Any) -> Any:
    """Return a number as plain text, such as `220000000` for 2.2e8; other values are returned unchanged."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MOST_FLOPS:
        return value
    return f"{Decimal(repr(value)):f}"


def _check_plain(value: Any, faults: list[str], key: str, depth: int = 0) -> None:
    """Check that a free table can be stored as JSON and is not deeply nested; append to `faults` if not."""
    if depth > 20:
        faults.append(f'"{key[:60]}…" is nested more than 20 levels deep.')
    elif isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, item in items:
            _check_plain(item, faults, f"{key}.{name}", depth + 1)
    elif not isinstance(value, str | int | float | None):
        faults.append(f'"{key}" must be text, a number, true or false, or a table, not {shown(value)}.')
    elif isinstance(value, int | float) and not abs(value) < 2**63:
        faults.append(f'"{key}" must be a finite number of 64 bits, not {shown(value)}.')


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


def not_finite(settings: Any, table: str) -> list[str]:
    """Return one fault for each float in `settings` that is infinite or NaN."""
    return [
        f"[{table}]: {field.name} must be a finite number, not {number}."
        for field in fields(settings)
        for value in (getattr(settings, field.name),)
        for number in (value if isinstance(value, tuple) else (value,))
        if isinstance(number, float) and not math.isfinite(number)
    ]


def refuse(faults: Iterable[str]) -> None:
    """Raise a ConfigError with these faults if there are any."""
    if faults := tuple(faults):
        raise ConfigError(*faults)
