"""`march-search pareto`: the architectures of a study that no other beats in every objective."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.command_line import command_in_process, json_of, one_line_error
from helpers.studies import write_study
from hypothesis import given
from hypothesis import strategies as st

from march_search.analysis.objectives import pareto_rows
from march_search.analysis.study_record import read_study
from march_search.errors import UsageError
from march_search.space.pareto import front, knee, signed_columns

SHAPES = tuple(f"L{n}-D{d}-H4x32-F256-rope-V2048" for n, d in ((1, 64), (2, 64), (1, 128), (3, 160), (1, 192)))
LOSSES = (4.9, 4.9, 4.8, 4.7, 4.6)


def study(root: Path, num_seeds: int = 1, objectives: Sequence[str] = ("loss", "-depth")) -> Path:
    """Write a study whose losses fall with the width."""
    losses = {
        name: [loss + 0.001 * seed for seed in range(num_seeds)] for name, loss in zip(SHAPES, LOSSES, strict=True)
    }
    return write_study(root, losses, name="five", settings={"search": {"objectives": list(objectives)}})


def test_the_pareto_set_of_a_study_is_what_no_other_beats(tmp_path: Path) -> None:
    record = read_study(study(tmp_path, num_seeds=2))
    rows = pareto_rows(record)
    is_pareto = {(row["num_layers"], row["d_model"]): row["pareto"] for row in rows}
    assert is_pareto == {(1, 64): False, (2, 64): False, (1, 128): False, (3, 160): True, (1, 192): True}
    assert [row["loss"] for row in rows] == sorted(row["loss"] for row in rows)
    assert {row["num_seeds"] for row in rows} == {2}
    assert sum(row["knee"] for row in rows) == 1
    flops = pareto_rows(record, ("loss", "flops"))
    assert {row["name"] for row in flops if row["pareto"]} >= {SHAPES[0], SHAPES[4]}
    speed = pareto_rows(record, ("loss", "-tokens_per_second"))
    assert [row["name"] for row in speed if row["pareto"]] == [SHAPES[4]]  # all are equally fast
    assert {row["tokens_per_second"] for row in speed} == {12_345.6}


def test_every_format_has_the_same_architectures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path)
    command, pareto = command_in_process(capsys), ("pareto", "five", "--root", str(tmp_path))
    rows = json_of(command(*pareto, "--format", "json", "--all"))["rows"]
    assert len(rows) == 5
    best = [row["name"] for row in rows if row["pareto"]]
    for output_format in ("table", "csv", "markdown"):
        text = command(*pareto, "--format", output_format).stdout
        assert sorted(name for name in SHAPES if name in text) == sorted(best)
    refused = command(*pareto, "--by", "loss")
    assert refused.returncode == 2
    assert "five: a Pareto front needs at least two objectives; use --by loss,flops" in one_line_error(refused)


def test_an_unknown_objective_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'unknown objective "flop"\. Did you mean "flops"\?'):
        pareto_rows(read_study(study(tmp_path)), ("loss", "flop"))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_the_knee_is_in_the_pareto_set(rows: list[tuple[int, int, int]]) -> None:
    points = signed_columns(rows, ("loss", "flops", "-depth"))
    best = points[front(points)]
    chosen = best[knee(best)]
    assert not any((row <= chosen).all() and (row < chosen).any() for row in points)


def test_the_knee_is_where_the_curve_bends_most() -> None:
    curve = np.array([[0.0, 10.0], [1.0, 3.0], [2.0, 1.0], [6.0, 0.5], [10.0, 0.0]])
    assert knee(curve) == 2
