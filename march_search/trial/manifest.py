"""Checkpoint manifests: the hashes of a checkpoint's files, written once all files are complete."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from march_search.files.json_tables import json_text, write_json

MANIFEST = "manifest.json"
"""Name of the manifest in a checkpoint's folder."""


def checkpoint_files(tag: Path) -> list[Path]:
    """Return the files of a checkpoint, sorted, without the manifest."""
    return sorted(p for p in tag.rglob("*") if p.is_file() and p.name != MANIFEST)


def write_manifest(tag: Path, beat: Callable[[], None] = lambda: None) -> None:
    """Write the manifest of a complete checkpoint; `beat` is called before each file is read.

    Raises:
        StorageError: If the manifest cannot be written.
    """
    write_json(tag / MANIFEST, _manifest(tag, beat))


def is_intact(tag: Path, beat: Callable[[], None] = lambda: None) -> bool:
    """Return whether the checkpoint holds exactly the files of its manifest, unchanged."""
    try:
        return (tag / MANIFEST).read_bytes() == json_text(_manifest(tag, beat)).encode()
    except (OSError, ValueError):  # a folder whose name has no step is not a checkpoint
        return False


def _manifest(tag: Path, beat: Callable[[], None]) -> dict[str, Any]:
    """Return the manifest of the files in `tag`."""
    hashes = {str(f.relative_to(tag)): _sha256(f, beat) for f in checkpoint_files(tag)}
    return {"step": int(tag.name.removeprefix("step-")), "sha256": hashes}


def _sha256(path: Path, beat: Callable[[], None]) -> str:
    """Return the SHA-256 of a file."""
    beat()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resume_point(folder: Path, batch: int) -> int:
    """Return the token count of the newest complete checkpoint; 0 without one."""
    steps = (path.parent.name.removeprefix("step-") for path in folder.glob(f"checkpoints/step-*/{MANIFEST}"))
    return max((int(step) for step in steps if step.isdigit()), default=0) * batch


def keep_newest(folder: Path) -> None:
    """Delete all checkpoints of a trial except the newest undamaged one, from which a retry resumes.

    Call it only while no process trains in the folder. It reads whole checkpoints if there are several.
    """
    tags = sorted(folder.glob("checkpoints/step-*"), reverse=True)
    if len(tags) < 2 and all((tag / MANIFEST).is_file() for tag in tags):
        return
    kept = next((tag for tag in tags if is_intact(tag)), None)
    for tag in tags:
        if tag != kept:
            shutil.rmtree(tag, ignore_errors=True)


def drop_damaged(folder: Path) -> None:
    """Delete checkpoints newer than the newest undamaged one, because a trial cannot resume from them.

    Call it only while no process trains in the folder. It reads whole checkpoints.
    """
    for path in sorted(folder.glob(f"checkpoints/step-*/{MANIFEST}"), reverse=True):
        if is_intact(path.parent):
            return
        shutil.rmtree(path.parent, ignore_errors=True)
