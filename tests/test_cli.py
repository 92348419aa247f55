"""The command line as a whole: streams, exit codes, imports, and errors in one line."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command_line import command_in_process, imported_by, one_line_error, run_command

from march_search import __version__
from march_search.cli import COMMANDS, parser


def test_a_command_prints_results_to_stdout_and_nothing_else() -> None:
    ended = run_command("solve", "--budget", "220M", "--top", "5")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "220,000,000 parameters ± 1.5%" in ended.stdout
    assert "\x1b" not in ended.stdout


def test_an_error_is_one_line_with_an_exit_code() -> None:
    ended = run_command("solve", "--budget", "many")
    assert ended.returncode == 2
    assert 'invalid parameter budget "many"' in one_line_error(ended)


INVALID = [
    (["solve", "--budget", "many"], 2, 'invalid parameter budget "many"'),
    (["solve", "--budget", "1M"], 3, "No architecture in the space t5 has 1,000,000 parameters ± 1.5%"),
    (["solve", "--budget", "220M", "--space", "t5-220"], 2, 'Did you mean "t5-220m"?'),
    (["solve", "--budget", "220M", "--sort", "flop"], 2, 'Did you mean "flops"?'),
    (["solve", "--budget", "220M", "--where", "heads > 3"], 2, 'unknown field "heads"'),
    (["solve", "--budget", "220M", "--top", "-1"], 2, "must be a whole number of at least 0"),
    (["solve", "--budget", "0,22B"], 2, "use a decimal point, as in 0.22B"),
    (["solve", "--budget", "220M", "--tokens", "1,5B", "--device", "H100"], 2, "use a decimal point, as in 1.5B"),
    (["solve", "--budget", "220M", "--where", "'a' * 99999999999 == 'b'"], 2, "a value that is not a number"),
    (["solve", "--budget", "220M", "--where", "num_heads * 9223372036854775807 > 0"], 2, "of 2^63 or more"),
    (["solve", "--budget", "220M", "--where", "+".join(["num_heads"] * 3000) + " > 0"], 2, "use several rules"),
    (["solve", "--budget", "220M", "--sample", "9" * 400], 2, "must be a whole number of at least 1, below 10^15"),
    (["solve"], 2, "has no budget: set one with --budget"),
    (["solve", "--budget", ""], 2, 'invalid parameter budget ""'),
    (["solve", "--budget", "220M", "--tolerance", ""], 2, 'invalid tolerance ""'),
    (["solve", "--budget", "220M", "--where", "num_heads % 0 == 0"], 3, "No architecture"),
    (["solve", "--budget", "220M", "--where", "d_model / 0 != 5"], 3, "No architecture"),
    (["solve", "--budget", "220M", "--sample", "0"], 2, "must be a whole number of at least 1"),
    (["solve", "--budget", "220M", "--device", "8xB300"], 2, 'unknown device "8xB300"'),
    (
        ["solve", "--budget", "220M", "--tokens", "lots", "--device", "H100"],
        2,
        'invalid data budget "lots": use a number such as 220M',
    ),
    (["solve", "--budget", "220M", "--columns", "name,hour"], 2, 'unknown column "hour". Did you mean "hours"?'),
    (["solve", "--budget", "220M", "--pareto", "flop,-depth"], 2, 'by "flop". Did you mean "flops"?'),
    (["solve", "--budget", "220M", "--near", "T5"], 2, "is not an architecture name"),
    (["solve", "--budget", "220M", "--sample", "3", "--pareto"], 2, "not allowed with argument"),
    (["explain", "L" + "9" * 5000 + "-D1-H1x1-F1"], 2, "is not an architecture name"),
    (["explain", "T5"], 2, "is not an architecture name"),
    (["explain"], 2, "the following arguments are required: NAME"),
    (["slove"], 2, 'unknown command "slove". Did you mean "solve"? Try: march-search --help'),
    (["study", "rnu"], 2, 'unknown command "rnu". Did you mean "run"? Try: march-search study --help'),
    (
        ["solve", "--bugdet", "220M"],
        2,
        'unknown option "--bugdet". Did you mean "--budget"? Try: march-search solve --',
    ),
    (["rank", "STUDY", "more"], 2, 'unexpected argument "more". Try: march-search rank --help'),
    (["rank", "STUDY", "--format", "jsn"], 2, '--format: cannot be "jsn". Did you mean "json"?'),
    (["keys", "trainig"], 2, 'no table or key of a study file is called "trainig". Did you mean "training"?'),
    (["keys", "training.token"], 2, 'Did you mean "training.tokens"?'),
    (["keys", "zzz"], 2, 'called "zzz". Known: activation_checkpointing, answer, '),
    (["completion", "tcsh"], 2, 'cannot be "tcsh". Known: bash, fish, zsh.'),
    (["rank", "nothing"], 2, 'unknown study "nothing": it is neither shipped nor started in '),
    (["study", "run", "cpu-dmo"], 2, 'unknown study "cpu-dmo"'),
    (["study", "run", "cpu-dmo"], 2, 'Did you mean "cpu-demo"? To see all studies, run march-search study list.'),
    (["study", "run", "missing.toml"], 2, "missing.toml: file not found"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "words"), INVALID, ids=lambda value: " ".join(value) if isinstance(value, list) else None
)
def test_an_invalid_command_is_refused_in_one_line(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tmp_path)] if arguments[0] in ("rank", "study") else []
    ended = command_in_process(capsys)(*arguments, *root)
    assert ended.returncode == code
    assert words in one_line_error(ended)


@pytest.mark.parametrize(
    "arguments", [["export", "STUDY", "3"], ["study", "retry", "STUDY", "3", "4"]], ids=lambda words: words[0]
)
def test_trials_may_follow_options(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = arguments.index("STUDY") + 1
    for position in (study, len(arguments)):
        words = [*arguments[:position], "--root", str(tmp_path), *arguments[position:]]
        ended = command_in_process(capsys)(*words)
        assert 'unknown study "STUDY"' in one_line_error(ended)  # not: unrecognized arguments


def test_solve_imports_neither_torch_nor_optuna_nor_scipy() -> None:
    heavy = {"torch", "optuna", "scipy", "datasets", "tokenizers", "deepspeed", "pandas"}
    assert imported_by("solve", "--budget", "220M", "--top", "1") & heavy == set()


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        ("solve --budget 740M --top 3000 --format csv", "num_layers,"),
        ("solve --budget 740M --top 3000", "213,338 architectures"),
        ("keys", "Keys above all tables"),
        ("--help", "usage: march-search"),
    ],
)
def test_a_reader_that_closes_the_pipe_causes_no_error(arguments: str, first: str) -> None:
    command = f"set -o pipefail; {sys.executable} -m march_search {arguments} | head -1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert ended.stdout.startswith(first)
    assert (ended.returncode, ended.stderr) == (0, "")


def commands(top: argparse.ArgumentParser, *words: str) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Yield every parser below `top`, with the words that lead to it."""
    yield words, top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from commands(inner, *words, name)


EVERY = dict(commands(parser()))
LEAVES = [words for words in EVERY if not any(other[: len(words)] == words != other for other in EVERY)]


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_the_help_of_a_command_has_examples_that_parse(words: tuple[str, ...]) -> None:
    heading, *examples = (EVERY[words].epilog or "").splitlines()
    assert heading in ("example:", "examples:")
    for example in examples:
        program, *arguments = shlex.split(re.split(r" [|>] ", example)[0])
        assert (program, arguments[: len(words)]) == ("march-search", list(words))
        parser().parse_args(arguments)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_the_help_says_what_each_format_holds(words: tuple[str, ...]) -> None:
    for action in EVERY[words]._actions:
        if action.dest == "format":
            assert all(re.search(rf"\b{choice}\b", action.help or "") for choice in action.choices or ())
            assert len(action.help or "") > 80


@pytest.mark.parametrize("words", [(), ("study",), ("data",)], ids=" ".join)
def test_a_command_without_an_action_prints_its_help(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    ended = command_in_process(capsys)(*words)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == EVERY[words].format_help()


def test_the_help_of_all_commands_is_that_of_the_modules() -> None:
    assert [words[0] for words in EVERY if len(words) == 1] == list(COMMANDS)


def test_keys_prints_every_key_of_the_settings_page(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    printed = command_in_process(capsys)("keys", "--format", "json").stdout
    keys = json.loads(printed)["keys"]
    assert [key["key"].rpartition(".")[2] for key in keys] == re.findall(r"^### `(\w+)`$", page, re.MULTILINE)
    one = command_in_process(capsys)("keys", "training.tokens").stdout
    assert "training.tokens = 1_048_576_000  Whole number\n    Data budget: tokens of text per trial" in one
    assert "confirm.max_seeds = 3" in command_in_process(capsys)("keys", "[confirm]").stdout
    assert "training.tokens" in command_in_process(capsys)("keys", "tokens").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_knows_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = command_in_process(capsys)("completion", shell).stdout
    for word in ("solve", "storage-proxy", "dry-run", "markdown"):
        assert word in script


def test_bash_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.toml").touch()
    script = tmp_path / "march-search"
    script.write_text(command_in_process(capsys)("completion", "bash").stdout)
    for words, wanted in (
        ("so", {"solve"}),
        (f"forecast {tmp_path}/mine", {f"{tmp_path}/mine.toml"}),
        ("study st", {"status", "stop", "storage-proxy"}),
        ("rank --eff", {"--effects"}),
        ("rank --format m", {"markdown"}),
        (f"rank {tmp_path}/mine", {f"{tmp_path}/mine.toml"}),
    ):
        typed = ["march-search", *words.split()]
        code = (
            f"source {script}; function=$(complete -p march-search | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
            f"COMP_WORDS=({' '.join(typed)}); COMP_CWORD={len(typed) - 1}; $function; echo ${{COMPREPLY[@]}}"
        )
        ended = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert set(ended.stdout.split()) == wanted


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_import_no_library(option: str) -> None:
    own = {name for name in imported_by(option) - sys.stdlib_module_names if not name.startswith("_")}
    assert own - {"sitecustomize", "usercustomize"} == {"march_search"}


def test_the_help_of_all_commands_fits_80_columns_and_loads_no_parser(capsys: pytest.CaptureFixture[str]) -> None:
    printed = command_in_process(capsys)("--help").stdout
    assert printed == parser().format_help()
    assert max(map(len, printed.splitlines())) <= 80
    assert imported_by("--help") & {"argparse", "typing", "re"} == imported_by("--version") & {
        "argparse",
        "typing",
        "re",
    }


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_in_process(capsys)("--version").stdout.strip() == __version__


def test_a_terminal_gets_bold_headings_and_no_color_removes_colours() -> None:
    command = [sys.executable, "-m", "march_search", "solve", "--budget", "220M", "--top", "2"]
    master, slave = os.openpty()
    settings = os.environ | {"TERM": "xterm-256color", "NO_COLOR": "1"}
    assert subprocess.run(command, stdout=slave, env=settings, check=False).returncode == 0
    os.close(slave)
    printed = os.read(master, 100_000).decode()
    os.close(master)
    assert "L23-D512" in printed
    assert "\x1b[1m" in printed
    assert not re.search(r"\x1b\[(?:\d+;)*[349]\d", printed)


def test_output_that_cannot_be_written_is_reported_in_one_line() -> None:
    command = f"{sys.executable} -m march_search solve --budget 220M > /dev/full"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ended.returncode == 4
    assert ended.stderr == "march-search: the output: No space left on device.\n"


@pytest.mark.parametrize(("arguments", "code"), [("keys training.tokens >&-", 0), ("keys zzz 2>&-", 2)])
def test_a_closed_stream_causes_no_error(arguments: str, code: int) -> None:
    command = f"{sys.executable} -m march_search {arguments}"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")


def test_a_terminal_without_unicode_still_gets_its_table() -> None:
    ended = run_command("solve", "--budget", "220M", "--top", "2", PYTHONIOENCODING="ascii")
    assert ended.returncode == 0
    assert "L23-D512" in ended.stdout
