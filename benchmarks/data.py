"""Measure the data pipeline: speed of batches and tokenisation, waiting time of a trial, memory of `data prepare`.

python benchmarks/data.py [--repeats 7]
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

import numpy as np

from march_search.config import DataConfig, DevicesConfig, TrainingConfig, TrialConfig
from march_search.data import corpora
from march_search.data.batches import Batches
from march_search.data.prepare import prepare
from march_search.data.store import Store
from march_search.data.tokenizer import load

DATA = DataConfig(vocab_size=8192, sequence_length=512, validation_sequences=16)
ARCHITECTURE = "L2-D128-H4x32-F384-geglu-rope-V8192"
BATCH = 32


def main() -> None:
    """Print all measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="repeats of each speed comparison (default: 7)")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = Store.open(prepare(DATA, root, root, tokens=0))
        compare_batches(store, repeats)
        measure_waiting(store, root)
        compare_tokenisation(root, repeats)
        measure_memory(root)


def compare_batches(store: Store, repeats: int) -> None:
    """Compare batches of one thread with corrupting one example at a time."""
    batches, tokens = Batches(store, DATA, seed=0), np.concatenate(store.tokens("train").parts)
    rng = np.random.default_rng(0)
    order = rng.permutation(batches.num_train)

    def one_by_one(first: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = [order[e % len(order)] * DATA.sequence_length for e in range(first, first + BATCH)]
        pairs = [corrupt_one(tokens[s : s + DATA.sequence_length].astype(np.int64), rng) for s in chosen]
        return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])

    assert [a.shape for a in batches.train(0, BATCH)] == [a.shape for a in one_by_one(0)]
    slow, fast = alternate(
        lambda: [one_by_one(i * BATCH) for i in range(50)],
        lambda: [batches.train(i * BATCH, BATCH) for i in range(50)],
        repeats,
    )
    print(
        f"batches of {BATCH} x {DATA.sequence_length}: {50 / fast:,.0f} per second and core, {slow / fast:.1f} x "
        "the speed of one example at a time"
    )


def corrupt_one(tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Corrupt spans of one example as usually implemented, with masks and cumulative sums."""
    lengths, length = DATA.lengths, len(tokens)

    def segments(total: int) -> np.ndarray:
        starts = np.arange(total - 1) < lengths.spans - 1
        rng.shuffle(starts)
        return np.bincount(np.cumsum(np.concatenate([[0], starts])), minlength=lengths.spans)

    plain, noise = segments(length - lengths.noise), segments(lengths.noise)
    edges = np.cumsum(np.stack([plain, noise], axis=1).reshape(-1))[:-1]
    marks = np.zeros(length, np.int8)
    marks[edges] = 1
    is_noise = np.cumsum(marks) % 2 == 1
    sides = []
    for hidden in (is_noise, ~is_noise):
        starts = hidden & ~np.concatenate([[False], hidden[:-1]])
        sentinels = np.where(starts, DATA.vocab_size - np.cumsum(starts), 0)
        side = np.where(hidden, sentinels, tokens)
        sides.append(np.concatenate([side[~hidden | starts], [1]]))
    return sides[0], sides[1]


def measure_waiting(store: Store, root: Path) -> None:
    """Measure the batches per second that a trial on one thread uses, and how long it waits for them."""
    for name in (ARCHITECTURE, ARCHITECTURE.replace("-rope", "-rope-dec")):
        folder = root / name
        folder.mkdir()
        training = TrainingConfig(
            tokens=20 * 16384, global_batch_tokens=16384, precision="fp32", evaluations=1, checkpoints=0
        )
        config = TrialConfig(
            architecture=name,
            store=os.path.relpath(store.folder, folder),
            seed=0,
            data=DATA,
            training=training,
            devices=DevicesConfig(kind="cpu", threads=1),
        )
        (folder / "trial.json").write_text(json.dumps(asdict(config)))
        subprocess.run(
            [sys.executable, "-m", "march_search.training", str(folder)], check=True, stdout=subprocess.DEVNULL
        )
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["kind"] == "train"][1:]  # the first step starts the prefetch thread
        seconds = sum(training.global_batch_tokens / line["tokens_per_second"] for line in steps)
        waited = sum(line["data_wait_seconds"] for line in steps)
        print(
            f"{name}: {len(steps) / seconds:.1f} batches per second, "
            f"{waited / seconds:.2%} of the time spent waiting for data"
        )


def compare_tokenisation(root: Path, repeats: int) -> None:
    """Compare a whole preparation, including reading and writing, with `tokenizers` alone on the same cores."""
    texts = list(corpora.documents(DATA, root)) * 4
    path, number = root / "texts.jsonl", 0
    path.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i, text in enumerate(texts)))
    config = replace(DATA, corpus=str(path), tokenizer=str(next((root / "data" / "tokenizers").glob("*.json"))))
    rows = [json.loads(line)["text"] for line in path.read_text().splitlines()]

    def tokenizers_alone() -> None:
        load(Path(config.tokenizer or "")).encode_batch_fast(rows)

    def whole_preparation() -> None:
        nonlocal number
        number += 1
        prepare(config, root / f"root{number}", root, tokens=0)

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    fastest, ours = alternate(tokenizers_alone, whole_preparation, repeats)
    megabytes = path.stat().st_size / 1e6
    print(
        f"tokenisation of {megabytes:.0f} MB: {megabytes / ours:.1f} MB/s, {fastest / ours:.0%} of the speed "
        f"of tokenizers alone ({megabytes / fastest:.1f} MB/s)"
    )


MEASURED = """
import sys
from pathlib import Path
from march_search.config import DataConfig
from march_search.data.prepare import prepare
root, text, tokenizer = map(Path, sys.argv[1:])
config = DataConfig(corpus=str(text), tokenizer=str(tokenizer), vocab_size=8192, validation_sequences=2)
prepare(config, root, root, tokens=0)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
"""Program that prints its peak memory in kB. `ru_maxrss` is not usable, because it includes the parent's memory."""


def measure_memory(root: Path) -> None:
    """Measure the peak memory of preparing a text, and a text ten times larger."""
    texts, peaks = list(corpora.documents(DATA, root)), []
    tokenizer = next((root / "data" / "tokenizers").glob("*.json"))
    for times in (2, 20):
        path = root / f"times{times}.jsonl"
        with path.open("w") as file:
            for copy in range(times):
                file.writelines(json.dumps({"text": f"{copy} {text}"}) + "\n" for text in texts)
        command = [sys.executable, "-c", MEASURED, str(root / f"memory{times}"), str(path), str(tokenizer)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"preparing {path.stat().st_size / 1e6:.0f} MB: {peaks[-1] / 1024:,.0f} MB peak memory")
    print(f"ten times the text: {peaks[1] / peaks[0]:.2f} x the memory")


def alternate(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the median seconds of both functions, which are called in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, seconds in zip((first, second), times, strict=True):
            began = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
