"""The report: its content, its escaping, and how a real browser shows it."""

import csv
import itertools
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import browser as browser  # noqa: PLC0414
from helpers.command_line import one_line_error, run_command
from helpers.studies import DATA, write_study
from hypothesis import given, settings
from hypothesis import strategies as st

from march_search.analysis.evidence import study_evidence
from march_search.analysis.study_record import read_study
from march_search.cli import main
from march_search.config import TrainingConfig, TrialConfig
from march_search.display.sections import markdown_section, ranking_section, sections
from march_search.files.json_tables import write_json
from march_search.report.captions import captions
from march_search.report.figures import figures
from march_search.report.page import counts, figure_files, page, png
from march_search.report.svg import scale, spread_apart

SHAPES = [
    f"L{n}-D{d}-H{h}x32-F{f}-rope-V2048"
    for n, d, h, f in (
        (2, 128, 8, "448"), (3, 128, 4, "320-geglu"), (3, 96, 4, "576"), (1, 192, 6, "384-geglu"), (1, 192, 4, "512"),
        (4, 96, 3, "384"), (6, 64, 4, "384-geglu"), (6, 64, 8, "256"), (2, 160, 5, "256"),
    )
]  # fmt: skip


def study(root: Path, seeds: int = 3, **texts: Any) -> Path:
    """Write a study of nine shapes; one more trial failed and one was pruned."""
    rng = np.random.default_rng(1)
    losses = {s: list(4.1 + 0.02 * i + rng.normal(0, 0.008, seeds)) for i, s in enumerate(SHAPES)}
    folder = write_study(root, losses, name="demo", examples=64, bigram=3.9, settings=texts)
    for number, (state, text) in enumerate({"failed": "out of <luck> & memory", "pruned": "too high"}.items(), 90):
        trial = folder / "trials" / f"{number:04d}-{SHAPES[0]}-s{number}"
        trial.mkdir()
        config = TrialConfig(
            architecture=SHAPES[0],
            store="store",
            seed=number,
            data=DATA,
            training=TrainingConfig(tokens=1 << 20, global_batch_tokens=1024, precision="bf16"),
        )
        write_json(trial / "trial.json", asdict(config))
        write_json(trial / "outcome.json", {"state": state, "text": text, "reason": text})
    return folder


def html(root: Path, name: str = "demo") -> str:
    """Return the page of a study."""
    return page(
        study_evidence(read_study(root / name), tokens=3 << 20, with_effects=True), f"march-search study run {name}"
    )


def test_the_page_is_complete_and_loads_nothing(tmp_path: Path) -> None:
    study(tmp_path, question="Which shape?", answer="An interval that excludes 0.")
    text = html(tmp_path)
    for words in ("Which shape?", "27 of 29 trials complete", "</span> leads by 0.0161 nats", "Not ranked",
                  "Predicted after 3,145,728 tokens", "Which dimension matters", "token pairs 3.900",
                  "study run demo", "out of &lt;luck&gt; &amp; memory", "An interval that"):  # fmt: skip
        assert words in text, words
    assert not re.search(r'(src|href)="(?!data:,|#)', text)
    assert "@import" not in text
    assert "url(" not in text
    assert len(text) < 6_000_000


def test_every_figure_is_drawn_without_nan_or_infinity(tmp_path: Path) -> None:
    study(tmp_path)
    drawn = figures(study_evidence(read_study(tmp_path / "demo"), tokens=3 << 20, with_effects=True))
    assert set(drawn) == {"ranking", "curves", "depth", "width", "map", "front", "effects", "horizon"}
    for figure in drawn.values():
        assert "nan" not in figure.svg()
        assert "inf" not in figure.svg()


@pytest.mark.parametrize(("many", "is_noted"), [(30, False), (70, True)])
def test_architectures_omitted_from_a_figure_are_noted(tmp_path: Path, many: int, is_noted: bool) -> None:
    write_study(tmp_path, {f"L2-D128-H8x32-F{64 + i}-rope-V2048": [4 + i / 100] for i in range(many)}, name="many")
    drawn = figures(study_evidence(read_study(tmp_path / "many")))["ranking"].svg()
    assert drawn.count('class="name') == min(many, 60)
    assert (f"the best 60 of {many}" in drawn) == is_noted


@pytest.mark.parametrize("many", [1, 2])
def test_a_study_of_few_trials_has_a_page(tmp_path: Path, many: int) -> None:
    write_study(tmp_path, {shape: [4.0] for shape in SHAPES[:many]}, name="small")
    text = page(study_evidence(read_study(tmp_path / "small"), with_effects=True), "march-search study run small")
    assert f"{many} of {many} trial{'s' * (many > 1)} complete" in text


def test_trials_that_have_not_started_count(tmp_path: Path) -> None:
    losses = {shape: [4.0 + n / 10] for n, shape in enumerate(SHAPES)}
    folder = write_study(tmp_path, losses, name="begun")
    for path in sorted((folder / "trials").iterdir())[3:]:
        shutil.rmtree(path)
    found = study_evidence(read_study(folder))
    assert counts(found) == "3 of 9 trials complete, 3 architectures ranked"
    assert ranking_section(found).title.startswith("begun: 3 of 9 trials complete")


def test_the_unit_of_gating_is_not_that_of_a_doubling(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    losses = {
        f"L{n}-D{d}-H{h}x32-F{r * d}{gate}-rope-V2048": [4.0 - 0.2 * bool(gate) + rng.normal(0, 0.001)]
        for n, d, h, r in itertools.product((2, 4), (64, 128), (2, 4), (2, 4))
        for gate in ("", "-geglu")
    }
    found = study_evidence(read_study(write_study(tmp_path, losses)), with_effects=True)
    assert re.search(r"gated feed-forward has the largest such effect, -0\.\d+ nats, with", captions(found)["effects"])
    assert "per doubling or by gating; left is better" in figures(found)["effects"].svg()


def test_an_empty_section_has_its_own_sentence(tmp_path: Path) -> None:
    folder = write_study(tmp_path, {SHAPES[0]: [4.0]})
    found = {one.title: one for one in sections(study_evidence(read_study(folder), with_effects=True))}
    assert "Too few architectures for this analysis." in markdown_section(found["statements, tested on this study"])
    (next((folder / "trials").iterdir()) / "result.json").unlink()
    assert "No architecture is ranked yet." in markdown_section(ranking_section(study_evidence(read_study(folder))))


def test_a_study_without_a_complete_trial_has_a_page(tmp_path: Path) -> None:
    folder = study(tmp_path)
    for trial in (folder / "trials").iterdir():
        (trial / "result.json").unlink(missing_ok=True)
    assert "No architecture can be ranked yet." in page(
        study_evidence(read_study(tmp_path / "demo"), with_effects=True), ""
    )


@settings(max_examples=25, deadline=None)
@given(
    st.text(min_size=1, max_size=40), st.sampled_from(["<script>alert(1)</script>", "</style><b>", "'\"><img src=x>"])
)
def test_text_is_escaped(tmp_path_factory: pytest.TempPathFactory, words: str, markup: str) -> None:
    root = tmp_path_factory.mktemp("escaped")
    folder = write_study(
        root, {s: [4.0 + i / 10] for i, s in enumerate(SHAPES[:3])}, settings={"question": words + markup}
    )
    worst = next((folder / "trials").glob(f"*{SHAPES[2]}*"))
    (worst / "result.json").unlink()
    write_json(worst / "outcome.json", {"state": "failed", "text": markup + words, "reason": markup + words})
    text = html(root, "synthetic")
    assert markup not in text
    assert text.count("<script>") == 1


def test_the_name_of_a_study_is_escaped(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>&'\""
    write_study(tmp_path, {shape: [4.0] for shape in SHAPES[:3]}, name=name)
    text = html(tmp_path, name)
    assert "<img" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;&amp;" in text


def test_the_command_writes_page_text_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study(tmp_path)
    assert main(["report", "demo", "--root", str(tmp_path), "--figures", str(tmp_path / "figures")]) == 0
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    files = {p.name for p in (tmp_path / "figures").iterdir()}
    assert {"ranking.svg", "ranking.png", "curves.svg", "curves.png"} <= files
    assert (tmp_path / "figures" / "ranking.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    capsys.readouterr()
    for kind, start in (("csv", "rank,name,loss"), ("json", "{"), ("markdown", "demo: 27 of 29")):
        assert main(["report", "demo", "--root", str(tmp_path), "--format", kind, "-o", "-"]) == 0
        assert capsys.readouterr().out.startswith(start)
    assert main(["report", "nobody", "--root", str(tmp_path)]) == 2


def test_a_figure_is_self_contained(tmp_path: Path) -> None:
    study(tmp_path)
    for text in figure_files(study_evidence(read_study(tmp_path / "demo"))).values():
        assert "var(" not in text
        assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
        assert len(png(text) or b"") > 5000


def test_labels_are_moved_apart_as_little_as_possible() -> None:
    assert spread_apart([10, 50, 90], 15, 0, 100) == [10, 50, 90]
    assert spread_apart([50, 51, 52], 15, 0, 100) == [50, 65, 80]
    assert spread_apart([98, 99], 15, 0, 100) == [85, 100]
    assert scale([1, 2, 4], 0, 90, "log", 0)(2) == pytest.approx(45)
    assert scale([0.0, 1.0], 0, 1, room=0).ticks(5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_a_browser_shows_the_page_without_errors(browser: Any, tmp_path: Path, width: int, scheme: str) -> None:
    study(tmp_path)
    (tmp_path / "report.html").write_text(html(tmp_path))
    shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    errors: list[str] = []
    shown.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    shown.on("pageerror", lambda error: errors.append(str(error)))
    shown.on("request", lambda request: request.url.startswith(("file:", "data:")) or errors.append(request.url))
    shown.goto((tmp_path / "report.html").as_uri())
    assert errors == []
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    figures = [figure for figure in shown.locator("figure svg").all() if figure.is_visible()]
    boxes = [figure.bounding_box() for figure in figures]
    assert len(boxes) == 8
    assert all(box["width"] >= min(560, width - 40) and box["height"] > 60 for box in boxes)
    answer = shown.locator(".answer").bounding_box()
    assert answer["y"] + answer["height"] < boxes[0]["y"] < 560  # both are on the first screen
    paper, ink = (shown.evaluate(f"getComputedStyle(document.body).{key}") for key in ("backgroundColor", "color"))
    assert (paper, ink) == {
        "light": ("rgb(255, 255, 255)", "rgb(27, 31, 39)"), "dark": ("rgb(22, 24, 29)", "rgb(232, 234, 239)"),
    }[scheme]  # fmt: skip
    shown.close()


def test_the_keyboard_sorts_the_table_and_switches_the_theme(browser: Any, tmp_path: Path) -> None:
    study(tmp_path)
    (tmp_path / "report.html").write_text(html(tmp_path))
    shown = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    shown.goto((tmp_path / "report.html").as_uri())
    column = "table[data-sortable] tbody tr td:nth-child({})"

    def cells(number: int) -> list[str]:
        return [text.strip() for text in shown.locator(column.format(number)).all_inner_texts()]

    ranks = cells(1)
    assert ranks == [str(n) for n in range(1, 10)]
    heading = shown.get_by_role("button", name="parameters")
    heading.focus()
    shown.keyboard.press("Enter")
    number = 1 + shown.locator("table[data-sortable] th").all_inner_texts().index("parameters")
    values = [int(text.replace(",", "")) for text in cells(number)]
    assert values == sorted(values)
    assert shown.locator('th[aria-sort="ascending"]').inner_text().startswith("parameters")
    shown.keyboard.press("Enter")
    assert [int(text.replace(",", "")) for text in cells(number)] == values[::-1]
    shown.locator(".theme").focus()
    shown.keyboard.press("Enter")
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 29)"
    shown.close()


def test_tables_hold_the_summary_and_all_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path)
    arguments = ["report", "demo", "--root", str(tmp_path), "--tables", str(tmp_path / "tables")]
    assert main(arguments) == 0
    text = (tmp_path / "tables" / "demo.md").read_text()
    assert text.startswith("# demo\n")
    assert "| rank | name |" in text
    assert f"march-search study run demo --root {tmp_path}" in text
    rows = list(csv.DictReader((tmp_path / "tables" / "demo.csv").read_text().splitlines()))
    assert len(rows) == len(read_study(tmp_path / "demo").trials)
    for row, trial in zip(rows, read_study(tmp_path / "demo").trials, strict=True):
        assert (row["name"], int(row["seed"])) == (trial.architecture.name, trial.seed)
        assert row["state"] == trial.state
        assert row["loss"] == "" if trial.loss is None else float(row["loss"]) == pytest.approx(trial.loss, abs=1e-6)
        for line in trial.evaluations:
            assert float(row[f"loss@{line['tokens']}"]) == pytest.approx(line["loss"], abs=1e-6)
    compare = [
        sys.executable,
        "scripts/compare_results.py",
        str(tmp_path / "tables" / "demo.csv"),
        str(tmp_path / "demo"),
    ]
    printed = subprocess.run(
        compare, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
    ).stdout
    complete = sum(row["state"] == "complete" for row in rows)
    assert f"{complete} of {complete} agree" in printed


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a finished study."""
    root = tmp_path_factory.mktemp("small")
    write_study(root, {name: [4.0, 4.1] for name in SHAPES[:2]}, name="small")
    return root


def reported(root: Path, output: Path | str) -> subprocess.CompletedProcess[str]:
    """Write the report in Markdown to `output`."""
    return run_command("report", "small", "--root", str(root), "--format", "markdown", "-o", str(output))


def test_the_report_writes_through_a_device_a_pipe_and_a_link(small: Path, tmp_path: Path) -> None:
    assert reported(small, tmp_path / "plain.md").returncode == 0
    expected = (tmp_path / "plain.md").read_text()
    assert "small: 4 of 4 trials complete" in expected
    target, link, dangling, pipe = (tmp_path / name for name in ("target.md", "link.md", "dangling.md", "pipe"))
    target.write_text("old")
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / "new.md")
    for path, written in ((link, target), (dangling, tmp_path / "new.md")):
        assert reported(small, path).returncode == 0
        assert path.is_symlink()
        assert written.read_text() == expected
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        assert reported(small, pipe).returncode == 0
        assert reader.communicate(timeout=60)[0] == expected
    assert pipe.is_fifo()


def test_a_full_device_is_an_error_and_stays(small: Path, tmp_path: Path) -> None:
    for name, code in (("full", 4), ("null", 0)):
        link = tmp_path / name
        link.symlink_to(f"/dev/{name}")  # not the device itself, which a test must not risk to replace
        ended = reported(small, link)
        assert ended.returncode == code
        assert link.is_char_device()
        assert link.is_symlink()
        assert not code or one_line_error(ended).endswith(f"{link}: cannot be written: No space left on device.\n")


def test_standard_output_by_any_name_holds_the_report_alone(small: Path, tmp_path: Path) -> None:
    expected = reported(small, "-").stdout
    assert expected.startswith("small: 4 of 4")
    assert reported(small, "/dev/stdout").stdout == expected
    command = [sys.executable, "-m", "march_search", "report", "small", "--root", str(small), "--format", "markdown"]
    with (tmp_path / "out.md").open("wb") as file:
        assert subprocess.run([*command, "-o", "/dev/stdout"], stdout=file, check=False).returncode == 0
    assert (tmp_path / "out.md").read_text() == expected


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(small: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path, reason in ((tmp_path / "folder", "Is a directory"), (tmp_path / "no" / "x.md", "No such file")):
        ended = reported(small, path)
        assert ended.returncode == 4
        assert f"{path}: cannot be written: {reason}" in one_line_error(ended)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


def test_a_link_planted_for_a_file_of_the_program_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "study.json"
    victim.write_text("precious")
    path.symlink_to(victim)
    path.with_name(f".{path.name}.{os.getpid()}").symlink_to(victim)
    write_json(path, {"a": 1})
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert path.read_text() == '{\n "a": 1\n}\n'
