"""The comparison of studies: common architectures, differences with noise, orders, settings, and the page."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import browser as browser  # noqa: PLC0414
from helpers.command_line import command_in_process, json_of, one_line_error
from helpers.studies import write_study

from march_search.analysis.evidence import study_evidence
from march_search.analysis.study_comparison import StudyComparison, compare_studies, setting_differences
from march_search.analysis.study_record import read_study
from march_search.display.comparison_sections import comparison_answer, comparison_names

SHAPES = [f"L{n}-D{d}-H4x32-F{f}-rope-V2048" for n, d, f in ((2, 128, 448), (3, 128, 320), (4, 96, 384), (6, 64, 256))]


def compared(root: Path, first: list[list[float]], second: list[list[float]], **options: Any) -> StudyComparison:
    """Compare two studies of `SHAPES` with the given losses; `options` apply to the second."""
    one = write_study(root, dict(zip(SHAPES, first, strict=False)), name="one", examples=64)
    two = write_study(root, dict(zip(SHAPES, second, strict=False)), name="two", examples=64, **options)
    return compare_studies(study_evidence(read_study(one)), study_evidence(read_study(two)))


def test_differences_are_between_means_and_cover_the_seeds(tmp_path: Path) -> None:
    found = compared(tmp_path, [[4.0, 4.01, 4.02], [4.2]], [[3.9, 3.91, 3.92], [4.2]])
    clear, none = found.shapes
    assert clear.architecture.name == SHAPES[0]
    assert clear.difference == pytest.approx(-0.1)
    assert none.difference == pytest.approx(0.0)
    assert clear.interval is not None
    assert none.interval is not None
    assert clear.interval.low < -0.1 < clear.interval.high < 0
    assert none.interval.low < 0 < none.interval.high
    assert (
        none.interval.high - none.interval.low > clear.interval.high - clear.interval.low
    )  # one seed instead of three
    assert (clear.seeds, clear.ranks) == ((3, 3), (1, 1))
    assert clear.p is not None
    assert none.p is not None
    assert clear.p < 0.05 < none.p == 1


def test_an_interval_holds_the_true_difference_as_often_as_it_claims(tmp_path: Path) -> None:
    rng, held, many = np.random.default_rng(0), 0, 30
    for number in range(many):
        losses = [[list(4.0 + shift + rng.normal(0, 0.008, 2))] for shift in (0.0, 0.05)]
        [shape] = compared(tmp_path / str(number), *losses).shapes
        assert shape.interval is not None
        held += shape.interval.low <= 0.05 <= shape.interval.high
    assert held >= 26  # 28.5 are expected; the priors and the documents make intervals wider


def test_orders_agree_as_far_as_noise_allows(tmp_path: Path) -> None:
    same = compared(tmp_path / "same", [[4.0 + i] * 3 for i in range(4)], [[5.0 + 2 * i] * 3 for i in range(4)]).order
    assert same is not None
    assert (same.pairs, same.agreeing, same.separated, same.kendall) == (6, 6, 6, pytest.approx(1))
    assert same.accuracy_interval is not None
    assert (same.accuracy_interval.low, same.accuracy_interval.high) == (1, 1)
    found = compared(tmp_path / "swapped", [[4.0], [4.5], [5.0], [5.001]], [[4.5], [4.0], [5.001], [5.0]])
    swapped = found.order
    assert swapped is not None
    assert (swapped.agreeing, swapped.separated) == (4, 5)
    assert [[a.name, b.name] for a, b in swapped.reversals] == [SHAPES[:2]]
    assert swapped.kendall == pytest.approx(1 - 2 * 2 / 6)
    assert swapped.kendall_interval is not None
    assert swapped.kendall_interval.low == pytest.approx(1 - 2 * 2 / 6)
    assert swapped.kendall_interval.high == pytest.approx(1 - 2 * 1 / 6)
    text = comparison_answer(found, comparison_names([found]))
    assert "They order 4 of 6 pairs alike (Kendall's tau 0.33, 95% interval 0.33 to 0.67)." in text
    assert "1 is reversed, and 4 the same: one has L2-D128-H4x32-F448 before L3-D128-H4x32-F320" in text


@pytest.mark.parametrize(("data", "fault"), [
    ({"vocab_size": 4096}, "vocab_size: 2,048 and 4,096"),
    ({"corpus": "other"}, "corpus: wikipedia-summaries and other"),
])  # fmt: skip
def test_losses_on_other_data_are_not_compared(tmp_path: Path, data: dict[str, Any], fault: str) -> None:
    one, two = (write_study(tmp_path, {s: [4.0 + i / 9] for i, s in enumerate(SHAPES)}, name=n) for n in ("one", "two"))
    for path in two.glob("trials/*/trial.json"):
        trial = json.loads(path.read_text())
        trial["data"] |= data
        trial.pop("sha256", None)
        path.write_text(json.dumps(trial))
    found = compare_studies(study_evidence(read_study(one)), study_evidence(read_study(two)))
    assert found.faults == (f"data.{fault}",)
    assert all(shape.difference is None and shape.interval is None for shape in found.shapes)
    assert found.order is not None
    assert found.order.agreeing == 6
    text = comparison_answer(found, comparison_names([found]))
    assert f"Their losses cannot be compared (data.{fault}), only their orders." in text
    assert "differences run" not in text


def test_long_lists_of_one_length_are_compared_by_their_entries(tmp_path: Path) -> None:
    losses = {s: [4.0 + i / 9] for i, s in enumerate(SHAPES)}
    studies = [
        read_study(write_study(tmp_path, losses, name=f"study-{first}", settings={"search": {"seeds": [0, *more]}}))
        for first, more in enumerate(([1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 3, 4], [1]))
    ]
    assert setting_differences(studies[:2]) == []
    shown = ("5 entries, among them 1, 2", "5 entries, among them 5, 6")
    assert setting_differences(studies[1:3]) == [("search.seeds", shown)]
    assert setting_differences(studies[1:]) == [("search.seeds", (*shown, "0, 1"))]


def test_studies_without_a_common_architecture_have_nothing_to_compare(tmp_path: Path) -> None:
    one = write_study(tmp_path, {SHAPES[0]: [4.0]}, name="one")
    two = write_study(tmp_path, {SHAPES[1]: [4.0]}, name="two")
    found = compare_studies(study_evidence(read_study(one)), study_evidence(read_study(two)))
    assert "No architecture was trained furthest in both one and two" in comparison_answer(found, {})


def test_the_command_writes_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = {s: [4.0 + i / 9] * 2 for i, s in enumerate(SHAPES)}
    for name, rate in (("one", 1e-3), ("two", 2e-3), ("three", 3e-3)):
        write_study(tmp_path, losses, name=name, settings={"training": {"learning_rate": rate}})
    command, root = command_in_process(capsys), ("--root", str(tmp_path))
    output = tmp_path / "compare.html"
    ended = command("report", "one", "two", "three", *root, "-o", str(output), "--figures", str(tmp_path / "figures"))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[0].startswith("one and two have 4 architectures in common.")
    text = output.read_text()
    assert "training.learning_rate" in text
    assert not re.search(r'(src|href)="(?!data:,|#)', text)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{kind}-{number}.{end}" for kind in ("differences", "orders") for number in (1, 2) for end in ("svg", "png")
    }
    values = json_of(command("report", "one", "two", *root, "-o", "-", "--format", "json"))
    assert values["settings"] == [{"key": "training.learning_rate", "values": ["0.001", "0.002"]}]
    assert len(values["comparisons"][0]["architectures"]) == 4
    rows = list(
        csv.DictReader(command("report", "one", "two", *root, "-o", "-", "--format", "csv").stdout.splitlines())
    )
    assert [row["name"] for row in rows] == SHAPES
    assert "| training.learning_rate | 0.001 | 0.002 |" in command(
        "report", "one", "two", *root, "-o", "-", "--format", "markdown"
    ).stdout  # fmt: skip
    assert "name its file with -o" in one_line_error(command("report", "one", "two", *root))
    assert "--tables has no effect on a comparison" in one_line_error(
        command("report", "one", "two", *root, "-o", "-", "--tables", "x")
    )
    assert "with itself" in one_line_error(command("report", "one", "one", *root, "-o", "-"))


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_the_comparison(
    browser: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    for name in ("a-study-with-a-long-name", "another-study-with-a-long-name"):
        write_study(tmp_path, {s: [4.0 + i / 9] * 2 for i, s in enumerate(SHAPES)}, name=name)
    names = sorted(path.name for path in tmp_path.iterdir())
    output = tmp_path / "compare.html"
    command_in_process(capsys)("report", *names, "--root", str(tmp_path), "-o", str(output))
    shown = browser.new_page(viewport={"width": width, "height": 900})
    errors: list[str] = []
    shown.on("pageerror", lambda error: errors.append(str(error)))
    shown.goto(output.as_uri())
    script = "[...document.querySelectorAll('.scroll, figure')].filter((e) => e.scrollWidth > e.clientWidth + 1).length"
    assert shown.evaluate(script) == 0
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert len([svg for svg in shown.locator("figure svg").all() if svg.is_visible()]) == 2
    assert errors == []
    shown.close()
