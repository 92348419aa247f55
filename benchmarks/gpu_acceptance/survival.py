"""Part 3: memory runs out, trials are killed and resumed, two workers share a GPU, and a study ends in a report."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_acceptance import trials
from gpu_acceptance.acceptance_run import CORPUS, AcceptanceRun, Row
from march_search import Architecture
from march_search.cost.memory import memory
from march_search.cost.setup import study_setup
from march_search.display.tables import Column
from march_search.errors import TrialError
from march_search.files.json_tables import read_json

COLUMNS = (
    Column(key="name", heading="what happened", short="what", left=True),
    Column(key="result", heading="result", short="result", left=True),
    Column(key="finding", heading="finding", short="finding", left=True, show=lambda text: str(text)[:110]),
    Column(key="seconds", heading="seconds", short="s", show="{:.0f}".format),
)

CONTEXT_BYTES = 1_500_000_000
"""GPU memory that the libraries of a trial take besides its tensors, left free for it."""

STUDY = """\
description = "Four shapes, to see a study from its start to its report"
space = "t5"
budget = "220M"

[search]
strategy = "list"
architectures = {architectures}

[confirm]
max_seeds = 1

[pruner]
kind = "none"

[data]
corpus = "{corpus}"
vocab_size = {data.vocab_size}
sequence_length = {data.sequence_length}
validation_fraction = {data.validation_fraction}
validation_sequences = {data.validation_sequences}

[training]
tokens = {tokens}
global_batch_tokens = {batch}
learning_rate = 2e-3
precision = "{precision}"
evaluations = 4
checkpoints = 1

[devices]
kind = "{kind}"
{threads}
"""


def run(acceptance: AcceptanceRun) -> int:
    """Run the part and return its exit code."""
    shutil.rmtree(acceptance.out / "trials", ignore_errors=True)
    acceptance.attempt("out of memory", 60, lambda: _out_of_memory(acceptance))
    for is_deterministic in (False, True):
        _stopped_and_resumed(acceptance, is_deterministic)
    shutil.rmtree(acceptance.out / "root" / "acceptance", ignore_errors=True)
    has_run = acceptance.attempt("two workers", 60, lambda: _two_workers(acceptance))
    for name, arguments in _after(acceptance).items() if has_run else ():
        acceptance.attempt(f"study {name}", 5, lambda arguments=arguments: _command(acceptance, arguments))
    return acceptance.finish("survival", COLUMNS)


def _out_of_memory(acceptance: AcceptanceRun) -> Row:
    """Train with a micro batch that does not fit; it must be halved until the trial completes."""
    scale = acceptance.scale
    settings = {"micro_batch_sequences": scale.broad_sequences, "checkpoints": 0, "keep_weights": False}
    folder = trials.make(acceptance, "broad", scale.broad, scale.broad_sequences, 2, **settings)
    if acceptance.kind == "cpu":
        code = trials.train(acceptance, folder, limit=scale.memory_gigabytes)
    else:
        config = acceptance.trial(scale.broad, scale.broad_sequences, scale.broad_sequences // 4, 2)
        fits = memory(Architecture.parse(scale.broad), study_setup(config, acceptance.device())).total
        holder, held = trials.holding(acceptance, int(1.1 * fits) + CONTEXT_BYTES)
        try:
            code = trials.train(acceptance, folder)
        finally:
            (held / "release").touch()
            holder.wait(timeout=30)
    found = trials.result(folder)
    halvings, micro_batch = found["micro_batch_halvings"], found["training"]["micro_batch_sequences"]
    return {
        "result": "ok" if code == 0 and halvings else "failed",
        "finding": f"micro batch {scale.broad_sequences} halved {halvings} times to {micro_batch}; exit code {code}",
        "halvings": halvings,
    }


def _stopped_and_resumed(acceptance: AcceptanceRun, is_deterministic: bool) -> None:
    """Train one trial twice, and others that are killed or interrupted and resumed; compare them."""
    scale, kind = acceptance.scale, "deterministic" if is_deterministic else "default"
    step = scale.survivor_steps * 3 // 5

    def make(name: str) -> Path:
        options = {"deterministic": is_deterministic}
        steps, sequences = scale.survivor_steps, scale.survivor_sequences
        return trials.make(acceptance, f"{name}-{kind}", scale.survivor, sequences, steps, **options)

    whole = acceptance.out / "trials" / f"whole-{kind}"

    def undisturbed() -> Row:
        code = trials.train(acceptance, make("whole"))
        if code:
            failure = read_json(whole / "failure.json")
            raise TrialError(f"exit code {code}: {failure['reason'] if isinstance(failure, dict) else 'no reason'}")
        speed = trials.speed(whole)
        row: Row = {"finding": f"{speed:,.0f} tokens/s", "tokens_per_second": speed}
        other = acceptance.out / "trials" / "whole-default"
        if is_deterministic and (other / "result.json").is_file():
            row["finding"] += f", {speed / trials.speed(other):.2f} times the default's speed"
        return row

    def compared(name: str, signum: int) -> Row:
        folder = make(name)
        code = trials.stopped(acceptance, folder, step, signum) if signum else 0
        again = trials.train(acceptance, folder)
        found = trials.difference(whole, folder)
        expected = {0: 0, signal.SIGTERM: 128 + signal.SIGTERM}.get(signum, code)
        good = again == 0 and code == expected and (found["is_equal"] or not is_deterministic)
        codes = f"; exit code {code} after the signal" if signum == signal.SIGTERM else ""
        return {"result": "ok" if good else "failed", "finding": trials.in_words(found) + codes} | found

    if not acceptance.attempt(f"trial, {kind}", 30, undisturbed):
        return
    acceptance.attempt(f"trained again, {kind}", 25, lambda: compared("again", 0))
    acceptance.attempt(f"killed and resumed, {kind}", 40, lambda: compared("killed", signal.SIGKILL))
    if not is_deterministic:
        acceptance.attempt("SIGTERM and resumed", 40, lambda: compared("terminated", signal.SIGTERM))


def _command_line(acceptance: AcceptanceRun, *arguments: str) -> list[str]:
    """Return a command of march-search for the study."""
    return [sys.executable, "-m", "march_search", *arguments, "--root", str(acceptance.out / "root")]


def _two_workers(acceptance: AcceptanceRun) -> Row:
    """Run the study with two workers at once; on one GPU, the second must be refused in one line."""
    scale = acceptance.scale
    batch = scale.survivor_sequences * scale.data.sequence_length
    text = STUDY.format(
        architectures=str(list(scale.study_shapes)).replace("'", '"'),
        corpus=CORPUS,
        data=scale.data,
        tokens=scale.study_steps * batch,
        batch=batch,
        precision=scale.precision,
        kind=acceptance.kind,
        threads="threads = 1" if acceptance.kind == "cpu" else "",
    )
    study = acceptance.out / "acceptance.toml"
    study.write_text(text)
    command = _command_line(acceptance, "study", "run", str(study))
    workers = [_worker(command, acceptance.out / "worker1.log")]
    ends = time.monotonic() + min(60, acceptance.left)
    while not list((acceptance.out / "root").glob("acceptance/runs/*/trial.json")) and time.monotonic() < ends:
        time.sleep(0.1)
        if workers[0].poll() is not None:
            break
    workers.append(_worker(command, acceptance.out / "worker2.log"))
    for worker in workers:
        try:
            worker.wait(timeout=max(1.0, acceptance.left))
        except subprocess.TimeoutExpired:
            worker.terminate()
            worker.wait(timeout=60)
    codes = [worker.returncode for worker in workers]
    last = ((acceptance.out / "worker2.log").read_text(errors="replace").strip().splitlines() or [""])[-1]
    is_refused = codes[1] != 0 and "are free" in last
    complete = len(list((acceptance.out / "root" / "acceptance").rglob("result.json")))
    good = codes[0] == 0 and complete >= len(scale.study_shapes)
    second = "was refused" if is_refused else f"ended with exit code {codes[1]}"
    good = good and (is_refused if acceptance.kind == "cuda" else codes[1] == 0)
    finding = f"{complete} of {len(scale.study_shapes)} trials complete; the second worker {second}: {last}"
    return {"result": "ok" if good else "failed", "finding": finding, "exit_codes": codes}


def _worker(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """Start a worker whose output goes to a file."""
    with log.open("wb") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=trials.with_parent()
        )


def _after(acceptance: AcceptanceRun) -> dict[str, list[str]]:
    """Return the commands that read the finished study, by name."""
    shutil.rmtree(acceptance.out / "best", ignore_errors=True)
    return {
        "rank": ["rank", "acceptance"],
        "report": ["report", "acceptance", "-o", str(acceptance.out / "report.html")],
        "export": ["export", "acceptance", acceptance.scale.study_shapes[0], "-o", str(acceptance.out / "best")],
    }


def _command(acceptance: AcceptanceRun, arguments: list[str]) -> Row:
    """Run a command of march-search and return whether it succeeded, with its output."""
    ended = subprocess.run(
        _command_line(acceptance, *arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=dict(os.environ),
    )
    text = (ended.stdout or ended.stderr).strip()
    lines = text.splitlines() or ["no output"]
    result: Any = "ok" if ended.returncode == 0 else "failed"
    return {"result": result, "finding": lines[0] if ended.returncode == 0 else lines[-1], "output": text[:4000]}
