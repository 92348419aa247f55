"""Renders the report of a study as one self-contained HTML file: question, results, and how to reproduce them."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.analysis.evidence import Evidence
from march_search.analysis.phase import study_phase
from march_search.display.answer import study_answer
from march_search.display.notes import study_notes
from march_search.display.sections import Section, sections
from march_search.display.sentences import explanation
from march_search.display.tables import Column, plural
from march_search.display.wording import short_names
from march_search.report import svg
from march_search.report.figures import figures
from march_search.report.ranking_figure import phone_figure

if TYPE_CHECKING:
    from jinja2 import Template


CAPTIONS = {
    "ranking": "Validation loss of each architecture and its tie group (letters). Lower is better.",
    "curves": "Validation loss over training. Grey: all other architectures, and pruned trials.",
    "depth": "Validation loss against depth.",
    "width": "Validation loss against width.",
    "map": "Lowest validation loss for each depth and width.",
    "front": "Validation loss against training speed. The line is the Pareto front. Speeds are medians over the log "
    "lines of a trial, then over seeds; hollow: trials ran beside others, or seeds differ by over 10%.",
    "effects": "Change in loss when one dimension doubles and the others are fixed. Grey: not significant.",
    "horizon": "Differences to the leader: now (hollow), and their 95% intervals at a larger data budget.",
}
"""Caption of each figure, by name."""


def page(evidence: Evidence, command: str, cost: Sequence[tuple[str, str]] = ()) -> str:
    """Return the HTML page of a report.

    Args:
        evidence: evidence of the study.
        command: command that runs the study again.
        cost: (quantity, planned and actual value) pairs.
    """
    drawn = {name: figure.svg() for name, figure in figures(evidence).items()}
    phone = phone_figure(evidence)
    ranking, *others = (_table(section, evidence) for section in sections(evidence))
    settings, phase = evidence.study.settings, study_phase(evidence.study)
    return _template().render(
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
        phone=phone.svg() if phone else "",
        captions=CAPTIONS,
        cost=cost,
        command=command,
        settings=json.dumps(settings, indent=1, ensure_ascii=False),
        versions=versions(evidence),
        styles=_style("figures.css") + _style("report.css"),
    )


def counts(evidence: Evidence) -> str:
    """Return how many trials are complete, and how many architectures are ranked."""
    done = sum(t.state == "complete" for t in evidence.study.trials)
    ranked = plural(len(evidence.ranking.rows), "architecture")
    return f"{done} of {plural(len(evidence.study.trials), 'trial')} complete, {ranked} ranked"


def figure_files(evidence: Evidence) -> dict[str, str]:
    """Return each figure as the text of a self-contained SVG file, by name."""
    return {name: standalone(figure) for name, figure in figures(evidence).items()}


def standalone(figure: svg.Figure) -> str:
    """Return a figure as the text of a self-contained SVG file, in light colours."""
    return figure.svg(_resolved(_style("figures.css")))


def png(text: str, scale: int = 2) -> bytes | None:
    """Render an SVG file as PNG, enlarged by `scale`; return None if the package resvg-py is not installed."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        return None
    return bytes(svg_to_bytes(svg_string=text, width=svg.WIDTH * scale, background="white"))


def _table(section: Section, evidence: Evidence) -> dict[str, Any]:
    """Return a section in the form that the template expects: headings, and cells with their sort keys."""
    short, is_ranking = short_names(evidence), section.rows is evidence.ranking.rows
    columns = [c for c in section.columns if any(c.value(row) is not None for row in section.rows)]
    rows = [[_cell(column, row, short) for column in columns] for row in section.rows]
    coloured = min(svg.SERIES, len(evidence.ranking.first_rows)) if is_ranking else 0
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
    }


def _cell(column: Column, row: dict[str, Any], short: dict[str, str]) -> dict[str, Any]:
    """Return one cell of a table."""
    value = column.value(row)
    text = short.get(str(value), str(value)) if column.key == "name" else column.text(row)
    key = value if isinstance(value, int | float) else "" if value is None else text
    return {"text": text, "key": key, "left": column.left, "why": column.key == "reason"}


def versions(evidence: Evidence) -> list[tuple[str, str]]:
    """Return each library with the versions used by the complete trials, joined if they differ."""
    used: dict[str, dict[str, None]] = {}
    for trial in evidence.study.trials:
        for name, version in dict((trial.result or {}).get("versions") or {}).items():
            used.setdefault(str(name), {})[str(version)] = None
    return [(name, " and ".join(numbers)) for name, numbers in used.items()]


@cache
def _template() -> "Template":
    """Return the template of the page; it escapes everything except the style sheet and the figures."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("march_search", "report")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("report.html.j2")


def _style(name: str) -> str:
    """Return the text of a style sheet in this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _resolved(style: str) -> str:
    """Return a style sheet with the page's colour variables replaced by the light colours."""
    import re

    light = dict(re.findall(r"(--[\w-]+): light-dark\((#\w+),", _style("report.css")))
    return re.sub(r"var\((--[\w-]+)\)", lambda m: light[m[1]], style).replace("system-ui, ", "")
