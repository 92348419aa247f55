"""Atomic files and folders, tolerant JSON reads, and file locks that are released when the process ends."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType
from typing import IO, TYPE_CHECKING, Any

from march_search.errors import DataError, MarchSearchError, StorageError, shown

if TYPE_CHECKING:
    from torch import Tensor

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""OSError numbers for a full, over-quota or read-only disk."""

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


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically: readers see the old file or the complete new one, even after a crash.

    Raises:
        StorageError: If the folder cannot be written or the disk is full. An existing file is left unchanged.
    """
    _write(path, text.encode())


def _write(path: Path, content: bytes) -> None:
    """Write `content` as `write_text` does."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process, or a link that another user put there
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # on a read-only disk
            temporary.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error.strerror}.") from None


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file that the user named: a new or regular file atomically, anything else through what is there.

    A device, a pipe and the target of a symbolic link are written, and stay what they are.

    Raises:
        StorageError: If it cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    try:
        if not os.path.lexists(path) or stat.S_ISREG(path.lstat().st_mode):
            _write(path, content)
            return
        with path.open("wb") as file:
            file.write(content)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}.") from None


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


def make_folder(path: Path) -> Path:
    """Create the folder `path` if needed, check that it is writable, and return it.

    Raises:
        StorageError: If the folder cannot be created or written. The message gives the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}. Choose another folder with --root.") from None
    check_writable(path)
    return path


def check_writable(path: Path) -> None:
    """Check that the folder `path` is writable, or can be created; nothing is left behind.

    Raises:
        StorageError: If it is not. The message gives the reason.
    """
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.lexists(folder))
    probe = there / f".probe.{os.getpid()}.{threading.get_ident()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}. Choose another folder with --root.") from None


def private_folder(path: Path) -> Path:
    """Create a folder with a known name under the temporary folder, for this user only, and return it.

    Raises:
        StorageError: If the folder cannot be created, or its name is taken by another user or by something else.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise StorageError(
                f"{path}: is not a folder of this user, so its files cannot be trusted. Remove it, or set TMPDIR to a "
                "folder of your own."
            )
        path.chmod(0o700)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}. Set TMPDIR to another folder.") from None
    return path


@contextmanager
def lock(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` until the block or the process ends.

    Args:
        path: Lock file, created if missing.
        busy: Error message if the lock is already held. None waits for the lock instead.

    Raises:
        StorageError: If the file cannot be created, or if `busy` is given and the lock is already held.
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
    """Open the file `path` and lock it exclusively until it is closed; return None if it is already locked.

    Raises:
        StorageError: If the file cannot be created or its file system has no locks.
    """
    try:
        file = path.open("a")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}.") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        raise StorageError(f"{path}: cannot be locked: {error.strerror}. Use a file system that has flock.") from None
    return file


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file.

    Raises:
        DataError: If the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start}).") from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None


def one_line(error: BaseException) -> str:
    """Return the first line of an error message, without a trailing full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path | None]:
    """Yield a temporary folder that is renamed to `folder` at the end, or None if `folder` already exists.

    The temporary folder is next to `folder` and keeps its files if the writer is stopped or fails, so the next writer
    finds them. Use `discard` to remove it.
    """
    if folder.is_dir():
        yield None
        return
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    yield partial
    sync_folder(partial)
    partial.rename(folder)
    sync_folder(folder.parent)


def discard_folder(folder: Path) -> None:
    """Remove a folder and its contents, if it exists."""
    shutil.rmtree(folder, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(tensors: "Mapping[str, Tensor]", path: Path) -> None:
    """Write a safetensors file to `path`, with default file permissions, and sync it to disk.

    Raises:
        StorageError: If the folder is not writable or the disk is full. No partial file remains.
    """
    from safetensors import SafetensorError  # here, because loading torch takes seconds and most callers need none
    from safetensors.torch import save_file

    try:
        path.touch()
        mode = path.stat().st_mode
        save_file(dict(tensors), path, metadata={"format": "pt"})  # makes the file private
        path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):  # the disk may be read-only
            path.unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written: {error}.") from None
