"""A study searches, then confirms: complete arms with the baseline among them, then further seeds of what is close."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers.toy_studies import RUNG_TRAINING, TOY_CONFIG, optuna_study, run_toy_study, start_toy_study
from helpers.trials import wait_until
from optuna.trial import TrialState

from march_search.analysis.finals import SeedTrial, finals
from march_search.analysis.phase import study_phase
from march_search.analysis.study_record import read_study
from march_search.cli import main
from march_search.config import ConfirmConfig, PrunerConfig, SearchConfig, StudyConfig
from march_search.config.changes import in_current_keys
from march_search.config.loader import build
from march_search.errors import ConfigError
from march_search.planning import candidates, extension
from march_search.planning.confirmation import is_confirmation
from march_search.storage.leases import Lease
from march_search.storage.study_folder import StudyFolder
from march_search.study.status import phase_rows

WORST = "L2-D32-H4x32-F64-rope-V2048"
"""Baseline that is worse than all others: the loss of a toy falls with its d_model."""

DEEP = tuple(f"L{n}-D192-H4x32-F64-rope-V2048" for n in (2, 3, 4))
"""Architectures with equal losses."""

DEFAULT = replace(
    TOY_CONFIG,
    training=RUNG_TRAINING,
    search=SearchConfig(trials=24, architectures=(WORST,)),
    pruner=PrunerConfig(rungs=(0.25, 0.5), keep=1 / 3),
    confirm=ConfirmConfig(max_seeds=3),
)


def listed(*names: str, seeds: tuple[int, ...] = (0,), **changes: object) -> StudyConfig:
    """Return a study that trains these architectures to the end."""
    search = SearchConfig(strategy="list", architectures=names, seeds=seeds)
    return replace(TOY_CONFIG, search=search, **{"confirm": ConfirmConfig(max_seeds=3), **changes})


def seeds_of(root: Path) -> dict[str, list[int]]:
    """Return the seeds of each architecture's complete trials."""
    found: dict[str, list[int]] = {}
    for trial in optuna_study(root).trials:
        if trial.state == TrialState.COMPLETE:
            found.setdefault(trial.user_attrs["architecture"], []).append(trial.user_attrs["seed"])
    return {name: sorted(own) for name, own in found.items()}


def check_nothing_is_lost_or_counted_twice(root: Path) -> None:
    """Check that every trial ended once, and that no architecture has a seed twice."""
    trials = optuna_study(root).trials
    assert all(t.state.is_finished() for t in trials)
    assert max(Counter((t.user_attrs["architecture"], t.user_attrs["seed"]) for t in trials).values()) == 1
    assert len(list((root / "toy" / "trials").iterdir())) == len(trials)


def test_a_search_of_24_ends_with_complete_arms_the_worst_baseline_among_them_and_then_seeds(tmp_path: Path) -> None:
    ended = run_toy_study(tmp_path, DEFAULT)
    seeds = seeds_of(tmp_path)
    assert (ended.failed, ended.left) == (0, 0)
    assert ended.pruned == 20
    assert len(seeds) == 4
    assert seeds.pop(WORST) == [0, 1]  # the second seed eliminates it
    assert sorted(map(len, seeds.values())) == [3, 3, 3]
    check_nothing_is_lost_or_counted_twice(tmp_path)
    [note] = ended.notes
    assert note.startswith("confirm: ")
    assert run_toy_study(tmp_path, DEFAULT) == ended
    phase = study_phase(read_study(tmp_path / "toy"))
    assert phase.name == "complete"
    assert note == f"confirm: {phase.detail}"


def test_finalists_that_are_separated_at_once_get_no_further_seeds(tmp_path: Path) -> None:
    names = (DEEP[0], WORST)
    ended = run_toy_study(tmp_path, listed(*names, seeds=(0, 1)))
    text = f"confirm: {names[0]} is separated from all other finalists at 95% confidence after 4 complete trials."
    assert ended.notes == (text,)
    assert seeds_of(tmp_path) == {name: [0, 1] for name in names}


def test_equal_finalists_are_trained_up_to_the_largest_number_of_seeds(tmp_path: Path) -> None:
    ended = run_toy_study(tmp_path, listed(*DEEP[:2]))
    assert seeds_of(tmp_path) == {name: [0, 1, 2] for name in DEEP[:2]}
    assert ended.notes == (
        f"confirm: {DEEP[0]} leads after 6 complete trials, but is not separated at 95% confidence from {DEEP[1]}; "
        "each has 3 seeds, the limit of [confirm] max_seeds.",
    )


def test_the_rounds_end_when_the_leader_is_separated(tmp_path: Path) -> None:
    names = tuple(f"L2-D{d}-H4x32-F64-rope-V2048" for d in (192, 160))
    ended = run_toy_study(tmp_path, listed(*names, confirm=ConfirmConfig(max_seeds=0)))
    assert 2 < ended.complete < 20
    assert ended.notes[0].startswith(f"confirm: {names[0]} is separated from all other finalists")
    check_nothing_is_lost_or_counted_twice(tmp_path)


def test_a_round_is_added_only_if_all_of_it_fits_into_max_tokens(tmp_path: Path) -> None:
    config = listed(*DEEP, confirm=ConfirmConfig(max_seeds=0))
    config = replace(config, search=replace(config.search, max_tokens=8 * 4096))
    ended = run_toy_study(tmp_path, config)
    assert (ended.complete, ended.left) == (6, 0)
    assert sum(Lease.of(t).spent for t in optuna_study(tmp_path).trials) == 6 * 4096
    phase = study_phase(read_study(tmp_path / "toy"))
    assert phase.name == "complete"
    assert phase.detail.endswith("[search] max_tokens allows no further round.")


def test_the_search_alone_is_possible(tmp_path: Path) -> None:
    pruner = replace(DEFAULT.pruner, finalists=1)
    ended = run_toy_study(tmp_path, replace(DEFAULT, pruner=pruner, confirm=ConfirmConfig(max_seeds=1)))
    assert (ended.complete, ended.pruned, ended.notes) == (3, 21, ())
    assert study_phase(read_study(tmp_path / "toy")).detail == "3 architectures are complete; [confirm] adds no seeds."


@pytest.mark.parametrize("kind", ["none", "median", "halving", "hyperband"])
def test_every_pruner_ends_in_a_confirmation(tmp_path: Path, kind: str) -> None:
    search = SearchConfig(trials=8, architectures=(WORST,))
    pruner = PrunerConfig(kind=kind, startup_trials=8)
    config = replace(TOY_CONFIG, search=search, pruner=pruner, confirm=ConfirmConfig(max_seeds=2))
    ended = run_toy_study(tmp_path, config)
    further = [t.user_attrs["architecture"] for t in optuna_study(tmp_path).trials if is_confirmation(t)]
    assert ended.notes[0].startswith("confirm: ")
    assert 2 <= len(further) <= 4
    assert WORST in further  # the pruner spared it
    check_nothing_is_lost_or_counted_twice(tmp_path)


def test_a_sampler_ends_in_a_confirmation(tmp_path: Path) -> None:
    search = SearchConfig(trials=8, strategy="tpe", architectures=(WORST,))
    run_toy_study(tmp_path, replace(DEFAULT, search=search))
    seeds = seeds_of(tmp_path)
    assert len(seeds) in (3, 4)
    assert max(map(len, seeds.values())) == 3
    check_nothing_is_lost_or_counted_twice(tmp_path)


def test_finalists_have_their_best_learning_rate(tmp_path: Path) -> None:
    config = listed(*DEEP[:2])
    run_toy_study(tmp_path, replace(config, search=replace(config.search, learning_rates=(1e-3, 2e-3))))
    further = [t for t in optuna_study(tmp_path).trials if is_confirmation(t)]
    assert {t.user_attrs.get("learning_rate") for t in further} == {1e-3}
    assert sorted(t.user_attrs["seed"] for t in further) == [1, 1, 2, 2]


def test_two_workers_confirm_together(tmp_path: Path) -> None:
    workers = [start_toy_study(tmp_path, DEFAULT, seconds=0.01) for _ in range(2)]
    printed = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    assert sorted(map(len, seeds_of(tmp_path).values())) == [2, 3, 3, 3]
    check_nothing_is_lost_or_counted_twice(tmp_path)


def test_a_study_that_is_killed_while_it_confirms_resumes_there(tmp_path: Path) -> None:
    config = replace(listed(*DEEP), heartbeat_seconds=0.5)
    worker = start_toy_study(tmp_path, config, seconds=0.1)
    folder = tmp_path / "toy" / "trials"
    assert wait_until(lambda: any(folder.glob("*-s1")))
    phase = study_phase(read_study(tmp_path / "toy"))
    assert phase.name == "confirm"
    assert "further seed" in phase.detail
    assert "limit" not in phase.detail
    worker.kill()
    worker.communicate()
    ended = run_toy_study(tmp_path, config)
    assert (ended.complete, ended.failed, ended.left) == (9, 0, 0)
    assert seeds_of(tmp_path) == {name: [0, 1, 2] for name in DEEP}
    check_nothing_is_lost_or_counted_twice(tmp_path)


def extend(root: Path, config: StudyConfig) -> None:
    """Write an extension of the study as `study run --extend` does."""
    folder, drawn = StudyFolder(root / "toy"), candidates.choose(config, root)
    extension.adopt(folder, config, extension.extended_candidates(folder.path, config, drawn, True), drawn)


@pytest.mark.parametrize("search", [{"seeds": (0, 1)}, {"architectures": DEEP}], ids=["a seed", "an architecture"])
def test_an_extension_keeps_the_seeds_that_the_confirmation_trained(tmp_path: Path, search: dict) -> None:
    config = listed(*DEEP[:2])
    run_toy_study(tmp_path, config)
    config = replace(config, search=replace(config.search, **search))
    extend(tmp_path, config)
    run_toy_study(tmp_path, config)
    check_nothing_is_lost_or_counted_twice(tmp_path)
    assert seeds_of(tmp_path) == {name: [0, 1, 2] for name in config.search.architectures}
    assert study_phase(read_study(tmp_path / "toy")).name == "complete"


def test_a_failed_seed_is_named_and_ends_the_rounds_of_its_architecture() -> None:
    trials = [SeedTrial(architecture=name, seed=0, learning_rate=1e-4, loss=4.0) for name in DEEP]
    failed = SeedTrial(architecture=DEEP[0], seed=1, learning_rate=1e-4, has_failed=True)
    found = finals([*trials, failed], listed(*DEEP))
    assert found.failed == DEEP[:1]
    assert [(t.architecture, t.seed) for t in found.following] == [(DEEP[1], 1), (DEEP[2], 1)]
    assert finals([*trials[:2], failed], listed(*DEEP)).following == ()


def test_a_study_shows_its_phase_from_its_folder(tmp_path: Path) -> None:
    config = replace(DEFAULT, search=replace(DEFAULT.search, max_tokens=24 * 4096 + 1000))
    run_toy_study(tmp_path, config)
    phase = study_phase(read_study(tmp_path / "toy"))
    assert phase.name == "search"
    assert phase.detail == "of 24 trials, 9 are paused on a rung. [search] max_tokens is 99,304."


def test_the_commands_show_the_phase_and_continue_the_confirmation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, here = (DEEP[0], WORST), ["--root", str(tmp_path)]
    run_toy_study(tmp_path, listed(*names, seeds=(0, 1)))
    verdict = f"{names[0]} is separated from all other finalists at 95% confidence after 4 complete trials."
    assert phase_rows(StudyFolder(tmp_path / "toy")) == [("phase", f"complete: {verdict}")]
    assert phase_rows(StudyFolder(tmp_path / "other")) == []
    capsys.readouterr()
    assert main(["study", "status", "toy", *here]) == 0
    assert "phase: complete: " in capsys.readouterr().out
    assert main(["study", "status", "toy", *here, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["phase"] == {"name": "complete", "detail": verdict}
    assert main(["study", "confirm", "toy", *here]) == 0
    assert f"toy: confirm: {verdict}" in capsys.readouterr().err
    assert main(["study", "confirm", "toy", "--confidence", "0.3", *here]) == 2
    assert "[confirm]: confidence must be in (0.5, 1), not 0.3." in capsys.readouterr().err


def test_a_race_of_an_earlier_version_is_a_confirmation_without_a_limit(tmp_path: Path) -> None:
    table = {"space": "cpu-demo", "search": {"trials": 4, "race": 0.9}}
    assert build(StudyConfig, in_current_keys(table), "x").confirm == ConfirmConfig(confidence=0.9, max_seeds=0)
    none = {"space": "cpu-demo", "search": {"race": None}}
    assert build(StudyConfig, in_current_keys(none), "x").confirm == ConfirmConfig()
    assert build(StudyConfig, in_current_keys(none, is_started=True), "x").confirm == ConfirmConfig(max_seeds=1)
    run_toy_study(tmp_path, listed(*DEEP[:2], confirm=ConfirmConfig(max_seeds=1)))
    path = tmp_path / "toy" / "study.json"
    record = json.loads(path.read_text())
    del record["sha256"], record["settings"]["confirm"]
    path.write_text(json.dumps(record))
    assert StudyFolder(tmp_path / "toy").config().confirm == ConfirmConfig(max_seeds=1)
    assert study_phase(read_study(tmp_path / "toy")).name == "complete"
    assert run_toy_study(tmp_path, listed(*DEEP[:2])).complete == 6


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"confidence": 0.4}, r"\[confirm\]: confidence must be in \(0\.5, 1\), not 0\.4"),
        ({"max_seeds": -1}, r"\[confirm\]: max_seeds must be from 0 \(no limit\) to 1,000,000, not -1"),
    ],
)
def test_invalid_limits_are_refused(table: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(StudyConfig, asdict(StudyConfig(space="x")) | {"confirm": table}, "x")
