"""Damage the files of a study or a trial, as a bad disk or a careless hand does."""

import json
import random
from pathlib import Path
from typing import Any

HOSTILE: dict[str, str] = {
    "empty": "",
    "cut": '{"state": "complete", "loss": 4.',
    "a list": "[1, 2]",
    "null": "null",
    "a number": "7",
    "no keys": "{}",
    "400 digits": '{"trials": ' + "9" * 400 + "}",
    "5000 digits": '{"trials": ' + "9" * 5000 + "}",
    "infinity": '{"loss": 1e999}',
    "NaN": '{"loss": NaN}',
    "nested": '{"settings": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested tables": '{"settings": ' + '{"a":' * 900 + "1" + "}" * 900 + "}",
    "half a character": '{"state": "\\ud800"}',
}
"""Contents of a JSON file that no program of this package wrote, by what is wrong with them."""

WRONG_TYPES: tuple[Any, ...] = (None, True, -1, 1.5, "text", [], {}, [{}], 10**30)
"""Values of all types that JSON has."""


def change_file(path: Path, **values: Any) -> None:
    """Overwrite values in a JSON file without a new seal."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def flip_bit(path: Path, rng: random.Random) -> int:
    """Flip one bit of a file, and return the byte that it is in."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return at


def flip_digit(path: Path, key: str, line: int | None = None) -> None:
    """Change the first digit of the number of `key`, in one line (from 1) or in the whole file."""
    lines = path.read_text().splitlines(keepends=True)
    number = next(n for n, text in enumerate(lines) if f'"{key}"' in text) if line is None else line - 1
    before, found, after = lines[number].partition(f'"{key}": ')
    assert after[0].isdigit()
    lines[number] = f"{before}{found}{(int(after[0]) + 1) % 10}{after[1:]}"
    path.write_text("".join(lines))
