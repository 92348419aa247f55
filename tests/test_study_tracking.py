"""Metrics of trials reach real trackers, once and with their outcome, and no tracker changes a trial."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.toy_studies import RUNG_TRAINING, TOY_CONFIG, run_toy_study
from helpers.trackers import offline, stored_runs
from helpers.trials import DATA, TINY, TINY_TRAINING, expected_steps, lines, wait_until

from march_search import Architecture
from march_search.cli import main
from march_search.config import ConfirmConfig, DevicesConfig, PrunerConfig, SearchConfig, StudyConfig, TrackingConfig
from march_search.config.tracking_config import TRACKERS
from march_search.errors import ConfigError
from march_search.storage.study_folder import StudyFolder
from march_search.storage.trials import WantedTrial
from march_search.study.runner import StudyRun
from march_search.tracking.trackers import check_libraries
from march_search.tracking.tracking_process import state_file
from march_search.trial.metrics import read_metrics, sealed_line
from march_search.trial.outcome import write_outcome

SLOW = [pytest.param(name, marks=pytest.mark.torture) if name == "mlflow" else name for name in TRACKERS]
"""Trackers; MLflow takes seconds to load."""


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all trackers store below the test's folder."""
    for name, value in offline(tmp_path).items():
        monkeypatch.setenv(name, value)


def toy_config(*trackers: str, trials: int = 2) -> StudyConfig:
    """Return the settings of a study of toys that is tracked."""
    search = SearchConfig(trials=trials)
    return replace(TOY_CONFIG, search=search, tracking=TrackingConfig(to=trackers, project="toys"))


def states(tracker: str, study: Path) -> list[object]:
    """Return the outcome that was sent of each trial."""
    files = sorted(study.glob(f"trials/*/tracking-{tracker}.json"))
    return [json.loads(file.read_text()).get("ended") for file in files]


@pytest.mark.parametrize("tracker", SLOW)
def test_a_tracker_has_each_step_once_with_settings_and_outcome(
    tracker: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_toy_study(tmp_path, toy_config(tracker)).complete == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert all(re.match("search: |✓ trial |trial ", line) for line in printed.err.splitlines()), printed.err
    folders = sorted(tmp_path.glob("toy/trials/*"))
    runs = stored_runs(tracker, tmp_path, "toys")
    assert [run.steps for run in runs] == [expected_steps(folder) for folder in folders]
    assert {run.group for run in runs} == {"toy"}
    assert {run.state for run in runs} <= {"complete", None if tracker == "trackio" else "complete"}
    for run, folder in zip(runs, folders, strict=True):
        assert {"d_model", "d_ff", "num_params", "tokens", "seed", "learning_rate"} <= set(run.settings)
        assert run.settings["architecture"] == json.loads((folder / "trial.json").read_text())["architecture"]
    assert states(tracker, tmp_path / "toy") == ["complete", "complete"]
    assert run_toy_study(tmp_path, toy_config(tracker)).complete == 2  # sends nothing again
    assert stored_runs(tracker, tmp_path, "toys") == runs


def test_a_reused_trial_is_sent_as_a_trial_of_its_new_study(tmp_path: Path) -> None:
    first = toy_config("trackio")
    run_toy_study(tmp_path, first, "first")
    lean = replace(first.training, keep_weights=False)  # toys have no weights to reuse
    run_toy_study(tmp_path, replace(first, training=lean, search=replace(first.search, reuse_trials=True)), "second")
    outcomes = [json.loads(path.read_text()) for path in tmp_path.glob("second/trials/*/outcome.json")]
    assert [outcome["taken_from"].partition("/")[0] for outcome in outcomes] == ["first"] * 2
    assert states("trackio", tmp_path / "second") == ["complete"] * 2
    sent = stored_runs("trackio", tmp_path, "toys")
    assert sorted(run.group for run in sent) == ["first", "first", "second", "second"]
    for folder in tmp_path.glob("*/trials/*"):
        assert expected_steps(folder) in [run.steps for run in sent if run.group == folder.parent.parent.name]


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """The folder of a trial that has written nothing."""
    folder = StudyFolder.of(tmp_path, "hand")
    folder.keep_settings(TOY_CONFIG, [])
    at = folder.trial(0, TINY, 0)
    folder.write_trial(at, TOY_CONFIG, TINY, 0, tmp_path / "store")
    return at


@pytest.fixture
def start() -> "Iterator[Callable[[str, Path], subprocess.Popen[bytes]]]":
    """A function that starts the process that sends a trial's metrics; the test ends its standard input."""
    started: list[subprocess.Popen[bytes]] = []

    def start(tracker: str, folder: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "march_search.tracking.tracking_process", tracker, "hands", str(folder)]
        with (folder / "log").open("ab") as log:
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def write_steps(folder: Path, first: int, last: int) -> None:
    """Keep the lines before step `first` in a new file, as a resumed trial does, and add those up to `last`."""
    kept = [line for line in read_metrics(folder).lines if line["step"] < first]
    for step in range(first, last + 1):
        kept.append({"kind": "train", "step": step, "tokens": 256 * step, "loss": 1 / step})
        if step % 2 == 0:
            kept.append({"kind": "evaluation", "step": step, "tokens": 256 * step, "loss": 2 / step})
    (folder / "new").write_text("".join(map(sealed_line, kept)))
    (folder / "new").replace(folder / "metrics.jsonl")


def sent_step(tracker: str, folder: Path) -> int:
    """Return the last step that was sent; -1 for none."""
    file = state_file(tracker, folder)
    return int(json.loads(file.read_text())["step"]) if file.exists() else -1


@pytest.mark.parametrize(
    ("tracker", "how"),
    [
        ("wandb", "stop"),
        ("wandb", "kill"),
        ("trackio", "stop"),
        pytest.param("trackio", "kill", marks=pytest.mark.torture),
        pytest.param("mlflow", "kill", marks=pytest.mark.torture),
    ],
)
def test_an_interrupted_trial_resumes_in_its_run_and_repeats_nothing(
    tracker: str, how: str, trial: Path, tmp_path: Path, start: "Callable[[str, Path], subprocess.Popen[bytes]]"
) -> None:
    def follow(step: int) -> "subprocess.Popen[bytes]":
        process = start(tracker, trial)
        if is_safe:
            assert wait_until(lambda: sent_step(tracker, trial) == step, 120), log.read_text()
        else:
            assert wait_until(state_file(tracker, trial).exists, 120), log.read_text()
            time.sleep(1.5)  # so that it has probably logged some steps; whether it has changes no result
        return process

    is_safe = tracker != "wandb"  # without a server, it may lose what it logged before its end
    log = trial / "log"
    write_steps(trial, 1, 6)
    first = follow(5)
    first.kill() if how == "kill" else first.communicate(timeout=70)
    first.wait()
    assert sent_step(tracker, trial) == (5 if is_safe or how == "stop" else -1)  # step 6 may still be evaluated
    write_steps(trial, 4, 8)  # resumes from a checkpoint at step 3
    second = follow(7)
    write_steps(trial, 9, 10)
    write_outcome(trial, {"state": "pruned", "tokens": 2560, "loss": 0.2, "text": ""})
    second.communicate(timeout=70)
    assert second.returncode == 0, log.read_text()
    [run] = stored_runs(tracker, tmp_path, "hands")
    assert len(expected_steps(trial)) == 10
    if is_safe or how == "stop":
        assert run.steps == expected_steps(trial)
    assert dict(run.steps) == dict(expected_steps(trial))
    assert run.state == (None if tracker == "trackio" else "pruned")
    assert json.loads(state_file(tracker, trial).read_text()) == {"step": 10, "ended": "pruned"}


def test_a_metric_line_without_a_step_is_left_out(
    trial: Path, tmp_path: Path, start: "Callable[[str, Path], subprocess.Popen[bytes]]"
) -> None:
    write_steps(trial, 1, 2)
    with (trial / "metrics.jsonl").open("a") as file:
        file.write(sealed_line({"kind": "train", "tokens": 700, "loss": 0.4}))
    write_outcome(trial, {"state": "pruned", "tokens": 512, "loss": 0.5, "text": ""})
    sender = start("trackio", trial)
    sender.communicate(timeout=70)
    assert sender.returncode == 0, (trial / "log").read_text()
    [run] = stored_runs("trackio", tmp_path, "hands")
    assert [step for step, _ in run.steps] == [1, 2]


@pytest.mark.torture
def test_a_trial_that_is_pruned_while_it_waits_is_closed_at_the_end(tmp_path: Path) -> None:
    rungs = PrunerConfig(kind="rungs", rungs=(0.25, 1.0), finalists=1)
    ended = run_toy_study(tmp_path, replace(toy_config("wandb", trials=6), training=RUNG_TRAINING, pruner=rungs))
    assert ended.pruned >= 3
    runs = stored_runs("wandb", tmp_path, "toys")
    assert sorted(str(run.state) for run in runs) == ["complete"] * ended.complete + ["pruned"] * ended.pruned
    assert [run.steps for run in runs] == [expected_steps(at) for at in sorted(tmp_path.glob("toy/trials/*"))]


def test_a_tracker_that_fails_changes_no_trial_and_the_same_command_sends_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:1")  # it also needs a token
    summary = run_toy_study(tmp_path, toy_config("trackio"))
    assert (summary.complete, summary.failed) == (2, 0)
    warnings = [line for line in capfd.readouterr().err.splitlines() if "trackio" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("trackio: metrics were not sent: Self-hosted logging requires a write token")
    assert warnings[0].endswith(".log)")
    assert states("trackio", tmp_path / "toy") == [None, None] or states("trackio", tmp_path / "toy") == [None]
    monkeypatch.delenv("TRACKIO_SERVER_URL")
    assert run_toy_study(tmp_path, toy_config("trackio")) == summary
    assert "not sent" not in capfd.readouterr().err
    runs = stored_runs("trackio", tmp_path, "toys")
    assert [run.steps for run in runs] == [expected_steps(at) for at in sorted(tmp_path.glob("toy/trials/*"))]


@pytest.mark.torture
def test_a_server_that_is_down_changes_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert run_toy_study(tmp_path, toy_config("mlflow")).complete == 2
    warnings = [line for line in capfd.readouterr().err.splitlines() if "mlflow" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("mlflow: metrics were not sent: API request to http://127.0.0.1:1/")


def test_a_tracker_that_does_not_answer_is_killed(trial: Path) -> None:
    down = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:1", "WANDB_API_KEY": "0" * 40}
    code = (
        "import sys; from march_search.tracking import tracking_process as t; t.LIMIT_SECONDS = 1; t.main(sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "wandb", "hands", str(trial)], env=os.environ | down, stdin=subprocess.DEVNULL,
        capture_output=True, start_new_session=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not state_file("wandb", trial).exists()


@pytest.mark.torture
def test_losses_and_weights_are_the_same_bits_with_and_without_a_tracker(store: Path, tmp_path: Path) -> None:
    config = StudyConfig(
        space="cpu-demo", search=SearchConfig(strategy="list", architectures=(TINY,)), data=DATA,
        training=TINY_TRAINING, pruner=PrunerConfig(kind="none"), confirm=ConfirmConfig(max_seeds=1),
        devices=DevicesConfig(kind="cpu", threads=1),
    )  # fmt: skip
    folders = {}
    for name, trackers in (("without", ()), ("with", ("wandb", "trackio"))):
        own, folder = replace(config, tracking=TrackingConfig(to=trackers)), StudyFolder.of(tmp_path, name)
        folder.keep_settings(own, [])
        folder.keep_store(store)
        wanted: list[WantedTrial] = [(Architecture.parse(TINY), 0)]
        assert StudyRun(own, folder, store, wanted).run().complete == 1
        [folders[name]] = folder.trials.iterdir()
    for kind in ("train", "evaluation"):
        assert lines(folders["with"], kind) == lines(folders["without"], kind)
    results = [json.loads((folders[name] / "result.json").read_text()) for name in folders]
    assert results[0]["loss"] == results[1]["loss"]
    assert results[0]["weights_sha256"] == results[1]["weights_sha256"]
    assert [run.steps for run in stored_runs("trackio", tmp_path, "march-search")] == [expected_steps(folders["with"])]


def test_trackers_may_change_after_the_start(tmp_path: Path) -> None:
    run_toy_study(tmp_path, toy_config())
    assert run_toy_study(tmp_path, toy_config("trackio")).complete == 2
    assert stored_runs("trackio", tmp_path, "toys") != []
    assert states("trackio", tmp_path / "toy") == ["complete", "complete"]


def test_a_missing_library_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()  # the folder that the library writes is not the library
    for name in ("wandb", "mlflow"):  # another test of this process may have loaded them
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(at for at in sys.path if "site-packages" not in at)])
    with pytest.raises(ConfigError, match=re.escape("not installed here: pip install 'march-search[wandb,mlflow]'.")):
        check_libraries(TrackingConfig(to=("wandb", "mlflow")))
    with pytest.raises(ConfigError, match=r"to has wandb, not installed here"):
        run_toy_study(tmp_path, toy_config("wandb"))


def test_the_plan_names_the_trackers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["study", "run", "cpu-demo", "tracking.to=[wandb,mlflow]", "--dry-run", "--device", "A5000"]
    assert main([*arguments, "--root", str(tmp_path)]) == 0
    assert "one run per trial to wandb and mlflow, project march-search" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"to": ("wandbb",)}, 'to has "wandbb", which is not a tracker. Did you mean "wandb"?'),
        ({"to": ("mlflow", "mlflow")}, "to names a tracker twice: mlflow, mlflow."),
        ({"project": " "}, 'project must be a name without slashes, not " ".'),
        ({"project": "a/b"}, 'project must be a name without slashes, not "a/b".'),
    ],
)
def test_settings_that_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        TrackingConfig(**settings)  # type: ignore[arg-type]
