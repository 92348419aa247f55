"""Studies whose trials are toys: real workers, storages and files, but nothing is trained.

`python -m helpers.toy_studies ROOT NAME SETTINGS` runs one; SETTINGS is the study's configuration as JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.synchronize import Barrier
from pathlib import Path
from unittest import mock

import optuna

from march_search.config import ConfirmConfig, DataConfig, PrunerConfig, SearchConfig, StudyConfig, TrainingConfig
from march_search.config.loader import build
from march_search.data.store import SCHEMA_VERSION
from march_search.files.atomic import file_sha256
from march_search.files.json_tables import sealed, write_json
from march_search.planning import candidates, study_state
from march_search.storage import study_storage
from march_search.storage.study_folder import StudyFolder
from march_search.study import worker
from march_search.study.runner import StudyRun, Summary

TOY_COMMAND = (sys.executable, "-I", "-S", str(Path(__file__).with_name("toy_trial.py")))
TOY_CONFIG = StudyConfig(
    space="cpu-demo",
    search=SearchConfig(trials=6),
    pruner=PrunerConfig(kind="none"),
    confirm=ConfirmConfig(max_seeds=1),
    data=DataConfig(vocab_size=2048, sequence_length=64),
    training=TrainingConfig(tokens=4096, global_batch_tokens=1024, precision="bf16", evaluations=4),
)
"""Six shapes of the space `cpu-demo`, four evaluations each, without further seeds."""

RUNG_TRAINING = TrainingConfig(tokens=16_384, global_batch_tokens=64, precision="bf16", evaluations=4)
"""Training of 256 steps, long enough for rungs at a quarter, a half and three quarters."""


def run_toy_study(
    root: Path, config: StudyConfig = TOY_CONFIG, name: str = "toy", command: Sequence[str] = TOY_COMMAND
) -> Summary:
    """Run the study `name` in `root` to its end. The worker looks at its trials more often than it usually does."""
    folder = StudyFolder.of(root, name)
    chosen = candidates.choose(config, root)
    folder.keep_settings(config, chosen.architectures)
    folder.keep_store(empty_store(root / "store"))
    study_state.keep_candidates(folder.path, chosen)
    with mock.patch.object(worker, "POLL_SECONDS", 0.01):
        return StudyRun(config, folder, root / "store", candidates.initial_trials(chosen, config), command).run()


def empty_store(folder: Path) -> Path:
    """Write an intact token store without tokens, if it does not exist, and return its folder."""
    if not (folder / "index.json").exists():
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text("{}")
        index = {"schema_version": SCHEMA_VERSION, "dtype": "<u2", "shards": []}
        write_json(
            folder / "index.json",
            sealed(index | {"tokenizer_file_sha256": file_sha256(folder / "tokenizer.json")}),
        )
    return folder


def start_toy_study(
    root: Path, config: StudyConfig = TOY_CONFIG, name: str = "toy", seconds: float = 0.0
) -> "subprocess.Popen[str]":
    """Start the study in a process of its own, with `seconds` per evaluation. It prints its summary at the end."""
    command = [sys.executable, "-m", "helpers.toy_studies", str(root), name, json.dumps(asdict(config))]
    environment = os.environ | {"TOY_SECONDS": str(seconds), "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def optuna_study(root: Path, name: str = "toy") -> optuna.Study:
    """Open a study with a journal as Optuna sees it."""
    return study_storage.open_study(name, root / name, None, PrunerConfig(), 0)


def open_fresh_study(url: str | None, folder: Path, barrier: Barrier) -> None:
    """Open the study `fresh` of a storage at the same moment as other processes, and leave a mark in it."""
    barrier.wait()
    study = study_storage.open_study("fresh", folder, url, PrunerConfig(), 0)
    study.set_user_attr(f"here-{os.getpid()}", 1)


if __name__ == "__main__":
    root, name, settings = sys.argv[1:]
    print(run_toy_study(Path(root), build(StudyConfig, json.loads(settings), "settings"), name))
