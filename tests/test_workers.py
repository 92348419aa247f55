"""Many workers on one study: leases, kills, storages, and what must never be told."""

import json
import multiprocessing
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import local_postgres
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from test_study import CONFIG, optuna_study, run

from march_search.cli import main
from march_search.config import PrunerConfig, SearchConfig, StudyConfig
from march_search.config.study_config import public_storage
from march_search.errors import ConfigError, StorageError
from march_search.files import read_lines
from march_search.study import candidates, heartbeat, status, storage
from march_search.study.journal import JOURNAL, open_journal
from march_search.study.leases import Lease, Leases
from march_search.study.runner import StudyRun, Summary, open_study
from march_search.study.study_folder import StudyFolder
from march_search.training.metrics_file import EventFile

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a real PostgreSQL."""
    why = local_postgres.why_not()
    if why:
        assert os.environ.get("CI") != "true", why
        pytest.skip(why)
    with local_postgres.server() as url:
        yield url


@pytest.mark.parametrize(
    ("kind", "pruner", "strategy"),
    [
        ("journal", "rungs", "sample"),
        ("journal", "none", "tpe"),
        ("sqlite", "none", "sample"),
        ("postgresql", "rungs", "tpe"),
    ],
)
def test_no_trial_is_lost_or_run_twice_though_workers_are_killed(kind: str, pruner: str, strategy: str) -> None:
    if kind == "postgresql" and local_postgres.why_not():
        assert os.environ.get("CI") != "true", local_postgres.why_not()
        pytest.skip(local_postgres.why_not())
    rounds = "1" if kind == "sqlite" else "2"
    sizes = ["--workers", "4", "--trials", "8", "--rounds", rounds]
    command = [sys.executable, str(SCRIPTS / "torture_study.py"), "--storage", kind, "--pruner", pruner]
    command += ["--strategy", strategy, *sizes]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith(f"{kind}: {rounds} of {rounds} rounds held\n")


def _open(url: str | None, folder: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    """One of many that open a storage at the same moment."""
    barrier.wait()
    study = storage.open_study("fresh", folder, url, PrunerConfig(), 0)
    study.set_user_attr(f"here-{os.getpid()}", 1)


@pytest.mark.parametrize("kind", ["journal", "sqlite", "postgresql"])
def test_eight_open_a_fresh_storage_at_the_same_moment(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = None if kind == "journal" else f"sqlite:///{tmp_path}/s.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres")
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["test_workers"])
    barrier = forks.Barrier(8)
    crew = [forks.Process(target=_open, args=(url, tmp_path, barrier)) for _ in range(8)]
    for one in crew:
        one.start()
    for one in crew:
        one.join(60)
    assert [one.exitcode for one in crew] == [0] * 8
    assert len(storage.open_study("fresh", tmp_path, url, PrunerConfig(), 0).user_attrs) == 8


def test_a_journal_cut_at_any_of_its_last_bytes_loses_no_acknowledged_record(tmp_path: Path) -> None:
    journal = tmp_path / JOURNAL
    study = optuna.create_study(study_name="s", storage=open_journal(journal))
    for number in range(5):
        study.set_user_attr(f"attribute-{number}", "x" * 40)
    whole = journal.read_bytes()
    for cut in range(1, 401):
        journal.write_bytes(whole[:-cut])
        acknowledged = whole[:-cut].count(b"\n")
        opened = open_journal(journal)
        assert journal.read_bytes().count(b"\n") == acknowledged
        opened.create_new_study([optuna.study.StudyDirection.MINIMIZE], "after")
        names = {study.study_name for study in open_journal(journal).get_all_studies()}
        assert names == ({"s", "after"} if acknowledged else {"after"})
        kept = [s for s in open_journal(journal).get_all_studies() if s.study_name == "s"]
        assert not kept or len(kept[0].user_attrs) == acknowledged - 1


def test_a_torn_end_is_cut_before_another_worker_appends(tmp_path: Path) -> None:
    journal = tmp_path / JOURNAL
    study = optuna.create_study(study_name="s", storage=open_journal(journal))
    with journal.open("ab") as file:
        file.write(b'{"op_code": 2, "torn')
    study.set_user_attr("later", 1)
    assert optuna.load_study(study_name="s", storage=open_journal(journal)).user_attrs == {"later": 1}


def leased(root: Path, *names: str) -> tuple[optuna.Study, list[Leases]]:
    """A study of six waiting trials, as workers of these names see it."""
    folder, chosen = StudyFolder.of(root, "toy"), candidates.choose(CONFIG, root)
    folder.keep_settings(CONFIG, chosen.architectures)
    study = StudyRun(CONFIG, folder, root / "store", candidates.with_seeds(chosen, CONFIG))._opened()
    return study, [Leases(study, study._storage, folder.path / "lock", name) for name in names]


def test_two_workers_that_find_the_same_death_give_the_trial_back_once(tmp_path: Path) -> None:
    study, [dead, first, second] = leased(tmp_path, "dead", "first", "second")
    lease = dead.take(study.trials[0], 0, 4096)
    assert lease == Lease(attempt=1, worker="dead", until=4096)
    seen = study.trials[0]
    assert first.give_back(seen, Lease.of(seen), 1024, failed=True)
    assert study.trials[0].state == TrialState.WAITING
    assert Lease.of(study.trials[0]) == Lease(attempt=1, retries=1, spent=1024, until=4096)
    again = first.take(study.trials[0], 1024, 4096)
    assert not second.give_back(seen, Lease.of(seen), 1024, failed=True)  # it looked before the first gave it back
    assert not dead.holds(seen, lease)
    assert again is not None
    assert first.holds(study.trials[0], again)
    assert study.trials[0].state == TrialState.RUNNING


def test_a_trial_whose_reaper_died_in_between_is_given_back_at_no_cost(tmp_path: Path) -> None:
    study, [dead, reaper] = leased(tmp_path, "dead", "reaper")
    lease = dead.take(study.trials[0], 0, 4096)
    assert lease is not None
    reaper._write(study.trials[0], replace(lease, worker=None, retries=1))  # and then it is killed
    seen = study.trials[0]
    assert seen.state == TrialState.RUNNING
    assert reaper.give_back(seen, Lease.of(seen), 0, failed=True)
    assert Lease.of(study.trials[0]).retries == 1
    assert study.trials[0].state == TrialState.WAITING


def test_only_one_takes_a_trial(tmp_path: Path) -> None:
    study, [first, second] = leased(tmp_path, "first", "second")
    seen = study.trials[0]
    assert first.take(seen, 0, 4096) is not None
    assert second.take(seen, 0, 4096) is None


def test_silence_is_measured_by_the_observers_own_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    witness, beat = (
        heartbeat.Liveness(tmp_path, 10),
        heartbeat.WorkerRecord(host="far", boot="other boot", pid=1, interval=10.0, slots=1, count=5, at=-1e9),
    )
    assert not witness.silent(0, {"w": beat}, "w")
    now[0] = 24.9
    assert not witness.silent(0, {"w": beat}, "w")
    now[0] = 25.1
    assert witness.silent(0, {"w": beat}, "w")
    assert not witness.silent(0, {"w": replace(beat, count=6)}, "w")
    assert witness.silent(0, {"w": replace(beat, ended=True)}, "w")


def test_a_trial_that_outlived_three_workers_fails_with_the_reason(tmp_path: Path) -> None:
    study, [dead] = leased(tmp_path, "dead")
    for _ in range(3):
        lease = dead.take(study.trials[0], 0, 4096)
        assert lease is not None
        assert dead.give_back(study.trials[0], lease, 0, failed=True)
    assert run(tmp_path) == Summary(complete=5, pruned=0, failed=1, left=0, signum=0)
    assert optuna_study(tmp_path).trials[0].user_attrs["reason"].startswith("its worker died or it hung 3 times")


def test_a_worker_that_lost_its_trial_kills_its_process_and_writes_nothing(tmp_path: Path) -> None:
    from march_search.study.job import Job, Signals
    from march_search.study.progress import StudyProgress
    from march_search.study.worker import Worker

    study, [other] = leased(tmp_path, "other")
    slow = (sys.executable, "-c", "import time; time.sleep(600)")
    folder = StudyFolder.of(tmp_path, "toy")
    worker = Worker(
        Job(config=CONFIG, folder=folder, study=study, store=tmp_path / "store", command=slow),
        StudyProgress([], 1, 1),
        Signals(),
    )
    worker._step()
    [turn] = worker.active_trials
    assert turn.child is not None
    process = turn.child.process
    with other.alone(study.trials[0]):
        assert other.give_back(study.trials[0], turn.lease, 0, failed=True)
        assert other.take(study.trials[0], 0, 4096) is not None
    worker._beat()
    assert worker.active_trials == []
    assert process.poll() is not None
    assert not (turn.folder / "outcome.json").exists()
    assert Lease.of(study.trials[0]).worker == "other"
    worker.heartbeat_sender.leave()


def test_a_second_run_joins_the_first(tmp_path: Path) -> None:
    code = f"import test_workers as t, pathlib; print(t.run(pathlib.Path({str(tmp_path)!r})))"
    environment = os.environ | {"TOY_SECONDS": "0.2", "PYTHONPATH": f"{Path(__file__).parent}:{SCRIPTS}"}
    crew = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE) for _ in range(2)]
    told = [one.communicate(timeout=100)[0].decode() for one in crew]
    assert told == [f"{Summary(complete=6, pruned=0, failed=0, left=0, signum=0)}\n"] * 2
    assert len({Lease.of(t).worker for t in optuna_study(tmp_path).trials}) == 2
    assert all(Lease.of(t).attempt == 1 for t in optuna_study(tmp_path).trials)


def toml(root: Path, url: str | None = None) -> Path:
    """A study that was run with toys, and its file."""
    config = replace(CONFIG, storage=url, search=SearchConfig(trials=3))
    assert run(root, config).complete + run(root, config).failed == 3
    return root / "toy"


def test_status_show_and_list_tell_the_same_in_tables_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", candidates.choose(CONFIG, tmp_path).architectures[1].name)
    run(tmp_path)
    here = ["--root", str(tmp_path)]
    capsys.readouterr()
    assert main(["study", "status", "toy", *here]) == 0
    table = capsys.readouterr().out
    assert "toy: 5 complete, 1 failed" in table
    assert f"optuna-dashboard {tmp_path / 'toy' / JOURNAL}\ntensorboard --logdir {tmp_path / 'toy/trials'}\n" in table
    assert main(["study", "status", "toy", *here, "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["states"] == {"complete": 5, "failed": 1}
    assert told["tokens_done"] == told["tokens_planned"] == 5 * 4096
    assert [row["state"] for row in told["trials"]] == ["complete", "failed", *["complete"] * 4]
    assert main(["study", "show", "toy", "1", *here, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["reason"] == "the toy was told to fail."
    assert main(["study", "show", "toy", "6", *here]) == 2
    assert "toy has no trial 6: use a number from 0 to 5" in capsys.readouterr().err
    assert main(["study", "list", *here, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[-1]["states"] == "5 complete, 1 failed"
    assert main(["study", "status", "tow", *here]) == 4
    assert "holds no study 'tow'. Did you mean \"toy\"?" in capsys.readouterr().err


def test_status_knows_learning_rates_and_trials_to_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = SearchConfig(strategy="tpe", trials=4, learning_rates=(1e-3, 2e-3), max_tokens=3 * 4096)
    assert run(tmp_path, replace(CONFIG, search=search)).complete == 3
    (tmp_path / "toy/plan.json").write_text('{"trials": 8}')
    capsys.readouterr()
    assert main(["study", "status", "toy", "--root", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "toy: 3 complete, 1 waiting, 4 to come" in table
    assert "rate" in table
    assert f"tokens: 12.3k of {8 * 4096 / 1000:.1f}k currently planned" in table
    assert main(["study", "status", "toy", "--root", str(tmp_path), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["trials"]
    assert [(row["learning_rate"], row["tokens"]) for row in rows] == [
        (1e-3, 4096), (2e-3, 4096), (1e-3, 4096), (2e-3, 0),
    ]  # fmt: skip
    assert rows[1]["loss"] is not None


def test_a_failed_trial_is_tried_again_in_a_folder_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", candidates.choose(CONFIG, tmp_path).architectures[1].name)
    run(tmp_path)
    monkeypatch.delenv("TOY_FAIL")
    assert main(["study", "retry", "toy", "0", "--root", str(tmp_path)]) == 2
    assert "trial 0 of toy did not fail or was retried already; failed trials: [1]" in capsys.readouterr().err
    for _ in range(2):  # the second time there is nothing left to try
        assert main(["study", "retry", "toy", "--root", str(tmp_path)]) == 0
    assert run(tmp_path) == Summary(complete=6, pruned=0, failed=1, left=0, signum=0)
    assert optuna_study(tmp_path).trials[6].user_attrs["retry_of"] == 1


def test_stop_reaches_a_worker_through_the_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import test_workers as t, pathlib, dataclasses; "
        f"print(t.run(pathlib.Path({str(tmp_path)!r}), dataclasses.replace(t.CONFIG, heartbeat_seconds=0.2)))"
    )
    environment = os.environ | {"TOY_SECONDS": "0.5", "PYTHONPATH": f"{Path(__file__).parent}:{SCRIPTS}"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("toy/trials/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert main(["study", "delete", "toy", "--yes", "--root", str(tmp_path)]) == 4
    assert "toy has running workers: stop them first with march-search study stop toy" in capsys.readouterr().err
    assert main(["study", "stop", "toy", "--root", str(tmp_path)]) == 0
    assert "asked 1 workers to save and exit" in capsys.readouterr().err
    assert "signum=15" in process.communicate(timeout=60)[0].decode()
    assert {t.state for t in optuna_study(tmp_path).trials} <= {TrialState.WAITING, TrialState.COMPLETE}
    assert all(Lease.of(t).retries == 0 for t in optuna_study(tmp_path).trials)
    assert main(["worker", "toy", "--root", str(tmp_path)]) == 4
    assert "toy was stopped: run march-search study resume toy" in capsys.readouterr().err
    assert run(tmp_path).complete == 6
    assert main(["study", "delete", "toy", "--yes", "--root", str(tmp_path)]) == 0
    assert not (tmp_path / "toy").exists()


def test_a_script_for_slurm_saves_before_the_time_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml(tmp_path)
    capsys.readouterr()
    assert main(["worker", "toy", "--sbatch", "--root", str(tmp_path)]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --signal=B:TERM@300" in script
    assert f"march-search worker toy --root {tmp_path} &" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_password_is_told_nowhere(
    tmp_path: Path, postgres: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = local_postgres.PASSWORD
    monkeypatch.setenv("STUDY_URL", postgres)
    monkeypatch.setenv("TOY_FAIL", candidates.choose(CONFIG, tmp_path).architectures[0].name)
    config = replace(CONFIG, storage="env:STUDY_URL", search=SearchConfig(trials=3))
    look = "import os; print(os.environ, os.popen('cat /proc/[1-9]*/cmdline 2>/dev/null').read()); raise SystemExit(1)"
    spy = (sys.executable, "-c", look)
    assert run(tmp_path, config, "spied").failed == 1
    folder, chosen = StudyFolder.of(tmp_path, "told"), candidates.choose(config, tmp_path)
    folder.keep_settings(config, chosen.architectures)
    folder.keep_store(tmp_path / "store")
    StudyRun(config, folder, tmp_path / "store", candidates.with_seeds(chosen, config), spy).run()
    for words in (
        ["study", "status"],
        ["study", "status", "--format", "json"],
        ["rank"],
        ["study", "list", "--format", "json"],
    ):
        name = [] if words[1:2] == ["list"] else ["spied"]
        assert main([*words, *name, "--root", str(tmp_path)]) == 0
    assert main(["study", "show", "spied", "0", "--format", "json", "--root", str(tmp_path)]) == 0
    monkeypatch.setenv("STUDY_URL", postgres.replace("searcher", "nobody"))
    assert main(["study", "status", "spied", "--root", str(tmp_path)]) == 4
    with pytest.raises(StorageError) as caught:
        storage.open_study("x", tmp_path, postgres.replace("searcher", "nobody"), PrunerConfig(), 0)
    assert canary not in str(caught.value)
    seen = capfd.readouterr()
    assert "STUDY_URL" in seen.out  # the command for the dashboard
    assert canary not in seen.out + seen.err
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), path
    assert "TOY_FAIL" in (next(folder.trials.iterdir()) / "trial.log").read_text()  # the spy has looked
    assert canary not in public_storage(postgres)  # type: ignore[operator]
    told = StudyConfig(space="cpu-demo", storage=postgres)
    StudyFolder.of(tmp_path, "direct").keep_settings(told, [])
    assert canary not in (tmp_path / "direct" / "study.json").read_text()


@pytest.mark.parametrize(("index", "page"), [(0, "api/studies"), (1, "data/runs")])
def test_the_printed_commands_open_what_we_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], index: int, page: str
) -> None:
    toml(tmp_path)
    events = next((tmp_path / "toy" / "trials").iterdir())
    EventFile(events, read_lines(events / "metrics.jsonl")).close()
    capsys.readouterr()
    assert main(["study", "status", "toy", "--root", str(tmp_path)]) == 0
    words = ("optuna-dashboard ", "tensorboard ")[index]
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(words)]
    program, *arguments = shlex.split(line)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [Path(sys.executable).with_name(program), *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            told = answer(f"http://127.0.0.1:{port}/{page}", "toy" if index == 0 else events.name)
        finally:
            server.terminate()
    assert ("toy" if index == 0 else events.name) in told


def answer(url: str, wanted: str, seconds: float = 120) -> str:
    """What a page says once it has `wanted`, or in the end."""
    told, end = "", time.monotonic() + seconds
    while wanted not in told and time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(url, timeout=10) as page:
            told = page.read().decode()
        time.sleep(0.2)
    return told


def test_a_proxy_serves_postgresql_alone(
    tmp_path: Path, postgres: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    monkeypatch.setenv("BEHIND", f"sqlite:///{tmp_path}/s.db")
    assert main(["storage-proxy", "env:BEHIND"]) == 2
    assert "serves PostgreSQL only: with a journal or SQLite it would lose records" in capsys.readouterr().err
    assert main(["storage-proxy", postgres]) == 2
    assert "reads its URL from an environment variable" in capsys.readouterr().err
    command = [sys.executable, "-W", "ignore", "-m", "march_search", "storage-proxy", "env:BEHIND", "--port", port]
    proxy = subprocess.Popen(command, env=os.environ | {"BEHIND": postgres}, stderr=subprocess.PIPE, text=True)
    try:
        assert proxy.stderr is not None
        assert proxy.stderr.readline() == f"serving at grpc://localhost:{port}; press Ctrl-C to stop\n"
        config = replace(CONFIG, storage=f"grpc://localhost:{port}", search=SearchConfig(trials=3))
        code = (
            f"import test_workers as t, pathlib; print(t.run(pathlib.Path({str(tmp_path)!r}), "
            f"t.replace(t.CONFIG, storage={config.storage!r}, search=t.SearchConfig(trials=3)), 'proxied').complete)"
        )
        environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{SCRIPTS}"}
        ended = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert ended.stdout == "3\n", ended.stderr
        assert "Warning" not in ended.stderr
    finally:
        proxy.terminate()
        proxy.communicate(timeout=30)
    assert proxy.returncode == 143


def test_a_study_that_has_not_begun_is_not_made_by_looking(tmp_path: Path) -> None:
    config = replace(CONFIG, storage=f"sqlite:///{tmp_path}/s.db")
    folder = StudyFolder.of(tmp_path, "toy")
    folder.keep_settings(config, [])
    with pytest.raises(StorageError, match="the study has no trials yet: run march-search study run toy"):
        status.open_started(folder, config)
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/s.db") == []


@pytest.mark.parametrize("kind", ["median", "halving", "hyperband"])
def test_optunas_pruners_are_options(tmp_path: Path, kind: str) -> None:
    config = replace(CONFIG, pruner=PrunerConfig(kind=kind, startup_trials=1))
    ended = run(tmp_path, config)
    assert ended.complete + ended.pruned == 6
    assert ended.complete >= 1


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the environment variable NO_SUCH_URL is not set: export it first"):
        storage.open_study("x", tmp_path, "env:NO_SUCH_URL", PrunerConfig(), 0)


@given(st.text(max_size=300) | st.sampled_from(["../../x", "x" * 300, "a\0b", "🦊", "..", "a/../../b", "/etc", "a\n"]))
@settings(max_examples=200, deadline=None)
def test_no_name_of_a_study_leaves_the_root(name: str) -> None:
    root = Path("/nowhere/runs")
    try:
        path = StudyFolder.of(root, name).path
    except ConfigError:
        return
    assert path.parent == root
    assert path.resolve().parent == root
    assert len(os.fsencode(path.name)) <= 255


def test_the_storage_has_one_study_of_a_folder(tmp_path: Path, postgres: str) -> None:
    config = replace(CONFIG, storage=postgres, search=SearchConfig(trials=2))
    assert run(tmp_path / "a", config, "bound").complete == 2
    with pytest.raises(StorageError, match="another folder started"):
        run(tmp_path / "b", config, "bound")
    assert open_study(StudyFolder.of(tmp_path / "a", "bound"), config).study_name == "bound"
