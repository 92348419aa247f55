"""The STUDY argument: a shipped name, a TOML file, the name of a started study, or its folder, in every command."""

import shutil
from pathlib import Path

import pytest
from helpers.command_line import Command, json_of, one_line_error
from helpers.ladders import LOSSES as LADDER_LOSSES
from helpers.ladders import PARAMETERS, write_ladder
from helpers.studies import SHAPES, stop_trial, write_study
from helpers.toy_studies import TOY_CONFIG, run_toy_study

from march_search.commands.studies import named_study
from march_search.config.shipped import shipped_folder, shipped_names
from march_search.errors import ConfigError, UsageError

LOSSES = {name: [4.0 + number / 10] for number, name in enumerate(SHAPES)}
STUDIES = shipped_folder("studies")


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("cpu-demo", "cpu-demo"),
        ("cpu/glu", "cpu-glu"),
        ("march-2023/glu", "march-2023-glu"),
        ("studies/cpu/glu.toml", "cpu-glu"),
        (str(STUDIES / "march-2023" / "glu.toml"), "march-2023-glu"),
        ("cpu-glu", "cpu-glu"),
    ],
)
def test_a_shipped_study_has_a_folder_named_after_its_path(text: str, folder: str, tmp_path: Path) -> None:
    study = named_study(text, tmp_path)
    assert study.folder.path == tmp_path / folder
    assert study.name == folder
    assert not study.is_started


def test_all_shipped_studies_have_different_folders(tmp_path: Path) -> None:
    names = shipped_names("studies")
    assert len(names) > 30
    assert len({named_study(name, tmp_path).folder.path for name in names}) == len(names)


def test_an_own_file_has_a_folder_named_after_its_stem(tmp_path: Path) -> None:
    shutil.copy(STUDIES / "cpu" / "glu.toml", tmp_path / "mine.toml")
    study = named_study(str(tmp_path / "mine.toml"), tmp_path / "runs")
    assert study.folder.path == tmp_path / "runs" / "mine"
    assert study.argument == str(tmp_path / "mine.toml")
    with pytest.raises(ConfigError, match="'data' is not a valid study name"):
        named_study(str(shutil.copy(STUDIES / "cpu" / "glu.toml", tmp_path / "data.toml")), tmp_path)


@pytest.mark.parametrize("text", ["cpu/glu", str(STUDIES / "cpu" / "glu.toml"), "glu"])
def test_a_study_started_under_its_old_folder_name_is_found(text: str, tmp_path: Path, command: Command) -> None:
    write_study(tmp_path, LOSSES, name="glu", settings={"space": "cpu-1m"})
    study = named_study(text, tmp_path)
    assert study.folder.path == tmp_path / "glu"
    assert study.is_started
    assert json_of(command("rank", text, "--root", str(tmp_path), "--format", "json"))["ranked"]
    other = named_study("march-2023/glu", tmp_path)  # it has the same question
    assert other.folder.path == tmp_path / "march-2023-glu"
    assert not other.is_started


def test_the_new_folder_name_precedes_the_old_one(tmp_path: Path) -> None:
    for name in ("glu", "cpu-glu"):
        write_study(tmp_path, LOSSES, name=name, settings={"space": "cpu-1m"})
    assert named_study("cpu/glu", tmp_path).folder.path == tmp_path / "cpu-glu"


@pytest.mark.parametrize("text", ["cpu/glu", "cpu-glu", "FOLDER", "studies/cpu/glu.toml"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("rank", "STUDY", "--format", "csv"),
        ("pareto", "STUDY", "--by", "loss,flops", "--format", "csv"),
        ("report", "STUDY", "--format", "csv", "-o", "-"),
        ("export", "STUDY", "--format", "curves"),
        ("replay", "STUDY", "--replays", "1", "--strategy", "rungs", "--format", "csv"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_form_of_the_argument_names_the_same_study(
    text: str, arguments: tuple[str, ...], tmp_path: Path, command: Command
) -> None:
    folder = write_study(tmp_path, LOSSES, name="cpu-glu", settings={"space": "cpu-1m"})
    root = ("--root", str(tmp_path))
    outputs = []
    for study in ("cpu-glu", str(folder) if text == "FOLDER" else text):
        ended = command(*(study if word == "STUDY" else word for word in arguments), *root)
        assert (ended.returncode, ended.stderr) == (0, "")
        outputs.append(ended.stdout)
    assert outputs[0] == outputs[1]
    assert "L2-D160-H4x32-F256-rope-V2048" in outputs[0] or arguments[0] == "replay"


@pytest.mark.parametrize("arguments", [("rank",), ("pareto",), ("report",), ("replay",), ("study", "status")])
def test_a_study_that_has_not_been_started_is_refused_with_the_command_to_start_it(
    arguments: tuple[str, ...], tmp_path: Path, command: Command
) -> None:
    ended = command(*arguments, "cpu/glu", "--root", str(tmp_path))
    assert ended.returncode == 2
    expected = f"cpu-glu has not been started in {tmp_path}: run march-search study run cpu/glu first.\n"
    assert one_line_error(ended).endswith(expected)


def test_a_name_that_resembles_no_study_is_refused_without_a_list_of_all(tmp_path: Path, command: Command) -> None:
    expected = f'unknown study "qqqqqqqq": it is neither shipped nor started in {tmp_path}. To see all studies, run '
    ended = command("rank", "qqqqqqqq", "--root", str(tmp_path))
    assert ended.returncode == 2
    assert one_line_error(ended).endswith(f"{expected}march-search study list.\n")


def test_an_unknown_name_suggests_shipped_and_started_studies(tmp_path: Path) -> None:
    write_study(tmp_path, LOSSES, name="my-study")
    with pytest.raises(UsageError, match=r'unknown study "my-studdy".*Did you mean "my-study"\?'):
        named_study("my-studdy", tmp_path)
    write_ladder(tmp_path, LADDER_LOSSES, PARAMETERS, untrained=tuple(PARAMETERS))
    with pytest.raises(UsageError, match=r'unknown study "maed".*Did you mean "made"\?'):
        named_study("maed", tmp_path)
    with pytest.raises(UsageError, match=r'Did you mean "cpu/glu"\?'):
        named_study("cpu/gluu", tmp_path)
    with pytest.raises(ConfigError, match=r"missing\.toml: file not found"):
        named_study("missing.toml", tmp_path)


def test_a_toml_file_of_a_started_study_names_its_folder(tmp_path: Path, command: Command) -> None:
    (tmp_path / "mine.toml").write_text('space = "cpu-demo"\n')
    write_study(tmp_path / "runs", LOSSES, name="mine")
    outputs = [
        command("rank", study, "--root", str(tmp_path / "runs"), "--format", "csv").stdout
        for study in (str(tmp_path / "mine.toml"), "mine")
    ]
    assert outputs[0] == outputs[1] != ""


def test_a_folder_outside_the_root_is_named_in_suggested_commands(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_toy_study(tmp_path / "elsewhere", TOY_CONFIG)
    monkeypatch.chdir(tmp_path)
    for action in ("stop", "retry"):
        ended = command("study", action, "elsewhere/toy")
        assert ended.returncode == 0
        suggested = ended.stderr.partition("To resume: march-search ")[2].split()
        assert suggested[:2] == ["study", "resume"]
        assert command("study", "status", *suggested[2:]).returncode == 0
    ended = command("report", "elsewhere/toy", "--format", "markdown")
    assert (ended.returncode, ended.stdout) == (0, f"{tmp_path / 'elsewhere' / 'toy' / 'report.md'}\n")


@pytest.mark.parametrize("option", ["--device", "--rate"])
def test_the_estimate_of_a_started_study_is_not_changed(option: str, tmp_path: Path, command: Command) -> None:
    value = {"--device": "A5000", "--rate": "2"}[option]
    run_toy_study(tmp_path, TOY_CONFIG, name="cpu-demo")
    (tmp_path / "cpu-demo" / "plan.json").write_text('{"device": "cpu", "trials": 6}')
    ended = command("study", "run", "cpu-demo", option, value, "--root", str(tmp_path))
    assert ended.returncode == 2
    expected = f"{option} has no effect on cpu-demo, which was started with a plan: add --dry-run"
    assert expected in one_line_error(ended)
    run_toy_study(tmp_path, TOY_CONFIG, name="own")
    for options in ((option, value), ("--dry-run",), ("--extend",)):
        ended = command("study", "run", "own", *options, "--root", str(tmp_path))
        assert ended.returncode == 2
        expected = f"{options[0]} has no effect on the folder of own: name its TOML file instead."
        assert expected in one_line_error(ended)


def test_a_price_without_a_device_is_refused(tmp_path: Path, command: Command) -> None:
    ended = command("study", "run", "t5-220m", "--dry-run", "--rate", "2", "--root", str(tmp_path))
    assert ended.returncode == 2
    assert "--rate has no effect without --device D, whose hours it prices." in one_line_error(ended)


def test_a_study_without_complete_trials_prints_no_headings_without_rows(tmp_path: Path, command: Command) -> None:
    folder = write_study(tmp_path, LOSSES, name="begun")
    for number in range(len(LOSSES)):
        stop_trial(folder, number, 1, "unfinished")
    printed = command("rank", "begun", "--root", str(tmp_path)).stdout
    assert "No architecture can be ranked yet." in printed
    assert "context gain" not in printed
    assert "begun: 0 of 0 complete architectures" in command("pareto", "begun", "--root", str(tmp_path)).stdout


def test_pareto_compares_loss_and_flops_unless_the_study_or_by_names_others(tmp_path: Path, command: Command) -> None:
    write_study(tmp_path, LOSSES, name="one")
    write_study(tmp_path, LOSSES, name="two", settings={"search": {"objectives": ["loss", "params"]}})
    for study, more, by in (("one", (), "flops"), ("two", (), "params"), ("two", ("--by", "loss,depth"), "depth")):
        ended = command("pareto", study, *more, "--root", str(tmp_path), "--format", "json")
        assert json_of(ended)["by"] == ["loss", by]
