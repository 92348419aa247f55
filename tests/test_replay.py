"""Strategies on recorded curves: results computed by hand, the claim for the default strategy, and the file format."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from helpers.command_line import command_in_process, json_of, one_line_error
from helpers.damage import change_file
from helpers.reference import march_runs
from helpers.studies import write_study
from hypothesis import given, settings
from hypothesis import strategies as st

from march_search import Architecture
from march_search.analysis.study_record import read_study
from march_search.cli import main
from march_search.config.halving import Halving
from march_search.replay.asha import Asha, replay_asha
from march_search.replay.clock import replay_optuna
from march_search.replay.learning_curves import Curve, Curves, LearningCurves, Replayed, curves, read_curves
from march_search.replay.pools import Replay, draw, replay, share_interval
from march_search.replay.strategies import parse, replay_rungs
from march_search.replay.study_curves import study_curves

A, B, C, D = range(4)
TOKENS = (20.0, 60.0, 200.0, 1000.0)
LOSSES = ((8.0, 7.0, 6.0, 4.0), (9.0, 6.0, 5.5, 3.5), (7.5, 7.2, 6.5, 5.0), (10.0, 9.0, 8.0, 3.0))
"""D is the best at the end and the worst before."""
FOUR = LearningCurves(
    1,
    "made up",
    "nats",
    tuple(
        Curve(name=name, evaluations=tuple(zip(TOKENS, losses, strict=True)))
        for name, losses in zip("ABCD", LOSSES, strict=True)
    ),
)
QUIET = curves(FOUR, np.random.default_rng(0))


@pytest.fixture(autouse=True, scope="module")
def quiet_optuna() -> Any:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def halving(order: list[int], workers: int) -> Replayed:
    """Replay Optuna's successive halving with rungs after the first, second and fourth evaluation."""
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return replay_optuna(QUIET, order, workers, pruner)


def test_rungs_on_four_curves_by_hand() -> None:
    # To 20: all four. To 60: C and A, a third of four rounded up. To the end: A alone.
    spent = 4 * 20 + 2 * 40 + 140 + 800
    for rule in (Halving((0.02, 0.06, 0.2, 1.0)), Halving((0.02, 0.06, 0.2, 1.0), keep=1 / 3)):
        assert replay_rungs(QUIET, [A, B, C, D], 1, rule) == Replayed(A, spent, spent, spent)
        # Two workers: twice two runs to 20, then C and A to 60 together, then A alone while the other worker waits.
        assert replay_rungs(QUIET, [A, B, C, D], 2, rule) == Replayed(A, spent, spent, 40 + 40 + 140 + 800)
    # Two finalists: C and A train to the end, and A is better there.
    spent = 4 * 20 + 2 * 980
    assert replay_rungs(QUIET, [A, B, C, D], 1, Halving(finalists=2)) == Replayed(A, spent, spent, spent)
    # The default compares at 100 and 200, which these curves evaluate at 200: only C, the best at 20, gets there.
    assert replay_rungs(QUIET, [A, B, C, D], 1, Halving()) == Replayed(C, 4 * 20 + 980, 1060, 1060)


@pytest.mark.parametrize(
    ("rule", "candidates", "numbers"),
    [
        # From 2 to 10% a fifth, from 10 to 20% a half, from 20% to the end a fifth, each rounded up.
        (Halving(), 25, (25, 5, 3, 1)),
        (Halving(), 18, (18, 4, 2, 1)),
        (Halving(), 12, (12, 3, 2, 1)),
        (Halving(), 100, (100, 20, 10, 2)),
        (Halving(finalists=3), 24, (24, 5, 3, 3)),
        (Halving(finalists=3), 2, (2, 2, 2, 2)),
        (Halving(keep=1 / 3), 25, (25, 9, 3, 1)),
        # A later first rung promotes more: from 5 to 10% a half.
        (Halving.at((50, 100, 200, 1000)), 24, (24, 12, 6, 2)),
        (Halving.at((50, 1000), 0.5, finalists=3), 4, (4, 3)),
    ],
)
def test_the_share_that_is_promoted_follows_from_the_rungs(
    rule: Halving, candidates: int, numbers: tuple[int, ...]
) -> None:
    assert rule.survivors(candidates) == numbers
    for rung, (number, following) in enumerate(itertools.pairwise(numbers)):
        losses = {n: float(n) for n in range(number)}
        assert rule.promoted(losses, rung) == tuple(range(following))
        last = {number - 1} - {*range(following)}
        assert rule.promoted(losses, rung, always={number - 1, "failed"}) == (*range(following), *last)


@pytest.mark.parametrize(
    ("order", "workers", "expected"),
    [
        # A to 20, B to 20: A leads two and goes to 60. C to 20 leads three and goes to 60, where A leads two and goes
        # to 200. D to 20: of four, C and A are promoted already. The runs are used up: A, the furthest, ends.
        ([A, B, C, D], 1, Replayed(A, 1000 + 20 + 60 + 20, 1100, 1100)),
        # A and B are at 20 at time 20: A resumes, C starts. C is at 20 at 40 and leads three. A is at 60 at 60: D
        # starts. C is at 60 at 80: A leads two, resumes and is at 200 at 220. The rest is trained, and A ends alone.
        ([A, B, C, D], 2, Replayed(A, 1100, 1100, 1020)),
        # D and B to 20: B to 60. A leads three at 20 and goes to 60, where B leads two and goes to 200. C leads four at
        # 20 and goes to 60, third there. B is the furthest and ends.
        ([D, B, A, C], 1, Replayed(B, 20 + 1000 + 60 + 60, 1140, 1140)),
    ],
)
def test_asynchronous_promotion_on_four_curves_by_hand(order: list[int], workers: int, expected: Replayed) -> None:
    rule = Asha((0.02, 0.06, 0.2, 1.0), reduction_factor=2)
    assert replay_asha(QUIET, order, workers, rule) == expected


@given(st.integers(2, 12), st.integers(1, 5), st.integers(2, 4), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_asynchronous_promotion_always_ends_with_a_complete_run(
    runs: int, workers: int, reduction_factor: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    tokens = (TOKENS,) * runs
    losses = tuple(tuple(rng.normal(size=4).tolist()) for _ in range(runs))
    seen = Curves(tokens=tokens, losses=losses, rates=(1.0,) * runs, final=tuple(curve[-1] for curve in losses))
    done = replay_asha(seen, range(runs), workers, Asha((0.02, 0.06, 0.2, 1.0), reduction_factor))
    assert done.cost == done.busy
    assert done.busy / workers <= done.makespan <= done.busy
    assert 20 * runs + 980 <= done.cost <= 1000 * runs
    assert replay_asha(seen, range(runs), workers, Asha((1.0,), reduction_factor)).cost == 1000 * runs


def test_asynchronous_promotion_resumes_what_a_stopping_rule_would_have_lost() -> None:
    # B is behind A at 20 when it arrives, and among the best two of four later: it resumes and wins.
    losses = ((8.0, 7.0, 6.0, 5.0), (9.0, 6.0, 5.0, 3.0), (9.5, 9.0, 8.0, 7.0), (10.0, 9.0, 8.0, 6.0))
    seen = replace(QUIET, losses=losses, final=tuple(curve[-1] for curve in losses))
    order = [A, B, C, D]
    resumed = replay_asha(seen, order, 1, Asha((0.02, 0.06, 0.2, 1.0), reduction_factor=2))
    # A to 60 after two; B to 60 after four, where it leads two, then to 200; it is the furthest and ends.
    assert resumed == Replayed(B, 60 + 1000 + 20 + 20, 1100, 1100)
    stopping = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    assert replay_optuna(seen, order, 1, stopping).choice == A


@pytest.mark.parametrize(
    ("order", "workers", "expected"),
    [
        # A passes alone; B (9) falls behind 8 at 20; C leads at 20, falls behind 7 at 60; D falls at 20.
        ([A, B, C, D], 1, Replayed(A, 1000 + 20 + 60 + 20, 1100, 1100)),
        # B ends at 20, C goes from there to 80, D to 100; A is at 1000 then anyway.
        ([A, B, C, D], 2, Replayed(A, 1100, 1100, 1000)),
        # D passes alone and C, A lead where they are judged; B is pruned at 20.
        ([D, C, B, A], 1, Replayed(D, 3020, 3020, 3020)),
    ],
)
def test_successive_halving_on_four_curves_by_hand(order: list[int], workers: int, expected: Replayed) -> None:
    assert halving(order, workers) == expected


def test_the_median_pruner_on_four_curves_by_hand() -> None:
    # B trains to its end. A and C are above its 6 at 60, D above its 9 at 20.
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
    assert replay_optuna(QUIET, [B, A, C, D], 1, pruner) == Replayed(B, 1000 + 60 + 60 + 20, 1140, 1140)


OLD_RUNGS = "rungs:fractions=0.02/0.06/0.2/1"


def test_results_summarise_all_replays() -> None:
    row = replay(FOUR, parse(OLD_RUNGS), 2, Replay(replays=3))
    assert row["spent"] == row["spent_max"] == pytest.approx(1100 / 4000)
    assert (row["regret"], row["found"], row["as_exhaustive"]) == (1.0, 0, 0)
    assert row["time"] == pytest.approx(1020 / 2000)
    assert row["idle"] == pytest.approx(1 - 1100 / (2 * 1020))
    whole = replay(FOUR, parse("exhaustive"), 2, Replay(replays=3))
    assert (whole["spent"], whole["regret"], whole["found"], whole["time"], whole["idle"]) == (1.0, 0.0, 1, 1.0, 0.0)


def test_orders_of_one_pool_are_one_observation_where_the_order_is_ignored() -> None:
    def counts(strategy: str, **how: Any) -> tuple[int, int]:
        row = replay(FOUR, parse(strategy), 1, Replay(replays=5, **how))
        return row["pools"], row["replays"]

    for strategy in ("rungs", "exhaustive"):
        assert counts(strategy) == counts(strategy, pool=4) == (1, 1)
        assert counts(strategy, pool=3) == counts(strategy, noise=0.1) == (5, 5)
    for strategy in ("asha", "halving"):
        assert counts(strategy) == (1, 5)
        assert counts(strategy, evaluation_noise=0.1) == (5, 5)


def test_every_replay_draws_a_new_pool_that_all_strategies_share() -> None:
    # Of two runs, the rungs choose the better at 20; the order there is the reverse of the order at the end. The mean
    # regret is therefore that of the six pairs: 0.5, 1, 2, 0.5, 1.5 and 1.
    row = replay(FOUR, parse("rungs"), 1, Replay(replays=2000, pool=2))
    assert (row["pools"], row["found"], row["spent"]) == (2000, 0, pytest.approx((2 * 20 + 980) / 2000))
    assert row["regret"] == pytest.approx(6.5 / 6, abs=4 * row["regret_error"])
    assert row["regret_error"] == pytest.approx(np.std([0.5, 1, 2, 0.5, 1.5, 1]) / 2000**0.5, rel=0.1)
    how = Replay(replays=50, pool=2, noise=0.1)
    names = [tuple(run.name for run in draw(FOUR, how, number).pool.runs) for number in range(50)]
    assert set(names) == set(itertools.combinations("ABCD", 2))
    assert draw(FOUR, how, 7) == draw(FOUR, how, 7) != draw(FOUR, how, 8)
    assert len({draw(FOUR, how, number).curves.losses for number in range(50)}) == 50


def test_the_interval_of_a_share_is_wilsons() -> None:
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (count, number), interval in published.items():
        assert share_interval(count, number) == pytest.approx(interval, abs=5e-5)


def test_noise_shifts_whole_curves_or_single_evaluations() -> None:
    def shifts(**noise: float) -> Any:
        seen: Curves = curves(FOUR, np.random.default_rng(1), **noise)
        return np.array(seen.losses) - np.array(LOSSES)

    assert np.ptp(shifts(noise=0.1), axis=1) == pytest.approx(0, abs=1e-12)
    assert np.ptp(shifts(noise=0.1)[:, 0]) > 0.01
    assert np.all(np.ptp(shifts(evaluation_noise=0.1), axis=1) > 0.01)


def test_the_shipped_table_has_the_25_runs_with_exact_parameter_counts() -> None:
    table, shapes = read_curves("march-2023"), {run["name"]: run for run in march_runs()}
    assert len(table.runs) == 25
    for run in table.runs:
        assert Architecture.parse(run.architecture or "").num_params == run.num_params == shapes[run.name]["num_params"]
        assert len(run.evaluations) == 50
        assert run.tokens == 1000 * 2**20


def march(pool: int, strategy: str = "rungs", left_out: str = "", replays: int = 600) -> dict[str, Any]:
    """Replay a strategy on pools of recorded runs with the noise of seeds and evaluations."""
    table = read_curves("march-2023")
    rest = replace(table, runs=tuple(run for run in table.runs if run.family != left_out))
    how = Replay(replays=replays, pool=pool, seed=5, noise=0.006, evaluation_noise=0.005)
    return replay(rest, parse(strategy), 1, how)


@pytest.mark.parametrize(
    ("pool", "spent", "found", "regret"),
    [(12, 0.124, 0.93, 0.0015), (18, 0.0934, 0.95, 0.0015), (25, 0.0801, 0.99, 0.0001)],
)
def test_the_default_rungs_find_the_best_of_random_pools(pool: int, spent: float, found: float, regret: float) -> None:
    row = march(pool)
    assert row["pools"] == row["replays"] == 600
    assert row["spent_max"] <= spent
    assert row["found"] >= found
    assert row["regret"] <= regret


def test_the_default_rungs_spend_no_more_than_a_third_at_2_6_and_20_percent_and_find_more() -> None:
    for pool in (12, 18):
        third, default = march(pool, f"{OLD_RUNGS},keep=0.3333333"), march(pool)
        assert default["spent"] <= third["spent"]
        assert default["found"] > third["found"]
        assert default["regret"] < third["regret"]


@pytest.mark.parametrize("family", ["baseline", "heads_vs_layers", "dim_vs_layers", "glu", "d_ff"])
def test_the_default_rungs_hold_with_a_family_left_out(family: str) -> None:
    assert march(12, left_out=family)["regret"] <= 0.002


def test_tpe_trains_every_run_once_in_its_own_order() -> None:
    table = read_curves("march-2023")
    how = Replay(replays=2, tpe=True)
    assert replay(table, parse("exhaustive"), 4, how)["spent"] == 1
    rows = [replay(table, parse("halving"), 1, each) for each in (how, how, replace(how, tpe=False))]
    assert rows[0] == rows[1] != rows[2]


def test_tpe_proposes_fields_that_may_be_zero() -> None:
    shape = Architecture.parse("L4-D64-H2x32-F256-rope-V2048")
    shapes = [replace(shape, attention_window=16, global_every=every) for every in (0, 2, 4)]
    runs = [
        Curve(name=str(n), evaluations=((1.0, 4.0 - n), (2.0, 3.0 - n)), architecture=one.name)
        for n, one in enumerate(shapes)
    ]
    table = LearningCurves(2, "made up", "nats", tuple(runs))
    assert replay(table, parse("exhaustive"), 1, Replay(replays=1, tpe=True))["spent"] == 1


def test_a_curve_ends_with_the_sealed_result(tmp_path: Path) -> None:
    losses = {f"L{n}-D64-H2x32-F256-rope-V2048": [4.0 + n / 10] for n in (1, 2, 3)}
    folder = write_study(tmp_path, losses, evaluations=4)
    [first, second, _] = sorted((folder / "trials").glob("*/metrics.jsonl"))
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    lines[-1]["loss"] = 9.0
    first.write_text("".join(json.dumps(line) + "\n" for line in lines))
    second.unlink()
    runs = study_curves(read_study(folder)).runs
    assert [run.evaluations[-1] for run in runs] == [(1 << 20, loss) for [loss] in losses.values()]
    assert [len(run.evaluations) for run in runs] == [4, 1, 4]


def test_a_finished_study_is_replayed_directly_or_as_an_exported_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {f"L{n}-D{64 * n}-H2x32-F256-rope-V2048": [4.5 - n / 10, 4.52 - n / 10] for n in (1, 2, 3)}
    folder = write_study(tmp_path, losses, name="three", evaluations=4)
    failed = folder / "trials" / "0006-L1-D64-H2x32-F256-rope-V2048-s2"
    shutil.copytree(folder / "trials" / "0000-L1-D64-H2x32-F256-rope-V2048-s0", failed)
    change_file(failed / "trial.json", seed=2)
    (failed / "result.json").unlink()
    (failed / "outcome.json").write_text('{"state": "failed", "reason": "memory"}')
    command, table = command_in_process(capsys), tmp_path / "table.json"
    root = ("--root", str(tmp_path))
    assert command("export", "three", *root, "--format", "curves", "-o", str(table)).returncode == 0
    curves = read_curves(str(table))
    assert curves.source == "march-search study three: 6 of 7 trials are complete."
    assert len(curves.runs) == 6
    assert all(len(r.evaluations) == 4 and r.tokens == 1 << 20 for r in curves.runs)
    assert {run.seconds for run in curves.runs} == {(1 << 20) / 12_345.6}
    results = []
    for source in (str(table), "three", str(folder)):
        options = ("--replays", "2", "--workers", "1,2", "--format", "json")
        results.append(json_of(command("replay", source, *root, *options)))
        assert (results[-1]["runs"], len(results[-1]["strategies"])) == (6, 14)
        assert all(row["found"] == 1 for row in results[-1]["strategies"] if row["strategy"] == "exhaustive")
    assert results[0]["strategies"] == results[1]["strategies"] == results[2]["strategies"]
    write_study(tmp_path, {"L1-D64-H2x32-F256-rope-V2048": [4.0]}, name="one")
    assert "one: a table needs at least 2 runs, not 1." in one_line_error(command("replay", "one", *root))


@pytest.mark.parametrize("columns", [80, 160])
def test_the_printed_table_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["replay", "march-2023", "--replays", "2", "--workers", "8", "--noise", "0.005", "--pool", "18"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    names = [line.split()[0] for line in lines if "%" in line and "(" in line]
    assert names == ["exhaustive", "median", "percentile", "halving", "hyperband", "rungs", "asha"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["march-2032"], 'unknown study "march-2032"'),
        (["march-2032"], "Shipped tables of curves: "),
        (["march-2032.json"], 'no table of recorded curves of that name is shipped. Did you mean "march-2023"?'),
        (["march-2023", "--strategy", "halvin"], 'unknown strategy "halvin". Did you mean "halving"?'),
        (
            ["march-2023", "--strategy", "halving:reduce=3"],
            'halving has no option "reduce". Known: bootstrap_count, min',
        ),
        (["march-2023", "--strategy", "rungs:keep=2"], "rungs:keep=2: keep must be in (0, 1], not 2."),
        (
            ["march-2023", "--strategy", "rungs:fractions=0.5"],
            "fractions must be positive, ascending and end at 1, not (0.5,).",
        ),
        (["march-2023", "--strategy", "rungs:keep=x"], '"keep=x" must look like key=number, or key=number/number/'),
        (["march-2023", "--strategy", "rungs:fractions=nan/1"], '"fractions=nan/1" has a number that is not finite'),
        (["march-2023", "--strategy", "median:n_startup_trials=inf"], "has a number that is not finite: use finite"),
        (["march-2023", "--workers", "0"], '--workers must be whole numbers from 1 to 10,000, such as 1,4,8, not "0".'),
        (["march-2023", "--replays", "0"], "--replays must be at least 1, not 0."),
        (["march-2023", "--pool", "26"], "--pool must be from 2 to 25, the number of runs, not 26."),
        (["march-2023", "--pool", "1"], "--pool must be from 2 to 25, the number of runs, not 1."),
        (["march-2023", "--strategy", "asha:reduction_factor=1.5"], "reduction_factor must be a whole number of at le"),
        (["march-2023", "--strategy", "rungs:finalists=0"], "finalists must be a whole number of at least 1, not 0."),
        (["march-2023", "--strategy", "rungs:keep=0.5/0.2"], "only fractions takes several numbers; give one number"),
        (["march-2023", "--noise", "-1"], "--noise must be 0 or more, not -1.0."),
    ],
)
def test_an_invalid_request_is_refused_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 3}, "schema_version is 3; this version of march-search reads 1 and 2."),
        ({"runs": []}, "a table needs at least 2 runs, not 0."),
        ({"name": "B"}, '2 runs have the name "B": give each run a unique name.'),
        ({"evaluations": []}, 'run "A": evaluations must be one or more pairs of [tokens, loss].'),
        (
            {"evaluations": [[2, 1.0], [1, 1.0]]},
            'run "A": the tokens of its evaluations must be positive and ascending.',
        ),
        ({"evaluations": [[1, float("nan")]]}, 'run "A": every token count and loss must be finite; remove the run.'),
        ({"minutes": 0}, 'run "A": minutes and tokens_per_second must be positive; remove them if unknown.'),
        ({"architecture": "T5"}, "'T5' is not an architecture name"),
        ({"evals": 1}, 'unknown key "runs[0].evals". Did you mean "evaluations"?'),
    ],
)
def test_an_invalid_table_is_refused_in_one_line_that_names_the_file(
    change: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [{"name": name, "evaluations": [[1, 2.0]]} for name in "AB"]
    value: dict[str, Any] = {"schema_version": 1, "source": "made up", "unit": "nats", "runs": runs}
    (value if set(change) & set(value) else runs[0]).update(change)
    path = tmp_path / "table.json"
    path.write_text(json.dumps(value))
    assert main(["replay", str(path)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(path) in error
    assert error.count("\n") == 1


def test_tpe_needs_architectures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [{"name": name, "evaluations": [[1, 2.0]]} for name in "AB"]
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"schema_version": 1, "source": "made up", "unit": "nats", "runs": runs}))
    assert main(["replay", str(path), "--proposals", "tpe"]) == 2
    assert 'TPE needs the architecture of every run; "A" has none. Use --proposals random.' in capsys.readouterr().err
