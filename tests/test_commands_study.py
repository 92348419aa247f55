"""`march-search study status | show | list | retry | stop | delete | worker` on studies of toys."""

import json
import shlex
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.ports import free_port
from helpers.toy_studies import TOY_CONFIG, optuna_study, run_toy_study, start_toy_study
from helpers.trials import wait_until
from optuna.trial import TrialState

from march_search.cli import main
from march_search.config import SearchConfig
from march_search.files import read_lines
from march_search.study import candidates
from march_search.study.journal import JOURNAL
from march_search.study.leases import Lease
from march_search.study.runner import Summary
from march_search.training.metrics_file import EventFile

THREE = replace(TOY_CONFIG, search=SearchConfig(trials=3))


def test_status_show_and_list_agree_in_tables_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", candidates.choose(TOY_CONFIG, tmp_path).architectures[1].name)
    run_toy_study(tmp_path)
    here = ["--root", str(tmp_path)]
    capsys.readouterr()
    assert main(["study", "status", "toy", *here]) == 0
    table = capsys.readouterr().out
    assert "toy: 5 complete, 1 failed" in table
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
    assert error.startswith('march-search: there is no study "tow": neither a shipped one nor one started in ')
    assert 'Did you mean "toy"?' in error


def test_status_lists_learning_rates_and_trials_to_come(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = SearchConfig(strategy="tpe", trials=4, learning_rates=(1e-3, 2e-3), max_tokens=3 * 4096)
    assert run_toy_study(tmp_path, replace(TOY_CONFIG, search=search)).complete == 3
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


def test_a_failed_trial_is_retried_in_a_new_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", candidates.choose(TOY_CONFIG, tmp_path).architectures[1].name)
    run_toy_study(tmp_path)
    monkeypatch.delenv("TOY_FAIL")
    assert main(["study", "retry", "toy", "0", "--root", str(tmp_path)]) == 2
    assert "trial 0 of toy did not fail or was retried already; failed trials: [1]" in capsys.readouterr().err
    for _ in range(2):  # the second time there is nothing to retry
        assert main(["study", "retry", "toy", "--root", str(tmp_path)]) == 0
    assert run_toy_study(tmp_path) == Summary(complete=6, pruned=0, failed=1, left=0, signum=0)
    assert optuna_study(tmp_path).trials[6].user_attrs["retry_of"] == 1


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


def test_the_slurm_script_saves_before_the_time_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_toy_study(tmp_path, THREE)
    capsys.readouterr()
    assert main(["study", "worker", "toy", "--sbatch", "--root", str(tmp_path)]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --signal=B:TERM@300" in script
    assert f"march-search study worker toy --root {tmp_path} &" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(("index", "page"), [(0, "api/studies"), (1, "data/runs")])
def test_the_printed_commands_open_the_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], index: int, page: str
) -> None:
    run_toy_study(tmp_path, THREE)
    events = next((tmp_path / "toy" / "trials").iterdir())
    EventFile(events, read_lines(events / "metrics.jsonl")).close()
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
