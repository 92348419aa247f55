"""Measure the overhead of a trial: tokens/s compared with a bare PyTorch loop, and seconds from launch to first step.

    OMP_NUM_THREADS=1 python benchmarks/trial_overhead.py [--rounds 5] [--steps 60] [--batch 2048]

The benchmark alternates between a trial as a study starts it (supervisor, rank, DeepSpeed, metrics, TensorBoard,
prefetched batches) and a loop of plain torch, each in its own process. Both use one thread, the same examples, and the
optimizer, clipping and schedule of `studies/cpu-demo.toml`; the bare loop has its examples in memory before it starts.
The fastest tenths of all steps are compared, without the first steps of each process, because other load can only slow
a step down. Finally, one process calls the functions that a rank calls and prints the seconds of each part of a start,
as medians over the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from march_search.config import DevicesConfig, StudyConfig, TrialConfig
from march_search.config.loader import build, read_file

ARCHITECTURE = "L2-D128-H12x16-F448-rope-V2048"
STUDY = Path(__file__).parent.parent / "studies" / "cpu-demo.toml"
WARM_UP = 10
"""First steps of each process, which are ignored."""


def main() -> None:
    """Run the benchmark, or one of its child processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 5), ("steps", 60), ("batch", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("bare", "parts"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        return print(json.dumps(bare_loop(options.bare)))
    if options.parts:
        return print(json.dumps(start_parts(options.parts)))
    with tempfile.TemporaryDirectory() as name:
        return compare(Path(name), options.rounds, options.steps, options.batch)


def compare(root: Path, rounds: int, steps: int, batch: int) -> None:
    """Print one line per round, then the medians and the parts of a start."""
    from march_search.data.prepare import prepare

    study = build(StudyConfig, read_file(STUDY), str(STUDY))
    training = replace(study.training, global_batch_tokens=batch, tokens=steps * batch, warmup_tokens=0)
    study = replace(study, data=replace(study.data, vocab_size=2048, sequence_length=32), training=training)
    store = prepare(study.data, root, root, tokens=study.training.tokens)
    trial_steps: list[float] = []
    bare_steps: list[float] = []
    starts = []
    for number in range(rounds):
        folder = make_trial(root / str(number), store, study, steps)
        began = time.time()
        with subprocess.Popen(command("-m", "march_search.training", folder), stderr=subprocess.DEVNULL) as process:
            while not first_step(folder):
                assert process.poll() is None
                time.sleep(0.01)
            starts.append(time.time() - began)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        trial_steps += [batch / line["tokens_per_second"] for line in lines if line["kind"] == "train"][WARM_UP:]
        bare_steps += json_output(command(__file__, "--bare", folder))[WARM_UP:]
        print(
            f"round {number + 1}: {batch / fast(trial_steps):,.0f} tokens/s, bare {batch / fast(bare_steps):,.0f}",
            flush=True,
        )
    print(f"tokens/s of a trial / bare loop: {fast(bare_steps) / fast(trial_steps):.3f} (target: at least 0.95)")
    print(f"seconds from launch to first step: {statistics.median(starts):.2f}, minimum {min(starts):.2f}")
    folders = [make_trial(root / f"parts-{number}", store, study, 1) for number in range(rounds)]
    measured = [json_output(command(__file__, "--parts", folder)) for folder in folders]
    for part in measured[0]:
        print(f"{statistics.median(seconds[part] for seconds in measured):8.2f}  {part}")


def make_trial(folder: Path, store: Path, study: StudyConfig, steps: int) -> Path:
    """Create the folder of a trial with this number of steps, evaluated and saved only at the end."""
    folder.mkdir()
    tokens = steps * study.training.global_batch_tokens
    training = replace(study.training, tokens=tokens, warmup_tokens=0, evaluations=1, checkpoints=0, keep_weights=False)
    devices = DevicesConfig(kind="cpu", threads=1)
    config = TrialConfig(
        architecture=ARCHITECTURE,
        store=os.path.relpath(store, folder),
        seed=0,
        data=study.data,
        training=training,
        devices=devices,
    )
    (folder / "trial.json").write_text(json.dumps(asdict(config)))
    return folder


def command(*arguments: object) -> list[str]:
    """Return a command line that runs Python with these arguments."""
    return [sys.executable, *map(str, arguments)]


def json_output(command: list[str]) -> Any:
    """Run a command and parse the last line that it prints as JSON."""
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(ended.stdout.splitlines()[-1])


def first_step(folder: Path) -> bool:
    """Return whether the trial has taken a step."""
    metrics = folder / "metrics.jsonl"
    return metrics.is_file() and metrics.stat().st_size > 0


def fast(seconds: list[float]) -> float:
    """Return the mean of the fastest tenth."""
    return statistics.mean(sorted(seconds)[: max(1, len(seconds) // 10)])


def bare_loop(folder: Path) -> list[float]:
    """Train with plain torch and return the seconds of each step."""
    import torch

    from march_search import Architecture
    from march_search.data.batches import Batches
    from march_search.data.store import Store
    from march_search.model import build as build_model
    from march_search.training.optimizer import parameter_groups, schedule

    torch.set_num_threads(1)
    config = build(TrialConfig, read_file(folder / "trial.json"), "trial.json")
    training, sequences = config.training, config.batch.sequences
    batches = Batches(Store.open(folder / config.store), config.data, config.seed, "encoder-decoder")
    examples = [[torch.from_numpy(x) for x in batches.train(n * sequences, sequences)] for n in range(training.steps)]
    torch.manual_seed(config.seed)
    model = build_model(Architecture.parse(config.architecture), training.init)
    groups = [{"params": [*g.parameters.values()], **g.settings(training)} for g in parameter_groups(model, None)]
    optimizer = torch.optim.AdamW(groups, betas=training.betas, eps=training.epsilon, fused=True)
    rate, seconds = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(training)), []
    for inputs, targets in examples:
        began = time.perf_counter()
        loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        loss.item()
        seconds.append(time.perf_counter() - began)
    return seconds


def start_parts(folder: Path) -> dict[str, float]:
    """Start a trial in this process and return the seconds of each part, in order."""
    seconds: dict[str, float] = {}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - began

        return wrapper

    config = build(TrialConfig, read_file(folder / "trial.json"), "trial.json")
    for name in ("torch", "deepspeed", "tensorboard.summary.writer.record_writer", "march_search.training.loop"):
        timed(f"import {name}", __import__)(name)
    from march_search.training import checkpoint, loop, timing
    from march_search.training.evaluation import Validation

    for module, name, part in (
        (loop, "join_ranks", "process group"), (timing, "measure_utilisation", "peak of matrix products"),
        (loop, "Batches", "order of the data"), (Validation, "of", "validation examples"),
        (loop, "_engine", "model and engine"), (checkpoint, "load", "search for checkpoints"),
        (loop, "_one_step", "first step"),
    ):  # fmt: skip
        setattr(module, name, timed(part, getattr(module, name)))
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    loop.train(folder, config, last_step=1)
    return seconds


if __name__ == "__main__":
    main()
