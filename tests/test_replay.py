"""Strategies on recorded curves: results computed by hand, the claim for the default strategy, and the file format."""

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

from march_search import Architecture
from march_search.cli import main
from march_search.config.halving import Halving
from march_search.replay.clock import replay_optuna
from march_search.replay.learning_curves import Curve, Curves, LearningCurves, Replayed, curves, read_curves
from march_search.replay.strategies import Replay, parse, replay, replay_rungs

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
    assert replay_rungs(QUIET, [A, B, C, D], 1, Halving()) == Replayed(A, spent, spent, spent)
    # Two workers: twice two runs to 20, then C and A to 60 together, then A alone while the other worker waits.
    assert replay_rungs(QUIET, [A, B, C, D], 2, Halving()) == Replayed(A, spent, spent, 40 + 40 + 140 + 800)


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


def test_results_summarise_all_orders() -> None:
    row = replay(FOUR, parse("rungs"), 2, Replay(orders=3))
    assert row["spent"] == row["spent_max"] == pytest.approx(1100 / 4000)
    assert (row["regret"], row["found"], row["as_exhaustive"]) == (1.0, 0, 0)
    assert row["time"] == pytest.approx(1020 / 2000)
    assert row["idle"] == pytest.approx(1 - 1100 / (2 * 1020))
    whole = replay(FOUR, parse("exhaustive"), 2, Replay(orders=3))
    assert (whole["spent"], whole["regret"], whole["found"], whole["time"], whole["idle"]) == (1.0, 0.0, 3, 1.0, 0.0)


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


@pytest.mark.parametrize("workers", [1, 4, 8])
@pytest.mark.parametrize("noise", [(0.0, 0.0), (0.005, 0.0), (0.005, 0.005)])
def test_the_default_strategy_finds_the_best_of_the_25_runs_for_9_percent(
    workers: int, noise: tuple[float, float]
) -> None:
    row = replay(
        read_curves("march-2023"),
        parse("rungs"),
        workers,
        Replay(orders=1000, seed=0, noise=noise[0], evaluation_noise=noise[1]),
    )
    assert row["spent_max"] <= 0.09
    assert row["found"] >= 990  # regret 0
    if not noise[1]:  # noise on each last loss often makes the second run seem the best
        assert row["as_exhaustive"] >= 990


@pytest.mark.parametrize("family", ["baseline", "heads_vs_layers", "dim_vs_layers", "glu", "d_ff"])
def test_the_default_strategy_holds_with_a_family_left_out(family: str) -> None:
    table = read_curves("march-2023")
    rest = replace(table, runs=tuple(run for run in table.runs if run.family != family))
    assert len(rest.runs) < 25
    row = replay(rest, parse("rungs"), 4, Replay(orders=100, seed=1, noise=0.005, evaluation_noise=0.005))
    assert row["found"] >= 99
    assert row["spent_max"] < 1 / len(rest.runs) + 0.05  # the one full run, and 5% for all the others


def test_tpe_trains_every_run_once_in_its_own_order() -> None:
    table = read_curves("march-2023")
    how = Replay(orders=2, tpe=True)
    assert replay(table, parse("exhaustive"), 4, how)["spent"] == 1
    rows = [replay(table, parse("halving"), 1, each) for each in (how, how, replace(how, tpe=False))]
    assert rows[0] == rows[1] != rows[2]


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
        options = ("--orders", "2", "--workers", "1,2", "--format", "json")
        results.append(json_of(command("replay", source, *root, *options)))
        assert (results[-1]["runs"], len(results[-1]["strategies"])) == (6, 12)
        assert all(row["found"] == 2 for row in results[-1]["strategies"] if row["strategy"] == "exhaustive")
    assert results[0]["strategies"] == results[1]["strategies"] == results[2]["strategies"]
    write_study(tmp_path, {"L1-D64-H2x32-F256-rope-V2048": [4.0]}, name="one")
    assert "one: a table needs at least 2 runs, not 1." in one_line_error(command("replay", "one", *root))


@pytest.mark.parametrize("columns", [80, 160])
def test_the_printed_table_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["replay", "march-2023", "--orders", "1", "--workers", "8", "--noise", "0.005"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    names = [line.split()[0] for line in lines if "%" in line]
    assert names == ["exhaustive", "median", "percentile", "halving", "hyperband", "rungs"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["march-2032"], 'unknown study "march-2032"'),
        (["march-2032"], "Shipped tables of curves: march-2023."),
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
        (["march-2023", "--workers", "0"], '--workers must be whole numbers from 1 to 10,000, such as 1,4,8, not "0".'),
        (["march-2023", "--orders", "0"], "--orders must be at least 1, not 0."),
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
        ({"schema_version": 2}, "schema_version is 2; this version of march-search reads 1."),
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
