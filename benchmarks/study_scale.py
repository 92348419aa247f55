"""How many trials a second the machinery of studies can hand out and close, by workers and storage.

python benchmarks/study_scale.py [--workers 1,4,16,64] [--trials 64] [--storages journal,postgresql]

A trial here trains nothing and starts no process: a worker takes it under the study's lock, reports two evaluations,
and closes it, exactly as `march-search worker` does. Workers are processes forked from one that has its libraries
loaded, so importing (1.5 s a worker) is left out; opening the storage and the first look at it are, too: the clock
runs from the moment at which all are ready until the last trial is closed. fsync is on. PostgreSQL is a server of its
own on loopback.
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import local_postgres
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from march_search.config import DataConfig, PrunerConfig, SearchConfig, StudyConfig, TrainingConfig
from march_search.study import candidates, ends
from march_search.study.folders import StudyFolder
from march_search.study.leases import Leases
from march_search.study.runner import StudyRun, open_study

FORKS = multiprocessing.get_context("forkserver")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,4,16,64")
    parser.add_argument("--trials", type=int, default=64, help="trials, or two for each worker if that is more")
    parser.add_argument("--storages", default="journal,postgresql")
    told = parser.parse_args(arguments)
    FORKS.set_forkserver_preload(["march_search.study.runner", "march_search.study.candidates", "psycopg"])
    print("storage     workers  trials/s")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(local_postgres.server(fsync=True)) if "postgresql" in told.storages else None
        for kind in told.storages.split(","):
            for count in map(int, told.workers.split(",")):
                root = folder / f"{kind}-{count}"
                speed = measure(
                    root,
                    f"s-{kind}-{count}",
                    server if kind == "postgresql" else None,
                    count,
                    max(told.trials, 2 * count),
                )
                print(f"{kind:11s} {count:7d} {speed:9.1f}", flush=True)
    return 0


def measure(root: Path, name: str, url: str | None, count: int, trials: int) -> float:
    """Trials a second of so many workers."""
    config = StudyConfig(
        space="t5", budget="220M", storage=url, search=SearchConfig(trials=trials, strategy="sample"),
        pruner=PrunerConfig(kind="none"), data=DataConfig(), training=TrainingConfig(),
    )  # fmt: skip
    folder, chosen = StudyFolder.of(root, name), candidates.choose(config, root)
    folder.keep_settings(config, chosen.architectures)
    study = StudyRun(config, folder, root / "store", candidates.with_seeds(chosen, config))._opened()
    ready, go = FORKS.Semaphore(0), FORKS.Event()
    crew = [FORKS.Process(target=work, args=(folder, config, ready, go)) for _ in range(count)]
    for one in crew:
        one.start()
    for _ in crew:
        ready.acquire()
    began = time.monotonic()
    go.set()
    for one in crew:
        one.join()
    seconds = time.monotonic() - began
    assert all(one.exitcode == 0 for one in crew)
    assert [t.state for t in study.get_trials(deepcopy=False)] == [TrialState.COMPLETE] * trials
    return trials / seconds


def work(folder: StudyFolder, config: StudyConfig, ready: "multiprocessing.synchronize.Semaphore", go: object) -> None:
    """A worker: looks, takes a trial, trains it, and looks again until none waits."""
    study = open_study(folder, config)
    leases = Leases(study, study._storage, folder.path / "lock", f"worker-{os.getpid()}")
    study.get_trials(deepcopy=False)
    ready.release()
    go.wait()
    chance = random.Random(os.getpid())
    while todo := [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.WAITING]:
        while todo and not train(study, leases, todo.pop(0), config):
            chance.shuffle(todo)


def train(study: optuna.Study, leases: Leases, trial: FrozenTrial, config: StudyConfig) -> bool:
    """Takes, reports and closes a trial; False if another worker was faster."""
    with leases.locked():
        lease = leases.take(trial, 0, config.training.tokens)
    if lease is None:
        return False
    for step in (1, 2):
        Trial(study, trial._trial_id).report(5.0 / step, step)
    with leases.locked():
        assert leases.holds(trial, lease)
        leases.close(trial, lease, 0)
        ends.tell(leases.storage, trial, {"state": "complete", "loss": 2.0})
    return True


if __name__ == "__main__":
    sys.exit(main())
