"""What no other architecture of a study beats in every objective."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_study import CONFIG, run

from march_search.analysis.objectives import pareto_rows
from march_search.analysis.study_record import read_study
from march_search.cli import main
from march_search.config import SearchConfig
from march_search.errors import UsageError
from march_search.space.pareto import front, knee, signed_columns

LISTED = tuple(f"L{n}-D{d}-H4x32-F256-rope-V2048" for n, d in ((1, 64), (2, 64), (1, 128), (3, 160), (1, 192)))
STUDY = replace(CONFIG, search=SearchConfig(strategy="list", architectures=LISTED, objectives=("loss", "-depth")))


def test_the_pareto_set_of_a_study_is_what_no_other_beats(tmp_path: Path) -> None:
    run(tmp_path, replace(STUDY, search=replace(STUDY.search, seeds=(0, 1))))
    rows = pareto_rows(read_study(tmp_path / "toy"))  # toys of one width have one loss: the deepest of each stay
    told = {(row["num_layers"], row["d_model"]): row["pareto"] for row in rows}
    assert told == {(1, 64): False, (2, 64): False, (1, 128): False, (3, 160): True, (1, 192): True}
    assert [row["loss"] for row in rows] == sorted(row["loss"] for row in rows)
    assert {row["num_seeds"] for row in rows} == {2}
    assert sum(row["knee"] for row in rows) == 1
    flops = pareto_rows(read_study(tmp_path / "toy"), ("loss", "flops"))
    assert {row["name"] for row in flops if row["pareto"]} >= {LISTED[0], LISTED[4]}
    speed = pareto_rows(read_study(tmp_path / "toy"), ("loss", "-tokens_per_second"))
    assert [row["name"] for row in speed if row["pareto"]] == [LISTED[4]]  # all toys are equally fast
    assert {row["tokens_per_second"] for row in speed} == {1000.0}


def test_the_command_prints_the_same_in_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, STUDY)
    root = ["--root", str(tmp_path)]
    assert main(["pareto", "toy", *root, "--format", "json", "--all"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 5
    best = [row["name"] for row in rows if row["pareto"]]
    for form in ("table", "csv", "markdown"):
        assert main(["pareto", "toy", *root, "--format", form]) == 0
        text = capsys.readouterr().out
        assert sorted(name for name in LISTED if name in text) == sorted(best)
    assert main(["pareto", "toy", *root, "--by", "loss"]) == 2
    assert "toy: a Pareto front needs at least two objectives; use --by loss,flops" in capsys.readouterr().err


def test_an_unknown_objective_is_named(tmp_path: Path) -> None:
    run(tmp_path, STUDY)
    with pytest.raises(UsageError, match=r'unknown objective "flop"\. Did you mean "flops"\?'):
        pareto_rows(read_study(tmp_path / "toy"), ("loss", "flop"))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_the_knee_is_on_the_front_and_beaten_by_none(rows: list[tuple[int, int, int]]) -> None:
    points = signed_columns(rows, ("loss", "flops", "-depth"))
    best = points[front(points)]
    chosen = best[knee(best)]
    assert not any((row <= chosen).all() and (row < chosen).any() for row in points)


def test_a_knee_bends_most() -> None:
    curve = np.array([[0.0, 10.0], [1.0, 3.0], [2.0, 1.0], [6.0, 0.5], [10.0, 0.0]])
    assert knee(curve) == 2
