"""`march-search data`: prepare, repair and inspect the text of a study."""

import csv
import io
import json
import random
from pathlib import Path

import pytest
from helpers.command_line import command_in_process, json_of, one_line_error

from march_search.cli import main
from march_search.commands.data import ExampleText
from march_search.commands.studies import named_study
from march_search.data import shards
from march_search.data.store import Store
from march_search.planning import candidates, study_state
from march_search.storage.study_folder import StudyFolder

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
    """A study of 60 texts of 100 made-up words, in the current folder."""
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
    value = json.loads(capsys.readouterr().out)
    assert value["index"] == only_store().index
    assert 0 < value["reference"]["target_bigram_nats"] < value["reference"]["target_unigram_nats"]


def test_a_decoder_only_study_shows_the_text(study, capsys):
    write_study(study.parent, "L1-D32-H2x16-F64-dec-rope-V512", 1024)
    assert main(["data", "prepare", "s.toml"]) == 0
    assert "every trial reads" in capsys.readouterr().out
    assert main(["data", "inspect", "s.toml"]) == 0
    out = capsys.readouterr().out
    assert " text " in out
    assert "<0>" not in out


def test_repair_names_the_damaged_files(study, capsys):
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


ADAPTIVE = """space = "cpu-demo"
[search]
strategy = "tpe"
architectures = []
[data]
corpus = "texts"
vocab_size = 512
sequence_length = 32
validation_fraction = 0.3
validation_sequences = 4
[training]
tokens = 1024
global_batch_tokens = 1024
"""


SPACE = """[axes]
num_layers = [1, 2]
d_model = [32, 64]
num_heads = 2
d_kv = 16
d_ff = [64, 128, 192, 256]
vocab_size = 512
structure = "{structure}"
position = "rotary"
[budget]
parameters = "80K"
tolerance = "30%"
"""


@pytest.mark.parametrize("structure", ["encoder-decoder", "decoder-only"])
def test_a_study_whose_sampler_chooses_is_inspected_with_the_structure_of_its_space(study, capsys, structure):
    (study.parent / "space.toml").write_text(SPACE.format(structure=structure))
    study.write_text(ADAPTIVE.replace('"cpu-demo"', '"space.toml"'))
    command = command_in_process(capsys)
    assert command("data", "prepare", "s.toml").returncode == 0
    config, base = named_study("s.toml", Path("runs")).load()
    chosen, folder = candidates.choose(config, base), StudyFolder.of(Path("runs"), "s")
    assert chosen.architectures == ()
    folder.keep_settings(config, ())
    folder.keep_store(only_store().folder)
    study_state.keep_candidates(folder.path, chosen)
    for argument in ("s.toml", "s", "runs/s"):
        shown = command("data", "inspect", argument)
        assert shown.returncode == 0, shown.stderr
        assert ("<0>" in shown.stdout) == (structure == "encoder-decoder")
        assert json_of(command("data", "inspect", argument, "--format", "json"))["index"] == only_store().index


@pytest.mark.parametrize("action", ["prepare", "inspect"])
def test_counts_are_printed_in_every_format(study, capsys, action):
    command = command_in_process(capsys)
    assert command("data", "prepare", "s.toml").returncode == 0
    splits = only_store().index["splits"]
    rows = list(csv.DictReader(io.StringIO(command("data", action, "s.toml", "--format", "csv").stdout)))
    assert {row["split"]: int(row["tokens"]) for row in rows} == {name: s["tokens"] for name, s in splits.items()}
    markdown = command("data", action, "s.toml", "--format", "markdown").stdout
    assert "| split | documents | tokens | bytes of text | bytes per token |" in markdown
    assert all(
        f"| {name} | {split['documents']:,} | {split['tokens']:,} |" in markdown for name, split in splits.items()
    )


def test_inspecting_an_unprepared_text_makes_nothing(study, capsys):
    assert main(["data", "inspect", "s.toml"]) == 5
    assert capsys.readouterr().err == (
        "march-search: texts: not prepared under runs; run: march-search data prepare STUDY\n"
    )
    assert not Path("runs").exists()
    Path("shared/cpu-demo").mkdir(parents=True)
    Path("shared/cpu-demo/ladder.json").write_text("{}")
    assert main(["data", "inspect", "shared/cpu-demo"]) == 5
    assert f"not prepared under {Path('shared').resolve()}; run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["prepare", "s.toml", "--workers", "0"], 2, 'argument --workers: "0" must be a whole number of at least 1'),
        (
            ["inspect", "s.toml", "--examples", "-1"],
            2,
            'argument --examples: "-1" must be a whole number of at least 0',
        ),
        (["inspect", "s.toml", "--examples", "99999999999"], 2, "--examples 99,999,999,999: use at most 1,000."),
        (["inspect", "s.toml", "--examples", "9" * 5000], 2, "must be a whole number of at least 0, below 10^15"),
        (["prepare", "no.toml"], 2, "no.toml: file not found"),
        (
            ["inspect", "s.toml", "--examples", "3", "--format", "json"],
            2,
            "--examples has no effect without --format table",
        ),
    ],
)
def test_an_invalid_command_is_refused_in_one_line(study, capsys, arguments, code, words):
    ended = command_in_process(capsys)("data", *arguments)
    assert ended.returncode == code
    assert words in one_line_error(ended)


def test_a_sentinel_has_the_same_colour_on_both_sides():
    text = ExampleText(lambda ids, **_: "".join(map(chr, ids)), 999, -1)
    shown, other = text.of([ord("a"), 999, ord("\n"), 998]), text.of([998, ord("\x07")])
    assert (shown.plain, other.plain) == ("a<0>↵ <1>", "<1>␇")
    assert shown.spans[0].style != shown.spans[1].style == other.spans[0].style
