"""The seal of a checkpoint: a manifest of its files' hashes, written when all of them are there."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from march_search.files import json_text, write_json

MANIFEST = "manifest.json"
"""File of a checkpoint that holds its seal."""


def files(tag: Path) -> list[Path]:
    """Files of one checkpoint, the manifest left out."""
    return sorted(p for p in tag.rglob("*") if p.is_file() and p.name != MANIFEST)


def seal(tag: Path, beat: Callable[[], None] = lambda: None) -> None:
    """Writes the manifest of a checkpoint that is complete; `beat` is called before each file is read.

    Raises:
        StorageError: it cannot be written.
    """
    write_json(tag / MANIFEST, _manifest(tag, beat))


def is_whole(tag: Path, beat: Callable[[], None] = lambda: None) -> bool:
    """Whether every file of the manifest is there, unchanged, and nothing else is."""
    try:
        return (tag / MANIFEST).read_bytes() == json_text(_manifest(tag, beat)).encode()
    except OSError:
        return False


def _manifest(tag: Path, beat: Callable[[], None]) -> dict[str, Any]:
    """What manifest.json says of the files that are there."""
    hashes = {str(f.relative_to(tag)): _sha256(f, beat) for f in files(tag)}
    return {"step": int(tag.name.removeprefix("step-")), "sha256": hashes}


def _sha256(path: Path, beat: Callable[[], None]) -> str:
    """Hash of a file's bytes."""
    beat()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
