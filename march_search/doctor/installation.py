"""Checks of Python, the libraries, the compiler, and the folder of studies. Imports none of the libraries."""

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
"""Bytes written to measure the speed of a disk."""

ROOM_BYTES = 10 * 10**9
"""Recommended free space. A 220M trial holds up to three checkpoints at once, with 12 (fp32) or 14 (bf16) bytes per
parameter."""


def python() -> Finding:
    """Check that the Python version meets the requirement of the package."""
    version, needed = platform.python_version(), metadata.metadata("march-search")["Requires-Python"]
    if SpecifierSet(needed).contains(version, prereleases=True):
        return Finding("ok", version, values={"version": version})
    return Finding("failed", f"{version} (requires {needed})", "create the environment with a newer Python")


def libraries() -> Finding:
    """Check that every library meets the requirement of the package; extras are ignored."""
    right, wrong, pins = [], [], []
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
            wrong.append(f"{need.name} {version} (requires {need.specifier or 'any version'})")
            pins.append(f"'{need.name}{need.specifier}'")
    if wrong:
        return Finding("failed", "; ".join(wrong), f"pip install {' '.join(pins)}")
    return Finding("ok", ", ".join(right), values=dict(library.split(" ") for library in right))


def compiler() -> Finding:
    """Report the C++ compiler. Trials on a CPU need none, because DeepSpeed's compiled operations are disabled."""
    name = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if name is None:
        return Finding("note", "no C++ compiler found; not needed, trials compile nothing")
    return Finding("ok", f"{shutil.which(name)}; not needed, trials compile nothing")


def root(folder: Path) -> Finding:
    """Check the free space and write speed of the disk that holds, or will hold, `folder`."""
    block, fix = os.urandom(2**20), "choose another folder with --root, or fix the space or permissions there"
    try:
        parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        start = time.perf_counter()
        with tempfile.TemporaryFile(dir=parent) as file:
            for _ in range(WRITTEN_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        speed = WRITTEN_BYTES / (time.perf_counter() - start)
    except OSError as error:
        return Finding("failed", f"{folder} cannot be written: {error.strerror}", fix)
    free = shutil.disk_usage(parent).free
    found = f"{folder}: {free / 1e9:.3g} GB free, writes at {speed / 1e6:,.0f} MB/s"
    values = {"free_bytes": free, "write_bytes_per_second": round(speed)}
    if free < ROOM_BYTES:
        return Finding(
            "note", found, "enough for small studies; for 220M parameters, choose a --root with 10 GB free", values
        )
    return Finding("ok", found, values=values)
