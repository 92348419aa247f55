"""Rungs and token limits: which trials are promoted, and which never start."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.toy_studies import RUNG_TRAINING, TOY_CONFIG, optuna_study, run_toy_study
from helpers.trials import write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from march_search.analysis.study_record import read_study
from march_search.config import PrunerConfig, SearchConfig, TrainingConfig
from march_search.errors import ConfigError
from march_search.planning import candidates
from march_search.planning.rungs import notes, reached, schedule
from march_search.storage.leases import Lease
from march_search.storage.study_folder import StudyFolder

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
    assert schedule([*trials, trial(4, confirm=0.95)], RUNGS, 0.5).runnable[4] == 4096


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
    pruner = PrunerConfig(rungs=(0.25, 8192), keep=0.5, finalists=1)
    config = replace(TOY_CONFIG, training=RUNG_TRAINING, pruner=pruner)
    ended = run_toy_study(tmp_path, config)
    assert (ended.complete, ended.pruned, ended.left) == (2, 4, 0)
    trials = optuna_study(tmp_path).trials
    assert sorted(max(t.intermediate_values) for t in trials) == [4096, 4096, 4096, 8192, 12_288, 12_288]
    widest = sorted(t.params["d_model"] for t in trials)[-3:]
    assert {t.params["d_model"] for t in trials if t.state == TrialState.COMPLETE} <= set(widest)
    reasons = {t.reason for t in read_study(tmp_path / "toy").trials if t.state == "pruned"}
    assert reasons == {
        "not promoted from the rung at 4,096 tokens",
        "not promoted from the rung at 8,192 tokens",
    }
    assert run_toy_study(tmp_path, config) == ended


def test_the_baseline_and_a_few_finalists_are_promoted_whatever_their_rank() -> None:
    trials = [trial(n, 4.0 + n) for n in range(9)]
    for finalists, always, promoted in (
        (1, None, [0, 1]), (3, None, [0, 1, 2]), (3, "a8", [0, 1, 2, 8]), (3, "a1", [0, 1, 2]),
    ):  # fmt: skip
        decided = schedule(trials, RUNGS, 0.2, finalists=finalists, always=always)
        assert list(decided.runnable) == promoted
        assert len(decided.stopped) == 9 - len(promoted)
    trials[8] = trial(8, state=TrialState.FAIL)
    assert list(schedule(trials, RUNGS, 0.2, finalists=3, always="a8").runnable) == [0, 1, 2]
    trials.append(trial(9, 6.5, retry_of=8, architecture="a8"))
    assert schedule(trials, RUNGS, 0.2, finalists=3, always="a8").stopped[9] == 1024


def test_finalists_are_architectures_whatever_their_number_of_learning_rates() -> None:
    trials = [
        trial(3 * n + k, 4.0 + n + k / 10, architecture=f"a{n}", learning_rate=k) for n in range(4) for k in range(3)
    ]
    assert list(schedule(trials, RUNGS, 0.2, finalists=2, always="a3").runnable) == [0, 1, 2, 3, 9]


def test_rungs_are_whole_steps_and_none_is_a_handful() -> None:
    training = TrainingConfig(tokens=1_024_000, global_batch_tokens=1024)
    assert PrunerConfig(rungs=(0.06, 0.2)).rung_tokens(training) == (60 * 1024, 200 * 1024, 1_024_000)
    assert PrunerConfig(rungs=(0.1504, 300_000.0)).rung_tokens(training) == (151 * 1024, 293 * 1024, 1_024_000)
    assert PrunerConfig(rungs=(0.01, 0.02, 0.06)).rung_tokens(training) == (50 * 1024, 60 * 1024, 1_024_000)
    warm = replace(training, warmup_tokens=80 * 1024)
    assert PrunerConfig(rungs=(0.06, 0.2)).rung_tokens(warm) == (80 * 1024, 200 * 1024, 1_024_000)
    with pytest.raises(ConfigError, match="a rung at 2,000,000 tokens exceeds the data budget of 1,024,000"):
        replace(TOY_CONFIG, training=training, pruner=PrunerConfig(rungs=(2_000_000,)))
    with pytest.raises(ConfigError, match=r"rungs must be positive numbers, not \[0\.5, -1\]"):
        PrunerConfig(rungs=(0.5, -1))


def test_the_plan_tells_which_rungs_there_are() -> None:
    training = TrainingConfig(tokens=1_024_000, global_batch_tokens=1024)
    config = replace(TOY_CONFIG, training=training, pruner=PrunerConfig(rungs=(0.02, 0.06, 0.2), keep=1 / 3))
    assert notes(config, 8).startswith("1 of 3 was raised to 50 steps (51.2k tokens), the fewest")
    assert notes(config, 4) == "none: they need at least 5 candidates, got 4; all train to the end"
    assert notes(replace(config, pruner=PrunerConfig(rungs=(0.2,))), 8) == ""
    short = replace(config, training=TOY_CONFIG.training)
    assert notes(short, 8) == "none: the first may be at 50 steps and a trial has 4; all train to the end"
    assert reached(short, 8) == ((4096, 8),)
    assert reached(config, 24) == ((51_200, 24), (61_440, 9), (204_800, 4), (1_024_000, 4))
    assert reached(config, 24, 3)[-1] == (1_024_000, 5)
    assert reached(replace(config, pruner=PrunerConfig(rungs=(0.1,), keep=1 / 3, finalists=1)), 24)[-1][1] == 8
    assert reached(config, 4) == ((1_024_000, 4),)


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
    pruner, limit = PrunerConfig(rungs=(4096,), keep=0.5, finalists=1), 6 * 4096 + 16_384
    config = replace(TOY_CONFIG, training=RUNG_TRAINING, pruner=pruner, search=SearchConfig(trials=6, max_tokens=limit))
    ended = run_toy_study(tmp_path, config)
    assert (ended.complete, ended.pruned, ended.left) == (1, 3, 2)
    assert sum(Lease.of(t).spent for t in optuna_study(tmp_path).trials) <= limit
