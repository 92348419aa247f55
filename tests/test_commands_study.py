"""`march-search study status | show | list | retry | stop | delete | worker` on studies of toys."""

import json
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command_line import imported_by
from helpers.ports import free_port
from helpers.toy_studies import TOY_CONFIG, optuna_study, run_toy_study, start_toy_study
from helpers.trials import wait_until, write_checkpoint
from optuna.trial import TrialState

from march_search.analysis.study_record import read_study
from march_search.cli import main
from march_search.commands.output import report_summary
from march_search.config import SearchConfig
from march_search.config.shipped import shipped_names
from march_search.planning import candidates
from march_search.storage.journal import JOURNAL
from march_search.storage.leases import Lease
from march_search.storage.study_folder import StudyFolder
from march_search.storage.trials import repeat_trial
from march_search.study import status
from march_search.study.runner import Summary
from march_search.training.metrics_file import EventFile
from march_search.trial.metrics import read_metrics

ONE, THREE = (replace(TOY_CONFIG, search=SearchConfig(trials=number)) for number in (1, 3))


def test_status_show_and_list_agree_in_tables_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", candidates.choose(TOY_CONFIG, tmp_path).architectures[1].name)
    run_toy_study(tmp_path)
    here = ["--root", str(tmp_path)]
    capsys.readouterr()
    assert main(["study", "status", "toy", *here]) == 0
    table = capsys.readouterr().out
    assert "toy: 6 of 6 trials ended (5 complete, 1 failed)" in table
    assert f"optuna-dashboard {tmp_path / 'toy' / JOURNAL}\ntensorboard --logdir {tmp_path / 'toy/trials'}\n" in table
    assert main(["study", "status", "toy", *here, "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["states"] == {"complete": 5, "failed": 1}
    assert printed["tokens_done"] == printed["tokens_planned"] == 5 * 4096
    assert [row["state"] for row in printed["trials"]] == ["complete", "failed", *["complete"] * 4]
    assert main(["study", "show", "toy", "1", *here, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["reason"] == "TOY_FAIL names this architecture."
    assert main(["study", "show", "toy", "6", *here]) == 2
    assert "toy has no trial 6: use a number from 0 to 5" in capsys.readouterr().err
    assert main(["study", "list", *here, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["studies"][-1]["states"] == "5 complete, 1 failed"
    assert main(["study", "status", "tow", *here]) == 2
    error = capsys.readouterr().err
    assert error.startswith('march-search: unknown study "tow": it is neither shipped nor started in ')
    assert 'Did you mean "toy"?' in error


def test_a_list_of_80_columns_starts_with_the_user_s_studies_and_cuts_no_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    name = "one-of-mine-with-a-name-of-forty-letters"
    for number in range(2):
        StudyFolder.of(Path("runs"), f"{name}-{number}").keep_settings(replace(TOY_CONFIG, description="x " * 50), [])
    assert main(["study", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    first = [line.split()[0] for line in lines if line[:2] != "  " and line.strip()]
    assert first.index(f"runs/{name}-1") < first.index("cpu-demo")
    assert set(shipped_names("studies")) <= set(first)


def test_status_does_not_import_torch(tmp_path: Path) -> None:
    run_toy_study(tmp_path, THREE)
    heavy = {"torch", "deepspeed", "datasets", "tokenizers"}
    for words in (("study", "status", "toy"), ("study", "list")):
        assert imported_by(*words, "--root", str(tmp_path)) & heavy == set()


def test_status_lists_learning_rates_and_trials_to_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = SearchConfig(strategy="tpe", trials=4, learning_rates=(1e-3, 2e-3), max_tokens=3 * 4096)
    assert run_toy_study(tmp_path, replace(TOY_CONFIG, search=search)).complete == 3
    (tmp_path / "toy/plan.json").write_text('{"trials": 8}')
    capsys.readouterr()
    assert main(["study", "status", "toy", "--root", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "toy: 3 of 8 trials ended (3 complete, 1 waiting, 4 to come)" in table
    assert "rate" in table
    assert f"tokens: 12.3k of {8 * 4096 / 1000:.1f}k expected" in table
    assert main(["study", "status", "toy", "--root", str(tmp_path), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["trials"]
    assert [(row["learning_rate"], row["tokens"]) for row in rows] == [
        (1e-3, 4096), (2e-3, 4096), (1e-3, 4096), (2e-3, 0),
    ]  # fmt: skip
    assert rows[1]["loss"] is not None


def test_a_failed_trial_is_retried_in_its_folder_under_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ["--root", str(tmp_path)]
    monkeypatch.setenv("TOY_FAIL", candidates.choose(TOY_CONFIG, tmp_path).architectures[1].name)
    run_toy_study(tmp_path)
    assert main(["study", "retry", "toy", "0", *here]) == 2
    assert "trial 0 of toy did not fail or was retried already; failed trials: [1]" in capsys.readouterr().err
    for _ in range(2):  # the second time there is nothing to retry
        assert main(["study", "retry", "toy", *here]) == 0
    assert run_toy_study(tmp_path).failed == 1  # again
    monkeypatch.delenv("TOY_FAIL")
    assert main(["study", "retry", "toy", "1", *here]) == 0
    assert main(["study", "status", "toy", *here, "--format", "json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)["trials"]][1] == "waiting"
    summary = run_toy_study(tmp_path)
    assert summary == Summary(complete=6, pruned=0, failed=0, left=0, signum=0)
    assert report_summary(summary, StudyFolder.of(tmp_path, "toy")) == 0
    attempts = optuna_study(tmp_path).trials[6:]
    assert [(t.user_attrs["retry_of"], t.user_attrs["first_attempt"]) for t in attempts] == [(1, 1), (6, 1)]
    assert len(list((tmp_path / "toy/trials").iterdir())) == 6
    assert {t.state for t in read_study(tmp_path / "toy").trials} == {"complete"}
    capsys.readouterr()
    assert main(["study", "status", "toy", *here, "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["states"] == {"complete": 6}
    assert printed["tokens_done"] == printed["tokens_planned"] == printed["tokens_without_pruning"] == 6 * 4096
    assert [row["trial"] for row in printed["trials"]] == list(range(6))
    assert main(["study", "show", "toy", "1", *here, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"]["state"] == "complete"


def test_a_retry_of_an_earlier_version_counts_and_its_first_attempt_keeps_no_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", candidates.choose(THREE, tmp_path).architectures[1].name)
    run_toy_study(tmp_path, THREE)
    monkeypatch.delenv("TOY_FAIL")
    study = optuna_study(tmp_path)
    repeat_trial(study, study.trials[1], retry_of=1)
    [old] = (tmp_path / "toy/trials").glob("0001-*")
    write_checkpoint(old, 1)
    assert run_toy_study(tmp_path, THREE) == Summary(complete=3, pruned=0, failed=0, left=0, signum=0)
    assert len(list((tmp_path / "toy/trials").iterdir())) == 4
    assert not (old / "checkpoints").exists()


def test_a_failed_trial_keeps_its_newest_intact_checkpoint_until_it_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [architecture] = candidates.choose(ONE, tmp_path).architectures
    folder = StudyFolder.of(tmp_path, "toy").trial(0, architecture.name, 0)
    for step in (1, 2, 3):
        tag = write_checkpoint(folder, step)
    (tag / "state").write_bytes(b"torn")
    (folder / "checkpoints/step-000000004").mkdir()  # without a manifest
    monkeypatch.setenv("TOY_FAIL", architecture.name)
    assert run_toy_study(tmp_path, ONE).failed == 1
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000002"]
    write_checkpoint(folder, 1)  # as if the worker had been killed before it deleted it
    assert run_toy_study(tmp_path, ONE).failed == 1
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000002"]
    monkeypatch.delenv("TOY_FAIL")
    assert main(["study", "retry", "toy", "--root", str(tmp_path)]) == 0
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000002"]
    assert run_toy_study(tmp_path, ONE).complete == 1
    assert Lease.of(optuna_study(tmp_path).trials[1]).start == 2048
    assert not (folder / "checkpoints").exists()


def test_a_study_with_a_suspended_worker_is_not_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = start_toy_study(tmp_path, replace(ONE, heartbeat_seconds=0.1), seconds=2)
    folder = StudyFolder.of(tmp_path, "toy")
    try:
        assert wait_until(lambda: list(tmp_path.glob("toy/trials/*/trial.log")))
        process.send_signal(signal.SIGSTOP)
        assert wait_until(
            lambda: [row["state"] for row in status.worker_rows(optuna_study(tmp_path), folder)] == ["silent"]
        )
        assert main(["study", "delete", "toy", "--yes", "--root", str(tmp_path)]) == 4
        assert "toy has running workers: stop them first" in capsys.readouterr().err
        assert folder.path.is_dir()
        assert main(["study", "stop", "toy", "--root", str(tmp_path)]) == 0
        assert "toy: asked up to 1 worker to save and exit" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()
    assert wait_until(lambda: main(["study", "delete", "toy", "--yes", "--root", str(tmp_path)]) == 0)
    assert not folder.path.exists()


def test_stop_reaches_a_worker_through_the_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = start_toy_study(tmp_path, replace(TOY_CONFIG, heartbeat_seconds=0.2), seconds=0.3)
    assert wait_until(lambda: list(tmp_path.glob("toy/trials/*/metrics.jsonl")))
    assert main(["study", "delete", "toy", "--yes", "--root", str(tmp_path)]) == 4
    assert "toy has running workers: stop them first with march-search study stop toy" in capsys.readouterr().err
    assert main(["study", "stop", "toy", "--root", str(tmp_path)]) == 0
    assert "asked 1 worker to save and exit" in capsys.readouterr().err
    assert "signum=15" in process.communicate(timeout=60)[0]
    assert {t.state for t in optuna_study(tmp_path).trials} <= {TrialState.WAITING, TrialState.COMPLETE}
    assert all(Lease.of(t).retries == 0 for t in optuna_study(tmp_path).trials)
    assert main(["study", "worker", "toy", "--root", str(tmp_path)]) == 4
    assert "toy was stopped: run march-search study resume toy" in capsys.readouterr().err
    assert run_toy_study(tmp_path).complete == 6
    assert main(["study", "delete", "toy", "--yes", "--root", str(tmp_path)]) == 0
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize("words", [["worker", "toy"], ["resume", "toy"], ["confirm", "toy"]], ids=" ".join)
def test_a_damaged_store_is_one_error_and_fails_no_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    run_toy_study(tmp_path)
    states = [trial.state for trial in optuna_study(tmp_path).trials]
    index = tmp_path / "store" / "index.json"
    index.write_text(index.read_text().replace("<u2", "<i2"))
    capsys.readouterr()
    assert main(["study", *words, "--root", str(tmp_path)]) == 5
    line = capsys.readouterr().err
    assert "store/index.json: is damaged: it does not match its sha256" in line
    assert "march-search data prepare STUDY --repair" in line
    assert line.count("\n") == 1
    assert [trial.state for trial in optuna_study(tmp_path).trials] == states


def test_the_slurm_script_saves_before_the_time_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_toy_study(tmp_path, THREE)
    capsys.readouterr()
    assert main(["study", "worker", "toy", "--sbatch", "--root", str(tmp_path)]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --signal=B:TERM@420" in script
    assert f"march-search study worker toy --root {tmp_path} &" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(("index", "page"), [(0, "api/studies"), (1, "data/runs")])
def test_the_printed_commands_open_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], index: int, page: str
) -> None:
    run_toy_study(tmp_path, THREE)
    events = next((tmp_path / "toy" / "trials").iterdir())
    EventFile(events, read_metrics(events).lines).close()
    capsys.readouterr()
    assert main(["study", "status", "toy", "--root", str(tmp_path)]) == 0
    words = ("optuna-dashboard ", "tensorboard ")[index]
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(words)]
    program, *arguments = shlex.split(line)
    port = free_port()
    command = [Path(sys.executable).with_name(program), *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            text = page_with(f"http://127.0.0.1:{port}/{page}", "toy" if index == 0 else events.name)
        finally:
            server.terminate()
    assert ("toy" if index == 0 else events.name) in text


def page_with(url: str, wanted: str, seconds: float = 120) -> str:
    """Return the text of a page once it contains `wanted`, or after `seconds`."""
    text, end = "", time.monotonic() + seconds
    while wanted not in text and time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(url, timeout=10) as page:
            text = page.read().decode()
        time.sleep(0.1)
    return text
