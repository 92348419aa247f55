"""Forecasts that a ladder keeps: what is written, when it is refused, and how `rank` scores it."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import Command, json_of, one_line_error
from helpers.ladders import LOSSES, PARAMETERS, train_size, write_ladder
from helpers.studies import stop_trial

import march_search
from march_search.files.json_tables import read_table, sealed, write_json


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a ladder whose largest size, 4M, has not been trained."""
    write_ladder(tmp_path, LOSSES, PARAMETERS, untrained=("4M",))
    return tmp_path


def ranked(command: Command, root: Path) -> dict[str, Any]:
    """Return what `rank` has in JSON."""
    return json_of(command("rank", "made", "--format", "json", "--root", str(root)))


def test_a_forecast_is_sealed_and_names_what_it_was_made_from(root: Path, command: Command) -> None:
    ended = command("forecast", "made", "--at", "4M", "--root", str(root))
    assert (ended.returncode, ended.stderr) == (0, "")
    path = root / "made" / "forecasts" / "4M-1.json"
    table = read_table(path)  # checks the seal
    assert table["sha256"] in ended.stdout
    assert str(path) in "".join(ended.stdout.split())
    assert (table["ladder"], table["size"], table["parameters"]) == ("made", "4M", 4_000_000)
    assert table["version"] == march_search.__version__
    assert table["date"].endswith("+00:00")
    arms = [row["arm"] for row in table["arms"]]
    assert arms == ["wide", "plain", "gated"]
    assert [row["loss"] for row in table["arms"]] == sorted(row["loss"] for row in table["arms"])
    for row in table["arms"]:
        assert row["interval"][0] < row["loss"] < row["interval"][1]
        assert row["interval_trained"] == pytest.approx(row["interval"], abs=0.02)  # the exponent is most of it
        assert row["seeds"] == 2
    assert [(pair["better"], pair["worse"]) for pair in table["pairs"]] == list(combinations(arms, 2))
    assert all(0.9 < pair["probability"] <= 1 for pair in table["pairs"])
    inputs = table["made_from"]
    assert inputs == sealed(inputs)
    assert inputs["learning_rate"] == 1e-3
    for size in inputs["sizes"]:
        by_arm = [[row["loss"] for row in size["trials"] if row["arm"] == arm] for arm in ("plain", "gated", "wide")]
        assert by_arm == LOSSES[size["size"]]
        assert [row["seed"] for row in size["trials"]] == [0, 1] * 3
    assert [size["size"] for size in inputs["sizes"]] == ["1M", "2M"]


def test_the_forecast_is_that_of_rank(root: Path, command: Command) -> None:
    command("forecast", "made", "--at", " 16 M", "--root", str(root))
    table = read_table(root / "made" / "forecasts" / "16M-1.json")  # a size that the ladder does not have yet
    shown = json_of(command("rank", "made", "--format", "json", "--at", "16M", "--root", str(root)))["forecast"]
    kept = {row["arm"]: (row["loss"], row["interval"], row["probability_best"]) for row in table["arms"]}
    assert kept == {row["arm"]: (row["loss"], row["interval"], row["probability_best"]) for row in shown["arms"]}


def test_a_forecast_is_never_overwritten(root: Path, command: Command) -> None:
    copy = root / "copy.json"
    assert command("forecast", "made", "--at", "4M", "-o", str(copy), "--root", str(root)).returncode == 0
    first = root / "made" / "forecasts" / "4M-1.json"
    before = first.read_bytes()
    assert copy.read_bytes() == before
    refused = command("forecast", "made", "--at", "4M", "-o", str(copy), "--root", str(root))
    assert "copy.json: exists, and a forecast is never overwritten" in one_line_error(refused)
    (root / "made" / "forecasts" / "4M-9.json").write_text("{}")
    printed = json_of(command("forecast", "made", "--at", "4M", "-o", "-", "--root", str(root)))
    assert read_table(root / "made" / "forecasts" / "4M-10.json") == printed
    assert first.read_bytes() == before


def started(root: Path) -> None:
    """Start 4M: its first trial has been evaluated twice, the others have nothing."""
    train_size(root, "4M", LOSSES["4M"])
    stop_trial(root / "made-4M", 0, evaluations=2, state="unfinished")
    for path in (root / "made-4M" / "trials").glob("*"):
        if not path.name.startswith("0000"):
            shutil.rmtree(path)


@pytest.mark.parametrize(
    ("prepare", "at", "message"),
    [
        (started, "4M", "--at 4M: trials of made-4M already have losses, so this would not be a forecast"),
        (None, "2,000,000", "--at 2M: trials of made-2M already have losses"),
        (None, "1.5M", "--at 1,500,000: is not above the largest finished size, 2,000,000"),
        (None, "4,0M", "invalid parameter budget"),
        (None, "four", "invalid parameter budget"),
        (lambda root: shutil.rmtree(root / "made-2M"), "4M", "made: a forecast needs two finished sizes"),
        (lambda root: shutil.rmtree(root / "made-1M"), "4M", "made has no finished size yet"),
    ],
)
def test_what_is_not_a_forecast_is_refused_in_one_line(
    root: Path, command: Command, prepare: Callable[[Path], None] | None, at: str, message: str
) -> None:
    if prepare:
        prepare(root)
    ended = command("forecast", "made", "--at", at, "--root", str(root))
    assert message in one_line_error(ended)
    assert ended.returncode != 0
    assert not (root / "made" / "forecasts").exists()


def test_losses_that_do_not_fall_and_a_plain_study_have_no_forecast(tmp_path: Path, command: Command) -> None:
    write_ladder(tmp_path, {"1M": LOSSES["2M"], "2M": LOSSES["1M"]}, PARAMETERS)
    ended = command("forecast", "made", "--at", "4M", "--root", str(tmp_path))
    assert "made: no forecast: losses do not fall from 1M to 2M" in one_line_error(ended)
    ended = command("forecast", "made-1M", "--at", "4M", "--root", str(tmp_path))
    assert "made-1M is not a ladder that was started in" in one_line_error(ended)


def test_trials_that_have_only_started_allow_a_forecast(root: Path, command: Command) -> None:
    started(root)
    [trial] = (root / "made-4M" / "trials").glob("*")
    (trial / "metrics.jsonl").unlink()
    assert command("forecast", "made", "--at", "4M", "--root", str(root)).returncode == 0


def test_rank_scores_a_forecast_when_its_size_is_trained(root: Path, command: Command) -> None:
    command("forecast", "made", "--at", "4M", "--root", str(root))
    command("forecast", "made", "--at", "16M", "--root", str(root))
    waiting = ranked(command, root)["kept_forecasts"]
    assert [(one["file"], one["is_trained"]) for one in waiting] == [("4M-1.json", False), ("16M-1.json", False)]
    assert "4M is not finished." in command("rank", "made", "--root", str(root)).stdout
    low, high = waiting[0]["arms"][2]["low"], waiting[0]["arms"][2]["high"]
    missed = high + 0.3  # gated is far above its interval
    train_size(root, "4M", [[2.5, 2.501], [missed, missed], [2.21, 2.2]])
    scored, later = ranked(command, root)["kept_forecasts"]
    assert [(row["arm"], row["held"]) for row in scored["arms"]] == [("wide", True), ("plain", True), ("gated", False)]
    assert [row["seen"] for row in scored["arms"]] == pytest.approx([2.205, 2.5005, missed])
    assert (scored["arms"][2]["low"], scored["arms"][2]["high"]) == (low, high)
    assert (scored["intervals_held"], scored["pairs_separated"], scored["pairs_held"]) == (2, 3, 3)
    assert (later["is_trained"], later["pairs_separated"], later["arms"][0]["held"]) == (False, None, None)
    text = " ".join(command("rank", "made", "--root", str(root)).stdout.split())
    assert "2 of 3 intervals held; 3 of 3 pairs that 4M separates came in the forecast order." in text
    assert "miss" in text
    markdown = command("rank", "made", "--format", "markdown", "--root", str(root)).stdout
    assert "forecasts written down" in markdown
    assert any(line.startswith("| 4M-1 | gated") and line.endswith("| miss |") for line in markdown.splitlines())
    rows = list(csv.DictReader(io.StringIO(command("rank", "made", "--format", "csv", "--root", str(root)).stdout)))
    cells = [(row["size"], row["arm"], row["forecast_file"], row["forecast_held"]) for row in rows]
    assert cells[:3] == [("1M", arm, "", "") for arm in ("plain", "gated", "wide")]
    assert [(name, file, held.lower()) for size, name, file, held in cells if size == "4M"] == [
        ("plain", "4M-1", "true"), ("gated", "4M-1", "false"), ("wide", "4M-1", "true"),
    ]  # fmt: skip


def test_a_pair_within_noise_is_not_counted_and_a_turned_one_is_missed(root: Path, command: Command) -> None:
    command("forecast", "made", "--at", "4M", "--root", str(root))
    train_size(root, "4M", [[2.2, 2.3], [2.21, 2.29], [2.7, 2.7]])
    [one] = ranked(command, root)["kept_forecasts"]
    assert (one["pairs_separated"], one["pairs_held"]) == (2, 0)


def test_an_arm_that_did_not_complete_and_other_seeds_are_shown(root: Path, command: Command) -> None:
    command("forecast", "made", "--at", "4M", "--root", str(root))
    train_size(root, "4M", [[2.5], [2.7, 2.7, 2.7], [2.21, 2.2]])
    warning = "4M-1 is for other numbers of seeds: plain (1, not 2), gated (3, not 2)."
    assert warning in command("rank", "made", "--root", str(root)).stdout
    shutil.rmtree(root / "made-4M")
    path = root / "made" / "forecasts" / "4M-1.json"
    table = json.loads(path.read_text())
    table["arms"].append(table["arms"][0] | {"arm": "renamed"})
    write_json(path, sealed(table))
    train_size(root, "4M", LOSSES["4M"])
    [one] = ranked(command, root)["kept_forecasts"]
    assert [(row["arm"], row["held"]) for row in one["arms"]][-1] == ("renamed", None)
    assert (one["intervals_held"], one["pairs_separated"]) == (3, 3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace("2.", "2.1", 1), "was changed after it was written"),
        (lambda text: text.replace('"sha256": "', '"sha": "'), 'has no "sha256"'),
        (lambda text: text[: len(text) // 2], "is not valid JSON"),
        (
            lambda text: json.dumps(sealed(json.loads(text) | {"ladder": "other"})),
            "is a forecast of other, not of made",
        ),
        (lambda text: json.dumps(sealed(json.loads(text) | {"arms": [{"arm": "plain"}]})), "is damaged"),
    ],
)
def test_an_altered_forecast_is_named_and_not_used(
    root: Path, command: Command, damage: Callable[[str], str], message: str
) -> None:
    for _ in range(2):
        command("forecast", "made", "--at", "4M", "--root", str(root))
    train_size(root, "4M", LOSSES["4M"])
    path = root / "made" / "forecasts" / "4M-2.json"
    changed = damage(path.read_text())
    assert changed != path.read_text()
    path.write_text(changed)
    found = ranked(command, root)
    assert [one["file"] for one in found["kept_forecasts"]] == ["4M-1.json"]
    [fault] = found["forecast_faults"]
    assert message in fault
    assert str(path) in fault
    assert message in " ".join(command("rank", "made", "--root", str(root)).stdout.split())
    assert message in command("rank", "made", "--format", "markdown", "--root", str(root)).stdout
    ended = command("rank", "made", "--format", "csv", "--root", str(root))
    assert message in ended.stderr
    assert {row["forecast_file"] for row in csv.DictReader(io.StringIO(ended.stdout))} == {"", "4M-1"}
