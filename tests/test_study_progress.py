"""The display of a running study: at a terminal of 80 columns, in a pipe, with several workers, and after Ctrl-C."""

import fcntl
import io
import json
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers.command_line import json_of, run_command
from helpers.toy_studies import RUNG_TRAINING, TOY_CONFIG, optuna_study, run_toy_study, start_toy_study
from helpers.trials import wait_until
from rich.console import Console

from march_search.analysis.study_record import read_study
from march_search.analysis.trial_counts import TrialCounts, recorded_counts
from march_search.config import ConfirmConfig, DevicesConfig, PrunerConfig, SearchConfig, StudyConfig
from march_search.study import progress
from march_search.study.outlook import Outlook, outlook, trial_counts
from march_search.study.progress_lines import TrialLine, study_line, trial_lines, wrapped

RUNGS = replace(
    TOY_CONFIG,
    training=RUNG_TRAINING,
    pruner=PrunerConfig(kind="rungs", rungs=(0.25, 1.0), finalists=1),
    confirm=ConfirmConfig(max_seeds=1),
    devices=DevicesConfig(parallel_trials=2),
)
"""Six trials, of which the best train beyond a rung at 4,096 tokens."""

ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A study in a process of its own, at a real pseudo-terminal of 80 columns."""

    def __init__(self, root: Path, config: StudyConfig, seconds: float) -> None:
        self._mine, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        command = [sys.executable, "-m", "helpers.toy_studies", str(root), "toy", json.dumps(asdict(config))]
        here = Path(__file__).parent
        path = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"TOY_SECONDS": str(seconds), "PYTHONPATH": path, "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            command, env=environment, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.printed = b""

    def read(self) -> bool:
        """Read what was printed; return whether there may be more."""
        try:
            chunk = os.read(self._mine, 1 << 16)
        except OSError:  # Linux: the other end is closed
            return False
        self.printed += chunk
        return bool(chunk)

    def lines(self) -> list[str]:
        """Read to the end, and return every line that was ever shown, without escape sequences."""
        while self.read():
            pass
        os.close(self._mine)
        assert self.process.wait(60) is not None
        return [line.rstrip() for line in re.split(r"[\r\n]+", ESCAPES.sub(b"", self.printed).decode())]


def test_a_terminal_shows_the_study_and_its_running_trials(tmp_path: Path) -> None:
    lines = Terminal(tmp_path, RUNGS, 0.3).lines()
    live = [line for line in lines if line.startswith(("search:", "  trial "))]
    assert any(
        re.fullmatch(r"search: \d of 6 trials ended(, \d on a rung)?, \S+ of \S+ tokens, \S+ left for all", line)
        for line in live
    )
    assert any(re.match(r"search: \d of 6 trials ended, [1-5] on a rung, ", line) for line in live)
    ends = r"  trial \d  L\S+ +\S+ of 16\.4k tokens  loss \d\.\d{3}(  1k tokens/s)?  \d+s to its end"
    assert not any(re.search(r"of 16\.4k tokens.*to its rung|of 4\.1k tokens.*to its end", line) for line in live)
    assert any(re.fullmatch(ends, line) for line in live), "\n".join(dict.fromkeys(live))
    assert all(len(line) <= 80 for line in live)
    kept = [line for line in lines if re.match(r"[✓✂✗] trial \d", line)]
    assert len(kept) == 6
    assert len(set(kept)) == 6


def test_ctrl_c_leaves_a_clean_terminal(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, TOY_CONFIG, 0.5)
    while b"1.02k of 4.1k tokens" not in terminal.printed and terminal.read():
        pass
    terminal.process.send_signal(signal.SIGINT)
    lines = terminal.lines()
    assert any(line.startswith("stopping: saving the trials' state") for line in lines)
    assert terminal.printed.count(b"\x1b[?25l") == terminal.printed.count(b"\x1b[?25h")  # the cursor is shown again
    end = terminal.printed.rsplit(b"\x1b[?25h", 1)[1]
    assert b"trial" not in end
    assert b"\x1b[2K" in terminal.printed  # the live lines were erased


def test_a_pipe_gets_one_line_per_event(tmp_path: Path) -> None:
    process = start_toy_study(tmp_path, RUNGS)
    text = process.communicate(timeout=100)[1]
    assert "\x1b" not in text
    lines = text.splitlines()
    assert len(lines) == len(set(lines)), text
    assert lines[0].startswith("search: 0 of 6 trials ended, 0 of ")
    for number in range(6):
        mine = [line for line in lines if re.search(rf"\btrial {number}: ", line)]
        assert mine[0].endswith(": started")
        assert re.fullmatch(rf"trial {number}: 4\.1k of 4\.1k tokens, loss \S+", mine[1])
        assert mine[2].endswith(": waits on its rung at 4,096 tokens")
        assert re.match(rf"[✓✂] trial {number}: ", mine[-1])


def test_a_worker_shows_what_all_workers_have_done(tmp_path: Path) -> None:
    config = replace(TOY_CONFIG, heartbeat_seconds=0.2)
    other = start_toy_study(tmp_path, config, seconds=0.4)
    assert wait_until(lambda: any(tmp_path.glob("toy/trials/*/metrics.jsonl")))
    lines = Terminal(tmp_path, config, 0.4).lines()
    other.communicate(timeout=60)
    live = [line for line in lines if line.startswith("search: ")]
    ended = [int(line.split()[1]) for line in live]
    assert ended == sorted(ended)
    mine = [line for line in lines if line.startswith("✓ trial")]
    assert len(mine) < 6
    assert max(ended) > len(mine) - 1  # the other worker's trials count, too


def states_everywhere(root: Path) -> dict[str, tuple[int, int]]:
    """Return (complete, all) trials of the study `toy` as each command prints them."""
    here = ["toy", "--root", str(root)]
    status = json_of(run_command("study", "status", *here, "--format", "json"))
    title = run_command("rank", *here).stdout
    [ranked] = re.findall(r"toy: (\d+) of (\d+) trials complete", title)
    return {
        "status": (status["states"].get("complete", 0), status["trials_total"]),
        "rank": (int(ranked[0]), int(ranked[1])),
    }


@pytest.mark.parametrize("kind", ["rungs", "confirm", "interrupted"])
def test_numbers_of_trials_agree_everywhere(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, total = RUNGS, 6
    if kind == "confirm":
        config = replace(TOY_CONFIG, search=SearchConfig(trials=3), confirm=ConfirmConfig(max_seeds=2))
        total = 5
    if kind == "interrupted":
        process = start_toy_study(tmp_path, TOY_CONFIG, seconds=0.3)
        assert wait_until(lambda: len(list(tmp_path.glob("toy/trials/*/result.json"))) == 2)
        process.send_signal(signal.SIGINT)
        printed = process.communicate(timeout=60)[0]
        complete, left = (int(re.search(rf"{word}=(\d+)", printed)[1]) for word in ("complete", "left"))  # type: ignore[index]
        summary = (complete, complete + left)
    else:
        done = run_toy_study(tmp_path, config)
        summary = (done.complete, done.complete + done.pruned + done.failed + done.left)
    assert summary[1] >= total
    assert states_everywhere(tmp_path) == {"status": summary, "rank": summary}
    stored = trial_counts(optuna_study(tmp_path).get_trials(), 0)
    assert recorded_counts(read_study(tmp_path / "toy")) == stored
    assert stored == TrialCounts(
        complete=stored.complete, pruned=stored.pruned, failed=0, left=stored.total - stored.ended
    )


def running(seed: int, number: int) -> TrialLine:
    """Return what is known of a made-up running trial."""
    rng = random.Random(f"{seed} {number}")
    layers, d_model = rng.randint(1, 36), 64 * rng.randint(1, 40)
    name = f"L{layers}-D{d_model}-H{rng.randint(1, 32)}x64-F{4 * d_model}{rng.choice(['', '-geglu', '-geglu-V32128'])}"
    until, starting, decays = 10 ** rng.randint(3, 11), rng.random() < 0.2, rng.random() < 0.2
    return TrialLine(
        number=number * rng.choice([1, 1, 17]),
        name=name,
        tokens=None if starting else rng.randint(0, until),
        until=until,
        goal=rng.choice(["rung", "end"]),
        left=rng.randint(0, until),
        branch=(rng.randint(0, until), until) if decays and not starting else None,
        loss=None if starting or rng.random() < 0.3 else rng.uniform(1, 12),
        bits_per_byte=None if starting or rng.random() < 0.5 else rng.uniform(0.5, 5),
        speed=None if starting else 10 ** rng.uniform(1, 6),
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width: int, seed: int) -> None:
    trials = [running(seed, number) for number in range(6)]
    lines = trial_lines(trials, width)
    assert len(lines) == len(trials)
    assert max(map(len, lines)) <= width
    if width >= 80:
        assert all("tokens" in line or "starting" in line for line in lines)
    for line, trial in zip(lines, trials, strict=True):
        whole = trial_lines([trial], 400)[0].split()
        for word in line.split():
            is_cut = word.endswith("-…") and trial.name.startswith(word[:-1])
            assert is_cut or word in whole, (line, whole)


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_the_study_s_line_leaves_out_whole_parts(width: int) -> None:
    counts = TrialCounts(complete=10, pruned=101, failed=1, left=256)
    now = Outlook(
        phase="confirm", counts=counts, to_come=0, on_rung=144, tokens_done=61_440, tokens_planned=10**9,
        tokens_expected=369 * 10**9,
    )  # fmt: skip
    line, whole = study_line(now, 100_000.0, width), study_line(now, 100_000.0, 400)
    assert len(line) <= width
    assert whole == (
        "confirm: 112 of 368 trials ended, 144 on a rung, 61.4k of 369G tokens, 1024h59m left for all at 100k tokens/s"
    )
    assert set(line.split(", ")) <= set(whole.split(", ")) | {"1024h59m left", "1024h59m left for all"}
    assert study_line(now, 0.0, 400) == "confirm: 112 of 368 trials ended, 144 on a rung, 61.4k of 369G tokens"


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_of_this_width_shows_the_lines_one_under_another(
    width: int, monkeypatch: pytest.MonkeyPatch, outlook_of_six: Outlook
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "console", lambda stderr: Console(file=screen, width=width, height=24, force_terminal=True)
    )
    display = progress.StudyProgress([], 16_384)
    names = [f"L{layers}-D1024-H16x64-F4096-geglu-rope-V32128" for layers in (2, 11, 12)]
    for number, name in enumerate(names):
        display.started(number, name, False, 4096 if number else None)
    for tokens in (256, 1024):
        evaluated = {"kind": "evaluation", "tokens": tokens, "loss": 3.14159, "bits_per_byte": 4.5}
        for number in (0, 1):
            display.line(number, {"kind": "train", "tokens": tokens, "loss": 3.2, "tokens_per_second": 1000.0})
            display.line(number, evaluated)
    display.study("search", lambda tokens: replace(outlook_of_six, tokens_done=sum(tokens.values())))
    display._out.print(display._frame())
    cut = {80: "L{}-D1024-…", 160: "L{}-D1024-H16x64-F4096-geglu-rope-V32128"}[width]
    together = {80: "", 160: " for all at 3k tokens/s"}[width]
    rest = {80: "", 160: "  (4.500 bits/byte)  1k tokens/s"}[width]
    assert [line.rstrip() for line in screen.getvalue().splitlines()] == [
        f"search: 0 of 6 trials ended, 2 on a rung, 2.05k of 65.5k tokens, 21s left{together}",
        f"  trial 0  {cut.format(2).ljust(len(cut))}  1.02k of 16.4k tokens  loss 3.142{rest}  15s to its end",
        f"  trial 1  {cut.format(11)}  1.02k of 4.1k tokens   loss 3.142{rest}   3s to its rung",
        f"  trial 2  {cut.format(12)}  starting",
    ]


@pytest.fixture
def outlook_of_six() -> Outlook:
    """A study of six trials, of which two wait on their rung."""
    counts = TrialCounts(complete=0, pruned=0, failed=0, left=6)
    return Outlook(
        phase="search", counts=counts, to_come=0, on_rung=2, tokens_done=0, tokens_planned=24_576,
        tokens_expected=65_536,
    )  # fmt: skip


def test_the_time_left_does_not_jump_when_a_trial_starts_or_a_step_is_slow() -> None:
    display = progress.StudyProgress([], 100_000)
    for number in (0, 1):
        display.started(number, "L1", False)
        for tokens in range(1000, 11_000, 1000):
            display.line(number, {"kind": "train", "tokens": tokens, "loss": 1.0, "tokens_per_second": 500.0})
    before = display._speed()
    assert before == 1000.0
    display.line(0, {"kind": "train", "tokens": 11_000, "loss": 1.0, "tokens_per_second": 50.0})  # a slow step
    assert 0.85 * before < display._speed() < before
    speed = display._speed()
    display.ended(1, "L1", "complete", "")
    display.started(2, "L2", False)
    assert display._speed() == pytest.approx(speed, rel=0.1)
    display.ended(0, "L1", "complete", "")
    assert display._speed() == pytest.approx(speed / 2, rel=0.1)  # one trial that starts


def test_a_long_line_at_a_terminal_is_broken_between_words() -> None:
    text = "✓ trial 1: L1-D96-H1x64-F152-geglu: complete; loss 2.6656 (4.0569 bits/byte), context gain 0.005"
    lines = wrapped(text, 80).splitlines()
    assert [len(line) <= 80 for line in lines] == [True, True]
    assert [word for line in lines for word in line.split()] == text.split()
    assert lines[1].startswith("    ")


def test_tokens_expected_include_rungs_that_are_not_decided(tmp_path: Path) -> None:
    run_toy_study(tmp_path, RUNGS)
    trials = optuna_study(tmp_path).get_trials()
    nothing: Mapping[int, int] = {}
    now = outlook(trials, RUNGS, 0, nothing)
    stopped = sum(trial.state.name == "PRUNED" for trial in trials)
    assert now.tokens_done == now.tokens_expected == stopped * 4096 + (6 - stopped) * 16_384
    assert now.seconds_left(1000.0) is None
    for trial in trials:
        trial.state, trial.values, trial.intermediate_values = type(trial.state).WAITING, None, {}
    before = outlook(trials, RUNGS, 0, nothing)
    assert (before.tokens_done, before.tokens_planned) == (0, 6 * 4096)
    assert before.tokens_expected == 6 * 4096 + (6 - stopped) * (16_384 - 4096)
    assert before.seconds_left(1000.0) == before.tokens_expected / 1000
