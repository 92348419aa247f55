"""Renders the report of a study as one self-contained HTML file: question, results, and how to reproduce them."""

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.analysis.evidence import Evidence
from march_search.analysis.phase import study_phase
from march_search.analysis.trial_counts import recorded_counts
from march_search.display.answer import study_answer
from march_search.display.notes import study_notes
from march_search.display.sections import Section, sections
from march_search.display.sentences import explanation
from march_search.display.tables import Column
from march_search.display.wording import short_names
from march_search.report import svg
from march_search.report.captions import captions
from march_search.report.figures import figures
from march_search.units import plural

if TYPE_CHECKING:
    from jinja2 import Environment


PNG_WIDTH = 990
"""Pixels of a PNG across: 300 per inch of `svg.COLUMN_INCHES`."""

_DENSITY = b"pHYs" + struct.pack(">IIB", 11811, 11811, 1)
DENSITY_CHUNK = struct.pack(">I", 9) + _DENSITY + struct.pack(">I", zlib.crc32(_DENSITY))
"""Part of a PNG file that says 300 pixels per inch (11,811 per metre); it stands after the first 33 bytes."""


@dataclass(frozen=True)
class Drawing:
    """One figure as the page holds it."""

    name: str
    desk: str
    """SVG for a wide window."""
    phone: str
    """SVG for a narrow window."""
    paper: str
    """SVG file for one column of a paper."""
    caption: str


def drawings(
    wide: Mapping[str, svg.Figure], narrow: Mapping[str, svg.Figure], words: Mapping[str, str]
) -> dict[str, Drawing]:
    """Return figures as the page holds them, by name.

    Args:
        wide: Figures for a wide window.
        narrow: The same figures with the width of a column.
        words: Caption of each figure.
    """
    return {
        name: Drawing(name, figure.svg(), narrow[name].svg(), standalone(narrow[name]), words.get(name, ""))
        for name, figure in wide.items()
    }


def page(evidence: Evidence, command: str, cost: Sequence[tuple[str, str]] = ()) -> str:
    """Return the HTML page of a report.

    Args:
        evidence: evidence of the study.
        command: command that runs the study again.
        cost: (quantity, planned and actual value) pairs.
    """
    drawn = drawings(figures(evidence), figures(evidence, svg.COLUMN), captions(evidence))
    ranking, *others = (_table(section, evidence) for section in sections(evidence))
    settings, phase = evidence.study.settings, study_phase(evidence.study)
    return rendered(
        "report.html.j2",
        name=evidence.study.name,
        question=settings.get("question") or settings.get("description") or "",
        criterion=settings.get("answer") or "",
        phase=phase,
        answer=study_answer(evidence).text,
        counts=counts(evidence),
        notes=study_notes(evidence),
        explanation=explanation(evidence),
        ranking=ranking,
        sections=others,
        figures=drawn,
        cost=cost,
        command=command,
        settings=json.dumps(settings, indent=1, ensure_ascii=False),
        versions=versions(evidence),
    )


def rendered(template: str, **values: Any) -> str:
    """Return a page from its template, with the style sheets."""
    styles = _style("figures.css") + _style("report.css")
    return (
        _templates()
        .get_template(template)
        .render(**values, styles=styles, png_width=PNG_WIDTH, density_chunk=list(DENSITY_CHUNK))
    )


def counts(evidence: Evidence) -> str:
    """Return how many trials are complete, and how many architectures are ranked."""
    trials, ranked = recorded_counts(evidence.study), plural(len(evidence.ranking.rows), "architecture")
    return f"{trials.complete} of {plural(trials.total, 'trial')} complete, {ranked} ranked"


def figure_files(evidence: Evidence) -> dict[str, str]:
    """Return each figure as the text of an SVG file for one column of a paper, by name."""
    return {name: standalone(figure) for name, figure in figures(evidence, svg.COLUMN).items()}


def standalone(figure: svg.Figure) -> str:
    """Return a figure as the text of an SVG file, in light colours, that needs no font and no style sheet."""
    return figure.file(_resolved(_style("figures.css")))


def png(text: str) -> bytes | None:
    """Render an SVG file as PNG, `PNG_WIDTH` pixels wide; return None if the package resvg-py is not installed."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        return None
    needs_fonts = "<text" in text
    pixels = bytes(
        svg_to_bytes(svg_string=text, width=PNG_WIDTH, dpi=300, background="white", skip_system_fonts=not needs_fonts)
    )
    return pixels[:33] + DENSITY_CHUNK + pixels[33:]


def table(
    section: Section, short: Mapping[str, str], coloured: int = 0, is_ranking: bool = False, head: str = "name"
) -> dict[str, Any]:
    """Return a section in the form that the template expects: headings, and cells with their sort keys.

    Args:
        section: The table.
        short: Short name of each architecture.
        coloured: Number of rows, from the first, that have the colour of a series.
        is_ranking: Whether the table can be sorted, and has its notes elsewhere.
        head: Key of the column that heads each row on a phone.
    """
    columns = [c for c in section.columns if any(c.value(row) is not None for row in section.rows)]
    rows = [[_cell(column, row, short) | {"is_head": column.key == head} for column in columns] for row in section.rows]
    for index, row in enumerate(rows):
        row[0]["swatch"] = index if index < coloured else None
    starts = [0, *section.breaks]
    return {
        "title": section.title,
        "columns": [{"heading": c.heading, "left": c.left} for c in columns],
        "levels": [
            {"title": section.breaks.get(start, ""), "rows": rows[start:end]}
            for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)
        ],
        "rows": rows,
        "notes": [] if is_ranking else section.notes,
        "warnings": [] if is_ranking else section.warnings,
        "is_ranking": is_ranking,
        "empty": section.empty,
    }


def _table(section: Section, evidence: Evidence) -> dict[str, Any]:
    """Return a section of a study; the ranking has colours."""
    is_ranking = section.rows is evidence.ranking.rows
    coloured = min(svg.SERIES, len(evidence.ranking.first_rows)) if is_ranking else 0
    return table(section, short_names(evidence), coloured, is_ranking)


def _cell(column: Column, row: dict[str, Any], short: Mapping[str, str]) -> dict[str, Any]:
    """Return one cell of a table; a name may break after each hyphen, and a number between its words."""
    value, is_name = column.value(row), column.key == "name"
    text = short.get(str(value), str(value)) if is_name else column.text(row)
    key = value if isinstance(value, int | float) else "" if value is None else text
    parts = text.replace("-", "-\0").split("\0") if is_name else [text] if column.left else text.split(" ")
    return {
        "parts": parts,
        "key": key,
        "left": column.left,
        "is_name": is_name,
        "is_missing": value in (None, ""),
        "is_long": column.left and len(text) > 9,
    }


def versions(evidence: Evidence) -> list[tuple[str, str]]:
    """Return each library with the versions used by the complete trials, joined if they differ."""
    used: dict[str, dict[str, None]] = {}
    for trial in evidence.study.trials:
        for name, version in dict((trial.result or {}).get("versions") or {}).items():
            used.setdefault(str(name), {})[str(version)] = None
    return [(name, " and ".join(numbers)) for name, numbers in used.items()]


@cache
def _templates() -> "Environment":
    """Return the templates of the pages; they escape everything except the style sheets and the figures."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(loader=PackageLoader("march_search", "report"), autoescape=True, undefined=StrictUndefined)


def _style(name: str) -> str:
    """Return the text of a style sheet in this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _resolved(style: str) -> str:
    """Return a style sheet with the page's colour variables replaced by the light colours."""
    import re

    light = dict(re.findall(r"(--[\w-]+): light-dark\((#\w+),", _style("report.css")))
    return re.sub(r"var\((--[\w-]+)\)", lambda m: light[m[1]], style).replace("system-ui, ", "")
