"""Kills trials at random moments and damages checkpoints; what comes out must be what comes out of an untouched trial.

python scripts/torture.py [--kills 200] [--damages 1000] [--seed 0] [--ranks 1]

Each start is a rank as its supervisor starts it, forked from a process that has loaded torch and DeepSpeed already:
kills hit work rather than imports. With --ranks 2 it is two, under ZeRO 2, and a process that ends one when the other
is killed. One start in ten is the whole command instead. Trials are resumed after each kill
until they are complete; then weights, metrics (without clocks), losses of every validation example and the result have
to equal, bit for bit, those of a trial that nobody touched. A new trial is begun until there were enough kills. Exit
code 0 only if all of that holds.
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

FORKS = multiprocessing.get_context("forkserver")
"""Starts processes from one that has its libraries loaded."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Tortures; the exit code says whether everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 200), ("damages", 1000), ("seed", 0), ("ranks", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    told = parser.parse_args(arguments)
    rng = random.Random(told.seed)
    os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed says that it looked for one
    FORKS.set_forkserver_preload(["march_search.training.loop", "deepspeed"])
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        store = _store(root)
        untouched, seconds = _untouched(root, store, told.ranks)
        held = _kill(root, store, untouched, seconds, told, rng)
        return 0 if (not told.damages or _damage(root, store, told.damages, rng)) and held else 1


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
    devices, recipe = DevicesConfig(kind="cpu", ranks=ranks, threads=1), replace(TRAINING, zero_stage=2 * (ranks > 1))
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
    """Trains the trial: its ranks, or the `whole` command."""
    target, more = (_command, ()) if whole else (_ranks, (ranks,)) if ranks > 1 else (_rank, (0, 1))
    process = FORKS.Process(target=target, args=(folder, *more))
    process.start()
    return process


def _rank(folder: Path, rank: int, ranks: int) -> None:
    """One rank, its output in trial.log."""
    _log(folder)
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in told.items()})
    os._exit(train([str(folder)]))


def _ranks(folder: Path, ranks: int) -> None:
    """Several ranks; the first that ends otherwise than well takes the others with it."""
    os.environ["MARCH_SEARCH_MEETING"] = str(folder / f".rendezvous.{uuid.uuid4().hex}")
    running: list[int] = []
    for rank in range(ranks):
        child = os.fork()
        if not child:
            _rank(folder, rank, ranks)
        running.append(child)
    signal.signal(signal.SIGTERM, lambda signum, _: [os.kill(one, signum) for one in running])
    code = 0
    while running:
        child, status = os.wait()
        running.remove(child)
        code = code or os.waitstatus_to_exitcode(status)
        for other in running if code else ():
            os.kill(other, signal.SIGKILL)
    os._exit(code % 256)


def _command(folder: Path) -> None:
    """What a person types, in the place of this process."""
    _log(folder)
    os.execv(sys.executable, [sys.executable, "-m", "march_search.training", str(folder)])


def _log(folder: Path) -> None:
    """Sends what this process prints to trial.log."""
    log = os.open(folder / "trial.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _untouched(root: Path, store: Path, ranks: int) -> tuple[Path, float]:
    """A trial that nobody touches, and how long it takes."""
    _start(_trial(root, store, "warm", ranks), ranks).join()
    began, folder = time.monotonic(), _trial(root, store, "untouched", ranks)
    process = _start(folder, ranks)
    process.join()
    if process.exitcode:
        raise SystemExit((folder / "trial.log").read_text())
    seconds = time.monotonic() - began
    print(f"untouched: {seconds:.1f} seconds, {len(_traces(folder))} traces to compare", flush=True)
    return folder, seconds


def _kill(
    root: Path, store: Path, untouched: Path, seconds: float, told: argparse.Namespace, rng: random.Random
) -> bool:
    """Stops trials at random moments, with SIGTERM one time in ten, until there were enough kills."""
    wanted, ended, same, where = _traces(untouched), 0, 0, Counter[str]()
    while where.total() - where["asked to stop"] < told.kills:
        folder = _trial(root, store, f"killed-{ended}", told.ranks)
        while not (folder / "result.json").is_file():
            whole = rng.random() < 0.1
            process = _start(folder, told.ranks, whole)
            process.join(rng.uniform(0, seconds * (3 if whole else 1)))
            if process.is_alive():
                where[_stop(folder, process, rng)] += 1
            elif process.exitcode:
                raise SystemExit((folder / "trial.log").read_text())
        found, ended = _traces(folder), ended + 1
        wrong = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
        same += not wrong
        shutil.rmtree(folder)
        print(f"{where.total()} stops, {ended} trials, {same} the same" + "".join(f"; {w} differs" for w in wrong))
    print("; ".join(f"{count} {place}" for place, count in sorted(where.items())), flush=True)
    return same == ended


def _stop(folder: Path, process: "multiprocessing.process.BaseProcess", rng: random.Random) -> str:
    """Kills a trial or one of its ranks, or asks it to stop; waits until all are gone, says in which phase it was."""
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
    written = {path.parent: path.name == "manifest.json" for path in sorted(folder.glob("checkpoints/step-*/*"))}
    if not all((tag / "manifest.json").is_file() for tag in written):
        return "killed while it wrote a checkpoint"
    return "killed later" if written else "killed before the first checkpoint"


def _traces(folder: Path) -> dict[str, object]:
    """All that a trial leaves and that does not depend on the clock."""
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    traces: dict[str, object] = {"metrics": [{k: v for k, v in line.items() if k not in CLOCKS} for line in told]}
    result = json.loads((folder / "result.json").read_text())
    traces["result"] = {name: result[name] for name in ("state", "tokens", "steps", "loss", "context_gain")}
    return traces | {
        str(path.relative_to(folder)): path.read_bytes()
        for path in (folder / "weights.safetensors", *(folder / "validation").glob("*.npy"))
    }


def _damage(root: Path, store: Path, damages: int, rng: random.Random) -> bool:
    """Flips bytes of checkpoints and cuts them; whether each damage was seen and the checkpoint before it taken."""
    folder = _trial(root, store, "damaged") / "checkpoints"
    process = _start(folder.parent)
    while len(list(folder.glob("step-*/manifest.json"))) < 2 and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    whole = sorted(path.parent for path in folder.glob("step-*/manifest.json"))[-2:]
    for tag in folder.glob("step-*"):
        if tag not in whole:
            shutil.rmtree(tag)
    seen, kinds = 0, Counter[str]()
    for _ in range(damages):
        tags = whole if rng.random() < 0.2 else whole[1:]  # both: the trial starts anew
        healthy = [(path, path.read_bytes()) for path in (rng.choice(sorted(tag.iterdir())) for tag in tags)]
        kinds[" and ".join(_hurt(*one, rng) for one in healthy)] += 1
        seen += checkpoint.newest(folder) == (whole[0] if len(tags) == 1 else None)
        for path, data in healthy:
            path.write_bytes(data)
    assert checkpoint.newest(folder) == whole[1]
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
