"""What is installed: Python, libraries, a compiler, and the folder that studies are kept in. Loads no library."""

import os
import platform
import shutil
import tempfile
import time
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from march_search.doctor.findings import Finding

WRITTEN_BYTES = 64 * 2**20
"""What is written to measure a disk."""

ROOM_BYTES = 10 * 10**9
"""A 220M trial holds up to three checkpoints for a moment, of 12 bytes a parameter in fp32 and 14 in bf16."""


def python() -> Finding:
    """The interpreter against what the package requires."""
    version, needed = platform.python_version(), metadata.metadata("march-search")["Requires-Python"]
    if SpecifierSet(needed).contains(version, prereleases=True):
        return Finding("ok", version, values={"version": version})
    return Finding("failed", f"{version}, and {needed} is needed", "make the environment with a newer Python")


def libraries() -> Finding:
    """Every library's version against what the package requires; extras are left out."""
    right, wrong, mend = [], [], []
    for text in metadata.requires("march-search") or []:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if version != "missing" and need.specifier.contains(version, prereleases=True):
            right.append(f"{need.name} {version}")
        else:
            wrong.append(f"{need.name} {version}, and {need.specifier or 'any version'} is needed")
            mend.append(f"'{need.name}{need.specifier}'")
    if wrong:
        return Finding("failed", "; ".join(wrong), f"pip install {' '.join(mend)}")
    return Finding("ok", ", ".join(right), values=dict(library.split(" ") for library in right))


def compiler() -> Finding:
    """A C++ compiler, which no trial on a CPU needs: DeepSpeed's compiled operations are left off there."""
    name = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if name is None:
        return Finding("note", "no C++ compiler, and none is needed: nothing is compiled for a trial")
    return Finding("ok", f"{shutil.which(name)}; not needed: nothing is compiled for a trial")


def root(folder: Path) -> Finding:
    """Free space and write speed where `folder` is, or will be made."""
    block, way_out = os.urandom(2**20), "choose another folder with --root, or make room and rights there"
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        began = time.perf_counter()
        with tempfile.TemporaryFile(dir=place) as file:
            for _ in range(WRITTEN_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        speed = WRITTEN_BYTES / (time.perf_counter() - began)
    except OSError as error:
        return Finding("failed", f"{folder} cannot be written: {error.strerror}", way_out)
    free = shutil.disk_usage(place).free
    found = f"{folder}: {free / 1e9:.3g} GB free, written at {speed / 1e6:,.0f} MB/s"
    values = {"free_bytes": free, "write_bytes_per_second": round(speed)}
    if free < ROOM_BYTES:
        return Finding(
            "note", found, "small studies fit; for one of 220M parameters choose a --root with 10 GB", values
        )
    return Finding("ok", found, values=values)
