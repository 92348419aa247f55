"""Storages of a study: journal, SQLite, PostgreSQL and the gRPC proxy; passwords stay private."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import local_postgres
import optuna
import pytest
from helpers.forks import forks
from helpers.ports import free_port
from helpers.toy_studies import TOY_CONFIG, open_fresh_study, run_toy_study, start_toy_study
from hypothesis import given, settings
from hypothesis import strategies as st

from march_search.cli import main
from march_search.config import PrunerConfig, SearchConfig, StudyConfig
from march_search.config.study_config import public_storage
from march_search.errors import ConfigError, StorageError
from march_search.study import candidates, status, storage
from march_search.study.journal import JOURNAL, open_journal
from march_search.study.runner import StudyRun, Summary, open_study
from march_search.study.study_folder import StudyFolder


@pytest.mark.parametrize("kind", ["journal", "sqlite", "postgresql"])
def test_eight_processes_open_a_fresh_storage_at_the_same_moment(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    url = None if kind == "journal" else f"sqlite:///{tmp_path}/s.db"
    if kind == "postgresql":
        url = request.getfixturevalue("postgres")
    barrier = forks().Barrier(8)
    processes = [forks().Process(target=open_fresh_study, args=(url, tmp_path, barrier)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
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
        left = [s for s in open_journal(journal).get_all_studies() if s.study_name == "s"]
        assert not left or len(left[0].user_attrs) == acknowledged - 1


def test_a_torn_line_is_removed_before_another_worker_appends(tmp_path: Path) -> None:
    journal = tmp_path / JOURNAL
    study = optuna.create_study(study_name="s", storage=open_journal(journal))
    with journal.open("ab") as file:
        file.write(b'{"op_code": 2, "torn')
    study.set_user_attr("later", 1)
    assert optuna.load_study(study_name="s", storage=open_journal(journal)).user_attrs == {"later": 1}


def test_looking_at_a_study_does_not_create_it(tmp_path: Path) -> None:
    config = replace(TOY_CONFIG, storage=f"sqlite:///{tmp_path}/s.db")
    folder = StudyFolder.of(tmp_path, "toy")
    folder.keep_settings(config, [])
    with pytest.raises(StorageError, match="the study has no trials yet: run march-search study run toy"):
        status.open_started(folder, config)
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/s.db") == []


def test_two_folders_cannot_share_a_study_name_in_postgresql(tmp_path: Path, postgres: str) -> None:
    config = replace(TOY_CONFIG, storage=postgres, search=SearchConfig(trials=2))
    assert run_toy_study(tmp_path / "a", config, "bound").complete == 2
    with pytest.raises(StorageError, match="another folder started"):
        run_toy_study(tmp_path / "b", config, "bound")
    assert open_study(StudyFolder.of(tmp_path / "a", "bound"), config).study_name == "bound"


def test_a_missing_environment_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the environment variable NO_SUCH_URL is not set: export it first"):
        storage.open_study("x", tmp_path, "env:NO_SUCH_URL", PrunerConfig(), 0)


@given(st.text(max_size=300) | st.sampled_from(["../../x", "x" * 300, "a\0b", "🦊", "..", "a/../../b", "/etc", "a\n"]))
@settings(max_examples=200, deadline=None)
def test_no_study_name_leaves_the_root(name: str) -> None:
    root = Path("/nowhere/runs")
    try:
        path = StudyFolder.of(root, name).path
    except ConfigError:
        return
    assert path.parent == root
    assert path.resolve().parent == root
    assert len(os.fsencode(path.name)) <= 255


def test_a_password_appears_nowhere(
    tmp_path: Path, postgres: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = local_postgres.PASSWORD
    monkeypatch.setenv("STUDY_URL", postgres)
    monkeypatch.setenv("TOY_FAIL", candidates.choose(TOY_CONFIG, tmp_path).architectures[0].name)
    config = replace(TOY_CONFIG, storage="env:STUDY_URL", search=SearchConfig(trials=3))
    look = "import os; print(os.environ, os.popen('cat /proc/[1-9]*/cmdline 2>/dev/null').read()); raise SystemExit(1)"
    spy = (sys.executable, "-c", look)
    assert run_toy_study(tmp_path, config, "spied").failed == 1
    folder, chosen = StudyFolder.of(tmp_path, "environment"), candidates.choose(config, tmp_path)
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
    assert "TOY_FAIL" in (next(folder.trials.iterdir()) / "trial.log").read_text()  # the spy saw its environment
    assert canary not in public_storage(postgres)  # type: ignore[operator]
    direct = StudyConfig(space="cpu-demo", storage=postgres)
    StudyFolder.of(tmp_path, "direct").keep_settings(direct, [])
    assert canary not in (tmp_path / "direct" / "study.json").read_text()


def test_a_proxy_serves_postgresql_alone(
    tmp_path: Path, postgres: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEHIND", f"sqlite:///{tmp_path}/s.db")
    assert main(["study", "storage-proxy", "env:BEHIND"]) == 2
    assert "serves PostgreSQL only: with a journal or SQLite it would lose records" in capsys.readouterr().err
    assert main(["study", "storage-proxy", postgres]) == 2
    assert "reads its URL from an environment variable" in capsys.readouterr().err
    port = str(free_port())
    command = [sys.executable, "-W", "ignore", "-m", "march_search", "study", "storage-proxy", "env:BEHIND"]
    proxy = subprocess.Popen(
        [*command, "--port", port], env=os.environ | {"BEHIND": postgres}, stderr=subprocess.PIPE, text=True
    )
    try:
        assert proxy.stderr is not None
        assert proxy.stderr.readline() == f"serving at grpc://localhost:{port}; press Ctrl-C to stop\n"
        config = replace(TOY_CONFIG, storage=f"grpc://localhost:{port}", search=SearchConfig(trials=3))
        out, err = start_toy_study(tmp_path, config, "proxied").communicate(timeout=100)
        assert out == f"{Summary(complete=3, pruned=0, failed=0, left=0, signum=0)}\n", err
        assert "Warning" not in err
    finally:
        proxy.terminate()
        proxy.communicate(timeout=30)
    assert proxy.returncode == 143
