"""Checkpoint manifests: the hashes of a checkpoint's files, written once all files are complete."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from march_search.files import json_text, write_json

MANIFEST = "manifest.json"
"""Name of the manifest in a checkpoint's folder."""


def files(tag: Path) -> list[Path]:
    """Return the files of a checkpoint, sorted, without the manifest."""
    return sorted(p for p in tag.rglob("*") if p.is_file() and p.name != MANIFEST)


def seal(tag: Path, beat: Callable[[], None] = lambda: None) -> None:
    """Write the manifest of a complete checkpoint; `beat` is called before each file is read.

    Raises:
        StorageError: If the manifest cannot be written.
    """
    write_json(tag / MANIFEST, _manifest(tag, beat))


def is_whole(tag: Path, beat: Callable[[], None] = lambda: None) -> bool:
    """Return whether the checkpoint holds exactly the files of its manifest, unchanged."""
    try:
        return (tag / MANIFEST).read_bytes() == json_text(_manifest(tag, beat)).encode()
    except OSError:
        return False


def _manifest(tag: Path, beat: Callable[[], None]) -> dict[str, Any]:
    """Return the manifest of the files in `tag`."""
    hashes = {str(f.relative_to(tag)): _sha256(f, beat) for f in files(tag)}
    return {"step": int(tag.name.removeprefix("step-")), "sha256": hashes}


def _sha256(path: Path, beat: Callable[[], None]) -> str:
    """Return the SHA-256 of a file."""
    beat()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
