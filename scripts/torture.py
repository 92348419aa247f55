"""Kill trials at random moments and damage checkpoints; the results must equal those of an undisturbed trial.

    python scripts/torture.py [--kills 200] [--damages 1000] [--seed 0] [--ranks 1] [--branches]

The script starts a rank as its supervisor does, forked from a process that has already loaded torch and DeepSpeed, so
that kills hit training rather than imports. With `--ranks 2`, it starts two ranks under ZeRO 2 and a parent that kills
the other rank when one fails. One start in ten runs the whole command instead. A trial is resumed after each kill until
it is complete. Its weights, metrics (without clocks), losses of all validation examples and result must then equal
those of an undisturbed trial, bit by bit. New trials are started until there were enough kills. The exit code is 0 if
all results are equal and all damage is detected.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from march_search.config import DataConfig, DevicesConfig, TrainingConfig, TrialConfig
from march_search.data.prepare import prepare
from march_search.training import checkpoint
from march_search.training.__main__ import main as train
from march_search.training.metrics_file import CLOCKS

ARCHITECTURE = "L1-D32-H2x16-F64-geglu-rope-V400"
DATA = DataConfig(vocab_size=400, sequence_length=32, validation_fraction=0.2, validation_sequences=24)
TRAINING = TrainingConfig(
    tokens=96 * 256, global_batch_tokens=256, micro_batch_sequences=2, learning_rate=1e-2, precision="fp32",
    evaluations=6, checkpoints=23,
)  # fmt: skip
"""96 steps of four micro batches, a checkpoint after every fourth step."""

BRANCHED = replace(TRAINING, schedule="wsd", decay_fraction=0.5, branch_tokens=(42 * 256, 80 * 256), checkpoints=7)
"""The same with decay branches of 21 and 40 steps, of which one starts between two checkpoints."""

FORKS = multiprocessing.get_context("forkserver")
"""Starts processes from one that has loaded the libraries."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("kills", 200, "times that a trial is killed"),
        ("damages", 1000, "times that checkpoints are damaged"),
        ("seed", 0, "seed of moments and damages"),
        ("ranks", 1, "ranks of a trial"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default: {default})")
    parser.add_argument("--branches", action="store_true", help="train decay branches, too")
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    os.environ["DS_ACCELERATOR"] = "cpu"  # otherwise DeepSpeed prints that it looked for one
    FORKS.set_forkserver_preload(["march_search.training.loop", "deepspeed"])
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        store, recipe = _prepare_store(root), BRANCHED if options.branches else TRAINING
        undisturbed, seconds = _train_undisturbed(root, store, options.ranks, recipe)
        passed = _check_kills(root, store, undisturbed, seconds, options, rng)
        if options.damages:
            passed = _check_damages(root, store, options.damages, rng) and passed
        return 0 if passed else 1


def _prepare_store(root: Path) -> Path:
    """Prepare a text of random words and return the token store."""
    corpus, rng = root / "corpus", random.Random(0)
    corpus.mkdir()
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(300)]
    for number in range(200):
        (corpus / f"{number:03d}.txt").write_text(" ".join(rng.choices(words, k=120)))
    return prepare(replace(DATA, corpus=str(corpus)), root, corpus, tokens=1)


def _make_trial(root: Path, store: Path, name: str, ranks: int = 1, recipe: TrainingConfig = TRAINING) -> Path:
    """Create the folder of a new trial."""
    folder = root / name
    folder.mkdir()
    devices, recipe = DevicesConfig(kind="cpu", ranks=ranks, threads=1), replace(recipe, zero_stage=2 * (ranks > 1))
    config = TrialConfig(
        architecture=ARCHITECTURE,
        store=os.path.relpath(store, folder),
        seed=0,
        data=DATA,
        training=recipe,
        devices=devices,
    )
    (folder / "trial.json").write_text(json.dumps(asdict(config)))
    return folder


def _start(folder: Path, ranks: int = 1, whole: bool = False) -> "multiprocessing.process.BaseProcess":
    """Start training the trial: its ranks, or the whole command."""
    if whole:
        process = FORKS.Process(target=_run_command, args=(folder,))
    elif ranks > 1:
        process = FORKS.Process(target=_run_ranks, args=(folder, ranks))
    else:
        process = FORKS.Process(target=_run_rank, args=(folder, 0, 1))
    process.start()
    return process


def _run_rank(folder: Path, rank: int, ranks: int) -> None:
    """Run one rank, with its output in trial.log."""
    _redirect_output(folder)
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in variables.items()})
    os._exit(train([str(folder)]))


def _run_ranks(folder: Path, ranks: int) -> None:
    """Run several ranks; when one fails, kill the others."""
    os.environ["MARCH_SEARCH_MEETING"] = str(folder / f".rendezvous.{uuid.uuid4().hex}")
    running: list[int] = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            _run_rank(folder, rank, ranks)
        running.append(child)
    signal.signal(signal.SIGTERM, lambda signum, _: [os.kill(pid, signum) for pid in running])
    code = 0
    while running:
        child, status = os.wait()
        running.remove(child)
        code = code or os.waitstatus_to_exitcode(status)
        for other in running if code else ():
            os.kill(other, signal.SIGKILL)
    os._exit(code % 256)


def _run_command(folder: Path) -> None:
    """Replace this process by the command that trains a trial."""
    _redirect_output(folder)
    os.execv(sys.executable, [sys.executable, "-m", "march_search.training", str(folder)])


def _redirect_output(folder: Path) -> None:
    """Append the output of this process to trial.log."""
    log = os.open(folder / "trial.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _train_undisturbed(root: Path, store: Path, ranks: int, recipe: TrainingConfig) -> tuple[Path, float]:
    """Train a trial without disturbing it; return its folder and its duration in seconds."""
    _start(_make_trial(root, store, "warm-up", ranks, recipe), ranks).join()
    began, folder = time.monotonic(), _make_trial(root, store, "undisturbed", ranks, recipe)
    process = _start(folder, ranks)
    process.join()
    if process.exitcode:
        raise SystemExit((folder / "trial.log").read_text())
    seconds = time.monotonic() - began
    print(f"undisturbed trial: {seconds:.1f} seconds, {len(_results(folder))} results to compare", flush=True)
    return folder, seconds


def _check_kills(
    root: Path, store: Path, undisturbed: Path, seconds: float, options: argparse.Namespace, rng: random.Random
) -> bool:
    """Stop trials at random moments, one time in ten with SIGTERM, until there were enough kills.

    Return whether all results equal those of the undisturbed trial.
    """
    expected, num_trials, num_equal, phases = _results(undisturbed), 0, 0, Counter[str]()
    while phases.total() - phases["asked to stop"] < options.kills:
        recipe = BRANCHED if options.branches else TRAINING
        folder = _make_trial(root, store, f"killed-{num_trials}", options.ranks, recipe)
        while not (folder / "result.json").is_file():
            whole = rng.random() < 0.1
            process = _start(folder, options.ranks, whole)
            process.join(rng.uniform(0, seconds * (3 if whole else 1)))
            if process.is_alive():
                phases[_stop(folder, process, rng)] += 1
            elif process.exitcode:
                raise SystemExit((folder / "trial.log").read_text())
        results, num_trials = _results(folder), num_trials + 1
        differing = [name for name in {**expected, **results} if expected.get(name) != results.get(name)]
        num_equal += not differing
        shutil.rmtree(folder)
        differences = "".join(f"; {name} differs" for name in differing)
        print(f"{phases.total()} stops, {num_trials} trials{differences}, {num_equal} the same", flush=True)
    print("; ".join(f"{count} {phase}" for phase, count in sorted(phases.items())), flush=True)
    return num_equal == num_trials


def _stop(folder: Path, process: "multiprocessing.process.BaseProcess", rng: random.Random) -> str:
    """Kill a trial or one of its ranks, or ask it to stop; wait until all have exited, and return its phase."""
    ranks = list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))
    if rng.random() < 0.1:
        process.terminate()
    else:
        os.kill(rng.choice([process.pid or 0, *ranks]), signal.SIGKILL)
    process.join()
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        time.sleep(0.01)
    if process.exitcode in (143, -signal.SIGTERM):
        return "asked to stop"
    checkpoints = {path.parent: path.name == "manifest.json" for path in sorted(folder.glob("checkpoints/step-*/*"))}
    if not all((tag / "manifest.json").is_file() for tag in checkpoints):
        return "killed while writing a checkpoint"
    return "killed later" if checkpoints else "killed before the first checkpoint"


def _results(folder: Path) -> dict[str, object]:
    """Return everything that a trial writes and that does not depend on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    results: dict[str, object] = {"metrics": [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]}
    result = json.loads((folder / "result.json").read_text())
    results["result"] = {name: result[name] for name in ("state", "tokens", "steps", "loss", "context_gain")}
    results["branches"] = result.get("branches")
    return results | {
        str(path.relative_to(folder)): path.read_bytes()
        for path in (folder / "weights.safetensors", *(folder / "validation").glob("*.npy"))
    }


def _check_damages(root: Path, store: Path, damages: int, rng: random.Random) -> bool:
    """Damage checkpoints; return whether all damage was detected and the checkpoint before it was chosen."""
    folder = _make_trial(root, store, "damaged") / "checkpoints"
    process = _start(folder.parent)
    while len(list(folder.glob("step-*/manifest.json"))) < 2 and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    intact = sorted(path.parent for path in folder.glob("step-*/manifest.json"))[-2:]
    for tag in folder.glob("step-*"):
        if tag not in intact:
            shutil.rmtree(tag)
    num_detected, kinds = 0, Counter[str]()
    for _ in range(damages):
        tags = intact if rng.random() < 0.2 else intact[1:]  # if both are damaged, the trial starts over
        originals = [(path, path.read_bytes()) for path in (rng.choice(sorted(tag.iterdir())) for tag in tags)]
        kinds[" and ".join(_damage_file(path, data, rng) for path, data in originals)] += 1
        num_detected += checkpoint.newest(folder) == (intact[0] if len(tags) == 1 else None)
        for path, data in originals:
            path.write_bytes(data)
    assert checkpoint.newest(folder) == intact[1]
    print(
        f"{damages} damages ({', '.join(f'{n} {k}' for k, n in sorted(kinds.items()))}), {num_detected} seen",
        flush=True,
    )
    return num_detected == damages


def _damage_file(path: Path, data: bytes, rng: random.Random) -> str:
    """Change one byte of a file, or truncate it; return which of the two."""
    offset = rng.randrange(len(data))
    if rng.random() < 0.3:
        path.write_bytes(data[:offset])
        return "truncated"
    path.write_bytes(data[:offset] + bytes([data[offset] ^ rng.randrange(1, 256)]) + data[offset + 1 :])
    return "changed"


if __name__ == "__main__":
    sys.exit(main())
