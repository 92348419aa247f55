"""A study tries its architectures, records every end, and goes on where it was stopped. Trials are toys here."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from conftest import alive
from optuna.trial import TrialState

from march_search import Architecture
from march_search.analysis.ranking import other_rows, ranked_rows
from march_search.analysis.study_record import read_study
from march_search.config import DataConfig, DevicesConfig, PrunerConfig, SearchConfig, StudyConfig, TrainingConfig
from march_search.errors import ConfigError, DataError, StorageError
from march_search.study import candidates, price, storage, study_state
from march_search.study.runner import StudyRun, Summary
from march_search.study.study_folder import StudyFolder

TOY = (sys.executable, str(Path(__file__).parent / "toy_trial.py"))
CONFIG = StudyConfig(
    space="cpu-demo",
    search=SearchConfig(trials=6),
    pruner=PrunerConfig(kind="none"),
    data=DataConfig(vocab_size=2048, sequence_length=64),
    training=TrainingConfig(tokens=4096, global_batch_tokens=1024, evaluations=4),
)


def run(root: Path, config: StudyConfig = CONFIG, name: str = "toy") -> Summary:
    """Runs the study `name` below `root` with toy trials."""
    folder = StudyFolder.of(root, name)
    chosen = candidates.choose(config, root)
    folder.keep_settings(config, chosen.architectures)
    folder.keep_store(root / "store")
    study_state.keep_candidates(folder.path, chosen)
    return StudyRun(config, folder, root / "store", candidates.initial_trials(chosen, config), TOY).run()


def optuna_study(root: Path, name: str = "toy") -> optuna.Study:
    """The study as Optuna has it."""
    return storage.open_study(name, root / name, None, PrunerConfig(), 0)


def test_study_then_rank(tmp_path: Path) -> None:
    assert run(tmp_path) == Summary(complete=6, pruned=0, failed=0, left=0, signum=0)
    rows = ranked_rows(read_study(tmp_path / "toy"))
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses)
    assert [row["d_model"] for row in rows] == sorted((row["d_model"] for row in rows), reverse=True)
    assert rows[0]["tokens"] == 4096
    trials = optuna_study(tmp_path).trials
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    for t in trials:
        assert list(t.intermediate_values) == [1024, 2048, 3072]
        assert {"num_layers", "d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj"} <= set(t.params)


def test_the_same_command_again_does_nothing_twice(tmp_path: Path) -> None:
    run(tmp_path)
    folders = sorted((tmp_path / "toy" / "trials").iterdir())
    times = [(f / "result.json").stat().st_mtime_ns for f in folders]
    assert run(tmp_path).complete == 6
    assert sorted((tmp_path / "toy" / "trials").iterdir()) == folders
    assert [(f / "result.json").stat().st_mtime_ns for f in folders] == times


@pytest.mark.parametrize(
    ("misbehaviour", "reason"),
    [
        ("TOY_FAIL", "the toy was told to fail."),
        ("TOY_KILL", "killed by SIGKILL: "),
        ("TOY_SILENT", "exited with code 0 and no result"),
    ],
)
def test_a_failed_trial_is_a_result_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misbehaviour: str, reason: str
) -> None:
    victim = candidates.choose(CONFIG, tmp_path).architectures[2].name
    monkeypatch.setenv(misbehaviour, victim)
    assert run(tmp_path) == Summary(complete=5, pruned=0, failed=1, left=0, signum=0)
    study = read_study(tmp_path / "toy")
    [row] = other_rows(study)
    assert (row["name"], row["state"], row["rank"]) == (victim, "failed", None)
    assert reason in row["reason"]
    assert victim not in [row["name"] for row in ranked_rows(study)]
    [failed] = [t for t in optuna_study(tmp_path).trials if t.state == TrialState.FAIL]
    assert reason in failed.user_attrs["reason"]


def test_optuna_stops_what_is_worse_than_the_median(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SECONDS", "0.3")
    names = [f"L{n}-D{d}-H4x32-F64-rope-V2048" for n, d in ((2, 160), (3, 160), (4, 160), (5, 64))]
    search = SearchConfig(strategy="list", architectures=tuple(names))
    config = replace(CONFIG, search=search, pruner=PrunerConfig(kind="median", startup_trials=3, warmup_tokens=2048))
    assert run(tmp_path, config) == Summary(complete=3, pruned=1, failed=0, left=0, signum=0)
    [row] = other_rows(read_study(tmp_path / "toy"))
    assert (row["name"], row["state"], row["tokens"]) == (names[3], "pruned", 2048)


def test_every_architecture_is_trained_with_every_seed(tmp_path: Path) -> None:
    config = replace(CONFIG, search=SearchConfig(trials=2, seeds=(3, 4)))
    assert run(tmp_path, config).complete == 4
    seeds = [(t.architecture, t.seed) for t in read_study(tmp_path / "toy").trials]
    assert len(set(seeds)) == 4
    assert {seed for _, seed in seeds} == {3, 4}


def test_every_learning_rate_is_trained_and_the_best_one_ranks(tmp_path: Path) -> None:
    config = replace(CONFIG, search=SearchConfig(trials=2, learning_rates=(1e-4, 2e-4, 4e-4)))
    assert run(tmp_path, config).complete == 6
    read = read_study(tmp_path / "toy").trials
    assert {(t.architecture.name, t.config.training.learning_rate) for t in read} == {
        (t.architecture.name, rate) for t in read for rate in (1e-4, 2e-4, 4e-4)
    }
    assert sorted(t.folder.name.endswith("-lr0.0002") for t in read) == [False] * 4 + [True] * 2
    rows = ranked_rows(read_study(tmp_path / "toy"))
    assert len(rows) == 2
    assert all(row["learning_rate_edge"] for row in rows)  # the toy does not mind: the first of equals, on the edge
    assert run(tmp_path, config).complete == 6  # and nothing is trained twice


@pytest.mark.parametrize("pruner", ["none", "rungs"])
def test_a_sampler_chooses_what_is_trained_and_a_second_run_adds_nothing(tmp_path: Path, pruner: str) -> None:
    search = SearchConfig(strategy="tpe", trials=7, seed=1)
    config = replace(CONFIG, search=search, pruner=PrunerConfig(kind=pruner, rungs=(0.25, 1.0)))
    summary = run(tmp_path, config)
    assert (summary.complete + summary.pruned, summary.failed, summary.left) == (7, 0, 0)
    assert summary.pruned == (0 if pruner == "none" else 4)
    names = [t.architecture.name for t in read_study(tmp_path / "toy").trials]
    found = candidates.choose(config, tmp_path).found
    assert len(set(names)) == 7
    assert all(Architecture.parse(name) in found for name in names)
    assert run(tmp_path, config) == summary
    assert len(optuna_study(tmp_path).trials) == 7


def test_a_sampler_is_asked_while_other_trials_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SECONDS", "0.3")
    config = replace(
        CONFIG, search=SearchConfig(strategy="tpe", trials=6), pruner=PrunerConfig(kind="none"),
        devices=replace(CONFIG.devices, parallel_trials=2),
    )  # fmt: skip
    assert run(tmp_path, config).left == 0
    first, second = optuna_study(tmp_path).trials[:2]
    assert first.datetime_complete is not None
    assert second.datetime_start is not None
    assert second.datetime_start < first.datetime_complete


def study_process(root: Path) -> "subprocess.Popen[bytes]":
    """The study in a process of its own, half a second an evaluation."""
    code = f"import test_study as t, pathlib; print(t.run(pathlib.Path({str(root)!r})))"
    environment = os.environ | {"TOY_SECONDS": "0.5", "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_study_goes_on_and_loses_nothing(tmp_path: Path, signum: int) -> None:
    process = study_process(tmp_path)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("toy/trials/*/result.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)  # into the third trial
    process.send_signal(signum)
    process.wait(timeout=30)
    deadline = time.monotonic() + 5
    while alive(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive(str(tmp_path)) == []
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.glob("toy/trials/*/result.json")}
    assert len(finished) >= 2
    assert run(tmp_path) == Summary(complete=6, pruned=0, failed=0, left=0, signum=0)
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    trials = optuna_study(tmp_path).trials
    assert [t.number for t in trials] == list(range(6))
    assert len(list(tmp_path.glob("toy/trials/*"))) == 6


def test_a_lock_left_by_a_kill_does_not_hold_the_study_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(Path("runs"), replace(CONFIG, search=SearchConfig(trials=2)))
    journal = Path("runs/toy") / storage.JOURNAL
    Path(f"{journal}.lock").symlink_to(journal)
    assert run(Path("runs"), replace(CONFIG, search=SearchConfig(trials=2))).complete == 2


def test_a_trial_that_ended_before_it_was_looked_at_is_complete_not_pruned(tmp_path: Path) -> None:
    names = tuple(f"L2-D{d}-H4x32-F64-rope-V2048" for d in (192, 160, 128, 64))
    search = SearchConfig(strategy="list", architectures=names)
    config = replace(CONFIG, search=search, pruner=PrunerConfig(kind="median", startup_trials=1))
    assert run(tmp_path, config).pruned + run(tmp_path, config).complete == 4
    for folder in (tmp_path / "toy" / "trials").iterdir():
        if (folder / "result.json").exists():
            assert json.loads((folder / "outcome.json").read_text())["state"] == "complete"


def test_another_folder_cannot_take_a_study_of_the_same_storage(tmp_path: Path) -> None:
    config = replace(CONFIG, search=SearchConfig(trials=2), storage=f"sqlite:///{tmp_path}/studies.db")
    assert run(tmp_path / "a", config).complete == 2
    assert run(tmp_path / "a", config).complete == 2
    with pytest.raises(StorageError, match="already holds a study 'toy' that another folder started"):
        run(tmp_path / "b", config)


def test_a_text_that_changed_is_noticed(tmp_path: Path) -> None:
    folder = StudyFolder.of(tmp_path, "toy")
    folder.keep_settings(CONFIG, [])
    folder.keep_store(tmp_path / "text-1")
    folder.keep_store(tmp_path / "text-1")
    with pytest.raises(DataError, match=r"the text has changed since toy started \(text-1 then, text-2 now\)"):
        folder.keep_store(tmp_path / "text-2")


def test_a_damaged_settings_file_is_not_written_over(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "toy" / "study.json").write_text("{")
    with pytest.raises(StorageError, match="is damaged; restore it"):
        run(tmp_path)


def test_changed_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    run(tmp_path)
    changed = replace(CONFIG, training=replace(CONFIG.training, learning_rate=0.5))
    with pytest.raises(ConfigError, match=r"different settings: training\.learning_rate was 0\.0001 and is now 0\.5"):
        run(tmp_path, changed)


def test_a_study_begun_before_a_setting_existed_goes_on_with_its_default(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "toy" / "study.json"
    kept = json.loads(path.read_text())
    del kept["settings"]["training"]["deepspeed"], kept["settings"]["devices"]
    path.write_text(json.dumps(kept))
    run(tmp_path, replace(CONFIG, devices=DevicesConfig()))
    with pytest.raises(ConfigError, match=r"different settings: devices\.ranks was 1 and is now 2"):
        run(tmp_path, replace(CONFIG, devices=DevicesConfig(ranks=2)))


def test_a_password_in_the_storages_url_is_not_written_down(tmp_path: Path) -> None:
    config = replace(CONFIG, storage="postgresql://me:canary@127.0.0.1/x")
    StudyFolder.of(tmp_path, "toy").keep_settings(config, [])
    assert "canary" not in (tmp_path / "toy" / "study.json").read_text()


def test_a_space_that_changed_is_noticed(tmp_path: Path) -> None:
    run(tmp_path)
    folder = StudyFolder.of(tmp_path, "toy")
    with pytest.raises(ConfigError, match="different settings: architectures had 6 entries and now has 3"):
        folder.keep_settings(CONFIG, candidates.choose(CONFIG, tmp_path).architectures[:3])


def test_settings_that_failed_before_any_trial_can_be_mended(tmp_path: Path) -> None:
    folder = StudyFolder.of(tmp_path, "toy")
    folder.keep_settings(CONFIG, [])
    first = folder.id
    folder.keep_settings(replace(CONFIG, data=replace(CONFIG.data, validation_sequences=8)), [])
    assert folder.id == first
    assert run(tmp_path).complete == 6


def test_a_truncated_result_is_no_result(tmp_path: Path) -> None:
    run(tmp_path)
    result = next(tmp_path.glob("toy/trials/*/result.json"))
    result.write_text(result.read_text()[:-5])
    assert len(ranked_rows(read_study(tmp_path / "toy"))) == 5
    assert (
        other_rows(read_study(tmp_path / "toy"))[0]["reason"]
        == "result.json is missing or does not reach the data budget."
    )


@pytest.mark.parametrize("name", ["../x", "", "a/b", "data", "x" * 81, ".hidden", "nul\0", "é"])
def test_a_study_name_never_leaves_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid study name"):
        StudyFolder.of(tmp_path, name)


def test_an_architecture_must_read_the_studys_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has a vocabulary of 2,048, but \[data\] vocab_size is 4,096"):
        candidates.choose(replace(CONFIG, data=DataConfig(vocab_size=4096)), tmp_path)


def test_decoder_only_models_are_candidates_of_their_own_studies(tmp_path: Path) -> None:
    decoders = ("L2-D96-H3x32-F256-dec-rope-V2048", "L3-D96-H3x32-F256-dec-rope-V2048")
    config = replace(CONFIG, search=SearchConfig(strategy="list", architectures=decoders))
    assert {a.structure for a in candidates.choose(config, tmp_path).architectures} == {"decoder-only"}
    mixed = replace(CONFIG, search=SearchConfig(trials=6, architectures=decoders))
    with pytest.raises(ConfigError, match="whose losses are not comparable; use a separate study"):
        candidates.choose(mixed, tmp_path)


def test_candidates_repeat_and_are_feasible(tmp_path: Path) -> None:
    for strategy in ("design", "sample", "all"):
        config = replace(CONFIG, search=SearchConfig(trials=5, strategy=strategy, seed=3))
        first, second = candidates.choose(config, tmp_path), candidates.choose(config, tmp_path)
        assert first.architectures == second.architectures
        assert all(a in first.found for a in first.architectures)
        assert len(first.architectures) == (len(first.found) if strategy == "all" else 5)


def test_an_unreachable_storage_does_not_show_its_password(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        storage.open_study("x", tmp_path, "postgresql://me:canary@127.0.0.1:1/none", PrunerConfig(), 0)
    assert "canary" not in str(caught.value)
    assert "postgresql storage cannot be opened" in str(caught.value)


def test_reports_of_a_study_are_the_same_numbers_in_every_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from march_search.cli import main

    run(tmp_path)
    assert main(["rank", "toy", "--root", str(tmp_path), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ranked"][0]["rank"] == 1
    best = told["ranked"][0]
    for form in ("table", "csv", "markdown"):
        assert main(["rank", "toy", "--root", str(tmp_path), "--format", form]) == 0
        text = capsys.readouterr().out
        assert best["name"] in text
        assert f"{best['loss']:.3f}" in text


def test_a_study_takes_over_the_same_trials_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    lean = replace(CONFIG.training, keep_weights=False)  # the toys have no weights to take over
    more = replace(CONFIG, training=lean, search=replace(CONFIG.search, seeds=(0, 1), reuse_trials=True))
    assert run(tmp_path, more, "second") == Summary(complete=12, pruned=0, failed=0, left=0, signum=0)
    assert capsys.readouterr().err.count("taken from toy") == 6
    first, second = (read_study(tmp_path / name).trials for name in ("toy", "second"))
    mine = {(t.architecture, t.seed): t for t in second}
    for trial in first:
        taken = mine[trial.architecture, trial.seed]
        assert (taken.folder / "result.json").read_bytes() == (trial.folder / "result.json").read_bytes()
        assert (taken.folder / "metrics.jsonl").read_bytes() == (trial.folder / "metrics.jsonl").read_bytes()
        assert json.loads((taken.folder / "outcome.json").read_text())["taken_from"] == f"toy/{trial.folder.name}"
    kept_by_optuna = [t.intermediate_values for t in optuna_study(tmp_path, "second").trials]
    assert [sorted(values) for values in kept_by_optuna] == [[1024, 2048, 3072]] * 12
    assert price.actual(tmp_path / "second", more)["tokens"] == 6 * CONFIG.training.tokens


@pytest.mark.parametrize("other", [{"learning_rate": 2e-3}, {"tokens": 8192}, {"betas": (0.9, 0.99)}])
def test_a_trial_trained_otherwise_is_not_taken_over(tmp_path: Path, other: dict[str, object]) -> None:
    run(tmp_path)
    config = replace(
        CONFIG,
        search=replace(CONFIG.search, reuse_trials=True),
        training=replace(CONFIG.training, keep_weights=False, **other),
    )
    run(tmp_path, config, "second")
    assert not any("taken_from" in path.read_text() for path in tmp_path.glob("second/trials/*/outcome.json"))


def test_a_damaged_result_is_not_taken_over(tmp_path: Path) -> None:
    run(tmp_path)
    for path in tmp_path.glob("toy/trials/*/result.json"):
        path.write_text(path.read_text().replace("0.04", "0.05"))
    lean = replace(CONFIG.training, keep_weights=False)
    run(tmp_path, replace(CONFIG, training=lean, search=replace(CONFIG.search, reuse_trials=True)), "second")
    assert not any("taken_from" in path.read_text() for path in tmp_path.glob("second/trials/*/outcome.json"))


def test_words_of_a_study_may_change_and_are_kept(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, replace(CONFIG, question="Wide or deep?", answer="A difference."))
    settings = read_study(tmp_path / "toy").settings
    assert (settings["question"], settings["answer"]) == ("Wide or deep?", "A difference.")


def test_runs_that_start_a_study_at_once_agree_on_it(tmp_path: Path) -> None:
    folder, barrier = StudyFolder.of(tmp_path, "toy"), threading.Barrier(8)
    chosen = candidates.choose(CONFIG, tmp_path)

    def start(_: int) -> str:
        barrier.wait()
        folder.keep_settings(CONFIG, chosen.architectures)
        first = folder.id
        study_state.keep_candidates(folder.path, chosen)
        folder.keep_store(tmp_path / "store")
        return first

    with ThreadPoolExecutor(8) as crew:
        assert set(crew.map(start, range(8))) == {folder.id}
