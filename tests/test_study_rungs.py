"""Rungs, token limits and races: which trials are promoted, which never start, and which architecture wins."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.toy_studies import TOY_CONFIG, optuna_study, run_toy_study
from helpers.trials import write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from march_search.analysis.study_record import read_study
from march_search.config import PrunerConfig, SearchConfig, TrainingConfig
from march_search.errors import ConfigError
from march_search.study import candidates
from march_search.study.leases import Lease
from march_search.study.rungs import in_words, schedule
from march_search.study.study_folder import StudyFolder

RUNGS = (1024, 2048, 4096)


def trial(number: int, *losses: float, state: TrialState = TrialState.WAITING, **attrs: object) -> FrozenTrial:
    """Return a trial with a loss at each of its first rungs."""
    values = dict(zip(RUNGS, losses, strict=False))
    ended = 1.0 if state == TrialState.COMPLETE else None
    made = create_trial(
        state=state,
        value=ended,
        intermediate_values=values,
        user_attrs={"architecture": f"a{number}", "seed": 0, **attrs},
    )
    made.number = number
    return made


def test_a_rung_is_decided_once_all_trials_have_reached_it_or_failed() -> None:
    trials = [trial(0, 4.0), trial(1, 3.0), trial(2, 5.0), trial(3)]
    assert dict(schedule(trials, RUNGS, 0.5).runnable) == {3: 1024}
    trials[3] = trial(3, state=TrialState.FAIL)
    decided = schedule(trials, RUNGS, 0.5)
    assert dict(decided.runnable) == {0: 2048, 1: 2048}
    assert dict(decided.stopped) == {2: 1024}
    trials[:2] = [trial(0, 4.0, 2.0), trial(1, 3.0, 2.5)]
    assert dict(schedule(trials, RUNGS, 0.5).runnable) == {0: 4096}
    assert dict(schedule(trials, RUNGS, 0.5).stopped) == {1: 2048, 2: 1024}


def test_nothing_is_promoted_before_all_candidates_are_chosen() -> None:
    trials = [trial(n, 4.0 + n) for n in range(4)]
    assert dict(schedule(trials, RUNGS, 0.5, is_complete=False).runnable) == {}
    assert dict(schedule(trials, RUNGS, 0.5, is_complete=True).runnable) == {0: 2048, 1: 2048}


def test_the_seeds_of_an_architecture_are_promoted_together_by_their_mean() -> None:
    losses = {"a": (4.0, 4.4), "b": (3.9, 4.9), "c": (4.3, 4.0), "d": (9.0, 9.0)}
    trials = [
        trial(2 * n + s, loss, architecture=name, seed=s)
        for n, (name, both) in enumerate(losses.items())
        for s, loss in enumerate(both)
    ]
    decided = schedule(trials, RUNGS, 0.5)
    assert dict(decided.runnable) == {0: 2048, 1: 2048, 4: 2048, 5: 2048}
    assert set(decided.stopped) == {2, 3, 6, 7}


def test_a_retried_trial_is_compared_with_promoted_ones() -> None:
    trials = [trial(0, 4.0, 2.0), trial(1, 3.0, 2.5), trial(2, 5.0, state=TrialState.PRUNED)]
    trials.append(trial(3, state=TrialState.FAIL))
    assert dict(schedule([*trials, trial(4, 3.9, retry_of=3)], RUNGS, 0.5).runnable) == {0: 4096, 4: 2048}
    assert dict(schedule([*trials, trial(4, 4.1, retry_of=3)], RUNGS, 0.5).stopped) == {1: 2048, 4: 1024}
    assert schedule([*trials, trial(4, race=0.95)], RUNGS, 0.5).runnable[4] == 4096


@given(st.integers(4, 12), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_rungs_do_not_depend_on_the_order_of_results_and_every_study_ends(count: int, rng: random.Random) -> None:
    finals = [rng.random() for _ in range(count)]
    failing = {n: rng.choice(RUNGS) for n in range(count) if rng.random() < 0.2}
    ends = []
    for _ in range(2):
        trials, reached = [trial(n) for n in range(count)], dict.fromkeys(range(count), 0)
        while runnable := dict(schedule(trials, RUNGS, 1 / 3).runnable):
            number = rng.choice(list(runnable))
            until = reached[number] = runnable[number]
            steps = [r for r in RUNGS if r <= until and not failing.get(number, 9e9) <= r]
            state = TrialState.WAITING
            if failing.get(number, 9e9) <= until:
                state = TrialState.FAIL
            elif until == RUNGS[-1]:
                state = TrialState.COMPLETE
            trials[number] = trial(number, *(finals[number] for r in steps if r < RUNGS[-1]), state=state)
        left = [t.number for t in trials if t.state == TrialState.WAITING]
        assert set(left) == set(schedule(trials, RUNGS, 1 / 3).stopped)
        ends.append(reached)
    assert ends[0] == ends[1]


def test_a_study_with_rungs_trains_only_the_best_to_the_end(tmp_path: Path) -> None:
    config = replace(TOY_CONFIG, pruner=PrunerConfig(rungs=(0.2, 2048), keep=0.5))
    ended = run_toy_study(tmp_path, config)
    assert (ended.complete, ended.pruned, ended.left) == (2, 4, 0)
    trials = optuna_study(tmp_path).trials
    assert sorted(max(t.intermediate_values) for t in trials) == [1024, 1024, 1024, 2048, 3072, 3072]
    widest = sorted(t.params["d_model"] for t in trials)[-3:]
    assert {t.params["d_model"] for t in trials if t.state == TrialState.COMPLETE} <= set(widest)
    reasons = {t.reason for t in read_study(tmp_path / "toy").trials if t.state == "pruned"}
    assert reasons == {
        "not promoted from the rung at 1,024 tokens",
        "not promoted from the rung at 2,048 tokens",
    }
    assert run_toy_study(tmp_path, config) == ended


def test_rungs_are_whole_steps_and_small_studies_have_none() -> None:
    training = TrainingConfig(tokens=10_240, global_batch_tokens=1024)
    assert PrunerConfig().rung_tokens(training) == (1024, 2048, 10_240)
    assert PrunerConfig(rungs=(0.15, 5000)).rung_tokens(training) == (2048, 5120, 10_240)
    config = replace(TOY_CONFIG, training=training, pruner=PrunerConfig(keep=0.5))
    assert in_words(config, 8) == "rungs: 8 to 1.02k, 4 to 2.05k, 2 to 10.2k tokens"
    assert in_words(config, 3) == "none: rungs need at least 4 candidates, got 3; all train to the end"
    with pytest.raises(ConfigError, match="a rung at 20,000 tokens exceeds the data budget of 10,240"):
        replace(config, pruner=PrunerConfig(rungs=(20_000,)))
    with pytest.raises(ConfigError, match=r"rungs must be positive numbers, not \[0\.5, -1\]"):
        PrunerConfig(rungs=(0.5, -1))


def test_a_study_never_exceeds_max_tokens(tmp_path: Path) -> None:
    config = replace(TOY_CONFIG, search=SearchConfig(trials=6, max_tokens=3 * 4096 + 4095))
    ended = run_toy_study(tmp_path, config)
    assert (ended.complete, ended.left) == (3, 3)
    note = "tokens: 12,288 of at most 16,383; trials that would exceed the limit were not started (3 left)."
    assert ended.notes == (note,)
    assert sum(Lease.of(t).spent for t in optuna_study(tmp_path).trials) == 3 * 4096
    more = replace(config, search=SearchConfig(trials=6, max_tokens=100_000))
    assert run_toy_study(tmp_path, more).complete == 6


@pytest.mark.parametrize(("damaged", "start"), [(False, 2048), (True, 1024)])
def test_the_token_limit_ignores_damaged_checkpoints(tmp_path: Path, damaged: bool, start: int) -> None:
    config = replace(TOY_CONFIG, search=SearchConfig(trials=1, max_tokens=3072))
    [architecture] = candidates.choose(config, tmp_path).architectures
    folder = StudyFolder.of(tmp_path, "toy").trial(0, architecture.name, 0)
    for step in (1, 2):
        tag = write_checkpoint(folder, step)
    if damaged:
        (tag / "state").write_bytes(b"torn")
    ended = run_toy_study(tmp_path, config)
    assert ended.complete == 1
    assert Lease.of(optuna_study(tmp_path).trials[0]).start == start


@pytest.mark.parametrize("limit", [3072 + 4095, 3072 + 4096])
def test_the_token_limit_counts_what_a_hung_trial_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setenv("TOY_HANGS", "1")
    ended = run_toy_study(tmp_path, replace(TOY_CONFIG, search=SearchConfig(trials=1, max_tokens=limit)))
    lease = Lease.of(optuna_study(tmp_path).trials[0])
    if limit < 3072 + 4096:
        assert (ended.complete, ended.left, lease.spent, lease.retries) == (0, 1, 3072, 1)
    else:
        assert (ended.complete, ended.left, lease.spent, lease.retries) == (1, 0, 3072 + 4096, 1)


def test_a_trial_that_hangs_three_times_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_HANGS", "3")
    ended = run_toy_study(tmp_path, replace(TOY_CONFIG, search=SearchConfig(trials=1)))
    assert (ended.failed, ended.left) == (1, 0)
    trial = optuna_study(tmp_path).trials[0]
    assert trial.user_attrs["reason"].startswith("it hung or was killed 3 times without progress: see")
    assert Lease.of(trial).spent == 3 * 3072


def test_promotions_that_would_exceed_the_token_limit_are_not_started(tmp_path: Path) -> None:
    pruner, search = PrunerConfig(rungs=(1024,), keep=0.5), SearchConfig(trials=6, max_tokens=6 * 1024 + 4096)
    ended = run_toy_study(tmp_path, replace(TOY_CONFIG, pruner=pruner, search=search))
    assert (ended.complete, ended.pruned, ended.left) == (1, 3, 2)
    assert sum(Lease.of(t).spent for t in optuna_study(tmp_path).trials) <= 6 * 1024 + 4096


def test_a_race_trains_seeds_of_the_leaders_until_the_winner_is_separated(tmp_path: Path) -> None:
    names = tuple(f"L2-D{d}-H4x32-F64-rope-V2048" for d in (192, 160))
    search = SearchConfig(strategy="list", architectures=names, race=0.95)
    ended = run_toy_study(tmp_path, replace(TOY_CONFIG, search=search))
    assert (ended.failed, ended.left) == (0, 0)
    assert ended.complete > 2
    [note] = ended.notes
    assert note.startswith(
        f"race: {names[0]} is separated from all others at 95% confidence after {ended.complete} complete trials"
    )
    raced = [t for t in optuna_study(tmp_path).trials if "race" in t.user_attrs]
    assert (
        len({(t.user_attrs["architecture"], t.user_attrs["seed"]) for t in raced}) == len(raced) == ended.complete - 2
    )


def test_a_race_of_equals_ends_at_the_token_limit(tmp_path: Path) -> None:
    names = tuple(f"L{n}-D192-H4x32-F64-rope-V2048" for n in (2, 3))
    search = SearchConfig(strategy="list", architectures=names, race=0.95, max_tokens=6 * 4096)
    ended = run_toy_study(tmp_path, replace(TOY_CONFIG, search=search))
    assert ended.complete == 6
    assert (
        f"race: {names[0]} leads after 6 complete trials, but is not separated at 95% confidence from {names[1]}."
        in ended.notes
    )
