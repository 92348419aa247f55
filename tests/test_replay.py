"""Strategies on recorded curves: figures checked by hand, the shipped table, and the claim of the default strategy."""

import json
from pathlib import Path
from typing import Any

import pytest

from march_search.cli import main
from march_search.errors import ConfigError, DataError
from march_search.replay.orders import replay
from march_search.replay.proposals import Proposals, Random, Tpe
from march_search.replay.strategies import STRATEGIES
from march_search.replay.table import Table, read_table

CURVES = {  # after 10, 20, 30, 40 tokens
    "L1-D64-H1x64-F64": (5.0, 4.0, 3.0, 2.0),
    "L2-D64-H1x64-F64": (5.1, 4.1, 3.1, 1.9),  # the best in the end, second until then
    "L3-D64-H1x64-F64": (6.0, 5.5, 5.2, 5.1),
    "L4-D64-H1x64-F64": (6.1, 5.6, 5.3, 5.2),
}


def write(path: Path, **changes: Any) -> Path:
    """The four curves as a table's file."""
    runs = [{"name": n, "evaluations": [[10 * (i + 1), x] for i, x in enumerate(c)]} for n, c in CURVES.items()]
    path.write_text(json.dumps({"schema_version": 1, "source": "made up", "runs": runs} | changes))
    return path


@pytest.fixture
def four(tmp_path: Path) -> Table:
    return read_table(str(write(tmp_path / "four.json")))


class InOrder(Proposals):
    """The runs as they are listed."""

    def __init__(self, count: int) -> None:
        self._left = iter(range(count))

    def __next__(self) -> int:
        return next(self._left)


def one(table: Table, strategy: str, workers: int = 1) -> tuple[int, int, int]:
    """Tokens spent, the chosen run and the makespan, the runs taken as listed."""
    ended = STRATEGIES[strategy](table.losses_NT, table.tokens, InOrder(len(table.architectures)), workers)
    return ended.spent, ended.chosen, ended.makespan


def test_exhaustive_trains_everything_to_its_end(four: Table) -> None:
    assert one(four, "exhaustive") == (160, 1, 160)
    assert one(four, "exhaustive", workers=2) == (160, 1, 80)
    assert one(four, "exhaustive", workers=3) == (160, 1, 80)


def test_rungs_by_hand(four: Table) -> None:
    # Rungs at 0.8, 2.4, 8 and 40 tokens: the first evaluation reaches the first three, where a third of four, rounded
    # up, go on: the two best, to the end.
    assert one(four, "rungs") == (4 * 10 + 2 * 30, 1, 100)
    assert one(four, "rungs", workers=2) == (100, 1, 2 * 10 + 30)
    assert one(four, "rungs", workers=8) == (100, 1, 10 + 30)


def test_halving_by_hand(four: Table) -> None:
    # Rungs after evaluations 1 and 4, reduction 4. The first run is alone on the rung and passes; the second is not the
    # best of two there, nor are the others.
    assert one(four, "halving") == (40 + 3 * 10, 0, 70)


def test_median_by_hand(four: Table) -> None:
    # Optuna spares the first five runs: all four train to their ends.
    assert one(four, "median") == (160, 1, 160)


def test_regret_is_that_of_the_chosen_run(four: Table) -> None:
    ended = replay(four, "halving", orders=40, seed=3)
    # The best run is chosen where it comes before the other good one: no later run ever passes the rung after both.
    assert 0.25 < ended.found < 0.75
    assert ended.worst >= 0.1 - 1e-9
    assert ended.regret == pytest.approx((1 - ended.found) * 0.1, abs=1e-9)


def test_orders_are_seeded_and_each_run_comes_once(four: Table) -> None:
    assert sorted(Random(25, 1)) == list(range(25))
    assert list(Random(25, 1)) == list(Random(25, 1)) != list(Random(25, 2))
    assert replay(four, "halving", orders=9, noise=1.0, seed=5) == replay(four, "halving", orders=9, noise=1.0, seed=5)


def test_tpe_proposes_each_run_once_and_goes_where_losses_are_low() -> None:
    table = read_table("march-2023")
    found = 0
    for seed in range(8):
        order, taken = Tpe(table.architectures, seed), []
        for run in order:
            taken.append(run)
            order.tell(run, float(table.losses_NT[run, -1]))
        assert sorted(taken) == list(range(25))
        found += taken.index(int(table.losses_NT[:, -1].argmin()))
    assert found / 8 < 12  # that of a random order


def test_the_shipped_table_holds_the_runs_of_2023() -> None:
    table = read_table("march-2023")
    assert len(table.architectures) == 25
    assert (len(table.tokens), table.tokens[0], table.tokens[-1]) == (50, 20 * 2**20, 1000 * 2**20)
    assert {a.num_params for a in table.architectures} >= {222_054_912, 206_789_760}
    assert set(table.families) == {"baseline", "heads_vs_layers", "dim_vs_layers", "glu", "d_ff"}
    assert table.losses_NT[0, -1] == 5.48025
    assert "bri25yu/march" in table.source


@pytest.mark.parametrize("noise_of", ["run", "evaluation"])
@pytest.mark.parametrize("workers", [1, 4, 8])
def test_the_default_strategy_spends_a_twelfth_and_finds_the_best_run_of_2023(workers: int, noise_of: Any) -> None:
    table = read_table("march-2023")
    plain = replay(table, "rungs", orders=100, workers=workers)
    assert plain.spent <= 0.09
    assert plain.found == 1
    noisy = replay(table, "rungs", orders=100, workers=workers, noise=0.005, noise_of=noise_of)
    assert noisy.spent <= 0.09
    assert noisy.found >= 0.99


def test_the_default_strategy_holds_without_any_family() -> None:
    table = read_table("march-2023")
    for family in set(table.families):
        left = table.without(family)
        assert len(left.architectures) == len(left.losses_NT) < 25
        ended = replay(left, "rungs", orders=100, noise=0.005)
        assert ended.found >= 0.99
        assert ended.spent - 1 / len(left.architectures) < 0.06  # beside the one run that has to be whole


def test_replay_prints_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "four.json"))
    assert main(["replay", path, "--orders", "3", "--workers", "1,2"]) == 0
    printed = capsys.readouterr().out
    assert "four: 4 runs in 3 random orders" in printed
    assert printed.count("hyperband") == 2
    assert main(["replay", path, "--strategy", "rungs", "--orders", "3", "--format", "json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert row["spent"] == pytest.approx(100 / 160)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, 'a table is a JSON object with "schema_version": 1'),
        ({"runs": []}, "needs at least two runs to choose from, and has 0"),
        ({"runs": [{"name": "L1-D64-H1x64-F64"}] * 2}, "needs evaluations, a list of \\[tokens, loss\\]"),
        (
            {
                "runs": [
                    {"name": "L1-D64-H1x64-F64", "evaluations": [[1, 2.0]]},
                    {"name": "L2-D64-H1x64-F64", "evaluations": [[2, 2.0]]},
                ]
            },
            "L2-D64-H1x64-F64 was evaluated after other tokens than L1-D64-H1x64-F64",
        ),
        ({"runs": [{"name": "L1-D64-H1x64-F64", "evaluations": [[1, float("nan")]]}] * 2}, "finite losses"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_table(str(write(tmp_path / "bad.json", **changes)))


def test_a_mistyped_table_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r'there is no table "march-2024".*march-2023'):
        read_table("march-2024")
    assert main(["replay", "march-2023", "--workers", "0"]) == 2
    assert "--workers takes numbers above 0" in capsys.readouterr().err
