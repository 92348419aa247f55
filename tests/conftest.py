"""Shared by tests: a small prepared store, and ways to make and train trials."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from march_search.config import DataConfig, DevicesConfig, TrainingConfig, TrialConfig
from march_search.training.metrics_file import CLOCKS

# A background job of a shell ignores SIGINT, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

DATA = DataConfig(vocab_size=400, sequence_length=32, validation_fraction=0.2, validation_sequences=24)
TINY = "L1-D32-H2x16-F64-geglu-rope-V400"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 200 small texts of made-up words."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 7))) for _ in range(300)]
    for number in range(200):
        (folder / f"{number:03d}.txt").write_text(" ".join(rng.choices(words, k=120)))
    return folder


@pytest.fixture(scope="session")
def store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, tokenised."""
    from march_search.data.prepare import prepare

    return prepare(replace(DATA, corpus=str(corpus)), tmp_path_factory.mktemp("root"), corpus, tokens=1)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Products as small as the tests' only wait for a second thread, without end where the machine is busy."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TINY_TRAINING = TrainingConfig(
    tokens=48 * 256, global_batch_tokens=256, learning_rate=1e-2, precision="fp32", evaluations=3, checkpoints=3
)
"""48 steps of eight sequences, checkpoints after steps 12, 24 and 36."""


@pytest.fixture
def make_trial(store: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a trial: `make_trial("name", ranks=2, zero_stage=1)`."""
    return trial_maker(store, tmp_path)


@pytest.fixture(scope="session")
def straight(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial that ran from its beginning to its end in one process."""
    folder = trial_maker(store, tmp_path_factory.mktemp("trials"))("straight")
    ended = run_trial(folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="session")
def straight_on_two(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two ranks."""
    folder = trial_maker(store, tmp_path_factory.mktemp("trials"))("straight", ranks=2)
    ended = run_trial(folder)
    assert ended.returncode == 0, ended.stderr
    return folder


def trial_maker(store: Path, parent: Path) -> Callable[..., Path]:
    """A function that makes trial folders below `parent`."""

    def make(name: str, ranks: int = 1, architecture: str = TINY, **training: object) -> Path:
        folder = parent / name
        folder.mkdir()
        devices = DevicesConfig(kind="cpu", ranks=ranks, threads=1)
        recipe = replace(TINY_TRAINING, **training)
        config = TrialConfig(
            architecture=architecture,
            store=os.path.relpath(store, folder),
            seed=0,
            data=DATA,
            training=recipe,
            devices=devices,
        )
        (folder / "trial.json").write_text(json.dumps(asdict(config)))
        return folder

    return make


def run_trial(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Trains to the end, or until the tokens that `arguments` say, without a compiler or ninja on PATH."""
    environment = os.environ | {"PATH": "/nonexistent"}
    command = [sys.executable, "-m", "march_search.training", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


def start_trial(folder: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    """Starts training in a session of its own."""
    with (folder / "trial.log").open("ab") as log:
        command = [sys.executable, "-m", "march_search.training", str(folder), *arguments]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def result(folder: Path) -> dict:
    """The result of a complete trial."""
    return json.loads((folder / "result.json").read_text())


def lines(folder: Path, kind: str) -> list[dict]:
    """Metric lines of one kind, without what depends on the clock."""
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in every if line["kind"] == kind]


def alive(marker: str) -> list[str]:
    """Processes whose command line holds `marker`."""
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
