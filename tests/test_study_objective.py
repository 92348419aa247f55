"""An Optuna script of a user's own trains real trials, resumes them, and is described by the documentation."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from helpers.toy_studies import TOY_COMMAND
from helpers.trackers import offline, stored_runs
from helpers.trials import expected_steps, wait_until

from march_search import Architecture, SearchSpace, TrainingObjective, solve
from march_search.analysis.study_record import read_study
from march_search.errors import ConfigError
from march_search.files.json_tables import read_json
from march_search.study import objective as module

STUDY = """
space = "cpu-1m"
[data]
corpus = "{corpus}"
vocab_size = {vocab_size}
sequence_length = 32
validation_fraction = 0.2
validation_sequences = 24
[training]
tokens = {tokens}
global_batch_tokens = 256
learning_rate = 1e-2
evaluations = 2
checkpoints = 2
[devices]
kind = "cpu"
threads = 1
"""

SCRIPT = """
import optuna
from march_search import Architecture, TrainingObjective

def suggest(trial):
    d = trial.suggest_int("d_model", 16, 32, step=16)
    return Architecture.parse(f"L1-D{d}-H2x16-F64-V400")

objective = TrainingObjective("mine.toml", suggest)
study = optuna.create_study(storage="sqlite:///mine.db", study_name="mine", load_if_exists=True)
study.enqueue_trial({"d_model": 32})
study.optimize(objective, n_trials=1)
print(study.trials[-1].value)
"""


@pytest.fixture
def folder(corpus: Path, tmp_path: Path) -> Path:
    """A folder with a study's file and a script."""
    text = STUDY.format(corpus=corpus, tokens=200 * 256, vocab_size=400)
    (tmp_path / "mine.toml").write_text(text + '[tracking]\nto = ["trackio"]\n')
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "script.py"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | offline(folder),
    )  # fmt: skip


def test_an_interrupted_script_resumes_its_trial_and_trains_nothing_twice(folder: Path) -> None:
    interrupted = start(folder)
    trials = folder / "runs" / "mine-optuna" / "trials"
    assert wait_until(lambda: list(trials.glob("*/metrics.jsonl")), 120)
    [trial] = trials.iterdir()
    assert wait_until(lambda: len((trial / "metrics.jsonl").read_text().splitlines()) > 3, 120)
    interrupted.send_signal(signal.SIGINT)
    _, errors = interrupted.communicate(timeout=120)
    assert interrupted.returncode not in (0, None)
    assert not (trial / "result.json").exists(), errors
    assert list(trial.glob("checkpoints/step-*/manifest.json"))
    second = start(folder)
    printed, errors = second.communicate(timeout=240)
    assert second.returncode == 0, errors
    assert [path.name for path in trials.iterdir()] == [trial.name]
    result = json.loads((trial / "result.json").read_text())
    assert float(printed) == result["loss"]
    changed = (trial / "result.json").stat().st_mtime_ns
    third = start(folder)
    assert float(third.communicate(timeout=120)[0]) == result["loss"]
    assert (trial / "result.json").stat().st_mtime_ns == changed
    [record] = read_study(folder / "runs" / "mine-optuna").trials
    assert (record.state, record.loss) == ("complete", result["loss"])
    assert wait_until(lambda: sent("trackio", trial).get("ended") == "complete", 60)
    [run] = stored_runs("trackio", folder, "march-search")
    assert run.steps == expected_steps(trial)


def test_a_pruner_of_the_study_stops_a_trial_at_the_learning_rate_that_it_suggested(
    corpus: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(STUDY.format(corpus=corpus, tokens=16 * 256, vocab_size=400))

    def suggest(trial: optuna.Trial) -> Architecture:
        trial.suggest_float("learning_rate", 1e-5, 9.0)
        return Architecture.parse("L1-D16-H2x8-F32-V400")

    objective = TrainingObjective(tmp_path / "mine.toml", suggest, root=tmp_path / "runs")
    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=1.0))
    study.enqueue_trial({"learning_rate": 1e-3})
    study.optimize(objective, n_trials=1)
    assert study.trials[0].state == optuna.trial.TrialState.PRUNED
    assert list(study.trials[0].intermediate_values) == [8 * 256]
    [record] = read_study(tmp_path / "runs" / "mine-optuna").trials
    assert (record.state, record.config.training.learning_rate) == ("pruned", 1e-3)
    assert math.isfinite(record.loss)


def test_the_script_of_the_documentation_trains_a_feasible_shape(corpus: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "optuna.md").read_text(encoding="utf-8")
    before, after = re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    new = [line for line in after.splitlines() if line and line not in before.splitlines()]
    assert len(new) <= 5
    (tmp_path / "my-study.toml").write_text(STUDY.format(corpus=corpus, tokens=4 * 256, vocab_size=512))
    script = after.replace("n_trials=20", "n_trials=1")
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    [record] = read_study(tmp_path / "runs" / "my-study-optuna").trials
    assert record.state == "complete"
    assert ended.stdout.split() == [record.architecture.name, str(record.loss)]
    assert record.architecture in solve(SearchSpace.load("cpu-1m"))


def sent(tracker: str, trial: Path) -> dict[str, object]:
    """Return what a tracker was sent of a trial."""
    return read_json(trial / f"tracking-{tracker}.json") or {}


@pytest.fixture
def tracked(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study's file that names a tracker; its trials are toys, and trackers store below the test's folder."""
    for name, value in offline(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "_COMMAND", TOY_COMMAND)
    text = STUDY.format(corpus=corpus, tokens=16 * 256, vocab_size=400)
    (tmp_path / "mine.toml").write_text(text + '[tracking]\nto = ["trackio"]\nproject = "toys"\n')
    return tmp_path / "mine.toml"


def suggest(trial: optuna.Trial) -> Architecture:
    """Return an architecture with a suggested width."""
    return Architecture.parse(f"L1-D{trial.suggest_int('d_model', 16, 64, step=16)}-H2x8-F32-V400")


def objective_of(file: Path) -> TrainingObjective:
    """Return the objective of a study's file."""
    return TrainingObjective(file, suggest, root=file.parent / "runs")


def ask(objective: TrainingObjective, pruner: optuna.pruners.BasePruner | None = None) -> optuna.trial.FrozenTrial:
    """Ask for the trial of width 32 in a new Optuna study."""
    study = optuna.create_study(pruner=pruner or optuna.pruners.NopPruner())
    study.enqueue_trial({"d_model": 32})
    study.optimize(objective, n_trials=1)
    return study.trials[0]


def test_trials_of_two_threads_use_different_gpus(tracked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    both = "while len(list(folder.parent.glob('*/gpus'))) < 2: time.sleep(0.01)"
    code = f"""
import os, pathlib, runpy, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "gpus").write_text(os.environ["CUDA_VISIBLE_DEVICES"])
{both}
runpy.run_path({TOY_COMMAND[-1]!r})
"""
    monkeypatch.setattr(module, "_COMMAND", (sys.executable, "-c", code))
    text = tracked.read_text().replace('kind = "cpu"', 'kind = "cuda"\nparallel_trials = 2\nranks = 2')
    tracked.write_text(text.replace("[training]", '[training]\nprecision = "bf16"').partition("[tracking]")[0])
    objective, study = objective_of(tracked), optuna.create_study()
    for width in (16, 32):
        study.enqueue_trial({"d_model": width})
    study.optimize(objective, n_trials=2, n_jobs=2)
    assert sorted(path.read_text() for path in objective.folder.trials.glob("*/gpus")) == ["0,1", "2,3"]


def wait_for(objective: TrainingObjective, state: str) -> bool:
    """Wait until the tracker has the trial's outcome and its process has ended; return whether it came in time."""
    [trial] = objective.folder.trials.iterdir()
    is_there = wait_until(lambda: sent("trackio", trial).get("ended") == state, 60)
    return is_there and wait_until(lambda: objective._trackers.look() or not objective._trackers._processes, 60)


def test_a_pruned_trial_that_is_asked_for_again_continues_its_run_of_a_tracker(
    tracked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_SECONDS", "0.3")
    objective = objective_of(tracked)
    assert ask(objective, optuna.pruners.ThresholdPruner(upper=1.0)).state == optuna.trial.TrialState.PRUNED
    [trial] = objective.folder.trials.iterdir()
    assert wait_for(objective, "pruned")
    assert ask(objective).state == optuna.trial.TrialState.COMPLETE
    assert wait_for(objective, "complete")
    [run] = stored_runs("trackio", tracked.parent, "toys")
    assert run.group == "mine-optuna"
    assert run.settings["d_model"] == 32
    assert run.steps == expected_steps(trial)
    assert len(run.steps) == 4


def test_a_tracker_that_fails_is_a_warning_and_the_next_script_sends_the_rest(
    tracked: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://127.0.0.1:1")  # it also needs a token
    objective = objective_of(tracked)
    loss = ask(objective).value
    [trial] = objective.folder.trials.iterdir()
    assert wait_until(lambda: "error" in sent("trackio", trial), 60)
    assert wait_until(lambda: ask(objective).value == loss and "trackio" in caplog.text, 30)
    [message] = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert message.startswith("trackio: metrics were not sent: Self-hosted logging requires a write token")
    assert "No trial is affected. The next start of this script sends what is missing (see " in message
    monkeypatch.delenv("TRACKIO_SERVER_URL")
    assert wait_for(objective_of(tracked), "complete")
    [run] = stored_runs("trackio", tracked.parent, "toys")
    assert run.steps == expected_steps(trial)


def test_a_tracker_without_its_library_is_refused_before_anything_is_prepared(
    tracked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("march_search.tracking.trackers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"to has trackio, not installed here: pip install 'march-search\[trackio\]'"):
        objective_of(tracked)
    assert not (tracked.parent / "runs").exists()
