"""A real study from its text to its report: every command and every `--format` on two trained trials."""

import argparse
import csv
import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command_line import Command, command_in_process, json_of, run_command

from march_search.cli import parser
from march_search.commands.options import FORMATS

SHAPES = ("L1-D32-H2x16-F64-V400", "L1-D32-H2x16-F128-V400")
STUDY = f"""question = "Which feed-forward width is better?"
space = "cpu-demo"
[search]
strategy = "list"
architectures = ["{SHAPES[0]}", "{SHAPES[1]}"]
[confirm]
max_seeds = 1
[data]
corpus = "texts"
vocab_size = 400
sequence_length = 32
validation_fraction = 0.3
validation_sequences = 4
[training]
tokens = 2048
global_batch_tokens = 256
precision = "fp32"
[devices]
kind = "cpu"
threads = 1
parallel_trials = 2
"""


OVERRIDE = "training.evaluations=4"
"""Setting that the command line adds to the file."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study `pair.toml` and its finished runs."""
    folder, rng = tmp_path_factory.mktemp("trained"), random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(200)]
    (folder / "texts").mkdir()
    for number in range(60):
        (folder / "texts" / f"{number}.txt").write_text(" ".join(rng.choices(words, k=100)) + "\n")
    (folder / "pair.toml").write_text(STUDY)
    ended = run_command("study", "run", str(folder / "pair.toml"), OVERRIDE, "--root", str(folder / "runs"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    (folder / "progress.txt").write_text(ended.stderr)
    return folder


@pytest.fixture
def command(trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`march-search` in the folder of the trained study."""
    monkeypatch.chdir(trained)
    return command_in_process(capsys)


def test_progress_is_written_to_stderr_with_trial_numbers_from_0(trained: Path) -> None:
    text = (trained / "progress.txt").read_text()
    for number, name in enumerate(SHAPES):
        shape = name.removesuffix("-V400")  # the common ending of all names is omitted
        assert f"\ntrial {number}: {shape}: started\n" in text
        assert re.search(
            rf"\ntrial {number}: 1.02k of 2.05k tokens, loss [\d.]+( \([\d.]+ bits/byte\))?, [\d.]+k? tokens/s, "
            r"\d+s to its end\n",
            text,
        )
        assert re.search(rf"\n✓ trial {number}: {shape}: complete; loss [\d.]+.*, context gain ", text)
    assert "2.05k tokens per trial" in text
    assert (
        f"pair: 2 complete, 0 pruned, 0 failed, 0 left. Ranking: march-search rank pair --root {trained}/runs" in text
    )


def test_the_study_keeps_the_tokenizer_of_its_store(trained: Path) -> None:
    [store] = (trained / "runs" / "data").glob("texts-*")
    assert (trained / "runs/pair/tokenizer.json").read_bytes() == (store / "tokenizer.json").read_bytes()


def test_trial_numbers_agree_in_all_commands(command: Command) -> None:
    status = json_of(command("study", "status", "pair", "--format", "json"))
    assert [(row["trial"], row["name"]) for row in status["trials"]] == list(enumerate(SHAPES))
    ranked = json_of(command("rank", "pair", "--format", "json"))["ranked"]
    assert {row["name"]: row["trials"] for row in ranked} == {name: [number] for number, name in enumerate(SHAPES)}
    for number, name in enumerate(SHAPES):
        shown = json_of(command("study", "show", "pair", str(number), "--format", "json"))
        assert (shown["trial"], shown["name"], shown["state"]) == (number, name, "complete")
        [loss] = [row["loss"] for row in ranked if row["name"] == name]
        assert shown["result"]["loss"] == pytest.approx(loss)


def test_a_trained_study_is_replayed(command: Command) -> None:
    value = json_of(command("replay", "pair", "--strategy", "exhaustive", "--replays", "2", "--format", "json"))
    assert (value["runs"], value["unit"]) == (2, "nats per target token")
    assert value["strategies"][0]["found"] == 1


def test_a_trained_study_is_exported(command: Command, tmp_path: Path) -> None:
    assert command("export", "pair", "best", "-o", str(tmp_path / "model")).returncode == 0
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_running_the_study_again_trains_nothing(trained: Path, command: Command) -> None:
    times = {path: path.stat().st_mtime_ns for path in trained.glob("runs/pair/trials/*/result.json")}
    assert command("study", "run", "pair.toml", OVERRIDE).returncode == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(times) == 2


COMMANDS = {
    "solve": ("--space", "cpu-demo", "--top", "3"),
    "explain": (SHAPES[0],),
    "keys": ("training",),
    "study list": (),
    "study status": ("pair",),
    "study show": ("pair", "1"),
    "rank": ("pair",),
    "pareto": ("pair",),
    "report": ("pair", "-o", "-"),
    "replay": ("pair", "--replays", "1", "--strategy", "rungs"),
    "data prepare": ("pair.toml",),
    "data inspect": ("pair",),
    "doctor": ("--only", "python"),
    "export": ("pair",),
}
"""Arguments of every command with `--format`."""


def leaves(top: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the name and the parser of every command that has no commands of its own."""
    groups = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield name, top
    for group in groups:
        for word, below in group.choices.items():
            yield from leaves(below, f"{name} {word}".strip())


def format_choices() -> dict[str, tuple[str, ...]]:
    """Return the formats of every command that has `--format`."""
    return {
        name: tuple(action.choices)
        for name, leaf in leaves(parser())
        for action in leaf._actions
        if "--format" in action.option_strings
    }


def test_every_command_with_a_study_has_root_and_every_format_is_the_same_set() -> None:
    assert set(format_choices()) == set(COMMANDS)
    other = {"report": ("html", "json", "csv", "markdown"), "export": ("hf", "torch", "curves")}
    assert format_choices() == {name: other.get(name, FORMATS) for name in COMMANDS}
    for name, leaf in leaves(parser()):
        names = {action.dest for action in leaf._actions}
        assert "root" in names or not names & {"study", "curves"}, name
        assert "--json" not in {option for action in leaf._actions for option in action.option_strings}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "export"])
def test_markdown_is_a_table_with_equal_columns(name: str, command: Command) -> None:
    ended = command(*name.split(), *COMMANDS[name], "--format", "markdown")
    assert ended.returncode == 0, ended.stderr
    tables = [block for block in ended.stdout.split("\n\n") if block.lstrip().startswith("|")]
    assert tables
    for table in tables:
        rows = [line.replace("\\|", "").count("|") for line in table.strip().splitlines()]
        assert len(rows) >= 3
        assert len(set(rows)) == 1
        assert set(table.strip().splitlines()[1]) <= set("|-: ")
    assert "[/" not in ended.stdout
    assert "\x1b" not in ended.stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "export"])
def test_csv_and_json_have_the_same_rows(name: str, command: Command) -> None:
    arguments = (*name.split(), *COMMANDS[name])
    ended = command(*arguments, "--format", "csv")
    assert ended.returncode == 0, ended.stderr
    rows = list(csv.reader(io.StringIO(ended.stdout)))
    assert len(rows) >= 2
    assert {len(row) for row in rows} == {len(rows[0])}
    assert len(set(rows[0])) == len(rows[0])
    for cell in (cell for row in rows for cell in row if cell[:1] in "{["):
        json.loads(cell or "null")  # not a dict or a list as Python writes it
    value = json_of(command(*arguments, "--format", "json"))
    assert value["schema_version"] >= 1
    json.dumps(value, allow_nan=False)
    lists = [len(part) for part in value.values() if isinstance(part, list)]
    assert len(rows) - 1 in lists or name in ("study show", "data inspect")


def test_an_override_is_recorded_like_a_key_of_the_file(trained: Path, command: Command) -> None:
    record = json.loads((trained / "runs" / "pair" / "study.json").read_text())
    assert (record["settings"]["training"]["evaluations"], record["overrides"]) == (4, [OVERRIDE])
    root = ("--root", str(trained / "runs"))
    refused = command("study", "run", str(trained / "pair.toml"), *root)
    assert refused.returncode == 2
    assert "training.evaluations was 4 and is now 10. Restore them in its file or as KEY=VALUE" in refused.stderr
    assert command("study", "run", str(trained / "pair.toml"), OVERRIDE, *root).returncode == 0
    assert json_of(command("study", "status", str(trained / "pair.toml"), *root, "--format", "json"))["trials"]
    page = command("report", str(trained / "pair.toml"), *root, "-o", "-").stdout
    assert f"pair.toml {OVERRIDE}" in page
    folder = command("study", "run", str(trained / "runs" / "pair"), OVERRIDE)
    assert f"{OVERRIDE} has no effect on the folder of pair: name its TOML file instead" in folder.stderr
