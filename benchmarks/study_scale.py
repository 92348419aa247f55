"""Measure how many trials per second the workers of a study can take and close, by number of workers and storage.

    python benchmarks/study_scale.py [--workers 1,4,16,64] [--trials 64] [--storages journal,postgresql,proxy]

A trial here trains nothing and starts no process. A worker takes it under its lock, reports two evaluations and closes
it, exactly as `march-search study worker` does. Workers are forked from a process that has loaded the libraries, so
imports (1.5 s per worker) are excluded. So are opening the storage and reading it once: the clock runs from the moment
when all workers are ready until the last trial is closed. fsync is on. PostgreSQL is a separate server on the loopback
interface. `proxy` is `march-search study storage-proxy` in front of it; its CPU time counts as the server's.
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
from optuna.trial import FrozenTrial, TrialState

from march_search.config import ConfirmConfig, DataConfig, PrunerConfig, SearchConfig, StudyConfig, TrainingConfig
from march_search.planning import candidates
from march_search.storage.leases import Leases
from march_search.storage.study_folder import StudyFolder
from march_search.storage.trials import tell_optuna
from march_search.study.runner import StudyRun, open_study
from march_search.study.worker import BUSY, MISSES

FORKS = multiprocessing.get_context("forkserver")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the measurements of each storage and number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,4,16,64")
    parser.add_argument("--trials", type=int, default=64, help="number of trials, at least eight per worker")
    parser.add_argument("--storages", default="journal,postgresql,proxy")
    options = parser.parse_args(arguments)
    FORKS.set_forkserver_preload(["march_search.study.runner", "march_search.planning.candidates", "psycopg"])
    print("storage     workers  trials/s  milliseconds per trial: lock held  worker CPU  server CPU")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls: dict[str, str | None] = {"journal": None}
        if options.storages != "journal":
            urls["postgresql"] = stack.enter_context(local_postgres.server(fsync=True))
        if "proxy" in options.storages:
            urls["proxy"] = stack.enter_context(proxy(urls["postgresql"] or ""))
        for kind in options.storages.split(","):
            for count in map(int, options.workers.split(",")):
                root = folder / f"{kind}-{count}"
                trials = max(options.trials, 8 * count)
                seconds, lock_seconds, cpu, server = measure(root, f"s-{kind}-{count}", urls[kind], count, trials)
                each = [f"{1000 * value / trials:12.1f}" for value in (lock_seconds, cpu, server)]
                print(f"{kind:11s} {count:7d} {trials / seconds:9.1f} {' ' * 23}{'  '.join(each)}", flush=True)
    return 0


@contextmanager
def proxy(url: str) -> Iterator[str]:
    """Start a proxy in front of the PostgreSQL storage at `url` and yield the proxy's URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "march_search", "study", "storage-proxy"]
    command += ["env:PROXIED_STORAGE", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"PROXIED_STORAGE": url}, stderr=subprocess.DEVNULL)
    try:
        yield f"grpc://localhost:{port}"
    finally:
        process.terminate()
        process.wait()


def measure(root: Path, name: str, url: str | None, count: int, trials: int) -> tuple[float, float, float, float]:
    """Run workers on trials; return the seconds elapsed, with a trial's lock held, and of worker and server CPU."""
    config = StudyConfig(
        space="t5", budget="220M", storage=url, search=SearchConfig(trials=trials, strategy="sample"),
        pruner=PrunerConfig(kind="none"), confirm=ConfirmConfig(max_seeds=1), data=DataConfig(),
        training=TrainingConfig(precision="bf16"),
    )  # fmt: skip
    folder, chosen = StudyFolder.of(root, name), candidates.choose(config, root)
    folder.keep_settings(config, chosen.architectures)
    study = StudyRun(config, folder, root / "store", candidates.with_seeds(chosen, config))._opened()
    ready, go, spent = FORKS.Semaphore(0), FORKS.Event(), FORKS.Array("d", 2)
    workers = [FORKS.Process(target=work, args=(folder, config, ready, go, spent)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    began, server_before = time.monotonic(), server_cpu()
    go.set()
    for worker in workers:
        worker.join()
    seconds, server_seconds = time.monotonic() - began, server_cpu() - server_before
    assert all(worker.exitcode == 0 for worker in workers)
    assert [t.state for t in study.get_trials(deepcopy=False)] == [TrialState.COMPLETE] * trials
    return seconds, spent[0], spent[1], server_seconds


def server_cpu() -> float:
    """Return the CPU seconds of all PostgreSQL servers and proxies on this machine so far, with closed connections."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().rsplit(") ", 1)
            is_server = name.endswith("(postgres") or b"storage-proxy" in stat.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if is_server:
            ticks += sum(map(int, rest.split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def work(
    folder: StudyFolder,
    config: StudyConfig,
    ready: "multiprocessing.synchronize.Semaphore",
    go: "multiprocessing.synchronize.Event",
    spent: "multiprocessing.sharedctypes.SynchronizedArray[float]",
) -> None:
    """Act as a worker: read the study, take the waiting trials, and read it again once they are gone or outdated."""
    study = open_study(folder, config)
    leases = Leases(study, study._storage, folder.path / "lock", f"worker-{os.getpid()}")
    study.get_trials(deepcopy=False)
    ready.release()
    go.wait()
    before, lock_seconds = time.process_time(), 0.0
    rng = random.Random(os.getpid())
    while waiting := [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.WAITING]:
        read_at, misses = time.monotonic(), 0
        while waiting and misses < MISSES and time.monotonic() < read_at + BUSY * config.heartbeat_seconds:
            seconds = process_trial(leases, waiting.pop(0), config)
            lock_seconds += abs(seconds)
            misses = misses + 1 if seconds < 0 else 0
            if seconds < 0:
                rng.shuffle(waiting)
    with spent.get_lock():
        spent[0] += lock_seconds
        spent[1] += time.process_time() - before


def process_trial(leases: Leases, trial: FrozenTrial, config: StudyConfig) -> float:
    """Take, report and close a trial; return the seconds its lock was held, negative if another worker was faster."""
    with leases.alone(trial):
        began = time.monotonic()
        lease = leases.take(trial, 0, config.training.tokens)
        lock_seconds = time.monotonic() - began
    if lease is None:
        return -lock_seconds
    for step in (1, 2):
        leases.storage.set_trial_intermediate_value(trial._trial_id, step, 5.0 / step)
    with leases.alone(trial):
        began = time.monotonic()
        assert leases.holds(trial, lease)
        leases.close(trial, lease, 0)
        tell_optuna(leases.storage, trial, {"state": "complete", "loss": 2.0})
        lock_seconds += time.monotonic() - began
    return lock_seconds


if __name__ == "__main__":
    sys.exit(main())
