"""Kills trials at random moments and damages checkpoints; what comes out must be what comes out of an untouched trial.

python scripts/torture.py [--kills 200] [--damages 1000] [--ranks 1] [--seed 0]

Trials are resumed after each kill until they are complete; then weights, metrics (without clocks), losses of every
validation example and the result have to equal, bit for bit, those of a trial that nobody touched. A new trial is begun
until there were enough kills. Exit code 0 only if all of that holds.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from march_search.config import DataConfig, DevicesConfig, TrainingConfig, TrialConfig
from march_search.data.preparation import prepare
from march_search.training import checkpoints

ARCHITECTURE = "L1-D32-H2x16-F64-geglu-rope-V400"
DATA = DataConfig(vocab_size=400, sequence_length=32, validation_fraction=0.2, validation_sequences=24)
TRAINING = TrainingConfig(
    tokens=240 * 256, global_batch_tokens=256, micro_batch_sequences=2, learning_rate=1e-2, precision="fp32",
    evaluations=12, checkpoints=30,
)  # fmt: skip
"""240 steps, a checkpoint after every eighth."""

CLOCKS = ("seconds", "tokens_per_second", "data_wait_seconds")
"""What no two runs have in common."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Tortures; the exit code says whether everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 200), ("damages", 1000), ("ranks", 1), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    told = parser.parse_args(arguments)
    rng = random.Random(told.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        store = _store(root)
        untouched, seconds = _untouched(root, store, told.ranks)
        held = _kill(root, store, untouched, seconds, told.kills, told.ranks, rng)
        return 0 if _damage(root, store, told.damages, rng) and held else 1


def _store(root: Path) -> Path:
    """A prepared text of made-up words."""
    corpus, rng = root / "corpus", random.Random(0)
    corpus.mkdir()
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(300)]
    for number in range(200):
        (corpus / f"{number:03d}.txt").write_text(" ".join(rng.choices(words, k=120)))
    return prepare(replace(DATA, corpus=str(corpus)), root, corpus, tokens=1)


def _trial(root: Path, store: Path, name: str, ranks: int = 1) -> Path:
    """The folder of a new trial."""
    folder = root / name
    folder.mkdir()
    devices = DevicesConfig(kind="cpu", ranks=ranks, threads=1)
    config = TrialConfig(ARCHITECTURE, os.path.relpath(store, folder), 0, DATA, TRAINING, devices)
    (folder / "trial.json").write_text(json.dumps(asdict(config)))
    return folder


def _start(folder: Path) -> "subprocess.Popen[bytes]":
    """Trains the trial, in a session of its own."""
    command = [sys.executable, "-m", "march_search.training", str(folder)]
    with (folder / "trial.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _untouched(root: Path, store: Path, ranks: int) -> tuple[Path, float]:
    """A trial that nobody touches, and how long it takes."""
    began, folder = time.monotonic(), _trial(root, store, "untouched", ranks)
    if _start(folder).wait():
        raise SystemExit((folder / "trial.log").read_text())
    seconds = time.monotonic() - began
    print(f"untouched: {seconds:.1f} seconds, {len(_traces(folder))} traces to compare", flush=True)
    return folder, seconds


def _kill(root: Path, store: Path, untouched: Path, seconds: float, kills: int, ranks: int, rng: random.Random) -> bool:
    """Kills a random process of a trial at random moments until there were enough; whether every end was the same."""
    done, ended, same, stops, where = 0, 0, 0, 0, Counter[str]()
    while done < kills:
        folder = _trial(root, store, f"killed-{ended}", ranks)
        while not (folder / "result.json").is_file():
            process = _start(folder)
            moment = rng.uniform(0, seconds) if done < kills else float("inf")
            while process.poll() is None and (moment := moment - 0.01) > 0:
                time.sleep(0.01)
            if process.poll() is None and rng.random() < 0.2:
                stops += _stop(process)
            elif process.poll() is None:
                where[_kill_one(folder, process, rng)] += 1
                done += 1
            elif process.returncode:
                raise SystemExit((folder / "trial.log").read_text())
        wrong = [name for name, trace in _traces(untouched).items() if _traces(folder).get(name) != trace]
        ended, same = ended + 1, same + (not wrong)
        print(f"{done} kills, {ended} trials, {same} the same" + "".join(f"; differs: {w}" for w in wrong), flush=True)
    print("killed " + ", ".join(f"{count} {place}" for place, count in sorted(where.items())), flush=True)
    print(f"{stops} times asked to stop, besides", flush=True)
    return same == ended


def _stop(process: "subprocess.Popen[bytes]") -> int:
    """Asks a trial to save and stop; 1."""
    process.terminate()
    assert process.wait() in (143, -signal.SIGTERM, 0), process.returncode
    return 1


def _kill_one(folder: Path, process: "subprocess.Popen[bytes]", rng: random.Random) -> str:
    """Kills the trial's first process or one of its ranks, waits until all are gone; says in which phase it was."""
    before = _steps(folder)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(rng.choice([process.pid, *map(int, children)]), signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{child}").exists() for child in children):
        time.sleep(0.01)
    names = [path.name for path in (folder / "checkpoints").glob("step-*/*")]
    torn = len({p.parent for p in (folder / "checkpoints").glob("step-*/*.pt")}) > names.count("manifest.json")
    return "while a checkpoint was written" if torn else f"{'after' if before else 'before'} the first steps"


def _steps(folder: Path) -> int:
    """Lines of metrics."""
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_bytes().splitlines()) if metrics.is_file() else 0


def _traces(folder: Path) -> dict[str, object]:
    """All that a trial leaves and that does not depend on the clock."""
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    traces: dict[str, object] = {"metrics": [{k: v for k, v in line.items() if k not in CLOCKS} for line in told]}
    result = json.loads((folder / "result.json").read_text())
    traces["result"] = {name: result[name] for name in ("state", "tokens", "steps", "loss", "context_gain")}
    traces["checkpoints left"] = (folder / "checkpoints").exists()
    return traces | {
        str(path.relative_to(folder)): path.read_bytes()
        for path in (folder / "weights.safetensors", *(folder / "validation").glob("*.npy"))
    }


def _damage(root: Path, store: Path, damages: int, rng: random.Random) -> bool:
    """Flips bytes of checkpoints and cuts them; whether each damage was seen and the checkpoint before it taken."""
    folder = _trial(root, store, "damaged") / "checkpoints"
    process = _start(folder.parent)
    while len(list(folder.glob("step-*/manifest.json"))) < 2 and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    whole = sorted(path.parent for path in folder.glob("step-*/manifest.json"))[-2:]
    for tag in folder.glob("step-*"):
        if tag not in whole:
            shutil.rmtree(tag)
    seen, kinds = 0, Counter[str]()
    for _ in range(damages):
        tags = whole if rng.random() < 0.2 else whole[1:]  # both: the trial starts anew
        healthy = [(path, path.read_bytes()) for path in (rng.choice(sorted(tag.iterdir())) for tag in tags)]
        kinds[" and ".join(_hurt(*one, rng) for one in healthy)] += 1
        seen += checkpoints.newest(folder) == (whole[0] if len(tags) == 1 else None)
        for path, data in healthy:
            path.write_bytes(data)
    assert checkpoints.newest(folder) == whole[1]
    print(f"{damages} damages ({', '.join(f'{n} {k}' for k, n in sorted(kinds.items()))}), {seen} seen", flush=True)
    return seen == damages


def _hurt(path: Path, data: bytes, rng: random.Random) -> str:
    """Flips one byte of a file, or cuts it."""
    place = rng.randrange(len(data))
    if rng.random() < 0.3:
        path.write_bytes(data[:place])
        return "cut"
    path.write_bytes(data[:place] + bytes([data[place] ^ rng.randrange(1, 256)]) + data[place + 1 :])
    return "flipped"


if __name__ == "__main__":
    sys.exit(main())
