"""`march-search data`: prepares, mends, shows counts, losses and examples."""

import json
import random
from pathlib import Path

import pytest

from march_search.cli import main
from march_search.commands.data import ExampleText
from march_search.data import shards
from march_search.data.store import Store

STUDY = """space = "cpu-demo"
[search]
strategy = "list"
architectures = ["{architecture}"]
[data]
corpus = "texts"
vocab_size = 512
sequence_length = 32
validation_fraction = 0.3
validation_sequences = 4
[training]
tokens = {tokens}
global_batch_tokens = 1024
"""


@pytest.fixture
def study(tmp_path, monkeypatch) -> Path:
    """A study of 60 texts of 100 made-up words, and the current folder to run it in."""
    rng, folder = random.Random(0), tmp_path / "texts"
    folder.mkdir()
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(200)]
    for number in range(60):
        (folder / f"{number}.txt").write_text("\x1b[31m" + " ".join(rng.choices(words, k=100)) + "\n")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return write_study(tmp_path)


def write_study(folder: Path, architecture: str = "L1-D32-H2x16-F64-rope-V512", tokens: int = 102_400) -> Path:
    (folder / "s.toml").write_text(STUDY.format(architecture=architecture, tokens=tokens))
    return folder / "s.toml"


def only_store() -> Store:
    (folder,) = Path("runs/data").glob("texts-*")
    return Store.open(folder)


def test_prepare_then_inspect(study, capsys):
    assert main(["data", "prepare", "s.toml", "--workers", "2"]) == 0
    out = capsys.readouterr().out
    tokens = only_store().num_tokens("train")
    assert f"{tokens:,}" in out
    assert f"of training text: repeated {102_400 / (tokens // 32 * 32):.1f} times." in " ".join(out.split())
    assert main(["data", "inspect", "s.toml", "--examples", "40"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert all(
        word in out for word in ("bytes per token", "tokenizer", "loss on targets", "loss on text", "bigram", "input")
    )
    assert out.count("<0>") == 80
    assert "␛" in out
    assert "\x1b" not in out
    assert main(["data", "inspect", "s.toml", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["index"] == only_store().index
    assert 0 < told["reference"]["target_bigram_nats"] < told["reference"]["target_unigram_nats"]


def test_a_decoder_only_study_shows_the_text(study, capsys):
    write_study(study.parent, "L1-D32-H2x16-F64-dec-rope-V512", 1024)
    assert main(["data", "prepare", "s.toml"]) == 0
    assert "every trial reads" in capsys.readouterr().out
    assert main(["data", "inspect", "s.toml"]) == 0
    out = capsys.readouterr().out
    assert " text " in out
    assert "<0>" not in out


def test_repair_says_what_was_broken(study, capsys):
    assert main(["data", "prepare", "s.toml"]) == 0
    file = only_store().folder / shards.name("train", 0)
    before = file.read_bytes()
    file.write_bytes(before[:-2] + b"xx")
    assert main(["data", "prepare", "s.toml"]) == 5
    assert "train-00000.bin has changed since it was written; repair it" in capsys.readouterr().err
    assert main(["data", "prepare", "s.toml", "--repair"]) == 0
    assert "repaired: train-00000.bin" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main(["data", "prepare", "s.toml", "--repair"]) == 0
    assert "nothing to repair" in capsys.readouterr().err


def test_what_is_not_prepared_is_said_and_nothing_is_made(study, capsys):
    assert main(["data", "inspect", "s.toml"]) == 5
    assert capsys.readouterr().err == (
        "march-search: texts: not prepared under runs; run: march-search data prepare STUDY\n"
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["prepare", "s.toml", "--workers", "0"], 2, "--workers must be a whole number of at least 1."),
        (["inspect", "s.toml", "--examples", "-1"], 2, "--examples must be a whole number of at least 0."),
        (["prepare", "no.toml"], 2, "no.toml: file not found"),
    ],
)
def test_what_a_person_gets_wrong_is_one_line(study, capsys, arguments, code, words):
    assert main(["data", *arguments]) == code
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_sentinel_has_one_colour_on_both_sides():
    text = ExampleText(lambda ids, **_: "".join(map(chr, ids)), 999, -1)
    shown, other = text.of([ord("a"), 999, ord("\n"), 998]), text.of([998, ord("\x07")])
    assert (shown.plain, other.plain) == ("a<0>↵ <1>", "<1>␇")
    assert shown.spans[0].style != shown.spans[1].style == other.spans[0].style


def test_a_study_keeps_its_tokenizer_and_says_how_often_the_text_is_read(study, capfd):
    write_study(study.parent, tokens=1024)
    study.write_text(study.read_text() + 'precision = "fp32"\n[devices]\nkind = "cpu"\nthreads = 1\n')
    assert main(["study", "run", "s.toml"]) == 0
    assert "1.02k tokens per trial" in capfd.readouterr().err
    kept = Path("runs/s/tokenizer.json").read_bytes()
    assert kept == (only_store().folder / "tokenizer.json").read_bytes()
    assert main(["rank", "s"]) == 0
    assert "one that knows pairs of tokens" in " ".join(capfd.readouterr().out.split())
