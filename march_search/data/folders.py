"""Atomic creation and removal of folders."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path | None]:
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
    sync(partial)
    partial.rename(folder)
    sync(folder.parent)


def discard(folder: Path) -> None:
    """Remove a folder and its contents, if it exists."""
    shutil.rmtree(folder, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
