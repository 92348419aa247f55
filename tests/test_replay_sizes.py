"""Curves of a ladder: the table with sizes, the strategy that ranks arms at a smaller size, and the export."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command_line import Command, json_of, one_line_error
from helpers.ladders import LOSSES, PARAMETERS, SHAPES, train_size, write_ladder
from helpers.studies import stop_trial

from march_search.architecture.architecture import Architecture
from march_search.config.halving import SizeHalving
from march_search.errors import ConfigError, UsageError
from march_search.replay.learning_curves import Curve, LearningCurves, read_curves
from march_search.replay.pools import Replay, draw, replay
from march_search.replay.sizes import replay_sizes
from march_search.replay.strategies import parse

TOKENS = {"1M": 10.0, "2M": 20.0, "4M": 40.0}

LAST = {
    "1M": {"plain": [3.0], "gated": [2.9], "wide": [3.1], "deep": [3.2]},
    "2M": {"plain": [2.6], "gated": [2.7], "wide": [2.8], "deep": [2.5]},
    "4M": {"plain": [2.2, 2.4], "gated": [2.5, 2.5], "wide": [2.1, 2.1], "deep": [2.0, 2.2]},
}
"""Last losses of the seeds: gated leads at 1M, deep at 2M, deep and wide are equal at 4M on average."""


def table(last: dict[str, dict[str, list[float]]] = LAST) -> LearningCurves:
    """Return the curves of a made-up ladder, with two evaluations each; every arm costs 2 FLOPs per parameter."""
    return LearningCurves(
        2,
        "made up",
        "nats",
        tuple(
            Curve(
                name=f"{size}-{arm}-s{seed}",
                evaluations=((TOKENS[size] / 2, loss + 1), (TOKENS[size], loss)),
                arm=arm,
                size=size,
                seed=seed,
                num_params=PARAMETERS[size],
                flops_per_token=2.0 * PARAMETERS[size],
            )
            for size, arms in last.items()
            for arm, losses in arms.items()
            for seed, loss in enumerate(losses)
        ),
    )


ONE = table({size: {arm: losses[:1] for arm, losses in arms.items()} for size, arms in LAST.items()})


def flops(size: str, arms: int) -> float:
    """Return the FLOPs of training some arms at a size."""
    return arms * TOKENS[size] * 2 * PARAMETERS[size]


@pytest.mark.parametrize(
    ("keep", "choice", "spent"),
    [
        # gated and plain lead at 1M; plain leads them at 2M and, of half the arms, the two are the same.
        ((1.0, 0.5, 0.5), "plain", flops("1M", 4) + flops("2M", 2) + flops("4M", 2)),
        # gated alone from 1M to 4M.
        ((1.0, 0.0, 0.25), "gated", flops("1M", 4) + flops("4M", 1)),
        # Two shares are those of 2M and 4M: deep and plain lead at 2M, and deep at 4M.
        ((1.0, 0.5), "deep", flops("2M", 4) + flops("4M", 2)),
        # A quarter of four arms rounded up is one, and 0.26 are two.
        ((1.0, 0.26), "deep", flops("2M", 4) + flops("4M", 2)),
        ((1.0, 1.0, 1.0), "deep", flops("1M", 4) + flops("2M", 4) + flops("4M", 4)),
    ],
)
def test_the_best_arms_of_a_size_train_at_the_next(keep: tuple[float, ...], choice: str, spent: float) -> None:
    drawn = draw(ONE, Replay(), 0)
    done = replay_sizes(drawn.curves, drawn.order, 1, SizeHalving(keep))
    assert drawn.pool.runs[done.choice].name == f"4M-{choice}-s0"
    assert done.cost == spent
    assert done.busy == done.makespan == spent  # without times, a FLOP takes one unit
    row = replay(ONE, parse("sizes:keep=" + "/".join(map(str, keep))), 1, Replay(replays=5))
    assert (row["replays"], row["spent"]) == (1, pytest.approx(spent / flops("4M", 4)))
    assert row["regret"] == pytest.approx({"plain": 0.2, "gated": 0.5, "deep": 0.0}[choice])


def test_a_size_waits_for_all_of_its_arms() -> None:
    drawn = draw(ONE, Replay(), 0)
    done = replay_sizes(drawn.curves, drawn.order, 3, SizeHalving((1.0, 0.5)))
    assert done.makespan == flops("2M", 2) + flops("4M", 1)
    assert done.busy == flops("2M", 4) + flops("4M", 2)


def test_other_strategies_train_at_the_largest_size_and_pay_in_flops() -> None:
    for text, spent in (("exhaustive", 1.0), ("rungs:fractions=0.5/1,keep=0.5", 0.75)):
        row = replay(ONE, parse(text), 1, Replay(replays=1))
        assert (row["spent"], row["found"]) == (spent, 1)


def test_flops_and_not_tokens_are_the_cost() -> None:
    runs = [replace(run, flops_per_token=9e6) if run.name == "4M-deep-s0" else run for run in ONE.runs]
    row = replay(replace(ONE, runs=tuple(runs)), parse("sizes:keep=1/0.25"), 1, Replay(replays=1))
    whole = flops("4M", 3) + 40 * 9e6
    assert row["spent"] == pytest.approx((flops("2M", 4) + 40 * 9e6) / whole)


def test_each_replay_draws_a_seed_and_regret_is_of_the_mean_over_seeds() -> None:
    curves = table()
    how = Replay(replays=200)
    assert (Replay(replays=5).pools(ONE), how.pools(curves)) == (1, 200)
    drawn = [draw(curves, how, number) for number in range(200)]
    assert {each.pool.runs[0].seed for each in drawn} == {0, 1}
    assert drawn[0].curves.final == pytest.approx((2.3, 2.5, 2.1, 2.1))
    assert len(drawn[0].curves.smaller) == 2
    row = replay(curves, parse("exhaustive"), 1, how)
    # deep (2.0 or 2.2) and wide (2.1) are equally good on average.
    assert row["regret"] == pytest.approx(0)
    bad = replay(curves, parse("sizes:keep=1/0/0.25"), 1, how)
    assert bad["regret"] == pytest.approx(0.4)
    pools = replay(curves, parse("sizes"), 1, replace(how, pool=2, noise=0.1))
    assert (pools["replays"], pools["spent"]) == (200, pytest.approx(2 * flops("2M", 2) / flops("4M", 4) + 0.5))


def test_an_arm_that_lacks_a_size_is_left_out() -> None:
    some = replace(ONE, runs=tuple(run for run in ONE.runs if run.name != "2M-deep-s0"))
    assert list(some.arms) == ["plain", "gated", "wide"]
    assert some.sizes == ("1M", "2M", "4M")
    assert len(draw(some, Replay(), 0).pool.runs) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": None}, 'run "1M-plain-s0" has no size, but other runs have'),
        ({"arm": None}, 'run "1M-plain-s0": a run with a size needs arm, num_params and flops_per_token'),
        ({"flops_per_token": None}, "needs arm, num_params and flops_per_token"),
        ({"flops_per_token": 0.0}, "flops_per_token must be positive"),
    ],
)
def test_a_table_with_sizes_needs_arms_and_flops(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(ONE, runs=(replace(ONE.runs[0], **change), *ONE.runs[1:]))


def test_a_table_with_one_arm_at_every_size_is_refused() -> None:
    kept = [run for run in ONE.runs if run.size == "1M" or run.arm == "deep"]
    with pytest.raises(ConfigError, match="at least 2 arms with a run at each of 1M, 2M, 4M; it has 1"):
        replace(ONE, runs=tuple(kept))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sizes:keep=0.5", "keep must have one share of the arms per size, such as 1/0.5, not 0.5"),
        ("sizes:keep=0.5/0.2", "keep must start with 1, never rise, and end above 0"),
        ("sizes:keep=1/0.2/0.5", "keep must start with 1, never rise, and end above 0"),
        ("sizes:keep=1/0", "keep must start with 1, never rise, and end above 0"),
        ("sizes:keep=1/-0.5", "keep must start with 1, never rise, and end above 0"),
        ("sizes:finalists=0", "finalists must be a whole number of at least 1, not 0"),
        ("sizes:kep=1/0.5", 'sizes has no option "kep". Did you mean "keep"?'),
    ],
)
def test_a_wrong_rule_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(text)
    assert message in str(error.value)


def test_a_ladder_is_exported_with_all_sizes_and_seeds_and_replayed(tmp_path: Path, command: Command) -> None:
    write_ladder(tmp_path, LOSSES, PARAMETERS)
    root, path = ("--root", str(tmp_path)), tmp_path / "ladder.json"
    assert command("export", "made", "--format", "curves", "-o", str(path), *root).returncode == 0
    found = read_curves(str(path))
    assert found.source == "march-search ladder made: 18 complete trials at 1M, 2M, 4M, learning rate 0.001."
    assert found.sizes == ("1M", "2M", "4M")
    assert {arm: [len(runs) for runs in own] for arm, own in found.arms.items()} == {
        arm: [2, 2, 2] for arm in ("plain", "gated", "wide")
    }
    run = found.arms["wide"][2][1]
    assert (run.name, run.architecture, run.seed, run.tokens) == ("4M-wide-s1", SHAPES[2], 1, 1 << 20)
    assert run.evaluations[-1][1] == 2.2
    assert run.flops_per_token == Architecture.parse(SHAPES[2]).flops_per_token(64)
    options = ("--replays", "20", "--format", "json")
    direct, table = (json_of(command("replay", name, *options, *root)) for name in ("made", str(path)))
    assert direct["strategies"] == table["strategies"]
    assert (direct["cost_unit"], direct["sizes"]) == ("FLOPs", ["1M", "2M", "4M"])
    by_name = {row["strategy"]: row for row in direct["strategies"]}
    assert by_name["exhaustive"]["found"] == 1
    # plain leads at 1M and gated is last at 2M and 4M; wide is the best from 2M on.
    strict = json_of(command("replay", "made", "--strategy", "sizes:keep=1/0.3", *options, *root))["strategies"][0]
    assert strict["found"] == 1
    early = json_of(command("replay", "made", "--strategy", "sizes:keep=1/0/0.3", *options, *root))["strategies"][0]
    assert (early["found"], early["regret"]) == (0, pytest.approx(2.5005 - 2.205))


def test_a_ladder_that_is_not_finished_is_exported_as_far_as_it_is(tmp_path: Path, command: Command) -> None:
    write_ladder(tmp_path, LOSSES, PARAMETERS, untrained=("4M",))
    root = ("--root", str(tmp_path))
    found = json.loads(command("export", "made", "--format", "curves", *root).stdout)
    assert {run["size"] for run in found["runs"]} == {"1M", "2M"}
    train_size(tmp_path, "4M", LOSSES["4M"])
    for number in range(4):  # the seeds of plain at both rates
        stop_trial(tmp_path / "made-4M", number, 3, "failed")
    ended = command("replay", "made", "--strategy", "sizes", "--replays", "2", *root)
    assert ended.returncode == 0, ended.stderr
    text = " ".join(ended.stdout.split())
    assert "made: 2 arms at 1M, 2M, 4M, 2 draws of the noise" in text
    assert "Left out, because they lack a size: plain." in text
    assert "FLOPs spent: relative to training every arm at 4M to the end." in text


def test_a_size_that_is_still_trained_is_not_exported(tmp_path: Path, command: Command) -> None:
    write_ladder(tmp_path, LOSSES, PARAMETERS)
    for number in range(8, 12):  # the last arm
        stop_trial(tmp_path / "made-4M", number, 3, "unfinished")
    root = ("--root", str(tmp_path))
    text = " ".join(command("replay", "made", "--strategy", "sizes", "--replays", "2", *root).stdout.split())
    assert "made: 3 arms at 1M, 2M, 2 draws of the noise" in text
    assert "Left out" not in text
    for size in ("1M", "2M"):
        stop_trial(tmp_path / f"made-{size}", 11, 3, "unfinished")
    for arguments in (("export", "made", "--format", "curves"), ("replay", "made")):
        assert "made has no finished size yet" in one_line_error(command(*arguments, *root))


def test_sizes_are_needed_and_counted(tmp_path: Path, command: Command) -> None:
    ended = command("replay", "march-2023", "--strategy", "sizes", "--replays", "2")
    assert "sizes needs curves at several sizes, such as those of a ladder." in one_line_error(ended)
    write_ladder(tmp_path, LOSSES, PARAMETERS)
    root = ("--root", str(tmp_path))
    ended = command("replay", "made", "--strategy", "sizes:keep=1/0.5/0.4/0.3", "--replays", "2", *root)
    assert "sizes:keep=1/0.5/0.4/0.3 is for 4 sizes; these curves have 3." in one_line_error(ended)
    ended = command("replay", "made", "--pool", "4", "--replays", "2", *root)
    assert "--pool must be from 2 to 3, the number of arms, not 4." in one_line_error(ended)
    ended = command("export", "made", "best", "--format", "curves", *root)
    assert "remove TRIAL" in one_line_error(ended)


def test_the_draw_of_seeds_depends_on_the_number_alone() -> None:
    curves, how = table(), Replay(replays=3, seed=4)
    first = [draw(curves, how, number).curves.losses for number in range(30)]
    assert first == [draw(curves, how, number).curves.losses for number in range(30)]
    assert len(set(first)) > 1
    assert np.isfinite([losses[-1] for curve in first for losses in curve]).all()
