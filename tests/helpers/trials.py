"""Trials of a tiny model: make their folders, train them, stop them, and read what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

from helpers.forks import forks
from march_search.config import DataConfig, DevicesConfig, TrainingConfig, TrialConfig
from march_search.config.loader import build
from march_search.training import timing
from march_search.training.__main__ import main as training_main
from march_search.training.metrics_file import CLOCKS
from march_search.trial.manifest import write_manifest
from march_search.trial.metrics import read_metrics

MakeTrial = Callable[..., Path]
Ended = subprocess.CompletedProcess[str]

DATA = DataConfig(vocab_size=400, sequence_length=32, validation_fraction=0.2, validation_sequences=24)
TINY = "L1-D32-H2x16-F64-geglu-rope-V400"
TINY_TRAINING = TrainingConfig(
    tokens=48 * 256, global_batch_tokens=256, learning_rate=1e-2, precision="fp32", evaluations=3, checkpoints=3
)
"""48 steps of eight sequences, checkpoints after steps 12, 24 and 36, evaluations after 16, 32 and 48."""


def trial_maker(store: Path, parent: Path) -> MakeTrial:
    """Return a function that makes trial folders in `parent`: `make("name", ranks=2, zero_stage=1)`."""

    def make(name: str, ranks: int = 1, architecture: str = TINY, **training: object) -> Path:
        folder = parent / name
        folder.mkdir()
        config = TrialConfig(
            architecture=architecture,
            store=os.path.relpath(store, folder),
            seed=0,
            data=DATA,
            training=replace(TINY_TRAINING, **training),
            devices=DevicesConfig(kind="cpu", ranks=ranks, threads=1),
        )
        (folder / "trial.json").write_text(json.dumps(asdict(config)))
        return folder

    return make


def trial_config(folder: Path) -> TrialConfig:
    """Return the settings of a trial."""
    return build(TrialConfig, json.loads((folder / "trial.json").read_text()), "trial.json")


def change_config(folder: Path, table: str, **values: object) -> Path:
    """Overwrite values in a table of trial.json without checks, and return the folder."""
    config = json.loads((folder / "trial.json").read_text())
    config[table] |= values
    (folder / "trial.json").write_text(json.dumps(config))
    return folder


def run_trial(folder: Path, *arguments: str) -> Ended:
    """Run the command that trains a trial, without a compiler or ninja on PATH."""
    command = [sys.executable, "-m", "march_search.training", str(folder), *arguments]
    environment = os.environ | {"PATH": "/nonexistent"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def start_trial(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start the command that trains a trial in a session of its own; its output goes to trial.log."""
    with (folder / "trial.log").open("ab") as log:
        command = [sys.executable, "-m", "march_search.training", str(folder), *arguments]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def train(folder: Path, *arguments: str) -> Ended:
    """Train a trial in ranks that are forked, not started by a supervisor. It does the same in a third of the time.

    Returns:
        The exit code of the first rank that failed, or 0, and what all ranks printed as `stderr`.
    """
    ranks, meeting = trial_config(folder).devices.ranks, folder / f".rendezvous.{uuid.uuid4().hex}"
    log = folder / "ranks.log"
    log.unlink(missing_ok=True)
    running = [forks().Process(target=_rank, args=(folder, rank, ranks, meeting, arguments)) for rank in range(ranks)]
    for process in running:
        process.start()
    code, deadline = 0, time.monotonic() + 300
    while running:
        ready = connection.wait([process.sentinel for process in running], timeout=deadline - time.monotonic())
        for process in [process for process in running if not ready or process.sentinel in ready]:
            process.join(0 if ready else None if process.kill() else 10)
            code = code or (process.exitcode if process.exitcode is not None else -signal.SIGKILL)
            running.remove(process)
        for process in running if code else ():
            process.kill()
    meeting.unlink(missing_ok=True)
    return subprocess.CompletedProcess(["train", str(folder), *arguments], code, "", log.read_text())


def _rank(folder: Path, rank: int, ranks: int, meeting: Path, arguments: tuple[str, ...]) -> None:
    """Be one rank, with the environment that a supervisor gives it."""
    log = os.open(folder / "ranks.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ.update({"MARCH_SEARCH_MEETING": str(meeting), "PATH": "/nonexistent"})
    timing.PEAK_MATRIX_SIZES["cpu"] = 64  # in bf16, measuring the peak would take longer than training
    code = training_main([str(folder), *arguments])
    sys.stderr.flush()
    os._exit(code)


def wait_until(condition: Callable[[], object], seconds: float = 60, interval: float = 0.02) -> bool:
    """Wait until `condition` is true; return whether it became true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


def wait_for_step(folder: Path, step: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a trial has written this step."""
    metrics = folder / "metrics.jsonl"

    def reached() -> bool:
        if metrics.is_file() and f'"train", "step": {step},' in metrics.read_text():
            return True
        assert process.poll() is None, (folder / "trial.log").read_text()
        return False

    assert wait_until(reached, 120, 0.002), "the trial makes no progress"


def stop_at_step(folder: Path, step: int, signum: int = signal.SIGKILL) -> int:
    """Start a trial, send it a signal at this step, and return its exit code."""
    process = start_trial(folder)
    wait_for_step(folder, step, process)
    process.send_signal(signum)
    return process.wait(timeout=60)


def write_checkpoint(folder: Path, step: int) -> Path:
    """Write an intact checkpoint with made-up content in a trial's folder, and return its own folder."""
    tag = folder / "checkpoints" / f"step-{step:09d}"
    tag.mkdir(parents=True)
    (tag / "state").write_bytes(b"whole")
    write_manifest(tag)
    return tag


def child_processes(process: "subprocess.Popen[bytes]") -> list[int]:
    """Return the process IDs of the children of a process: for a trial, its ranks in order."""
    return list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def result(folder: Path) -> dict[str, Any]:
    """Return the result of a complete trial."""
    return json.loads((folder / "result.json").read_text())


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Return the metric lines of one kind, without values that depend on the clock."""
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in every if line["kind"] == kind]


def expected_steps(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the metrics of a trial by step, as a tracker should have them."""
    steps: dict[int, dict[str, float]] = {}
    for line in read_metrics(folder).lines:
        numbers = {f"{line['kind']}/{name}": value for name, value in line.items() if type(value) in (int, float)}
        values = {name: value for name, value in numbers.items() if not name.endswith(("/step", "/tokens"))}
        steps.setdefault(line["step"], {"tokens": line["tokens"]}).update(values)
    return sorted(steps.items())


def alive(marker: str) -> list[str]:
    """Return the command lines of running processes that contain `marker`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if marker in command and state != "Z":
                found.append(command)
    return found
