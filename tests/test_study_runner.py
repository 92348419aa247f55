"""A study runs its trials, records every outcome, and resumes after an interruption. Trials are toys here."""

import json
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.toy_studies import RUNG_TRAINING, TOY_CONFIG, optuna_study, run_toy_study, start_toy_study
from helpers.trials import alive, wait_until
from optuna.trial import TrialState

from march_search import Architecture
from march_search.analysis.ranking import other_rows, rank
from march_search.analysis.study_record import read_study
from march_search.cli import main
from march_search.config import DataConfig, DevicesConfig, PrunerConfig, SearchConfig
from march_search.errors import ConfigError, DataError, StorageError
from march_search.planning import candidates, study_state
from march_search.storage import study_storage, usage
from march_search.storage.journal import JOURNAL
from march_search.storage.study_folder import StudyFolder
from march_search.study.reuse import take_over
from march_search.study.runner import Summary

COMPLETE = Summary(complete=6, pruned=0, failed=0, left=0, signum=0)


def test_a_study_runs_all_trials_and_ranks_them(tmp_path: Path) -> None:
    assert run_toy_study(tmp_path) == COMPLETE
    rows = rank(read_study(tmp_path / "toy")).rows
    losses = [row["loss"] for row in rows]
    assert losses == sorted(losses)
    assert [row["d_model"] for row in rows] == sorted((row["d_model"] for row in rows), reverse=True)
    assert rows[0]["tokens"] == 4096
    trials = optuna_study(tmp_path).trials
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    for t in trials:
        assert list(t.intermediate_values) == [1024, 2048, 3072]
        assert {"num_layers", "d_model", "num_heads", "d_kv", "d_ff", "feed_forward_proj"} <= set(t.params)


def test_running_a_finished_study_again_changes_nothing(tmp_path: Path) -> None:
    run_toy_study(tmp_path)
    folders = sorted((tmp_path / "toy" / "trials").iterdir())
    times = [(f / "result.json").stat().st_mtime_ns for f in folders]
    assert run_toy_study(tmp_path).complete == 6
    assert sorted((tmp_path / "toy" / "trials").iterdir()) == folders
    assert [(f / "result.json").stat().st_mtime_ns for f in folders] == times


@pytest.mark.parametrize(
    ("misbehaviour", "reason"),
    [
        ("TOY_FAIL", "TOY_FAIL names this architecture."),
        ("TOY_KILL", "it hung or was killed 3 times without progress: see trial.log, then run march-search"),
        ("TOY_SILENT", "exited with code 0 and no result"),
    ],
)
def test_a_failed_trial_is_listed_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misbehaviour: str, reason: str
) -> None:
    victim = candidates.choose(TOY_CONFIG, tmp_path).architectures[2].name
    monkeypatch.setenv(misbehaviour, victim)
    assert run_toy_study(tmp_path) == Summary(complete=5, pruned=0, failed=1, left=0, signum=0)
    study = read_study(tmp_path / "toy")
    [row] = other_rows(study)
    assert (row["name"], row["state"], row["rank"]) == (victim, "failed", None)
    assert reason in row["reason"]
    assert victim not in [row["name"] for row in rank(study).rows]
    [failed] = [t for t in optuna_study(tmp_path).trials if t.state == TrialState.FAIL]
    assert reason in failed.user_attrs["reason"]


def test_the_median_pruner_stops_a_bad_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SECONDS", "0.1")
    names = [f"L{n}-D{d}-H4x32-F64-rope-V2048" for n, d in ((2, 160), (3, 160), (4, 160), (5, 64))]
    search = SearchConfig(strategy="list", architectures=tuple(names))
    config = replace(
        TOY_CONFIG, search=search, pruner=PrunerConfig(kind="median", startup_trials=3, warmup_tokens=2048)
    )
    assert run_toy_study(tmp_path, config) == Summary(complete=3, pruned=1, failed=0, left=0, signum=0)
    [row] = other_rows(read_study(tmp_path / "toy"))
    assert (row["name"], row["state"]) == (names[3], "pruned")
    assert 2048 <= row["tokens"] < 4096  # on a busy machine, it evaluates once more before it is stopped


def test_every_architecture_is_trained_with_every_seed(tmp_path: Path) -> None:
    config = replace(TOY_CONFIG, search=SearchConfig(trials=2, seeds=(3, 4)))
    assert run_toy_study(tmp_path, config).complete == 4
    seeds = [(t.architecture, t.seed) for t in read_study(tmp_path / "toy").trials]
    assert len(set(seeds)) == 4
    assert {seed for _, seed in seeds} == {3, 4}


def test_every_learning_rate_is_trained_and_the_best_one_ranks(tmp_path: Path) -> None:
    config = replace(TOY_CONFIG, search=SearchConfig(trials=2, learning_rates=(1e-4, 2e-4, 4e-4)))
    assert run_toy_study(tmp_path, config).complete == 6
    read = read_study(tmp_path / "toy").trials
    assert {(t.architecture.name, t.config.training.learning_rate) for t in read} == {
        (t.architecture.name, rate) for t in read for rate in (1e-4, 2e-4, 4e-4)
    }
    assert sorted(t.folder.name.endswith("-lr0.0002") for t in read) == [False] * 4 + [True] * 2
    rows = rank(read_study(tmp_path / "toy")).rows
    assert len(rows) == 2
    assert all(row["learning_rate_edge"] for row in rows)  # all rates have equal losses, so the first one wins
    assert run_toy_study(tmp_path, config).complete == 6  # nothing is trained twice


@pytest.mark.parametrize("pruner", ["none", "rungs"])
def test_a_sampler_chooses_the_trials_and_a_second_run_adds_none(tmp_path: Path, pruner: str) -> None:
    search = SearchConfig(strategy="tpe", trials=7, seed=1)
    rule = PrunerConfig(kind=pruner, rungs=(0.25, 1.0), finalists=1)
    config = replace(TOY_CONFIG, search=search, training=RUNG_TRAINING, pruner=rule)
    summary = run_toy_study(tmp_path, config)
    assert (summary.complete + summary.pruned, summary.failed, summary.left) == (7, 0, 0)
    assert summary.pruned == (0 if pruner == "none" else 5)
    names = [t.architecture.name for t in read_study(tmp_path / "toy").trials]
    found = candidates.choose(config, tmp_path).found
    assert len(set(names)) == 7
    assert all(Architecture.parse(name) in found for name in names)
    assert run_toy_study(tmp_path, config) == summary
    assert len(optuna_study(tmp_path).trials) == 7


def test_a_sampler_proposes_while_other_trials_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SECONDS", "0.1")
    config = replace(
        TOY_CONFIG, search=SearchConfig(strategy="tpe", trials=6), pruner=PrunerConfig(kind="none"),
        devices=replace(TOY_CONFIG.devices, parallel_trials=2),
    )  # fmt: skip
    assert run_toy_study(tmp_path, config).left == 0
    first, second = optuna_study(tmp_path).trials[:2]
    assert first.datetime_complete is not None
    assert second.datetime_start is not None
    assert second.datetime_start < first.datetime_complete


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_study_resumes_and_keeps_its_results(tmp_path: Path, signum: int) -> None:
    process = start_toy_study(tmp_path, seconds=0.2)
    assert wait_until(lambda: len(list(tmp_path.glob("toy/trials/*/result.json"))) >= 2)
    assert wait_until(lambda: any(tmp_path.glob("toy/trials/0002-*/metrics.jsonl")))  # the third trial runs
    process.send_signal(signum)
    process.communicate(timeout=30)
    wait_until(lambda: not alive(str(tmp_path)), 5)
    assert alive(str(tmp_path)) == []
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.glob("toy/trials/*/result.json")}
    assert len(finished) >= 2
    assert run_toy_study(tmp_path) == COMPLETE
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    trials = optuna_study(tmp_path).trials
    assert [t.number for t in trials] == list(range(6))
    assert len(list(tmp_path.glob("toy/trials/*"))) == 6


def test_a_lock_file_left_by_a_killed_process_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_toy_study(Path("runs"), replace(TOY_CONFIG, search=SearchConfig(trials=2)))
    journal = Path("runs/toy") / JOURNAL
    Path(f"{journal}.lock").symlink_to(journal)
    assert run_toy_study(Path("runs"), replace(TOY_CONFIG, search=SearchConfig(trials=2))).complete == 2


def test_a_trial_that_finished_before_the_pruner_looked_is_complete(tmp_path: Path) -> None:
    names = tuple(f"L2-D{d}-H4x32-F64-rope-V2048" for d in (192, 160, 128, 64))
    search = SearchConfig(strategy="list", architectures=names)
    config = replace(TOY_CONFIG, search=search, pruner=PrunerConfig(kind="median", startup_trials=1))
    assert run_toy_study(tmp_path, config).pruned + run_toy_study(tmp_path, config).complete == 4
    for folder in (tmp_path / "toy" / "trials").iterdir():
        if (folder / "result.json").exists():
            assert json.loads((folder / "outcome.json").read_text())["state"] == "complete"


def test_two_folders_cannot_share_a_study_name_in_one_storage(tmp_path: Path) -> None:
    config = replace(TOY_CONFIG, search=SearchConfig(trials=2), storage=f"sqlite:///{tmp_path}/studies.db")
    assert run_toy_study(tmp_path / "a", config).complete == 2
    assert run_toy_study(tmp_path / "a", config).complete == 2
    with pytest.raises(StorageError, match="already holds a study 'toy' that another folder started"):
        run_toy_study(tmp_path / "b", config)


def test_a_changed_text_is_refused(tmp_path: Path) -> None:
    folder = StudyFolder.of(tmp_path, "toy")
    folder.keep_settings(TOY_CONFIG, [])
    folder.keep_store(tmp_path / "text-1")
    folder.keep_store(tmp_path / "text-1")
    with pytest.raises(DataError, match=r"the text has changed since toy started \(text-1 then, text-2 now\)"):
        folder.keep_store(tmp_path / "text-2")


def test_a_damaged_settings_file_is_not_overwritten(tmp_path: Path) -> None:
    run_toy_study(tmp_path)
    (tmp_path / "toy" / "study.json").write_text("{")
    with pytest.raises(StorageError, match="is damaged: it is not valid JSON"):
        run_toy_study(tmp_path)


def test_changed_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    run_toy_study(tmp_path)
    changed = replace(TOY_CONFIG, training=replace(TOY_CONFIG.training, learning_rate=0.5))
    with pytest.raises(ConfigError, match=r"different settings: training\.learning_rate was 0\.0001 and is now 0\.5"):
        run_toy_study(tmp_path, changed)


def test_a_study_started_before_documents_could_be_masked_keeps_them_joined(tmp_path: Path) -> None:
    run_toy_study(tmp_path)
    path = tmp_path / "toy" / "study.json"
    saved = json.loads(path.read_text())
    assert saved["settings"]["data"].pop("documents") == "joined"
    del saved["sha256"]
    path.write_text(json.dumps(saved))
    run_toy_study(tmp_path)
    saved["settings"]["data"]["documents"] = "masked"
    path.write_text(json.dumps(saved))
    with pytest.raises(ConfigError, match=r"different settings: data\.documents was 'masked' and is now 'joined'"):
        run_toy_study(tmp_path)


def test_a_study_started_before_a_setting_existed_resumes_with_its_default(tmp_path: Path) -> None:
    run_toy_study(tmp_path)
    path = tmp_path / "toy" / "study.json"
    saved = json.loads(path.read_text())
    del saved["settings"]["training"]["deepspeed"], saved["settings"]["devices"], saved["sha256"]
    path.write_text(json.dumps(saved))
    run_toy_study(tmp_path, replace(TOY_CONFIG, devices=DevicesConfig()))
    with pytest.raises(ConfigError, match=r"different settings: devices\.ranks was 1 and is now 2"):
        run_toy_study(tmp_path, replace(TOY_CONFIG, devices=DevicesConfig(ranks=2)))


def test_the_password_of_the_storage_is_not_saved(tmp_path: Path) -> None:
    config = replace(TOY_CONFIG, storage="postgresql://me:canary@127.0.0.1/x")
    StudyFolder.of(tmp_path, "toy").keep_settings(config, [])
    assert "canary" not in (tmp_path / "toy" / "study.json").read_text()


def test_a_changed_set_of_architectures_is_refused(tmp_path: Path) -> None:
    run_toy_study(tmp_path)
    folder = StudyFolder.of(tmp_path, "toy")
    with pytest.raises(ConfigError, match="different settings: architectures had 6 entries and now has 3"):
        folder.keep_settings(TOY_CONFIG, candidates.choose(TOY_CONFIG, tmp_path).architectures[:3])


def test_settings_can_be_corrected_before_the_first_trial(tmp_path: Path) -> None:
    folder = StudyFolder.of(tmp_path, "toy")
    folder.keep_settings(TOY_CONFIG, [])
    first = folder.id
    folder.keep_settings(replace(TOY_CONFIG, data=replace(TOY_CONFIG.data, validation_sequences=8)), [])
    assert folder.id == first
    assert run_toy_study(tmp_path).complete == 6


def test_a_truncated_result_does_not_count(tmp_path: Path) -> None:
    run_toy_study(tmp_path)
    result = next(tmp_path.glob("toy/trials/*/result.json"))
    result.write_text(result.read_text()[:-5])
    assert len(rank(read_study(tmp_path / "toy")).rows) == 5
    [other] = other_rows(read_study(tmp_path / "toy"))
    assert other["state"] == "damaged"
    assert other["reason"].startswith(f"{result}: is damaged: it is not valid JSON (line ")


@pytest.mark.parametrize("name", ["../x", "", "a/b", "data", "x" * 81, ".hidden", "nul\0", "é"])
def test_a_study_name_never_leaves_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is not a valid study name"):
        StudyFolder.of(tmp_path, name)


def test_an_architecture_must_have_the_vocabulary_of_the_data(tmp_path: Path) -> None:
    other = replace(TOY_CONFIG, data=DataConfig(vocab_size=4096))
    with pytest.raises(
        ConfigError, match=r"vocab_size is 4,096, but \[axes\] vocab_size of the space cpu-demo is 2,048"
    ):
        candidates.choose(other, tmp_path)
    listed = SearchConfig(strategy="list", architectures=("L2-D96-H3x32-F256-V2048",))
    with pytest.raises(ConfigError, match=r"has a vocabulary of 2,048, but \[data\] vocab_size is 4,096"):
        candidates.choose(replace(other, search=listed), tmp_path)


def test_decoder_only_models_need_a_study_of_their_own(tmp_path: Path) -> None:
    decoders = ("L2-D96-H3x32-F256-dec-rope-V2048", "L3-D96-H3x32-F256-dec-rope-V2048")
    config = replace(TOY_CONFIG, search=SearchConfig(strategy="list", architectures=decoders))
    assert {a.structure for a in candidates.choose(config, tmp_path).architectures} == {"decoder-only"}
    mixed = replace(TOY_CONFIG, search=SearchConfig(trials=6, architectures=decoders))
    with pytest.raises(ConfigError, match="whose losses are not comparable; use a separate study"):
        candidates.choose(mixed, tmp_path)


def test_candidates_are_reproducible_and_feasible(tmp_path: Path) -> None:
    for strategy in ("design", "sample", "all"):
        config = replace(TOY_CONFIG, search=SearchConfig(trials=5, strategy=strategy, seed=3))
        first, second = candidates.choose(config, tmp_path), candidates.choose(config, tmp_path)
        assert first.architectures == second.architectures
        assert all(a in first.found for a in first.architectures)
        assert len(first.architectures) == (len(first.found) if strategy == "all" else 5)


def test_an_unreachable_storage_does_not_show_its_password(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        study_storage.open_study("x", tmp_path, "postgresql://me:canary@127.0.0.1:1/none", PrunerConfig(), 0)
    assert "canary" not in str(caught.value)
    assert str(caught.value).startswith("postgresql://me@127.0.0.1:1/none cannot be opened: connection failed: ")
    assert 'server at "127.0.0.1", port 1 failed: Connection refused' in str(caught.value)


def test_rank_prints_the_same_numbers_in_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_toy_study(tmp_path)
    assert main(["rank", "toy", "--root", str(tmp_path), "--format", "json"]) == 0
    best = json.loads(capsys.readouterr().out)["ranked"][0]
    assert best["rank"] == 1
    for form in ("table", "csv", "markdown"):
        assert main(["rank", "toy", "--root", str(tmp_path), "--format", form]) == 0
        text = capsys.readouterr().out
        assert best["name"] in text
        assert f"{best['loss']:.3f}" in text


def test_a_study_reuses_identical_trials_of_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_toy_study(tmp_path)
    lean = replace(TOY_CONFIG.training, keep_weights=False)  # toys have no weights to reuse
    more = replace(TOY_CONFIG, training=lean, search=replace(TOY_CONFIG.search, seeds=(0, 1), reuse_trials=True))
    assert run_toy_study(tmp_path, more, "second") == Summary(complete=12, pruned=0, failed=0, left=0, signum=0)
    assert capsys.readouterr().err.count("taken from toy") == 6
    first, second = (read_study(tmp_path / name).trials for name in ("toy", "second"))
    reused = {(t.architecture, t.seed): t for t in second}
    for trial in first:
        copy = reused[trial.architecture, trial.seed]
        assert (copy.folder / "result.json").read_bytes() == (trial.folder / "result.json").read_bytes()
        assert (copy.folder / "metrics.jsonl").read_bytes() == (trial.folder / "metrics.jsonl").read_bytes()
        assert json.loads((copy.folder / "outcome.json").read_text())["taken_from"] == f"toy/{trial.folder.name}"
    reported = [t.intermediate_values for t in optuna_study(tmp_path, "second").trials]
    assert [sorted(values) for values in reported] == [[1024, 2048, 3072]] * 12
    assert usage.actual(tmp_path / "second", more)["tokens"] == 6 * TOY_CONFIG.training.tokens


@pytest.mark.parametrize("other", [{"learning_rate": 2e-3}, {"tokens": 8192}, {"betas": (0.9, 0.99)}])
def test_a_trial_with_other_settings_is_not_reused(tmp_path: Path, other: dict[str, object]) -> None:
    run_toy_study(tmp_path)
    config = replace(
        TOY_CONFIG,
        search=replace(TOY_CONFIG.search, reuse_trials=True),
        training=replace(TOY_CONFIG.training, keep_weights=False, **other),
    )
    run_toy_study(tmp_path, config, "second")
    assert not any("taken_from" in path.read_text() for path in tmp_path.glob("second/trials/*/outcome.json"))


def test_a_damaged_result_is_not_reused(tmp_path: Path) -> None:
    run_toy_study(tmp_path)
    for path in tmp_path.glob("toy/trials/*/result.json"):
        path.write_text(path.read_text().replace("0.04", "0.05"))
    lean = replace(TOY_CONFIG.training, keep_weights=False)
    run_toy_study(
        tmp_path, replace(TOY_CONFIG, training=lean, search=replace(TOY_CONFIG.search, reuse_trials=True)), "second"
    )
    assert not any("taken_from" in path.read_text() for path in tmp_path.glob("second/trials/*/outcome.json"))


@pytest.mark.parametrize("deleted", ["result.json", "."])
def test_a_trial_whose_source_is_deleted_while_it_is_copied_is_trained(tmp_path: Path, deleted: str) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    for path in (source / "validation", folder):
        path.mkdir(parents=True)
    for path in (source / "metrics.jsonl", source / "validation" / "1.npy", source / "result.json"):
        path.write_text("{}")
    (folder / "trial.json").write_text("{}")
    if deleted == ".":
        shutil.rmtree(source)
    else:
        (source / deleted).unlink()
    assert not take_over(source, folder, weights=True)
    assert [path.name for path in folder.iterdir()] == ["trial.json"]


def test_a_full_disk_while_a_trial_is_copied_is_one_line(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    for name in ("metrics.jsonl", "result.json"):
        (source / name).write_text("{}")
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"folder/metrics\.jsonl: cannot be written: No space left on device\.$"):
        take_over(source, folder, weights=True)


def test_the_question_and_answer_of_a_study_may_change(tmp_path: Path) -> None:
    run_toy_study(tmp_path)
    run_toy_study(tmp_path, replace(TOY_CONFIG, question="Wide or deep?", answer="A difference."))
    settings = read_study(tmp_path / "toy").settings
    assert (settings["question"], settings["answer"]) == ("Wide or deep?", "A difference.")


def test_processes_that_start_a_study_at_once_agree_on_it(tmp_path: Path) -> None:
    folder, barrier = StudyFolder.of(tmp_path, "toy"), threading.Barrier(8)
    chosen = candidates.choose(TOY_CONFIG, tmp_path)

    def start(_: int) -> str:
        barrier.wait()
        folder.keep_settings(TOY_CONFIG, chosen.architectures)
        first = folder.id
        study_state.keep_candidates(folder.path, chosen)
        folder.keep_store(tmp_path / "store")
        return first

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(start, range(8))) == {folder.id}
