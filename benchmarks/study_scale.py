"""How many trials a second the machinery of studies can hand out and close, by workers and storage.

python benchmarks/study_scale.py [--workers 1,4,16,64] [--trials 64] [--storages journal,postgresql,proxy]

A trial here trains nothing and starts no process: a worker takes it under its lock, reports two evaluations,
and closes it, exactly as `march-search worker` does. Workers are processes forked from one that has its libraries
loaded, so importing (1.5 s a worker) is left out; opening the storage and the first look at it are, too: the clock
runs from the moment at which all are ready until the last trial is closed. fsync is on. PostgreSQL is a server of its
own on loopback; `proxy` is `march-search storage-proxy` before it, whose CPU counts as the server's.
"""

import argparse
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import local_postgres
import optuna
from optuna.trial import FrozenTrial, TrialState

from march_search.config import DataConfig, PrunerConfig, SearchConfig, StudyConfig, TrainingConfig
from march_search.study import candidates
from march_search.study.leases import Leases
from march_search.study.runner import StudyRun, open_study
from march_search.study.study_folder import StudyFolder
from march_search.study.trials import tell_optuna
from march_search.study.worker import BUSY, MISSES

FORKS = multiprocessing.get_context("forkserver")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,4,16,64")
    parser.add_argument("--trials", type=int, default=64, help="trials, or eight for each worker if that is more")
    parser.add_argument("--storages", default="journal,postgresql,proxy")
    told = parser.parse_args(arguments)
    FORKS.set_forkserver_preload(["march_search.study.runner", "march_search.study.candidates", "psycopg"])
    print("storage     workers  trials/s  milliseconds a trial: lock held  worker CPU  server CPU")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls: dict[str, str | None] = {"journal": None}
        if told.storages != "journal":
            urls["postgresql"] = stack.enter_context(local_postgres.server(fsync=True))
        if "proxy" in told.storages:
            urls["proxy"] = stack.enter_context(proxy(urls["postgresql"] or ""))
        for kind in told.storages.split(","):
            for count in map(int, told.workers.split(",")):
                root = folder / f"{kind}-{count}"
                trials = max(told.trials, 8 * count)
                seconds, held, cpu, served = measure(root, f"s-{kind}-{count}", urls[kind], count, trials)
                each = [f"{1000 * value / trials:12.1f}" for value in (held, cpu, served)]
                print(f"{kind:11s} {count:7d} {trials / seconds:9.1f} {' ' * 21}{'  '.join(each)}", flush=True)
    return 0


@contextmanager
def proxy(url: str) -> Iterator[str]:
    """A proxy before the PostgreSQL at `url`; yields its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "march_search", "storage-proxy", "env:BEHIND", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"BEHIND": url}, stderr=subprocess.DEVNULL)
    try:
        yield f"grpc://localhost:{port}"
    finally:
        process.terminate()
        process.wait()


def measure(root: Path, name: str, url: str | None, count: int, trials: int) -> tuple[float, float, float, float]:
    """Seconds that so many workers take for so many trials; of all trials, locks held and CPU of workers and server."""
    config = StudyConfig(
        space="t5", budget="220M", storage=url, search=SearchConfig(trials=trials, strategy="sample"),
        pruner=PrunerConfig(kind="none"), data=DataConfig(), training=TrainingConfig(),
    )  # fmt: skip
    folder, chosen = StudyFolder.of(root, name), candidates.choose(config, root)
    folder.keep_settings(config, chosen.architectures)
    study = StudyRun(config, folder, root / "store", candidates.with_seeds(chosen, config))._opened()
    ready, go, spent = FORKS.Semaphore(0), FORKS.Event(), FORKS.Array("d", 2)
    crew = [FORKS.Process(target=work, args=(folder, config, ready, go, spent)) for _ in range(count)]
    for one in crew:
        one.start()
    for _ in crew:
        ready.acquire()
    began, served = time.monotonic(), server_cpu()
    go.set()
    for one in crew:
        one.join()
    seconds, served = time.monotonic() - began, server_cpu() - served
    assert all(one.exitcode == 0 for one in crew)
    assert [t.state for t in study.get_trials(deepcopy=False)] == [TrialState.COMPLETE] * trials
    return seconds, spent[0], spent[1], served


def server_cpu() -> float:
    """Processor seconds of all PostgreSQL servers and proxies on this machine so far, ended connections included."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().rsplit(") ", 1)
            served = name.endswith("(postgres") or b"storage-proxy" in stat.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if served:
            ticks += sum(map(int, rest.split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def work(
    folder: StudyFolder,
    config: StudyConfig,
    ready: "multiprocessing.synchronize.Semaphore",
    go: "multiprocessing.synchronize.Event",
    spent: "multiprocessing.sharedctypes.SynchronizedArray[float]",
) -> None:
    """A worker: looks, takes and trains what it saw wait, and looks again when most of that is gone or old."""
    study = open_study(folder, config)
    leases = Leases(study, study._storage, folder.path / "lock", f"worker-{os.getpid()}")
    study.get_trials(deepcopy=False)
    ready.release()
    go.wait()
    before, held = time.process_time(), 0.0
    chance = random.Random(os.getpid())
    while todo := [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.WAITING]:
        looked, misses = time.monotonic(), 0
        while todo and misses < MISSES and time.monotonic() < looked + BUSY * config.heartbeat_seconds:
            seconds = train(study, leases, todo.pop(0), config)
            held += abs(seconds)
            misses = misses + 1 if seconds < 0 else 0
            if seconds < 0:
                chance.shuffle(todo)
    with spent.get_lock():
        spent[0] += held
        spent[1] += time.process_time() - before


def train(study: optuna.Study, leases: Leases, trial: FrozenTrial, config: StudyConfig) -> float:
    """Takes, reports and closes a trial; how long its lock was held, negative if another worker was faster."""
    with leases.alone(trial):
        began = time.monotonic()
        lease = leases.take(trial, 0, config.training.tokens)
        held = time.monotonic() - began
    if lease is None:
        return -held
    for step in (1, 2):
        leases.storage.set_trial_intermediate_value(trial._trial_id, step, 5.0 / step)
    with leases.alone(trial):
        began = time.monotonic()
        assert leases.holds(trial, lease)
        leases.close(trial, lease, 0)
        tell_optuna(leases.storage, trial, {"state": "complete", "loss": 2.0})
        held += time.monotonic() - began
    return held


if __name__ == "__main__":
    sys.exit(main())
