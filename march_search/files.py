"""Files that are written whole or not at all, and locks that die with their holder."""

import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from march_search.errors import StorageError

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Numbers of an OSError that says: the disk is full, or must not be written."""


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as `write_text` writes a text."""
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Writes `text` so that a reader sees the old file or the whole new one, also after a crash.

    Raises:
        StorageError: the folder cannot be written or the disk is full; an older file is left as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # on a read-only disk
            temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error.strerror}.") from None


def json_text(value: Any) -> str:
    """What `write_json` writes."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """The value in a JSON file; None where the file is missing or is not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def make_folder(path: Path) -> Path:
    """`path` as a folder that can be written.

    Raises:
        StorageError: it cannot be made or written; the message says why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}.{threading.get_ident()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}. Choose another folder with --root.") from None
    return path


@contextmanager
def lock(path: Path, busy: str | None = None) -> Iterator[None]:
    """Holds an exclusive lock on the file `path` until the block or the process ends; without `busy`, waits for it.

    Raises:
        StorageError: somebody else holds it; the message is `busy`. Or the file cannot be made.
    """
    try:
        opened = path.open("a")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}.") from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except OSError:
            raise StorageError(busy) from None
        yield


def try_lock(path: Path) -> IO[str] | None:
    """The file `path` with an exclusive lock, until it is closed or the process ends; None if somebody else has it."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; a torn last line is left out, a missing file is empty."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    return parse_lines(text.split("\n")[:-1])


def parse_lines(lines: Iterable[str]) -> list[dict[str, Any]]:
    """The JSON tables in these lines; what is no whole table is left out."""
    return [value for value in map(_parse, lines) if isinstance(value, dict)]


def _parse(line: str) -> Any:
    """The JSON value of one line, None where it is damaged."""
    try:
        return json.loads(line)
    except ValueError:
        return None
