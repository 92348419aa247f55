"""Batches and tokenisation against their plain forms, data waits of a real trial, memory of a text ten times larger.

python benchmarks/data.py
"""

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

REPEATS = 7
DATA = DataConfig(vocab_size=8192, sequence_length=512, validation_sequences=16)
ARCHITECTURE = "L2-D128-H4x32-F384-geglu-rope-V8192"
BATCH = 32


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = Store.open(prepare(DATA, root, root, tokens=0))
        batches(store)
        trial(store, root)
        tokenisation(root)
        memory(root)


def batches(store: Store) -> None:
    """Batches of one thread against the same task an example at a time."""
    ours, tokens = Batches(store, DATA, seed=0), np.concatenate(store.tokens("train").parts)
    rng = np.random.default_rng(0)
    order = rng.permutation(ours.num_train)

    def plain(first: int) -> object:
        chosen = [order[e % len(order)] * DATA.sequence_length for e in range(first, first + BATCH)]
        pairs = [corrupt_one(tokens[s : s + DATA.sequence_length].astype(np.int64), rng) for s in chosen]
        return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])

    made, other = ours.train(0, BATCH), plain(0)
    assert [a.shape for a in made] == [a.shape for a in other]  # type: ignore[attr-defined, union-attr]
    slow, fast = alternate(
        lambda: [plain(i * BATCH) for i in range(50)], lambda: [ours.train(i * BATCH, BATCH) for i in range(50)]
    )
    print(
        f"batches of {BATCH} x {DATA.sequence_length}: {50 / fast:,.0f} a second and core, {slow / fast:.1f} x "
        "one example at a time"
    )


def corrupt_one(tokens: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """T5's span corruption as it is usually written: for one example, with masks and cumulative sums."""
    lengths, length = DATA.lengths, len(tokens)

    def segments(total: int) -> np.ndarray:
        starts = np.arange(total - 1) < lengths.spans - 1
        rng.shuffle(starts)
        return np.bincount(np.cumsum(np.concatenate([[0], starts])), minlength=lengths.spans)

    kept, noise = segments(length - lengths.noise), segments(lengths.noise)
    edges = np.cumsum(np.stack([kept, noise], axis=1).reshape(-1))[:-1]
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


def trial(store: Store, root: Path) -> None:
    """What a trial of one thread consumes, and how long it waits for it."""
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
        steps = [line for line in lines if line["kind"] == "train"][1:]  # the first one starts the thread
        seconds = sum(training.global_batch_tokens / line["tokens_per_second"] for line in steps)
        waited = sum(line["data_wait_seconds"] for line in steps)
        print(
            f"{name}: {len(steps) / seconds:.1f} batches a second, {waited / seconds:.2%} of the time waiting for data"
        )


def tokenisation(root: Path) -> None:
    """A whole preparation, reading and writing included, against `tokenizers` alone on the same cores."""
    texts = list(corpora.documents(DATA, root)) * 4
    path, number = root / "texts.jsonl", 0
    path.write_text("".join(json.dumps({"text": f"{i} {text}"}) + "\n" for i, text in enumerate(texts)))
    config = replace(DATA, corpus=str(path), tokenizer=str(next((root / "data" / "tokenizers").glob("*.json"))))
    rows = [json.loads(line)["text"] for line in path.read_text().splitlines()]

    def alone() -> None:
        load(Path(config.tokenizer or "")).encode_batch_fast(rows)

    def whole() -> None:
        nonlocal number
        number += 1
        prepare(config, root / f"root{number}", root, tokens=0)

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    fastest, ours = alternate(alone, whole)
    mega = path.stat().st_size / 1e6
    print(
        f"tokenisation of {mega:.0f} MB: {mega / ours:.1f} MB/s, {fastest / ours:.0%} of tokenizers alone "
        f"({mega / fastest:.1f} MB/s)"
    )


MEASURED = """
import sys
from pathlib import Path
from march_search.config import DataConfig
from march_search.data.preparation import prepare
root, text, tokenizer = map(Path, sys.argv[1:])
config = DataConfig(corpus=str(text), tokenizer=str(tokenizer), vocab_size=8192, validation_sequences=2)
prepare(config, root, root, tokens=0)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
"""Prints its peak memory in kB. `ru_maxrss` will not do: it starts at the memory of the parent."""


def memory(root: Path) -> None:
    """Peak memory of preparing a text and one ten times larger."""
    texts, peaks = list(corpora.documents(DATA, root)), []
    tokenizer = next((root / "data" / "tokenizers").glob("*.json"))
    for times in (2, 20):
        path = root / f"times{times}.jsonl"
        with path.open("w") as file:
            for copy in range(times):
                file.writelines(json.dumps({"text": f"{copy} {text}"}) + "\n" for text in texts)
        command = [sys.executable, "-c", MEASURED, str(root / f"memory{times}"), str(path), str(tokenizer)]
        peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"preparing {path.stat().st_size / 1e6:.0f} MB: {peaks[-1] / 1024:,.0f} MB at most")
    print(f"ten times the text: {peaks[1] / peaks[0]:.2f} x the memory")


def alternate(one: Callable[[], object], two: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both, measured in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for call, kept in zip((one, two), times, strict=True):
            began = time.perf_counter()
            call()
            kept.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
