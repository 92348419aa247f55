"""Trials of part 3: make their folders, run, stop and resume them, and compare what they leave."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_acceptance.acceptance_run import AcceptanceRun
from march_search.errors import TrialError
from march_search.files.atomic import file_sha256
from march_search.files.json_tables import read_json, write_json
from march_search.processes import PARENT
from march_search.trial.metrics import read_metrics

LIMITED = (
    "import resource, runpy; resource.setrlimit(resource.RLIMIT_DATA, ({size},) * 2);"
    "runpy.run_module('march_search.training', run_name='__main__', alter_sys=True)"
)
"""Program that trains with a limit on its memory."""


def with_parent() -> dict[str, str]:
    """Return the environment of a child that dies with this process, also if this one is killed."""
    return os.environ | {PARENT: str(os.getpid())}


def make(acceptance: AcceptanceRun, name: str, shape: str, sequences: int, steps: int, **training: Any) -> Path:
    """Make the folder of a trial whose checkpoints follow after each quarter of its steps."""
    folder = acceptance.out / "trials" / name
    folder.mkdir(parents=True)
    micro_batch = training.pop("micro_batch_sequences", sequences)
    config = acceptance.trial(
        shape, sequences, micro_batch, steps, **({"checkpoints": 3, "keep_weights": True} | training)
    )
    write_json(folder / "trial.json", asdict(config))
    return folder


def train(
    acceptance: AcceptanceRun,
    folder: Path,
    watch: Callable[[subprocess.Popen[bytes]], None] = lambda _: None,
    limit: float = 0.0,
) -> int:
    """Train the trial in its own process and return the exit code; `watch` is called until it ends.

    Raises:
        TrialError: If it takes longer than the scale allows. All its processes are killed.
    """
    program = ["-c", LIMITED.format(size=int(limit * 2**30))] if limit else ["-m", "march_search.training"]
    ends = time.monotonic() + min(acceptance.scale.trial_seconds, max(acceptance.left, 1.0))
    with (folder / "trial.log").open("ab") as log:
        command = [sys.executable, *program, str(folder)]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=with_parent())
        while process.poll() is None:
            watch(process)
            if time.monotonic() > ends:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise TrialError(f"{folder.name}: did not finish in time; see {folder / 'trial.log'}")
            time.sleep(0.01)
    return process.returncode


def stopped(acceptance: AcceptanceRun, folder: Path, step: int, signum: int) -> int:
    """Train the trial, send it a signal after this step, and return its exit code."""
    sent: list[bool] = []

    def watch(process: subprocess.Popen[bytes]) -> None:
        if not sent and any(line["step"] >= step for line in read_metrics(folder).of_kind("train")):
            sent.append(True)
            if signum == signal.SIGKILL:
                os.killpg(process.pid, signum)
            else:
                process.send_signal(signum)

    code = train(acceptance, folder, watch)
    if not sent:
        raise TrialError(f"{folder.name}: ended with exit code {code} before step {step}; see {folder / 'trial.log'}")
    return code


def difference(one: Path, other: Path) -> dict[str, Any]:
    """Return whether two complete trials are equal to the last bit, and how far their losses differ.

    Raises:
        TrialError: If one of them is not complete.
    """
    for folder in (one, other):
        if not (folder / "result.json").is_file():
            raise TrialError(f"{folder.name}: not complete; see {folder / 'trial.log'}")
    weights = [file_sha256(folder / "weights.safetensors") for folder in (one, other)]
    losses = [[line["loss"] for line in read_metrics(folder).of_kind("train")] for folder in (one, other)]
    if len(losses[0]) != len(losses[1]):
        raise TrialError(f"{other.name} has {len(losses[1])} steps, {one.name} has {len(losses[0])}")
    largest = max(abs(x - y) for x, y in zip(*losses, strict=True))
    return {"is_equal": weights[0] == weights[1] and not largest, "loss_difference": largest}


def in_words(found: dict[str, Any]) -> str:
    """Return a difference as text."""
    return (
        "equal to the bit"
        if found["is_equal"]
        else f"not equal to the bit; losses differ by {found['loss_difference']:.1e}"
    )


def speed(folder: Path) -> float:
    """Return the median tokens per second of the second half of a trial's steps."""
    speeds = [line["tokens_per_second"] for line in read_metrics(folder).of_kind("train")]
    return float(statistics.median(speeds[len(speeds) // 2 :]))


def hold_memory(folder: Path, scale: str, kind: str, store: str, out: str, leave: int) -> dict[str, Any]:
    """Hold all but `leave` bytes of the GPU's memory until the file `release` appears in `folder`."""
    import torch

    free = torch.cuda.mem_get_info()[0]
    held = torch.empty(max(0, free - leave), dtype=torch.uint8, device="cuda")
    write_json(folder / "held.json", {"bytes": held.numel(), "free_bytes": torch.cuda.mem_get_info()[0]})
    while not (folder / "release").exists():
        time.sleep(0.05)
    return {"bytes": held.numel()}


def holding(acceptance: AcceptanceRun, leave: int) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a process that leaves this many bytes of the GPU's memory, and wait until it holds the rest.

    Raises:
        TrialError: If it does not within a minute.
    """
    folder = acceptance.out / "work" / "hold"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("release", "held.json"):
        (folder / name).unlink(missing_ok=True)
    given = {
        "scale": acceptance.scale_name,
        "kind": acceptance.kind,
        "store": str(acceptance.store),
        "out": str(acceptance.out),
    }
    write_json(folder / "arguments.json", given | {"leave": leave})
    command = [sys.executable, "-m", "gpu_acceptance.work", "hold", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=with_parent())
    ends = time.monotonic() + 60
    while read_json(folder / "held.json") is None:
        if process.poll() is not None or time.monotonic() > ends:
            process.kill()
            raise TrialError("no process could hold the GPU's memory")
        time.sleep(0.05)
    return process, folder


def result(folder: Path) -> dict[str, Any]:
    """Return the result of a complete trial.

    Raises:
        TrialError: If it is not complete.
    """
    found = read_json(folder / "result.json")
    if not isinstance(found, dict):
        failure = read_json(folder / "failure.json")
        raise TrialError(f"{folder.name}: not complete: {json.dumps(failure)[:200]}")
    return found
