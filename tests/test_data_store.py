"""The token store: prepared once, complete or absent, verified on opening, and resumed after an interruption."""

import contextlib
import dataclasses
import errno
import itertools
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.corpora import TEXTS_CONFIG as CONFIG
from helpers.corpora import numbered_texts, write_hub_folder, write_jsonl, write_t5_tokenizer
from tokenizers import Tokenizer, models

from march_search.data import corpora, shards, tokenise, tokenizer, vocabulary, writer
from march_search.data.prepare import prepare
from march_search.data.store import Store
from march_search.data.tokenizer import EOS, trained
from march_search.errors import DataError, StorageError
from march_search.files.json_tables import write_json

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def base(tmp_path) -> Path:
    write_jsonl(tmp_path / "texts.jsonl", numbered_texts())
    return tmp_path


@pytest.fixture
def folder(base) -> Path:
    return prepare(CONFIG, base / "root", base, tokens=0)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch) -> None:
    """Several shards of a few texts each."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 3000)


def every(opened: Store, split: str) -> np.ndarray:
    return np.concatenate([np.asarray(part) for part in opened.tokens(split).parts])


def test_the_tokens_are_the_documents_with_end_tokens(folder):
    opened, bpe = Store.open(folder), tokenizer.load(folder / "tokenizer.json")
    assert opened.tokenizer_sha256 == tokenizer.sha256(bpe)
    assert opened.vocab_size == 400
    assert len(opened.shards) > 3
    for split in shards.SPLITS:
        ids = every(opened, split)
        ends = np.flatnonzero(ids == EOS)
        texts = [bpe.decode(part.tolist(), skip_special_tokens=False) for part in np.split(ids, ends + 1)[:-1]]
        starts = [part.lstrip() for part in (t.removesuffix("</s>") for t in texts)]
        wanted = [t for t in numbered_texts() if vocabulary.is_validation(t, 0.2) == (split == "validation")]
        assert starts == wanted
        counts = opened.index["splits"][split]
        assert (counts["documents"], counts["tokens"]) == (len(wanted), len(ids))
        assert counts["text_bytes"] == sum(len(t.encode()) for t in wanted)
    opened.verify()


def test_the_index_records_the_source_of_the_text(folder):
    index = Store.open(folder).index
    assert index["schema_version"] == 3
    assert index["source"]["kind"] == "files"
    assert index["data"] == {"vocab_size": 400, "validation_fraction": 0.2}
    assert index["special"] == {"eos": 1, "first_sentinel": 399, "step": -1}
    assert set(index["versions"]) == {"datasets", "tokenizers", "numpy"}
    files = {path.name for path in folder.iterdir()}
    numbers = range(len(index["shards"]))
    assert files == {"index.json", "tokenizer.json", *(shards.name(s, n) for s in shards.SPLITS for n in numbers)}


def test_preparing_again_writes_nothing(folder, base, monkeypatch):
    monkeypatch.setattr("march_search.data.prepare.write", None)
    longer = dataclasses.replace(CONFIG, sequence_length=32, validation_sequences=4, noise_density=0.3)
    assert prepare(longer, base / "root", base, tokens=10**9) == folder


def test_other_text_or_other_settings_make_another_store(folder, base):
    assert prepare(dataclasses.replace(CONFIG, vocab_size=401), base / "root", base, tokens=0) != folder
    moved = base / "moved"
    moved.mkdir()
    (base / "texts.jsonl").rename(moved / "texts.jsonl")
    assert prepare(CONFIG, base / "root", moved, tokens=0) == folder
    with (moved / "texts.jsonl").open("a") as file:
        file.write('{"text": "more"}\n')
    assert prepare(CONFIG, base / "root", moved, tokens=0) != folder


def test_the_same_text_makes_the_same_bytes(folder, base):
    again = prepare(CONFIG, base / "other-root", base, tokens=0)
    assert contents(again) == contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_copies_of_a_document_share_a_split_and_the_tokenizer_is_trained_on_training_text(base):
    write_jsonl(base / "texts.jsonl", numbered_texts() * 2)
    opened = Store.open(prepare(CONFIG, base / "root", base, tokens=0))
    training = [t for t in numbered_texts() * 2 if not vocabulary.is_validation(t, 0.2)]
    assert opened.index["splits"]["train"]["documents"] == len(training)
    assert list(vocabulary.texts(CONFIG, base)) == training
    few = dataclasses.replace(CONFIG, tokenizer_bytes=300)
    assert list(vocabulary.texts(few, base)) == training[: len(list(vocabulary.texts(few, base)))]
    assert 300 <= sum(map(len, vocabulary.texts(few, base))) < 600


def test_a_hub_stream_stops_at_the_requested_tokens(tmp_path):
    set_folder = write_hub_folder(tmp_path / "set", [{"text": text} for text in numbered_texts(3000)])
    config = dataclasses.replace(CONFIG, corpus=f"hub:{set_folder}", tokenizer_bytes=10_000)
    reports: list[tuple[int, int, int | None]] = []
    small = prepare(config, tmp_path / "root", tmp_path, tokens=2000, progress=lambda *now: reports.append(now))
    large = prepare(config, tmp_path / "root", tmp_path, tokens=20_000)
    assert 2000 <= Store.open(small).num_tokens("train") < 3000
    assert 20_000 <= Store.open(large).num_tokens("train") < 21_000
    assert reports[0][2] == 2000
    assert Store.open(small).index["data"]["tokens"] == 2000
    assert Store.open(small).index["source"]["kind"] == "hub folder"


def test_ids_of_a_large_vocabulary_have_four_bytes(base):
    vocab = {"</s>": 0, "e": 70_000}
    Tokenizer(models.BPE(vocab=vocab, merges=[])).save(str(base / "t.json"))
    config = dataclasses.replace(CONFIG, tokenizer="t.json", vocab_size=70_101)
    opened = Store.open(prepare(config, base / "root", base, tokens=0))
    assert opened.dtype == np.dtype("<u4")
    assert set(every(opened, "train").tolist()) == {0, 70_000}


def test_too_little_validation_text_names_the_settings_to_change(base):
    with pytest.raises(DataError, match=r"the validation split has 1,\d+ tokens") as caught:
        prepare(dataclasses.replace(CONFIG, validation_sequences=100), base / "root", base, tokens=0)
    assert "raise validation_fraction to about 0." in str(caught.value)
    longer = dataclasses.replace(CONFIG, sequence_length=1000, mean_span_length=9)
    with pytest.raises(DataError, match=r"add text or shorten sequence_length\.$"):
        prepare(longer, base / "root", base, tokens=0)


REPAIR = "repair it: march-search data prepare STUDY --repair."


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[10] ^= 1
    file.write_bytes(data)


def test_a_truncated_file_is_refused(folder):
    size = (folder / "train-00001.bin").stat().st_size
    os.truncate(folder / "train-00001.bin", size - 2)
    with pytest.raises(DataError) as caught:
        Store.open(folder)
    assert (
        str(caught.value)
        == f"{folder}: train-00001.bin is too short: expected {size:,} bytes, got {size - 2:,}; {REPAIR}"
    )


def test_a_missing_shard_is_named(folder):
    (folder / "validation-00002.bin").unlink()
    with pytest.raises(DataError) as caught:
        Store.open(folder)
    assert str(caught.value) == f"{folder}: validation-00002.bin is missing; {REPAIR}"


@pytest.mark.parametrize("name", ["train-00001.bin", "tokenizer.json"])
def test_a_flipped_byte_is_found_when_preparing_again(folder, base, name):
    flip(folder / name)
    with pytest.raises(DataError) as caught:
        prepare(CONFIG, base / "root", base, tokens=0)
    assert str(caught.value) == f"{folder}: {name} has changed since it was written; {REPAIR}"


def test_a_folder_without_a_readable_index_is_refused(folder):
    (folder / "index.json").write_text('{"schema_version": 99}')
    with pytest.raises(DataError, match="expected schema version 3, got 99"):
        Store.open(folder)
    for damaged in (
        '{"schema',
        "[]",
        "{}",
        '{"schema_version": "2"}',
        "[" * 100_000,
        '{"schema_version": ' + "9" * 400,
    ):
        (folder / "index.json").write_text(damaged)
        with pytest.raises(DataError, match=r"^[^\n]*index\.json: is damaged: it [^\n]*--repair\.$"):
            Store.open(folder)
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match="not a token store"):
        Store.open(folder)


def unseal(folder: Path, **changes: object) -> None:
    """Give a store the index of an earlier version, without a seal; a change `a__b=1` sets `index["a"]["b"]`."""
    index = json.loads((folder / "index.json").read_text())
    del index["sha256"]
    index["schema_version"] = 2
    for path, value in changes.items():
        table = index
        *tables, key = path.split("__")
        for name in tables:
            table = table[int(name) if name.isdigit() else name]
        table[key] = value
    write_json(folder / "index.json", index)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("sentinel", '"first_sentinel": 399', '"first_sentinel": 398'),
        ("end token", '"eos": 1,', '"eos": 3,'),
        ("hash of a shard", '"sha256": "', '"sha256": "0'),
        ("name of the seal", '"sha256": "SEAL', '"sha357": "SEAL'),
        ("version", '"schema_version": 3', '"schema_version": 2'),
        ("count", '"tokens": ', '"tokens": 1'),
        ("type", '"dtype": "<u2"', '"dtype": "<i2"'),
    ],
)
def test_a_changed_index_is_refused_and_repaired(folder, base, name, old, new):
    before = (folder / "index.json").read_text()
    old, new = (text.replace("SEAL", json.loads(before)["sha256"]) for text in (old, new))
    assert old in before, name
    (folder / "index.json").write_text(before.replace(old, new, 1))
    with pytest.raises(DataError, match=r"^[^\n]*index\.json[^\n]* was (changed after it was|changed since)|since it"):
        Store.open(folder)
    repaired: list[list[str]] = []
    prepare(CONFIG, base / "root", base, tokens=0, repaired=repaired.append)
    assert repaired == [["index.json"]]
    assert (folder / "index.json").read_text() == before


def test_a_store_of_an_earlier_version_is_used_as_it_is(folder, base):
    unseal(folder)
    before = contents(folder)
    assert prepare(CONFIG, base / "root", base, tokens=0) == folder
    Store.open(folder).verify()
    assert contents(folder) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"special__first_sentinel": 398},
        {"special__eos": 3},
        {"special__step": 1},
        {"data__vocab_size": 70_000},
        {"data__vocab_size": 399},
        {"splits__train__tokens": 7},
        {"dtype": "<u4"},
        {"shards": {}},
        {"shards": [{"train": 1}]},
        {"special": {"eos": 1}},
        {"special": [1, 2, 3]},
        {"tokenizer_file_sha256": None},
        {"data": None},
    ],
    ids=str,
)
def test_an_index_without_a_seal_is_checked_against_what_it_has(folder, base, changes):
    unseal(folder, **changes)
    with pytest.raises(DataError, match=r"^[^\n]*index\.json (has changed|does not match)[^\n]*--repair\.$"):
        Store.open(folder)
    assert prepare(CONFIG, base / "root", base, tokens=0, repaired=lambda _: None) == folder
    Store.open(folder).verify()


@pytest.mark.parametrize("version", [2, 3])
def test_no_flipped_bit_changes_what_a_trial_reads(folder, version):
    """Flip 200 random bits, one at a time: each is refused in one line, or changes nothing that a trial reads."""

    def read() -> list:
        opened = Store.open(folder)
        return [opened.special, opened.dtype, *(every(opened, split).tolist() for split in shards.SPLITS)]

    if version == 2:
        unseal(folder)
    rng, before, refusals = random.Random(version), read(), list[str]()
    files = sorted(folder.iterdir())
    for _ in range(200):
        file = rng.choice(files)
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        try:
            assert read() == before
            assert file.name == "index.json", "white space and, without a seal, records that trials do not read"
        except DataError as error:
            refusals.append(str(error))
        file.write_bytes(content)
    assert len(refusals) > 180
    assert not any("\n" in line for line in refusals)


def test_tokens_are_checked_once_before_they_are_mapped(folder, monkeypatch):
    hashed: list[str] = []
    monkeypatch.setattr(
        shards, "file_sha256", lambda path, was=shards.file_sha256: hashed.append(path.name) or was(path)
    )
    opened = Store.open(folder)
    assert hashed == []
    beats: list[int] = []
    opened.verify(lambda: beats.append(1))
    opened.tokens("train"), opened.tokens("validation")
    names = sorted(path.name for path in folder.glob("*.bin"))
    assert (sorted(hashed), len(beats)) == (names, len(names))
    flip(folder / "validation-00001.bin")
    Store.open(folder).tokens("train")
    with pytest.raises(DataError) as caught:
        Store.open(folder).tokens("validation")
    assert str(caught.value) == f"{folder}: validation-00001.bin has changed since it was written; {REPAIR}"


def test_a_swapped_tokenizer_is_refused_on_opening(folder):
    tokenizer.train(numbered_texts(200), 401).save(str(folder / "tokenizer.json"))
    with pytest.raises(DataError) as caught:
        Store.open(folder)
    assert str(caught.value) == f"{folder}: tokenizer.json has changed since it was written; {REPAIR}"


def test_a_damaged_trained_tokenizer_is_not_used_for_another_store(folder, base):
    (file,) = (base / "root" / "data" / "tokenizers").glob("*.json")
    file.write_text(file.read_text().replace("<pad>", "<pat>"))
    other = dataclasses.replace(CONFIG, validation_sequences=9)
    with pytest.raises(DataError) as caught:
        prepare(other, base / "root", base, tokens=0)
    assert str(caught.value) == f"{file} has changed since it was written; delete it to train it again."
    file.unlink()
    assert prepare(CONFIG, base / "root", base, tokens=0) == folder


@pytest.mark.parametrize(
    "names", [[], ["train-00001.bin"], ["train-00000.bin", "validation-00002.bin"], ["tokenizer.json"], ["index.json"]]
)
def test_repair_rewrites_only_the_damaged_files(folder, base, names):
    before = contents(folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for number, name in enumerate(names):
        (folder / name).unlink() if number else flip(folder / name)
    repaired: list[list[str]] = []
    assert prepare(CONFIG, base / "root", base, tokens=0, repaired=repaired.append) == folder
    assert repaired == [names]
    assert contents(folder) == before
    same = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns == times[path.name]}
    rewritten = {name.split("-")[1] for name in names if name.endswith(".bin")}
    for name in times:
        whole_shard = name.endswith(".bin") and name.split("-")[1] in rewritten
        assert (name in same) == (not whole_shard and name not in names and names != ["index.json"])


def test_repair_refuses_changed_text(folder, base, monkeypatch):
    flip(folder / "train-00001.bin")
    broken = contents(folder)
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    with pytest.raises(
        DataError, match="the text of shard 1 has changed; delete the folder and prepare the text again"
    ):
        prepare(CONFIG, base / "root", base, tokens=0, repaired=lambda _: None)
    assert contents(folder) == broken


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_bytes_do_not_depend_on_the_workers(folder, base, workers, monkeypatch):
    monkeypatch.setattr(tokenise, "BATCH_CHARACTERS", 500)
    again = prepare(CONFIG, base / "other-root", base, tokens=0, workers=workers)
    assert contents(again) == contents(folder)


def test_tokenizing_a_long_document_in_pieces_changes_nothing(base, folder, monkeypatch):
    bpe = tokenizer.load(folder / "tokenizer.json")
    text = "\n ".join(numbered_texts()) + "  \t two  spaces" + " é" * 50
    monkeypatch.setattr(tokenise, "PIECE_CHARACTERS", 37)
    cut = tokenise.pieces(text)
    assert "".join(cut) == text
    assert max(map(len, cut)) <= 37 < len(cut)
    assert [i for piece in cut for i in bpe.encode(piece).ids] == bpe.encode(text).ids
    assert tokenise.pieces("x" * 100) == ["x" * 37, "x" * 37, "x" * 26]
    (base / "one").mkdir()
    (base / "one" / "a.txt").write_text(text)
    (base / "one" / "b.txt").write_text("")
    config = dataclasses.replace(
        CONFIG, corpus="one", tokenizer=str(folder / "tokenizer.json"), validation_fraction=0.49
    )
    with pytest.raises(DataError, match=r"one: the validation split has 0 tokens"):
        prepare(config, base / "root", base, tokens=0)
    (made,) = (base / "root" / "data").glob("one-*")
    assert every(Store.open(made), "train").tolist() == [*bpe.encode(text).ids, EOS]


def test_text_never_encodes_to_a_special_token_of_a_loaded_vocabulary(base):
    write_t5_tokenizer(base / "t5")
    rows = ["cat </s> <extra_id_0> dog </s>"] * 3 + numbered_texts()
    write_jsonl(base / "texts.jsonl", rows)
    opened = Store.open(
        prepare(dataclasses.replace(CONFIG, tokenizer="t5", vocab_size=130), base / "root", base, tokens=0)
    )
    assert opened.dtype == np.dtype("<u2")
    ends = sum(int((every(opened, split) == EOS).sum()) for split in shards.SPLITS)
    assert ends == len(rows)
    assert not any(opened.special.is_sentinel(every(opened, split)).any() for split in shards.SPLITS)
    assert opened.folder != prepare(CONFIG, base / "root", base, tokens=0)


def test_a_root_that_is_not_writable_is_reported_in_one_line(base):
    (base / "root").write_text("a file")
    with pytest.raises(StorageError) as caught:
        prepare(CONFIG, base / "root", base, tokens=0)
    assert str(caught.value).endswith("cannot be written: Not a directory.")


@pytest.mark.parametrize("after", [0, 2])
def test_a_full_disk_is_reported_in_one_line_and_complete_shards_are_reused(base, monkeypatch, after):
    written = []

    def full(path, value):
        if path.name.startswith("shard-"):
            written.append(path.name)
            if len(written) > after:
                raise OSError(errno.ENOSPC, "No space left on device")
        write_json(path, value)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "write_json", full)
        with pytest.raises(StorageError, match="cannot be written: No space left on device"):
            prepare(CONFIG, base / "root", base, tokens=0)
    assert not list((base / "root" / "data").glob("texts*"))
    made: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(shards, "write", lambda *a, write=shards.write: made.append(a[1]) or write(*a))
        folder = prepare(CONFIG, base / "root", base, tokens=0)
    assert made[0] == after
    assert contents(folder) == contents(prepare(CONFIG, base / "other-root", base, tokens=0))


def test_a_damaged_shard_of_an_interrupted_writer_is_rewritten(base, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(shards, "forget_records", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(CONFIG, base / "root", base, tokens=0)
    (partial,) = (base / "root" / "data").glob(".*.partial")
    flip(partial / "train-00002.bin")
    folder = prepare(CONFIG, base / "root", base, tokens=0)
    assert contents(folder) == contents(prepare(CONFIG, base / "other-root", base, tokens=0))


def test_an_interrupted_stream_resumes_at_the_same_revision(tmp_path, monkeypatch):
    set_folder = write_hub_folder(tmp_path / "set", [{"text": text} for text in numbered_texts(300)])
    config = dataclasses.replace(CONFIG, corpus=f"hub:{set_folder}", tokenizer_bytes=5_000)
    whole = prepare(config, tmp_path / "root", tmp_path, tokens=9000)
    with monkeypatch.context() as patched:
        patched.setattr(corpora, "pinned", lambda config, _: dataclasses.replace(config, hub_revision="abc"))
        patched.setattr(shards, "forget_records", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(config, tmp_path / "other", tmp_path, tokens=9000)
    (partial,) = (tmp_path / "other" / "data").glob(".*.partial")
    assert json.loads((partial / "plan.json").read_text()) == {"hub_revision": "abc"}
    (partial / "shard-00002.json").unlink()
    seen = []
    monkeypatch.setattr(
        writer, "documents", lambda c, *more, was=writer.documents: seen.append(c.hub_revision) or was(c, *more)
    )
    again = prepare(config, tmp_path / "other", tmp_path, tokens=9000)
    assert set(seen) == {"abc"}
    assert {k: v for k, v in contents(again).items() if k != "index.json"} == {
        k: v for k, v in contents(whole).items() if k != "index.json"
    }


def test_too_many_bad_rows_make_no_store(base):
    with (base / "texts.jsonl").open("a") as file:
        file.write('{"text": \n{"n": 3}\n')
    reason = "texts.jsonl line 101: not JSON (Expecting value at character 10)"
    with pytest.raises(DataError) as caught:
        prepare(CONFIG, base / "root", base, tokens=0)
    assert str(caught.value) == (
        "texts.jsonl: 2 of 102 rows cannot be used, but bad_row_tolerance is 0.01; the first is " + reason + "."
    )
    assert not list((base / "root" / "data").glob("texts*"))


def test_a_bad_row_is_skipped_counted_and_named(base, caplog):
    rows = (base / "texts.jsonl").read_bytes().splitlines(keepends=True)
    (base / "texts.jsonl").write_bytes(b"".join([*rows[:41], b'{"text": "\xff"}\n', *rows[41:]]))
    opened = Store.open(prepare(CONFIG, base / "root", base, tokens=0))
    reason = "texts.jsonl line 42: not UTF-8 text"
    assert opened.index["skipped"] == {"rows": 101, "unusable": 1, "first": [reason]}
    assert caplog.messages == [f"texts.jsonl: skipped 1 of 101 rows: {reason}."]
    assert sum(split["documents"] for split in opened.index["splits"].values()) == 100
    strict = dataclasses.replace(CONFIG, bad_row_tolerance=0, tokenizer=str(opened.folder / "tokenizer.json"))
    with pytest.raises(DataError, match=r"^texts\.jsonl: 1 of 101 rows cannot be used, but bad_row_tolerance is 0; "):
        prepare(strict, base / "other-root", base, tokens=0)


def test_a_broken_stream_resumes_at_its_shard(tmp_path, monkeypatch):
    set_folder = write_hub_folder(tmp_path / "set", [{"text": text} for text in numbered_texts(300)])
    config = dataclasses.replace(CONFIG, corpus=f"hub:{set_folder}", tokenizer_bytes=5_000)
    whole = prepare(config, tmp_path / "root", tmp_path, tokens=9000)
    monkeypatch.setattr(tokenise, "BATCH_CHARACTERS", 500)

    def breaking(*arguments, read=writer.documents):
        yield from itertools.islice(read(*arguments), 100)
        raise DataError("the connection broke.")

    with monkeypatch.context() as patched:
        patched.setattr(writer, "documents", breaking)
        with pytest.raises(DataError, match=r"the connection broke\."):
            prepare(config, tmp_path / "other", tmp_path, tokens=9000)
    (partial,) = (tmp_path / "other" / "data").glob(".*.partial")
    complete = len(list(partial.glob("shard-*.json")))
    assert complete >= 2
    made: list[int] = []
    monkeypatch.setattr(shards, "write", lambda *a, write=shards.write: made.append(a[1]) or write(*a))
    assert contents(prepare(config, tmp_path / "other", tmp_path, tokens=9000)) == contents(whole)
    assert made[0] == complete


@contextlib.contextmanager
def preparing(base: Path, before: str = "pass") -> Iterator[subprocess.Popen]:
    """Start a process that prepares the texts and prints the folder and the number of shards it wrote."""
    code = f"""
import time
from pathlib import Path
from helpers.corpora import TEXTS_CONFIG
from march_search.data import prepare, shards
shards.SHARD_BYTES = 3000
wrote, write = [], shards.write
def spy(folder, number, *rest):
    {before}
    wrote.append(number)
    return write(folder, number, *rest)
shards.write = spy
base = Path({str(base)!r})
print(prepare.prepare(TEXTS_CONFIG, base / "root", base, tokens=0), len(wrote))
"""
    (base / "home").mkdir(exist_ok=True)
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    environment = {**os.environ, "HOME": str(base / "home"), "PYTHONPATH": path}
    command = [sys.executable, "-W", "error", "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_two_processes_at_once_make_one_store(base):
    answers = []
    pause = "time.sleep(0.1)"
    with preparing(base, pause) as one, preparing(base, pause) as two:
        for process in (one, two):
            out, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, "")
            answers.append(out.split())
    assert answers[0][0] == answers[1][0]
    shards_of_one = len(Store.open(Path(answers[0][0])).shards)
    assert sorted(int(wrote) for _, wrote in answers) == [0, shards_of_one]
    assert not any(path.is_file() for path in (base / "home").rglob("*"))


@pytest.mark.torture
def test_a_killed_writer_leaves_no_store_and_resumes_at_its_shard(base):
    with preparing(base, "number == 2 and time.sleep(60)") as process:
        deadline = time.monotonic() + 30
        while not list(base.glob("root/data/.*.partial/shard-00001.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    (partial,) = base.glob("root/data/.*.partial")
    (partial / "train-00002.bin").write_bytes(b"half")
    assert not list((base / "root" / "data").glob("texts*"))
    with preparing(base) as process:
        out, errors = process.communicate(timeout=60)
    assert errors == ""
    folder, wrote = out.split()
    assert int(wrote) == len(Store.open(Path(folder)).shards) - 2
    assert contents(Path(folder)) == contents(prepare(CONFIG, base / "other-root", base, tokens=0))
    assert not list(base.glob("root/data/.*.partial"))


def test_memory_does_not_grow_with_the_text(folder, base, monkeypatch):
    """Compare the peak memory of Python objects and NumPy arrays; `benchmarks/data.py` measures whole processes."""
    peaks = []
    monkeypatch.setattr(tokenise, "BATCH_CHARACTERS", 1 << 16)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1 << 17)
    text = " ".join(numbered_texts() * 6)
    config = dataclasses.replace(CONFIG, corpus="many", tokenizer=str(folder / "tokenizer.json"))
    for count in (10, 100):
        for number in range(count):
            (base / "many").mkdir(exist_ok=True)
            (base / "many" / f"{number}.txt").write_text(f"{number} {text}")
        tracemalloc.start()
        made = prepare(config, base / f"root{count}", base, tokens=0, workers=1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert Store.open(made).index["splits"]["train"]["text_bytes"] > 0.4 * peaks[0]
    assert peaks[1] < 1.2 * peaks[0]


def test_reading_stays_close_to_writing(folder, monkeypatch):
    monkeypatch.setattr(tokenise, "BATCH_CHARACTERS", 100)
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield f"{number} " + "x" * 98

    bpe = tokenizer.load(folder / "tokenizer.json")
    encoder = tokenise.Encoder(bpe, trained(400), np.dtype("<u2"), 0.2)
    with contextlib.closing(tokenise.tokenise(endless(), encoder, workers=2)) as documents:
        for number, document in enumerate(itertools.islice(documents, 50)):
            assert bpe.decode(document.ids.tolist()).startswith(f"{number} ")
            assert len(read) <= number + 8


def test_opening_a_store_imports_only_numpy(folder):
    code = f"""
import sys
from pathlib import Path
from march_search.data.store import Store
from march_search.data import batches, ngrams
Store.open(Path({str(folder)!r})).tokens("train")
heavy = {{"datasets", "tokenizers", "torch", "pyarrow", "huggingface_hub", "scipy", "optuna"}}
sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert done.returncode == 0
