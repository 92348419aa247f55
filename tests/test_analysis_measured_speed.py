"""Measured speeds are medians, and a speed that others may have lowered is rough."""

import json
from pathlib import Path

import pytest
from helpers.studies import SHAPES, write_study

from march_search.analysis.measured_speed import measured_speed
from march_search.analysis.study_record import read_study


def speed_study(root: Path, *speeds: list[float]) -> Path:
    """Write a study of one architecture with one seed per list of logged speeds."""
    folder = write_study(root, {SHAPES[0]: [4.1] * len(speeds)})
    for number, own in enumerate(speeds):
        [at] = folder.glob(f"trials/{number:04d}-*")
        lines = [
            {"kind": "train", "step": n, "tokens": n, "loss": 5.0, "tokens_per_second": s} for n, s in enumerate(own)
        ]
        path = at / "metrics.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + path.read_text())
    return folder


def test_a_pause_and_a_slow_start_do_not_change_the_speed_of_a_trial(tmp_path: Path) -> None:
    [trial] = read_study(speed_study(tmp_path, [3.0, 100.0, 101.0, 99.0, 2.0, 100.0, 102.0])).trials
    assert trial.tokens_per_second == 100


def test_without_log_lines_the_speed_is_that_of_the_result(tmp_path: Path) -> None:
    [trial] = read_study(speed_study(tmp_path, [])).trials
    assert trial.tokens_per_second == pytest.approx(12_345.6)


def test_a_slow_neighbour_of_one_seed_does_not_set_the_speed_and_is_marked(tmp_path: Path) -> None:
    speed = measured_speed(read_study(speed_study(tmp_path, [100.0], [98.0], [40.0])).trials)
    assert (speed.tokens_per_second, speed.low, speed.high, speed.is_rough) == (98, 40, 100, True)
    assert not measured_speed(read_study(speed_study(tmp_path / "equal", [100.0], [98.0])).trials).is_rough
