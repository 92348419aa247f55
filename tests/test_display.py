"""Text from outside, such as reasons, names and errors, is text in every line that reaches a terminal."""

import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command_line import Command, one_line_error
from helpers.studies import SHAPES, write_study
from helpers.toy_studies import TOY_CONFIG, optuna_study, run_toy_study
from hypothesis import given
from hypothesis import strategies as st

from march_search.config import SearchConfig
from march_search.display.tables import Column, console, print_table
from march_search.errors import visible
from march_search.files.json_tables import write_json
from march_search.units import chance

GLOO = "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]"
HOSTILE = f"{GLOO} [bold red]red[/] :warning: \x1b[31mred\x1b]0;title\x07\x9b2J\r\b\u202e\nforged line"
SHOWN = f"{GLOO} [bold red]red[/] :warning: ␛[31mred␛]0;title␇\ufffd2J␍␈\ufffd↵ forged line"


def test_visible_text_has_no_control_character_left() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible("a\tb\nc\x1b", lines=True) == "a\tb\nc␛"


@given(st.text())
def test_visible_text_is_one_line_and_keeps_printable_text(text: str) -> None:
    shown = visible(text)
    assert len(shown.splitlines()) <= 1
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in shown)
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("output_format", ["table", "csv", "markdown"])
def test_a_reason_with_markup_and_escape_sequences_is_printed_as_text(
    tmp_path: Path, command: Command, output_format: str
) -> None:
    study = write_study(tmp_path, {name: [4.0, 4.1] for name in SHAPES})
    failed = sorted((study / "trials").iterdir())[-1]
    (failed / "result.json").unlink()
    write_json(failed / "outcome.json", {"state": "failed", "reason": HOSTILE, "text": HOSTILE})
    ended = command("rank", "synthetic", "--root", str(tmp_path), "--format", output_format)
    assert ended.returncode == 0, ended.stderr
    shown = SHOWN if output_format != "csv" else SHOWN.replace("↵ ", "\n")
    squeezed = "".join(ended.stdout.split())
    assert "".join(shown.split()) in squeezed
    assert not {"\x1b", "\x07", "\x9b", "\b", "\r", "\u202e"} & set(ended.stdout)


@pytest.mark.parametrize("output_format", ["table", "csv", "markdown"])
def test_status_prints_what_a_storage_holds_as_text(tmp_path: Path, command: Command, output_format: str) -> None:
    run_toy_study(tmp_path, replace(TOY_CONFIG, search=SearchConfig(trials=1)))
    study = optuna_study(tmp_path)
    study.add_trial(study.trials[0])
    study.ask()
    trial = study.trials[-1]
    for key, value in (("architecture", f"L1-D32[/red]{HOSTILE}"), ("seed", 0), ("reason", HOSTILE)):
        study._storage.set_trial_user_attr(trial._trial_id, key, value)
    for words in (("status", "toy"), ("show", "toy", "2")):
        ended = command("study", *words, "--root", str(tmp_path), "--format", output_format)
        assert ended.returncode == 0, ended.stderr
        assert "L1-D32[/red]RuntimeError: [/pytorch/" in ended.stdout
        assert not {"\x1b", "\x07", "\x9b", "\b", "\r", "\u202e"} & set(ended.stdout)


def test_an_error_prints_names_as_text(tmp_path: Path, command: Command) -> None:
    for argument in ("x\x1b[31m\x07.toml", "x\x1b[31m\x07"):
        error = one_line_error(command("study", "run", argument, "--root", str(tmp_path)))
        assert "\x1b" not in error
        assert "x" in error
    assert "\x1b" not in command("study", "run", "cpu-demo", "--x\x1b[31m").stderr


def test_on_a_terminal_only_our_own_colours_are_escape_sequences() -> None:
    code = (
        "import sys; from march_search.display.tables import Column, console, print_table\n"
        "from march_search.study.progress import StudyProgress\n"
        "text = sys.argv[1]\n"
        "column = Column(key='a', heading='a', short='a', left=True, style=lambda value: 'red')\n"
        "print_table(console(), [{'a': text}], [column], text, [text], warnings=[text])\n"
        "with StudyProgress(['L1'], 100) as progress:\n"
        "    progress.started(0, text, False)\n"
        "    progress.line(0, {'kind': 'train', 'tokens': 1, 'loss': 2.0})\n"
        "    progress.ended(0, text, 'failed', text)\n"
    )
    mine, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "400"}
    process = subprocess.Popen([sys.executable, "-c", code, HOSTILE], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    printed = b""
    while True:
        try:
            chunk = os.read(mine, 1 << 16)
        except OSError:  # Linux: the other end is closed
            break
        printed += chunk
        if not chunk:
            break
    assert process.wait(60) == 0, printed.decode()
    text = printed.decode()
    assert text.count("[bold red]red[/] :warning: ␛[31mred␛]0;title␇") >= 5
    assert "\x1b[31mred" not in text.replace("\x1b[31mRuntimeError", "")
    assert not {"\x07", "\x9b", "\b", "\u202e"} & set(text)
    assert "\x1b[31mRuntimeError" in text, "the style of the column"


def test_a_table_measures_and_prints_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(console(), [{"a": GLOO}], [Column(key="a", heading="[a]", short="a", left=True)], "[/title]", ["[/]"])
    out = capsys.readouterr().out
    assert all(text in out for text in (GLOO, "[a]", "[/title]", "[/]"))


def test_no_chance_is_certain() -> None:
    assert [chance(value) for value in (0.0, 0.005, 0.0051)] == ["<1%", "<1%", "1%"]
    assert [chance(value) for value in (0.9949, 0.995, 1.0)] == ["99%", ">99%", ">99%"]
