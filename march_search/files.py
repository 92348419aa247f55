"""Atomic files and folders, tolerant JSON reads, and file locks that are released when the process ends."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from march_search.errors import DataError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""OSError numbers for a full, over-quota or read-only disk."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically (see `write_text`)."""
    write_text(path, json_text(value))


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically: readers see the old file or the complete new one, even after a crash.

    Raises:
        StorageError: If the folder cannot be written or the disk is full. An existing file is left unchanged.
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
    """Return the text that `write_json` writes for `value`."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Return the value in a JSON file, or None if the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def make_folder(path: Path) -> Path:
    """Create the folder `path` if needed, check that it is writable, and return it.

    Raises:
        StorageError: If the folder cannot be created or written. The message gives the reason.
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
    """Open the file `path` and lock it exclusively until it is closed; return None if it is already locked."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a JSON Lines file, without an incomplete last line; [] if the file is missing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    return parse_lines(text.split("\n")[:-1])


def parse_lines(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Return the JSON objects in `lines`; other or damaged lines are skipped."""
    return [value for value in map(_parse, lines) if isinstance(value, dict)]


def _parse(line: str) -> Any:
    """Return the JSON value of a line, or None if the line is damaged."""
    try:
        return json.loads(line)
    except ValueError:
        return None


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


def one_line(error: Exception) -> str:
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
