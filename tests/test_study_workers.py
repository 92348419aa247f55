"""Several workers share a study: leases, heartbeats, and workers that die or are killed."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path

import local_postgres
import optuna
import pytest
from helpers.toy_studies import TOY_CONFIG, optuna_study, run_toy_study, start_toy_study
from helpers.trials import wait_until
from optuna.trial import TrialState

from march_search.config import PrunerConfig, SearchConfig
from march_search.errors import StorageError
from march_search.planning import candidates
from march_search.processes import Signals
from march_search.storage import heartbeat, trials
from march_search.storage.journal import JOURNAL
from march_search.storage.leases import MAX_ORPHANED, MAX_RETRIES, Lease, Leases
from march_search.storage.study_folder import StudyFolder
from march_search.study.job import Job
from march_search.study.progress import StudyProgress
from march_search.study.runner import StudyRun, Summary
from march_search.study.worker import Worker
from march_search.tracking.trackers import Trackers
from march_search.trial import outcome
from march_search.trial.metrics import read_metrics

SCRIPT = Path(__file__).parent.parent / "scripts" / "torture_study.py"
COMPLETE = Summary(complete=6, pruned=0, failed=0, left=0, signum=0)


def torture(*arguments: str) -> str:
    """Run scripts/torture_study.py, which exits with code 0 only if no trial was lost or run twice."""
    command = [sys.executable, str(SCRIPT), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_killed_workers_lose_no_trial() -> None:
    report = torture("--workers", "3", "--trials", "4", "--rounds", "1", "--pruner", "rungs")
    assert report.endswith("journal: 1 of 1 rounds held\n")


@pytest.mark.torture
@pytest.mark.parametrize(
    ("kind", "pruner", "strategy"),
    [
        ("journal", "rungs", "sample"),
        ("journal", "none", "tpe"),
        ("sqlite", "none", "sample"),
        ("postgresql", "rungs", "tpe"),
    ],
)
def test_many_killed_workers_lose_no_trial_on_any_storage(kind: str, pruner: str, strategy: str) -> None:
    if kind == "postgresql" and local_postgres.why_not():
        assert os.environ.get("CI") != "true", local_postgres.why_not()
        pytest.skip(local_postgres.why_not())
    rounds = "1" if kind == "sqlite" else "2"
    sizes = ["--workers", "4", "--trials", "8", "--rounds", rounds]
    report = torture("--storage", kind, "--pruner", pruner, "--strategy", strategy, *sizes)
    assert report.endswith(f"{kind}: {rounds} of {rounds} rounds held\n")


def leased(root: Path, *names: str) -> tuple[optuna.Study, list[Leases]]:
    """Return a study of six waiting trials, and its leases as seen by workers of these names."""
    folder, chosen = StudyFolder.of(root, "toy"), candidates.choose(TOY_CONFIG, root)
    folder.keep_settings(TOY_CONFIG, chosen.architectures)
    study = StudyRun(TOY_CONFIG, folder, root / "store", candidates.with_seeds(chosen, TOY_CONFIG))._opened()
    return study, [Leases(study, study._storage, folder.path / "lock", name) for name in names]


def test_two_workers_release_a_dead_workers_trial_only_once(tmp_path: Path) -> None:
    study, [dead, first, second] = leased(tmp_path, "dead", "first", "second")
    lease = dead.take(study.trials[0], 0, 4096)
    assert lease == Lease(attempt=1, worker="dead", until=4096)
    seen = study.trials[0]
    assert first.give_back(seen, Lease.of(seen), 1024, died_at=1024)
    assert study.trials[0].state == TrialState.WAITING
    assert Lease.of(study.trials[0]) == Lease(attempt=1, retries=1, reached=1024, spent=1024, until=4096)
    again = first.take(study.trials[0], 1024, 4096)
    # The second read the storage before the first released the trial.
    assert not second.give_back(seen, Lease.of(seen), 1024, died_at=1024)
    assert not dead.holds(seen, lease)
    assert again is not None
    assert first.holds(study.trials[0], again)
    assert study.trials[0].state == TrialState.RUNNING


def test_a_trial_is_released_although_a_releasing_worker_died_halfway(tmp_path: Path) -> None:
    study, [dead, reaper] = leased(tmp_path, "dead", "reaper")
    lease = dead.take(study.trials[0], 0, 4096)
    assert lease is not None
    reaper._write(study.trials[0], replace(lease, worker=None, retries=1))  # then it is killed
    seen = study.trials[0]
    assert seen.state == TrialState.RUNNING
    assert reaper.give_back(seen, Lease.of(seen), 0, died_at=0)
    assert Lease.of(study.trials[0]).retries == 1
    assert study.trials[0].state == TrialState.WAITING


def test_only_one_worker_takes_a_trial(tmp_path: Path) -> None:
    study, [first, second] = leased(tmp_path, "first", "second")
    seen = study.trials[0]
    assert first.take(seen, 0, 4096) is not None
    assert second.take(seen, 0, 4096) is None


def test_silence_is_measured_by_the_observers_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    liveness, record = (
        heartbeat.Liveness(tmp_path, 10),
        heartbeat.WorkerRecord(host="far", boot="other boot", pid=1, interval=10.0, slots=1, count=5, at=-1e9),
    )
    assert not liveness.silent(0, {"w": record}, "w")
    now[0] = 24.9
    assert not liveness.silent(0, {"w": record}, "w")
    now[0] = 25.1
    assert liveness.silent(0, {"w": record}, "w")
    assert not liveness.silent(0, {"w": replace(record, count=6)}, "w")
    assert liveness.silent(0, {"w": replace(record, ended=True)}, "w")


@pytest.mark.parametrize(
    ("times", "orphaned", "reason"),
    [
        (MAX_RETRIES + 1, False, "it hung or was killed 3 times without progress: see trial.log"),
        (MAX_ORPHANED + 1, True, "its worker died 11 times without progress: see trial.log"),
    ],
)
def test_a_trial_that_died_too_often_fails_with_the_reason(
    tmp_path: Path, times: int, orphaned: bool, reason: str
) -> None:
    study, [dead] = leased(tmp_path, "dead")
    for _ in range(times):
        lease = dead.take(study.trials[0], 0, 4096)
        assert lease is not None
        assert dead.give_back(study.trials[0], lease, 0, died_at=0, orphaned=orphaned)
    assert run_toy_study(tmp_path) == Summary(complete=5, pruned=0, failed=1, left=0, signum=0)
    assert optuna_study(tmp_path).trials[0].user_attrs["reason"].startswith(reason)


def test_a_study_whose_runs_are_killed_before_any_progress_completes(tmp_path: Path) -> None:
    config = replace(TOY_CONFIG, search=SearchConfig(trials=1))

    def attempts() -> int:
        trials = optuna_study(tmp_path).trials if (tmp_path / "toy" / JOURNAL).exists() else []
        return Lease.of(trials[0]).attempt if trials else 0

    for attempt in range(1, MAX_RETRIES + 3):
        process = start_toy_study(tmp_path, config, seconds=6)
        assert wait_until(lambda: attempts() == attempt)  # noqa: B023
        process.kill()
        process.communicate()
    assert run_toy_study(tmp_path, config) == Summary(complete=1, pruned=0, failed=0, left=0, signum=0)
    assert Lease.of(optuna_study(tmp_path).trials[0]).orphaned == MAX_RETRIES + 2


def test_only_deaths_without_progress_count(tmp_path: Path) -> None:
    study, [worker] = leased(tmp_path, "worker")
    counts = []
    for died_at in (0, 0, 1024, 512, 1024, 2048, 2047):
        lease = worker.take(study.trials[0], 0, 4096)
        assert lease is not None
        assert worker.give_back(study.trials[0], lease, 0, died_at)
        counts.append(Lease.of(study.trials[0]).retries)
    assert counts == [1, 2, 1, 2, 3, 1, 2]


def test_a_trial_that_gets_further_before_each_kill_completes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_DIES", "1")
    config = replace(TOY_CONFIG, search=SearchConfig(trials=2))
    assert run_toy_study(tmp_path, config) == Summary(complete=2, pruned=0, failed=0, left=0, signum=0)
    leases = [Lease.of(trial) for trial in optuna_study(tmp_path).trials]
    assert [(lease.attempt, lease.retries) for lease in leases] == [(5, 1)] * 2


def test_a_study_that_is_killed_more_often_than_trials_are_retried_completes(tmp_path: Path) -> None:
    config, seen = replace(TOY_CONFIG, search=SearchConfig(trials=1)), 0

    def tokens() -> int:
        [metrics] = list(tmp_path.glob("toy/trials/*/metrics.jsonl")) or [tmp_path / "none"]
        return read_metrics(metrics.parent).tokens

    for _ in range(MAX_RETRIES + 1):
        process = start_toy_study(tmp_path, config, seconds=0.6)
        assert wait_until(lambda: tokens() > seen, interval=0.005)  # noqa: B023
        process.kill()
        process.communicate()
        seen = tokens()
        assert seen < 4096
    assert run_toy_study(tmp_path, config) == Summary(complete=1, pruned=0, failed=0, left=0, signum=0)
    assert Lease.of(optuna_study(tmp_path).trials[0]).attempt == MAX_RETRIES + 2


def test_a_trial_killed_because_memory_ran_out_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tmp_path / "vmstat"
    counts.write_text("oom_kill 4\n")
    monkeypatch.setattr(outcome, "_KERNEL_COUNTS", counts)
    killed = ("sh", "-c", f"echo oom_kill 5 > {counts}; kill -9 $$")
    config = replace(TOY_CONFIG, search=SearchConfig(trials=1))
    assert run_toy_study(tmp_path, config, command=killed).failed == 1
    [trial] = optuna_study(tmp_path).trials
    assert trial.user_attrs["reason"].startswith("the process was killed by SIGKILL: the machine ran out of memory;")
    assert Lease.of(trial).attempt == 1


def pids_of_workers(root: Path) -> set[int]:
    return {record.pid for record in heartbeat.worker_records(optuna_study(root)).values()}


def test_dead_workers_leave_neither_locks_nor_records(tmp_path: Path) -> None:
    config = replace(TOY_CONFIG, devices=replace(TOY_CONFIG.devices, parallel_trials=2))
    for _ in range(2):
        process = start_toy_study(tmp_path, config, seconds=0.6)
        assert wait_until(lambda: list(tmp_path.glob(f"toy/workers/*-{process.pid}-*.lock")))  # noqa: B023
        assert wait_until(lambda: process.pid in pids_of_workers(tmp_path))  # noqa: B023
        process.kill()
        process.communicate()
    assert process.pid in pids_of_workers(tmp_path)
    assert list(tmp_path.glob("toy/workers/*.lock"))
    (tmp_path / "toy/workers/never-wrote-a-record.lock").touch()
    assert run_toy_study(tmp_path) == COMPLETE
    assert list((tmp_path / "toy/workers").iterdir()) == []
    assert heartbeat.worker_records(optuna_study(tmp_path)) == {}


def test_a_slow_worker_that_was_cleared_keeps_its_lock_and_writes_its_record_again(tmp_path: Path) -> None:
    study, _ = leased(tmp_path)
    slow = heartbeat.Heartbeat(study, tmp_path / "workers", 10, 1)
    slow.tick()
    heartbeat.clear(study, tmp_path / "workers", slow.worker)
    assert heartbeat.worker_records(study) == {}
    assert [path.stem for path in (tmp_path / "workers").iterdir()] == [slow.worker]
    slow.tick()
    assert heartbeat.worker_records(study)[slow.worker].count == 2
    slow.leave()


def toy_worker(folder: Path, study: optuna.Study, command: Sequence[str]) -> Worker:
    """Return a worker whose trials run a command."""
    return Worker(
        Job(config=TOY_CONFIG, folder=StudyFolder(folder), study=study, store=folder.parent / "store", command=command),
        StudyProgress([], 1),
        Signals(),
        Trackers(TOY_CONFIG.tracking, folder, print),
    )


def test_a_trial_whose_worker_died_while_it_took_it_is_released_at_once(tmp_path: Path) -> None:
    study, _ = leased(tmp_path, "dead")
    study._storage.set_trial_state_values(study.trials[0]._trial_id, TrialState.RUNNING)  # then it is killed
    worker = toy_worker(tmp_path / "toy", study, ("false",))
    assert study.trials[0].number in [trial.number for trial, _ in worker.survey.look(set(), True)]
    worker.heartbeat.leave()


def test_a_trial_that_a_worker_takes_at_this_moment_is_not_released(tmp_path: Path) -> None:
    study, [first] = leased(tmp_path, "first")
    worker, trial = toy_worker(tmp_path / "toy", optuna_study(tmp_path), ("false",)), study.trials[0]
    with ThreadPoolExecutor(1) as pool:
        with first.alone(trial):
            study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
            looking = pool.submit(worker.survey.look, set(), True)
            wait([looking], 0.5)
            first._write(trial, Lease(attempt=1, worker="first", until=4096))
        assert trial.number not in [found.number for found, _ in looking.result(60)]
    assert Lease.of(study.trials[0]).worker == "first"
    assert study.trials[0].state == TrialState.RUNNING
    worker.heartbeat.leave()


def test_a_worker_that_lost_its_trial_kills_the_process_and_writes_nothing(tmp_path: Path) -> None:
    study, [other] = leased(tmp_path, "other")
    worker = toy_worker(tmp_path / "toy", study, (sys.executable, "-c", "import time; time.sleep(600)"))
    worker._step()
    [active] = worker.active_trials
    assert active.child is not None
    process = active.child.process
    with other.alone(study.trials[0]):
        assert other.give_back(study.trials[0], active.lease, 0, died_at=0)
        assert other.take(study.trials[0], 0, 4096) is not None
    worker._beat()
    assert worker.active_trials == []
    assert process.poll() is not None
    assert not (active.folder / "outcome.json").exists()
    assert Lease.of(study.trials[0]).worker == "other"
    worker.heartbeat.leave()


@pytest.mark.parametrize("is_back", [True, False])
def test_the_tokens_of_a_trial_count_once_if_the_storage_fails_before_its_end_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_back: bool
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("the storage stopped working")

    def fail_for_good(*_: object) -> None:
        monkeypatch.setattr(Leases, "give_back", fail)
        fail()

    config = replace(TOY_CONFIG, search=SearchConfig(trials=1))
    monkeypatch.setattr(trials, "tell_optuna", fail if is_back else fail_for_good)
    with pytest.raises(StorageError, match="stopped working"):
        run_toy_study(tmp_path, config)
    monkeypatch.undo()
    assert run_toy_study(tmp_path, config) == Summary(complete=1, pruned=0, failed=0, left=0, signum=0)
    assert Lease.of(optuna_study(tmp_path).trials[0]).spent == 4096


def test_a_second_run_joins_the_first(tmp_path: Path) -> None:
    processes = [start_toy_study(tmp_path, seconds=0.2) for _ in range(2)]
    printed = [process.communicate(timeout=100)[0] for process in processes]
    assert printed == [f"{COMPLETE}\n"] * 2
    assert len({Lease.of(t).worker for t in optuna_study(tmp_path).trials}) == 2
    assert all(Lease.of(t).attempt == 1 for t in optuna_study(tmp_path).trials)


@pytest.mark.parametrize("kind", ["median", "halving", "hyperband"])
def test_optunas_pruners_can_be_used(tmp_path: Path, kind: str) -> None:
    config = replace(TOY_CONFIG, pruner=PrunerConfig(kind=kind, startup_trials=1))
    ended = run_toy_study(tmp_path, config)
    assert ended.complete + ended.pruned == 6
    assert ended.complete >= 1
