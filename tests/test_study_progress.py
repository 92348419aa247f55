"""The display of a running study: at a terminal of 80 columns, in a pipe, with several workers, and after Ctrl-C."""

import fcntl
import json
import os
import pty
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

from march_search.analysis.study_record import read_study
from march_search.analysis.trial_counts import TrialCounts, recorded_counts
from march_search.config import ConfirmConfig, DevicesConfig, PrunerConfig, SearchConfig, StudyConfig
from march_search.study.outlook import outlook, trial_counts

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
        re.fullmatch(r"search: \d of 6 trials ended, \S+ of \S+ tokens, \S+ left for all", line) for line in live
    )
    ends = r"  trial \d: L\S+: \S+ of 16\.4k tokens, loss \d\.\d{3}(, 1k tokens/s)?, \d+s to its end"
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
