"""The token store: made once, whole or not at all, checked when it is opened."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_data_corpora import write_hub_folder

from march_search.config import DataConfig
from march_search.data import folders, store, tokenizer, writer
from march_search.data.store import Store, prepare
from march_search.errors import DataError, StorageError

REPOSITORY = Path(__file__).parents[1]
CONFIG = DataConfig(
    corpus="texts.jsonl", vocab_size=400, sequence_length=16, validation_fraction=0.2, validation_sequences=8
)


def write_texts(count: int = 100) -> list[str]:
    rng = random.Random(0)
    names = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 7))) for _ in range(50)] + ["</s>"]
    return [f"{i}: " + " ".join(rng.choices(names, k=20)) for i in range(count)]


@pytest.fixture
def base(tmp_path) -> Path:
    rows = [{"text": text} for text in write_texts()]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def folder(base) -> Path:
    return prepare(CONFIG, base / "root", base, tokens=0)


def test_the_tokens_are_the_documents_each_followed_by_its_end(folder):
    opened, bpe = Store.open(folder), tokenizer.load(folder / "tokenizer.json")
    assert opened.tokenizer_sha256 == tokenizer.sha256(bpe)
    assert opened.vocab_size == 400
    for split in store.SPLITS:
        ids = opened.tokens(split)
        ends = np.flatnonzero(ids == tokenizer.EOS)
        texts = [bpe.decode(part.tolist(), skip_special_tokens=False) for part in np.split(ids, ends + 1)[:-1]]
        starts = [part.lstrip() for part in (t.removesuffix("</s>") for t in texts)]
        wanted = [t for t in write_texts() if writer.is_validation(t, 0.2) == (split == "validation")]
        assert starts == wanted
        counts = opened.index["splits"][split]
        assert (counts["documents"], counts["tokens"]) == (len(wanted), len(ids))
        assert counts["text_bytes"] == sum(len(t.encode()) for t in wanted)
    opened.verify()


def test_the_index_says_where_the_text_comes_from(folder):
    index = Store.open(folder).index
    assert index["schema_version"] == 1
    assert index["source"]["kind"] == "files"
    assert index["data"] == {"vocab_size": 400, "tokenizer_bytes": 50_000_000, "validation_fraction": 0.2}
    assert set(index["versions"]) == {"datasets", "tokenizers", "numpy"}
    assert 0 < index["text_unigram_nats"] < 6


def test_a_second_time_nothing_is_written(folder, base, monkeypatch):
    monkeypatch.setattr(writer, "write", None)
    longer = dataclasses.replace(CONFIG, sequence_length=32, validation_sequences=4, noise_density=0.3)
    assert prepare(longer, base / "root", base, tokens=10**9) == folder


def test_other_text_or_settings_make_another_store(folder, base):
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
    for name in ("train.bin", "validation.bin", "tokenizer.json", "index.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_copies_of_a_document_stay_on_one_side_and_the_tokenizer_sees_training_text_alone(base):
    (base / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in write_texts() * 2))
    opened = Store.open(prepare(CONFIG, base / "root", base, tokens=0))
    training = [t for t in write_texts() * 2 if not writer.is_validation(t, 0.2)]
    assert opened.index["splits"]["train"]["documents"] == len(training)
    assert list(writer.tokenizer_texts(CONFIG, base)) == training
    few = dataclasses.replace(CONFIG, tokenizer_bytes=300)
    assert list(writer.tokenizer_texts(few, base)) == training[: len(list(writer.tokenizer_texts(few, base)))]
    assert 300 <= sum(map(len, writer.tokenizer_texts(few, base))) < 600


def test_a_hub_stream_stops_when_it_has_enough(tmp_path):
    set_folder = write_hub_folder(tmp_path / "set", [{"text": text} for text in write_texts(3000)])
    config = dataclasses.replace(CONFIG, corpus=f"hub:{set_folder}", tokenizer_bytes=10_000)
    told: list[tuple[int, int | None]] = []
    small = prepare(config, tmp_path / "root", tmp_path, tokens=2000, progress=lambda *now: told.append(now))
    large = prepare(config, tmp_path / "root", tmp_path, tokens=20_000)
    assert 2000 <= Store.open(small).num_tokens("train") < 3000
    assert 20_000 <= Store.open(large).num_tokens("train") < 21_000
    assert told[0][1] == 2000
    assert Store.open(small).index["data"]["tokens"] == 2000
    assert Store.open(small).index["source"]["kind"] == "hub folder"


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    tokens = {split: np.array([70_000, 1], "<u4") for split in store.SPLITS}
    for split, ids in tokens.items():
        ids.tofile(tmp_path / f"{split}.bin")
    splits = {split: {"tokens": 2} for split in store.SPLITS}
    (tmp_path / "index.json").write_text(json.dumps({"schema_version": 1, "dtype": "<u4", "splits": splits}))
    assert Store.open(tmp_path).tokens("train").tolist() == [70_000, 1]


def test_too_little_validation_text_says_what_to_change(base):
    with pytest.raises(DataError, match=r"the validation split holds 1,\d+ tokens") as caught:
        prepare(dataclasses.replace(CONFIG, validation_sequences=100), base / "root", base, tokens=0)
    assert "raise validation_fraction to about 0." in str(caught.value)


def test_a_cut_file_is_refused(folder):
    size = (folder / "train.bin").stat().st_size
    os.truncate(folder / "train.bin", size - 2)
    with pytest.raises(DataError) as caught:
        Store.open(folder)
    told = f"{folder}: train.bin is cut: {size - 2:,} bytes, {size:,} expected; delete the folder and prepare again."
    assert str(caught.value) == told


def test_a_flipped_byte_is_found_by_verify(folder):
    data = bytearray((folder / "train.bin").read_bytes())
    data[10] ^= 1
    (folder / "train.bin").write_bytes(data)
    with pytest.raises(DataError, match=r"train\.bin has changed since it was written"):
        Store.open(folder).verify()


def test_a_folder_without_a_readable_index_is_no_store(folder):
    (folder / "index.json").write_text('{"schema_version": 99}')
    with pytest.raises(DataError, match="has schema version 99, this program reads 1"):
        Store.open(folder)
    (folder / "index.json").write_text('{"schema')
    with pytest.raises(DataError, match=r"index\.json cannot be read"):
        Store.open(folder)
    (folder / "index.json").unlink()
    with pytest.raises(DataError, match="is no token store"):
        Store.open(folder)


def test_a_root_that_cannot_be_written_is_one_line(base):
    (base / "root").write_text("a file")
    with pytest.raises(StorageError) as caught:
        prepare(CONFIG, base / "root", base, tokens=0)
    assert str(caught.value).endswith("cannot be written: Not a directory.")


def test_a_full_disk_is_one_line_and_leaves_nothing_that_is_read(base, monkeypatch):
    def full(_path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(folders, "sync", full)
        patched.setattr(store, "sync", full)
        with pytest.raises(StorageError, match="cannot be written: No space left on device"):
            prepare(CONFIG, base / "root", base, tokens=0)
    assert not [path for path in (base / "root" / "data").iterdir() if path.is_dir() and path.name != ".cache"]
    assert Store.open(prepare(CONFIG, base / "root", base, tokens=0))


def test_an_error_in_the_text_leaves_no_store(base):
    with (base / "texts.jsonl").open("a") as file:
        file.write('{"text": \n')
    with pytest.raises(DataError, match="JSON parse error"):
        prepare(CONFIG, base / "root", base, tokens=0)
    assert not list((base / "root" / "data").glob("texts*"))


@contextlib.contextmanager
def preparing(base: Path, before: str = "pass") -> Iterator[subprocess.Popen]:
    """A process of its own that prepares CONFIG and prints the folder and whether it was the one that wrote."""
    code = f"""
from pathlib import Path
from test_data_store import CONFIG
from march_search.data import store, writer
wrote, write = [], writer.write
def spy(folder, *rest):
    wrote.append(1)
    {before}
    return write(folder, *rest)
writer.write = spy
base = Path({str(base)!r})
print(store.prepare(CONFIG, base / "root", base, tokens=0), len(wrote))
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
    pause = "import time; time.sleep(0.5)"
    with preparing(base, pause) as one, preparing(base, pause) as two:
        for process in (one, two):
            out, errors = process.communicate(timeout=60)
            assert (process.returncode, errors) == (0, "")
            answers.append(out.split())
    assert answers[0][0] == answers[1][0]
    assert sorted(wrote for _, wrote in answers) == ["0", "1"]
    assert not any(path.is_file() for path in (base / "home").rglob("*"))


def test_what_a_killed_writer_leaves_is_never_read(base):
    half = "(folder / 'train.bin').write_bytes(b'half'); import time; time.sleep(60)"
    with preparing(base, half) as process:
        deadline = time.monotonic() + 30
        while not list(base.glob("root/data/.*.partial/train.bin")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    assert list(base.glob("root/data/.*.partial/train.bin"))
    assert not list((base / "root" / "data").glob("texts*"))
    Store.open(prepare(CONFIG, base / "root", base, tokens=0)).verify()
    assert not list(base.glob("root/data/.*.partial"))


def test_opening_a_store_imports_numpy_alone(folder):
    code = f"""
import sys
from pathlib import Path
from march_search.data.store import Store
from march_search.data import batches, reference
Store.open(Path({str(folder)!r})).tokens("train")
heavy = {{"datasets", "tokenizers", "torch", "pyarrow", "huggingface_hub", "scipy", "optuna"}}
sys.exit(", ".join(heavy & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert done.returncode == 0
