"""Ladders: settings, derived studies, plans, training at a tiny scale, and what `rank` and `status` print."""

import csv
import html
import io
import itertools
import json
import re
import shutil
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command_line import Command, json_of, one_line_error, run_command
from helpers.ladders import LADDER, LOSSES, PARAMETERS, SPACE, train_size, write_ladder
from helpers.studies import stop_trial

from march_search.architecture.architecture import Architecture
from march_search.commands.studies import NamedStudy, named_study
from march_search.commands.study_ladder import run_ladder
from march_search.config.shipped import shipped_folder
from march_search.errors import ConfigError
from march_search.files.json_tables import sealed, write_json
from march_search.planning.ladder_sizes import keep_ladder, ladder_sizes


@pytest.fixture
def file(tmp_path: Path, corpus: Path) -> Path:
    """A ladder's file beside its space, with a corpus of made-up words."""
    (tmp_path / "space.toml").write_text(SPACE)
    path = tmp_path / "steps.toml"
    path.write_text(LADDER.replace("CORPUS", str(corpus)))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["30K", "60K"]', '["60K", "30K"]', "[ladder]: budgets must be at least two, ascending"),
        ('["30K", "60K"]', '["30K"]', "[ladder]: budgets must be at least two, ascending"),
        ('["30K", "60K"]', '["30K", "six"]', 'invalid parameter budget "six"'),
        ("tokens_per_parameter = 0.05", "tokens_per_parameter = -1", "tokens_per_parameter must be above 0"),
        ("tokens_per_parameter = 0.05", "tokens_by_size = [1280]", "tokens_by_size has 1 entries for 2 budgets"),
        ("tokens_per_parameter = 0.05", "tokens_by_size = [1280, 1300]", "tokens_by_size has 1,300, which is not"),
        ('"d_ff / d_model" = 3', '"d_ff / d_model" = -3', 'the direction "d_ff / d_model" must be a positive number'),
        ('"d_ff / d_model" = 3', '"d_ff / d_modle" = 3', 'plain at 30K: the direction "d_ff / d_modle" has the'),
        ('name = "gated"', 'name = "plain"', "arms must be at least three, with distinct short names"),
        ('name = "gated"', 'nmae = "gated"', 'unknown key "ladder.arms[1].nmae". Did you mean "name"?'),
        ('kind = "none"', 'kind = "median"', '[ladder]: every arm must train to the end: set kind = "none"'),
        ("seeds = [0]", 'seeds = [0]\nstrategy = "tpe"', "[ladder]: arms replace the candidates"),
        ("question =", 'budget = "1M"\nquestion =', "[ladder]: budgets replace budget"),
        ('"gated-gelu" }\n[[', '"gated-silu" }\n[[', "gated at 30K: the space space has no feed_forward_proj"),
        ("directions = { \"d_model / num_layers\" = 64 }", "", "plain and wide are both L2-D24-H2x16-F56"),
    ],
)  # fmt: skip
def test_an_invalid_ladder_is_one_line(file: Path, command: Command, old: str, new: str, message: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    ended = command("study", "run", str(file), "--dry-run", "--root", str(file.parent / "runs"))
    assert message in one_line_error(ended).replace("\\", "")
    assert ended.returncode in (2, 3)


def test_the_study_of_a_size_is_the_file_with_other_settings(file: Path, tmp_path: Path) -> None:
    study = named_study(str(file), tmp_path)
    config, base = study.load()
    small, large = ladder_sizes(config, base, study.name)
    assert (small.study, small.parameters, small.tokens, large.tokens) == ("steps-30K", 30_000, 1536, 2944)
    assert (small.warmup_tokens, large.warmup_tokens) == (128, 245)
    assert small.overrides()[:3] == ("ladder={}", "budget=30000", 'search.strategy="list"')
    assert "training.global_batch_tokens=128" in large.overrides()
    assert large.overrides(4e-3)[-2:] == ("search.learning_rates=[]", "training.learning_rate=0.004")


def test_a_ladder_is_planned_size_by_size(file: Path, command: Command) -> None:
    root = file.parent / "runs"
    ended = command("study", "run", str(file), "--dry-run", "--root", str(root), "--device", "A5000", "--rate", "0.5")
    assert ended.returncode == 0, ended.stderr
    assert "30K: 6 trials, 9.22k tokens" in ended.stdout
    assert "60K: 3 trials, 8.83k tokens" in ended.stdout
    assert "all sizes: 9 trials, 18k tokens" in ended.stdout
    assert re.search(r"device-hours on A5000, [\d.]+ at 0.5 per device-hour; prices: ", ended.stdout)
    assert "not kept at 30K: wide: d_model / num_layers is 40, not 64" in ended.stdout
    assert not root.exists()


def test_options_that_have_no_effect_are_refused(file: Path, command: Command, tmp_path: Path) -> None:
    root = ("--root", str(tmp_path / "runs"))
    assert "--extend has no effect on a ladder" in one_line_error(command("study", "run", str(file), "--extend", *root))
    ended = command("study", "run", str(file), "training.tokens=2M", "--dry-run", *root)
    assert "training.tokens=2M has no effect on a ladder" in one_line_error(ended)
    ended = command("study", "run", str(file), "--up-to", "31K", *root)
    assert '--up-to 31K: the ladder has no such size. Did you mean "30K"?' in one_line_error(ended)
    assert "which is not a ladder" in one_line_error(command("study", "run", "cpu-demo", "--up-to", "1M", *root))


def test_a_batch_that_the_file_leaves_out_is_the_same_at_all_sizes(file: Path, command: Command) -> None:
    text = file.read_text().replace("global_batch_tokens = 128\n", "").replace("warmup_tokens = 128\n", "")
    file.write_text(text.replace("tokens_per_parameter = 0.05", "tokens_per_parameter = 2"))
    study = named_study(str(file), file.parent)
    config, base = study.load()
    batches = {size.batch_tokens for size in ladder_sizes(config, base, study.name)}
    assert batches == {config.training.global_batch_tokens}
    ended = command("study", "run", str(file), "--dry-run", "--device", "A5000", "--root", str(file.parent / "runs"))
    assert ended.returncode == 0, ended.stderr


def test_arms_of_a_started_size_cannot_change(file: Path, tmp_path: Path) -> None:
    study = named_study(str(file), tmp_path)
    config, base = study.load()
    sizes = ladder_sizes(config, base, study.name)
    keep_ladder(tmp_path / "steps", config, sizes)
    text = file.read_text()
    file.write_text(text.replace('name = "gated"', 'name = "gated"\ndirections = { "d_ff / d_model" = 1 }'))
    config, base = study.load()
    sizes = ladder_sizes(config, base, study.name)
    keep_ladder(tmp_path / "steps", config, sizes)  # no size was started
    (tmp_path / "steps-30K").mkdir()
    (tmp_path / "steps-30K" / "study.json").write_text("{}")
    file.write_text(text)
    config, base = study.load()
    with pytest.raises(ConfigError, match="steps-30K was started with other arms: gated was L"):
        keep_ladder(tmp_path / "steps", config, ladder_sizes(config, base, study.name))


def test_commands_that_are_printed_for_a_ladder_have_its_file_and_its_overrides(
    file: Path, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = replace(named_study(str(file), tmp_path), overrides=("ladder.tokens_per_parameter=0.1",))
    options = Namespace(root=tmp_path, up_to=None, extend=False, dry_run=False, create=True)
    assert run_ladder(study, study.loaded(), options, lambda *_: 0, lambda *_: ({}, None)) == 0
    assert f"study run {file} ladder.tokens_per_parameter=0.1 --root {tmp_path}." in capsys.readouterr().err
    error = one_line_error(command("study", "run", "steps", "--root", str(tmp_path)))
    assert "steps is a ladder: name its TOML file, or one of its studies, steps-30K and steps-60K." in error
    write_ladder(tmp_path, LOSSES, PARAMETERS)
    record = json.loads((tmp_path / "made" / "ladder.json").read_text())
    changed = {key: record[key] for key in record if key != "sha256"} | {"overrides": ["search.seeds=[0, 1]"]}
    write_json(tmp_path / "made" / "ladder.json", sealed(changed))
    assert command("report", "made", "--root", str(tmp_path)).returncode == 0
    page = html.unescape((tmp_path / "made" / "report.html").read_text())
    assert f"march-search study run made.toml 'search.seeds=[0, 1]' --root {tmp_path}" in page


def test_a_size_whose_status_cannot_be_read_hides_no_other(tmp_path: Path, command: Command) -> None:
    write_ladder(tmp_path, LOSSES, PARAMETERS, untrained=("2M",))  # the others have no storage
    ended = command("study", "status", "made", "--root", str(tmp_path))
    assert ended.returncode == 4
    assert ended.stdout == "made-2M: not started\n"
    assert [line.split(": ")[2] for line in ended.stderr.splitlines()] == ["the study has no trials yet"] * 2
    by_folder = command("study", "status", str(tmp_path / "made"))
    assert (by_folder.stdout, by_folder.stderr) == (ended.stdout, ended.stderr)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_an_unknown_size_is_refused_before_anything_is_written(
    more: tuple[str, ...], file: Path, command: Command, tmp_path: Path
) -> None:
    ended = command("study", "run", str(file), "--up-to", "4Z", *more, "--root", str(tmp_path / "runs"))
    assert ended.returncode == 2
    assert "--up-to 4Z: the ladder has no such size. Known: 30K, 60K." in one_line_error(ended)
    assert not (tmp_path / "runs").exists()


def test_a_ladder_named_by_its_folder_trains_beside_it(file: Path, tmp_path: Path) -> None:
    study, folders = named_study(str(file), tmp_path / "shared"), []
    options = Namespace(root=tmp_path / "runs", up_to=None, extend=False, dry_run=False, create=False)

    def run_one(of_size: NamedStudy, _: Namespace) -> int:
        folders.append(of_size.folder.path)
        return 0

    loaded = study.loaded()
    loaded = loaded._replace(
        config=replace(loaded.config, search=replace(loaded.config.search, learning_rates=(1e-3,)))
    )
    assert run_ladder(study, loaded, options, run_one, lambda *_: ({}, None)) == 0
    assert folders == [tmp_path / "shared" / "steps-30K", tmp_path / "shared" / "steps-60K"]


def test_a_started_ladder_gets_no_smaller_size(file: Path, command: Command, tmp_path: Path) -> None:
    study = named_study(str(file), tmp_path)
    config, base = study.load()
    keep_ladder(tmp_path / "steps", config, ladder_sizes(config, base, study.name))
    (tmp_path / "steps-30K").mkdir()
    (tmp_path / "steps-30K" / "study.json").write_text("{}")
    file.write_text(file.read_text().replace('["30K", "60K"]', '["20K", "30K", "60K"]'))
    plan = ("study", "run", str(file), "--dry-run", "--device", "A5000", "--root", str(tmp_path))
    assert "steps-30K was started as the smallest size" in one_line_error(command(*plan))
    config, base = study.load()
    with pytest.raises(ConfigError, match="20K is now the smallest: add larger sizes only"):
        keep_ladder(tmp_path / "steps", config, ladder_sizes(config, base, study.name))


def test_a_retry_at_the_smallest_size_does_not_change_the_carried_rate(tmp_path: Path, command: Command) -> None:
    write_ladder(tmp_path, LOSSES, PARAMETERS)
    for number in (0, 1):  # the first arm at the better rate
        stop_trial(tmp_path / "made-1M", number, 3, "failed")
    for size in ("made-2M", "made-4M"):  # trained at the carried rate only
        for path in (tmp_path / size / "trials").glob("*"):
            if json.loads((path / "trial.json").read_text())["training"]["learning_rate"] == 1e-3:
                shutil.rmtree(path)
    options = ("rank", "made", "--format", "json", "--root", str(tmp_path))
    before = json_of(command(*options))
    assert before["learning_rate"] == 2e-3
    assert {row["size"] for row in before["arms"]} == {"1M", "2M", "4M"}
    shutil.rmtree(tmp_path / "made-1M")
    train_size(tmp_path, "1M", LOSSES["1M"])
    assert json_of(command(*options)) == before


def test_a_ladder_trains_its_sizes_and_carries_the_best_rate(file: Path, command: Command, tmp_path: Path) -> None:
    root = ("--root", str(tmp_path / "runs"))
    first = run_command("study", "run", str(file), "--up-to", "30K", *root)
    assert first.returncode == 0, first.stderr
    assert "steps: 30K ended. Ladder: march-search rank steps" in first.stderr
    alone = json_of(command("rank", "steps", "--format", "json", *root))
    assert (alone["unfinished"], alone["agreement"], alone["forecast"]) == (["60K"], [], None)
    status = command("study", "status", "steps", *root)
    assert "steps-30K: 6 of 6 trials ended" in status.stdout
    assert "steps-60K: not started" in status.stdout
    ended = run_command("study", "run", str(file), *root)
    assert ended.returncode == 0, ended.stderr
    assert "steps: 30K, 60K ended" in ended.stderr
    found = json_of(command("rank", "steps", "--format", "json", *root))
    trials = sorted((tmp_path / "runs" / "steps-60K" / "trials").glob("*/trial.json"))
    assert {json.loads(path.read_text())["training"]["learning_rate"] for path in trials} == {found["learning_rate"]}
    assert [row["arm"] for row in found["arms"]] == ["plain", "gated", "wide"] * 2
    assert all(Architecture.parse(row["name"]).num_params_non_embedding < 70_000 for row in found["arms"])
    assert found["unfinished"] == []
    assert found["agreement"][0]["pairs"] == 3
    kept = json_of(command("forecast", "steps", "--at", "120K", "-o", "-", *root))
    assert json.loads((tmp_path / "runs" / "steps" / "forecasts" / "120K-1.json").read_text()) == kept
    assert [len(size["trials"]) for size in kept["made_from"]["sizes"]] == [3, 3]
    text = file.read_text()
    file.write_text(text.replace('["30K", "60K"]', '["30K", "60K", "120K"]'))
    again = run_command("study", "run", str(file), *root)
    assert again.returncode == 0, again.stderr
    [scored] = json_of(command("rank", "steps", "--format", "json", *root))["kept_forecasts"]
    assert scored["is_trained"]
    assert all(row["seen"] is not None for row in scored["arms"])
    assert all(row["held"] == (row["low"] <= row["seen"] <= row["high"]) for row in scored["arms"])
    file.write_text(text)
    again = run_command("study", "run", str(file), *root)
    assert again.returncode == 0, again.stderr
    assert command("report", "steps", *root).returncode == 0
    assert "Losses by size" in (tmp_path / "runs" / "steps" / "report.html").read_text()


def test_rank_prints_a_ladder_in_80_columns(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ladder(tmp_path, LOSSES, PARAMETERS)
    monkeypatch.setenv("COLUMNS", "80")
    ended = command("rank", "made", "--root", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert max(map(len, ended.stdout.splitlines())) <= 80
    text = " ".join(ended.stdout.split())
    assert "Answer: 1M orders 1 of 3 pairs of arms as 4M does (33%, 95% interval" in text
    assert "plain beats wide at 1M only" in text
    assert "The effect of gated against plain grows with size." in text
    assert "8M?: forecast by the law" in text
    assert "a forecast of 4M from the smaller sizes holds for" in text


def test_every_format_has_the_ladder(tmp_path: Path, command: Command) -> None:
    write_ladder(tmp_path, LOSSES, PARAMETERS)
    found = json_of(command("rank", "made", "--format", "json", "--at", "16M", "--root", str(tmp_path)))
    assert found["learning_rate"] == 1e-3
    assert found["forecast"]["parameters"] == 16_000_000
    assert [(one["small"], one["large"]) for one in found["agreement"]] == [("1M", "2M"), ("1M", "4M"), ("2M", "4M")]
    assert {(one["arm"], one["against"]) for one in found["turns"]} == {("plain", "wide"), ("gated", "wide")}
    assert [one["change"] for one in found["changes"]] == ["grows", "turns"]
    rows = list(csv.DictReader(io.StringIO(command("rank", "made", "--format", "csv", "--root", str(tmp_path)).stdout)))
    assert [row["arm"] for row in rows] == ["plain", "gated", "wide"] * 3
    assert rows[2]["not_kept"] == "d_ff / d_model is 3, not 4"
    markdown = command("rank", "made", "--format", "markdown", "--root", str(tmp_path)).stdout
    assert "| 1M → 4M | 33% |" in markdown
    noisy = json_of(command("rank", "made", "--format", "json", "--seed-noise", "0.5", "--root", str(tmp_path)))
    assert noisy["turns"] == []


def test_the_page_of_a_ladder_has_its_answer_its_figures_and_its_tables(tmp_path: Path, command: Command) -> None:
    write_ladder(tmp_path, LOSSES, PARAMETERS)
    root = ("--root", str(tmp_path))
    ended = command("report", "made", "--figures", str(tmp_path / "figures"), *root)
    assert ended.returncode == 0, ended.stderr
    page = (tmp_path / "made" / "report.html").read_text()
    assert page.count('id="figure-losses"') == page.count('id="figure-effects"') == 1
    assert "1M orders 1 of 3 pairs of arms as 4M does" in page
    assert page.index('class="answer"') < page.index('id="figure-losses"') < page.index("Losses by size")
    assert "Does a size decide as a larger one does?" in page
    assert "Effects against plain, from 1M to 4M" in page
    assert "d_ff / d_model is 3, not 4" in page
    assert "wide, forecast: " in page
    assert "march-search study run made" in page
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} == {"losses", "effects"}
    as_json = json_of(command("report", "made", "--format", "json", "-o", "-", *root))
    assert as_json == json_of(command("rank", "made", "--format", "json", *root))
    assert "--horizon has no effect on made, which is a ladder" in one_line_error(
        command("report", "made", "--horizon", "10M", *root)
    )


def test_the_page_of_one_size_has_no_law_and_no_effects(tmp_path: Path, command: Command) -> None:
    write_ladder(tmp_path, LOSSES, PARAMETERS, untrained=("2M", "4M"))
    assert command("report", "made", "--root", str(tmp_path)).returncode == 0
    page = (tmp_path / "made" / "report.html").read_text()
    assert "Only 1M is finished" in page
    assert "not finished: 2M, 4M" in page
    assert 'id="figure-losses"' in page
    assert "Hollow: the forecast" not in page
    assert 'id="figure-effects"' not in page


@pytest.mark.parametrize("name", ["0000-L2-D160-H4x32-F256-rope-V2048-s0/notes.txt", "stray"])
def test_a_size_that_is_just_starting_has_no_trials(name: str, tmp_path: Path, command: Command) -> None:
    write_ladder(tmp_path, LOSSES, PARAMETERS)
    shutil.rmtree(tmp_path / "made-4M" / "trials")
    path = tmp_path / "made-4M" / "trials" / name
    path.parent.mkdir(parents=True)
    path.write_text("")
    found = json_of(command("rank", "made", "--format", "json", "--root", str(tmp_path)))
    assert found["unfinished"] == ["4M"]
    assert command("replay", "made", "--replays", "1", "--root", str(tmp_path)).returncode == 0


def test_a_ladder_whose_small_sizes_have_no_law_has_a_forecast_without_a_check(
    tmp_path: Path, command: Command
) -> None:
    losses = {size: [[mean + k / 100] * 2 for k in range(3)] for size, mean in (("1M", 4), ("2M", 4.05), ("4M", 3.8))}
    write_ladder(tmp_path, losses, PARAMETERS)
    found = json_of(command("rank", "made", "--format", "json", "--root", str(tmp_path)))
    assert found["forecast"] is not None
    assert found["check"] is None
    assert command("report", "made", "--root", str(tmp_path)).returncode == 0


def test_an_arm_that_failed_and_a_size_that_runs_are_named(tmp_path: Path, command: Command) -> None:
    losses = {size: [*arms] for size, arms in LOSSES.items()}
    write_ladder(tmp_path, losses, PARAMETERS)
    for path in (tmp_path / "made-4M" / "trials").glob("0000-*"):
        (path / "result.json").unlink()
        (path / "outcome.json").unlink()
    found = json_of(command("rank", "made", "--format", "json", "--root", str(tmp_path)))
    assert found["unfinished"] == ["4M"]
    for path in (tmp_path / "made-4M" / "trials").glob("000[01]-*"):
        (path / "result.json").unlink(missing_ok=True)
        write_json(path / "outcome.json", {"state": "diverged", "text": "made up"})
    ended = command("rank", "made", "--root", str(tmp_path))
    assert "made has 2 arms that completed at every finished size; it needs three" in one_line_error(ended)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--horizon", "10M"), "--horizon has no effect on made, which is a ladder"),
        (("--seed-noise", "none"), "a ladder compares sizes by their seed noise"),
        (("--at", "3M"), "--at 3,000,000: is not above the largest finished size, 4,000,000"),
    ],
)
def test_rank_refuses_what_a_ladder_lacks(
    tmp_path: Path, command: Command, arguments: tuple[str, ...], message: str
) -> None:
    write_ladder(tmp_path, LOSSES, PARAMETERS)
    assert message in one_line_error(command("rank", "made", *arguments, "--root", str(tmp_path)))


def test_a_damaged_record_is_named(tmp_path: Path, command: Command) -> None:
    write_ladder(tmp_path, LOSSES, PARAMETERS)
    record = tmp_path / "made" / "ladder.json"
    record.write_text(record.read_text().replace("wide", "wade"))
    error = one_line_error(command("rank", "made", "--root", str(tmp_path)))
    assert "ladder.json" in error
    assert "Restore it from a copy, or delete it and run the ladder again." in error


def test_the_shipped_ladder_keeps_its_directions_and_scales_its_layers(tmp_path: Path) -> None:
    study = named_study(str(shipped_folder("studies") / "cpu" / "ladder.toml"), tmp_path)
    config, base = study.load()
    sizes = ladder_sizes(config, base, study.name)
    assert (len(sizes), len(config.ladder.arms), len(config.search.seeds)) == (3, 6, 2)
    for small, large in itertools.pairwise(sizes):
        assert 1.9 <= large.parameters / small.parameters <= 4
    depths = [[arm.architecture.num_layers for arm in size.arms] for size in sizes]
    assert all(min(row) > 1 for row in depths)
    assert [row[0] for row in depths] == [3, 4, 5]
    plain = [size.arms[0] for size in sizes]
    assert all(arm.missed == () for arm in plain)
    assert sum(len(size.arms) * 2 * (3 if size is sizes[0] else 1) * size.tokens for size in sizes) < 75e6
