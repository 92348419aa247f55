"""Figures fit for a paper: their classes, colours, axes, text as outlines, and how a browser hands them out."""

import itertools
import re
import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import browser as browser  # noqa: PLC0414
from helpers.studies import stop_trial, write_study
from test_report import SHAPES, html, study

from march_search.analysis.evidence import Evidence, study_evidence
from march_search.analysis.study_comparison import compare_studies
from march_search.analysis.study_record import read_study
from march_search.report import page as pages
from march_search.report.comparison_page import comparison_figures
from march_search.report.figures import figures
from march_search.report.outlines import text_width
from march_search.report.shapes import shapes
from march_search.report.svg import COLUMN, HALF, WIDTH
from march_search.space.solver import solve
from march_search.space.space import SearchSpace

STYLES = Path(pages.__file__).parent
SVG = "{http://www.w3.org/2000/svg}"


def evidence(folder: Path, **options: Any) -> Evidence:
    """Return the evidence of a study in `folder`."""
    return study_evidence(read_study(folder), with_effects=True, **options)


def test_every_class_that_a_figure_draws_is_in_the_style_sheet(tmp_path: Path) -> None:
    folder = study(tmp_path)
    second = write_study(tmp_path, {s: [4.3 - 0.02 * i] * 3 for i, s in enumerate(SHAPES)}, name="second")
    one_seed = write_study(tmp_path, {s: [4.0 + i / 50] for i, s in enumerate(SHAPES)}, name="one")
    stop_trial(one_seed, 8, 3)
    known = set(re.findall(r"\.([a-z][\w-]*)", (STYLES / "figures.css").read_text()))
    drawn = [shapes(solve(SearchSpace.load("cpu-1m")))]
    for width in (WIDTH, HALF, COLUMN):
        for found in (evidence(folder, tokens=3 << 20), evidence(one_seed)):
            drawn += figures(found, width).values()
        both = compare_studies(evidence(folder), evidence(second))
        assert both.order is not None
        assert both.order.reversals
        drawn += comparison_figures([both], width).values()
    used = {name for figure in drawn for text in re.findall(r'class="([^"]*)"', figure.svg()) for name in text.split()}
    assert {"s0", "s5", "interval", "leader", "hollow", "rest", "link", "tied-band", "assumed"} <= used
    assert used <= known, used - known


def test_the_horizon_has_the_colours_of_the_ranking(tmp_path: Path) -> None:
    study(tmp_path)
    drawn = figures(evidence(tmp_path / "demo", tokens=3 << 20))
    classes = re.findall(r'class="(\w+) interval"><title>', drawn["horizon"].svg())
    assert classes == ["s1", "s2", "s3", "s4", "s5", "rest", "rest", "rest"]  # the leader itself has no interval


def test_a_distant_reference_does_not_squeeze_the_curves(tmp_path: Path) -> None:
    losses = {s: [4.0 + i / 20] for i, s in enumerate(SHAPES)}
    write_study(tmp_path, losses, name="near", bigram=4.5)
    write_study(tmp_path, losses, name="far", bigram=12.0)
    near, far = (figures(evidence(tmp_path / name))["curves"].svg() for name in ("near", "far"))
    curve = 'class="s0 curve"'
    heights = [
        np.ptp([float(y) for y in re.findall(r",([\d.]+)", re.findall(f'd="([^"]+)" {curve}', text)[0])])
        for text in (near, far)
    ]
    assert heights[0] == pytest.approx(heights[1])
    assert "token pairs 12.000 ↑" in far
    assert near.count('class="reference"') == 2
    assert 'class="reference"' not in far


@pytest.mark.parametrize(("evaluations", "is_log"), [(5, False), (20, True)])
def test_tokens_have_a_logarithmic_axis_if_they_span_a_decade(tmp_path: Path, evaluations: int, is_log: bool) -> None:
    folder = write_study(tmp_path, {s: [4.0] for s in SHAPES[:3]}, evaluations=evaluations)
    assert ("training tokens (log scale)" in figures(evidence(folder))["curves"].svg()) == is_log


def test_a_file_is_one_column_wide_and_needs_no_font(tmp_path: Path) -> None:
    from resvg_py import svg_to_bytes

    study(tmp_path)
    for text in pages.figure_files(evidence(tmp_path / "demo", tokens=3 << 20)).values():
        root = ET.fromstring(text)
        assert root.get("width") == "3.3in"
        assert not root.findall(f".//{SVG}text")
        defined = {f"#{path.get('id')}" for path in root.findall(f"./{SVG}defs/{SVG}path")}
        used = {use.get("{http://www.w3.org/1999/xlink}href") for use in root.iter(f"{SVG}use")}
        assert used == defined
        options: dict[str, Any] = {"svg_string": text, "width": 990, "dpi": 300}
        assert bytes(svg_to_bytes(**options)) == bytes(svg_to_bytes(**options, skip_system_fonts=True))
        pixels = pages.png(text) or b""
        assert struct.unpack(">I", pixels[16:20]) == (990,)
        assert pixels[37:41] == b"pHYs"
    assert text_width("L2-D96", 13) < text_width("L2-D96", 13, is_bold=True)


def test_series_differ_for_colour_blind_readers() -> None:
    """The three kinds of dichromacy by the matrices of Machado, Oliveira and Fernandes (2009), distances in CIELAB."""
    matrices = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }  # fmt: skip
    pairs = re.findall(r"--c\d: light-dark\(#(\w{6}), #(\w{6})\)", (STYLES / "report.css").read_text())
    assert len(pairs) == 6
    for theme in zip(*pairs, strict=True):
        for matrix in (np.eye(3), *(np.array(m) for m in matrices.values())):
            colours = [_lab(matrix @ _linear(text)) for text in theme]
            assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(colours, 2)) > 8


def _linear(text: str) -> Any:
    """Return a colour in linear RGB."""
    value = np.array([int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab(linear: Any) -> Any:
    """Return a colour in CIELAB, D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ np.clip(linear, 0, 1), 1e-6) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


CUT_TEXTS = """[...document.querySelectorAll('svg text')].filter((text) => {
  const own = text.getBoundingClientRect(), whole = text.closest('svg').getBoundingClientRect();
  return own.left < whole.left - 0.5 || own.right > whole.right + 0.5;
}).map((text) => text.textContent)"""
"""Script that returns the texts that a figure cuts off at its sides."""


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_lost_off_screen(browser: Any, tmp_path: Path, width: int) -> None:
    longest_first = sorted(SHAPES, key=len, reverse=True)  # the leader's name is bold
    losses = {s: [4.0 + i / 50, 4.01 + i / 50] for i, s in enumerate(longest_first)}
    write_study(tmp_path, losses, name="wide", rates=(1e-3, 2e-3), examples=64)
    (tmp_path / "report.html").write_text(html(tmp_path, "wide"))
    shown = browser.new_page(viewport={"width": width, "height": 900})
    shown.goto((tmp_path / "report.html").as_uri())
    script = "[...document.querySelectorAll('.scroll, figure')].filter((e) => e.scrollWidth > e.clientWidth + 1).length"
    assert shown.evaluate(script) == 0
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.evaluate(CUT_TEXTS) == []
    cell = shown.locator("table[data-sortable] td[data-label='FLOPs/token']").first.bounding_box()
    assert cell["x"] + cell["width"] <= width
    shown.close()


def test_a_browser_hands_out_each_figure(browser: Any, tmp_path: Path) -> None:
    study(tmp_path)
    (tmp_path / "report.html").write_text(html(tmp_path))
    shown = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    shown.goto((tmp_path / "report.html").as_uri())
    buttons = shown.locator("[data-format=svg]")
    assert buttons.count() == 8
    for name, kind in (("ranking", "svg"), ("curves", "png")):
        with shown.expect_download() as download:
            shown.locator(f"#figure-{name} [data-format={kind}]").click()
        assert download.value.suggested_filename == f"demo-{name}.{kind}"
        data = Path(download.value.path()).read_bytes()
        if kind == "svg":
            assert ET.fromstring(data).get("width") == "3.3in"
            assert b"var(" not in data
        else:
            assert data[:8] == b"\x89PNG\r\n\x1a\n"
            assert struct.unpack(">I", data[16:20]) == (990,)
            assert data[33:].startswith(pages.DENSITY_CHUNK)
            assert len(data) > 5000
    shown.close()
