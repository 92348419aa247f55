"""The report of a study as one HTML file that needs nothing else: what was asked, what came out, how to repeat it."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.evidence.reading import Evidence, Section
from march_search.pages import svg
from march_search.pages.figures import figures, names
from march_search.report.tables import Column, plural

if TYPE_CHECKING:
    from jinja2 import Template

CAPTIONS = {
    "ranking": "Every architecture's loss: a dot a seed, the mean, and its interval where seeds were repeated.",
    "curves": "Validation loss over training. Grey: architectures behind the leaders, and trials that were stopped.",
    "depth": "Loss against depth.",
    "width": "Loss against width.",
    "map": "The lowest loss at every depth and width.",
    "front": "Loss against speed. The line joins those that no other beats in both.",
    "effects": "What doubling a dimension does, the others held. Grey: not separable from nothing.",
    "horizon": "What the curves say about a longer budget.",
}
"""Below each figure."""


def page(found: Evidence, command: str, cost: Sequence[tuple[str, str]] = ()) -> str:
    """The whole page.

    Args:
        found: what is known.
        command: what a person types to run the study again.
        cost: (what, planned and taken) pairs.
    """
    drawn = {name: figure.svg() for name, figure in figures(found).items()}
    sections = [_table(section, found) for section in found.sections]
    settings = found.study.settings
    return _template().render(
        name=found.study.name,
        question=settings.get("question") or settings.get("description") or "",
        answer=settings.get("answer") or "",
        summary=summary(found),
        warnings=found.warnings,
        ranking=sections[0],
        sections=sections[1:],
        figures=drawn,
        captions=CAPTIONS,
        cost=cost,
        command=command,
        settings=json.dumps(settings, indent=1, ensure_ascii=False),
        versions=versions(found),
        styles=_style("figures.css") + _style("report.css"),
    )


def summary(found: Evidence) -> list[str]:
    """What came out, a sentence each."""
    rows, short = found.ranking.rows, names(found)
    done = sum(t.state == "complete" for t in found.study.trials)
    said = [f"{done} of {plural(len(found.study.trials), 'trial')} complete."]
    if not rows:
        return [*said, "No architecture can be ranked yet."]
    first = rows[0]
    interval = "" if first["half_interval"] is None else f" ± {first['half_interval']:.3f}"
    said.append(f"{short[first['name']]} has the lowest loss: {first['loss']:.4f}{interval} nats per target token.")
    tied = [row for row in rows[1:] if set(row["letters"] or "") & set(first["letters"] or "")]
    if tied and len(rows) > 1:
        told = short[tied[0]["name"]] if len(tied) == 1 else f"{len(tied)} others"
        said.append(
            f"Over all comparisons, at 5 %, it cannot be told apart from {told}; by itself, its chance of being the "
            f"best of these is {_best(first)}."
        )
    elif len(rows) > 1 and first["letters"]:
        said.append(f"It is separated from all others; its chance of being the best of these is {_best(first)}.")
    return said


def figure_files(found: Evidence) -> dict[str, str]:
    """Each figure as an SVG file's text, in light colours, needing nothing else."""
    style = _resolved(_style("figures.css"))
    return {name: figure.svg(style) for name, figure in figures(found).items()}


def png(text: str, scale: int = 2) -> bytes | None:
    """An SVG file as PNG, `scale` times as large; None where the package resvg-py is not installed."""
    try:
        from resvg_py import svg_to_bytes
    except ImportError:
        return None
    return bytes(svg_to_bytes(svg_string=text, width=svg.WIDTH * scale, background="white"))


def _best(row: dict[str, Any]) -> str:
    """A chance in words."""
    from march_search.report.tables import chance

    return chance(row["probability_best"]) if row["probability_best"] is not None else "unknown"


def _table(section: Section, found: Evidence) -> dict[str, Any]:
    """A section as the template wants it: headings, and cells with what they are sorted by."""
    short = names(found)
    kept = [c for c in section.columns if any(row.get(c.key) is not None for row in section.rows)]
    rows = [[_cell(column, row, short) for column in kept] for row in section.rows]
    for place, row in enumerate(rows):
        row[0]["swatch"] = place if section.is_ranking and place < svg.SERIES else None
    return {
        "title": section.title,
        "columns": [{"heading": c.heading, "left": c.left} for c in kept],
        "rows": rows,
        "notes": section.notes,
        "warnings": [] if section.is_ranking else section.warnings,
        "is_ranking": section.is_ranking,
    }


def _cell(column: Column, row: dict[str, Any], short: dict[str, str]) -> dict[str, Any]:
    """One cell."""
    value = row.get(column.key)
    text = short.get(str(value), str(value)) if column.key == "name" else column.text(row)
    key = value if isinstance(value, int | float) else "" if value is None else text
    return {"text": text, "key": key, "left": column.left, "why": column.key == "reason"}


def versions(found: Evidence) -> list[tuple[str, str]]:
    """Libraries and the versions that the complete trials ran with, all of them where they differ."""
    told: dict[str, dict[str, None]] = {}
    for trial in found.study.trials:
        for name, version in dict((trial.result or {}).get("versions") or {}).items():
            told.setdefault(str(name), {})[str(version)] = None
    return [(name, " and ".join(ran)) for name, ran in told.items()]


@cache
def _template() -> "Template":
    """The page's template; what is inserted is escaped, but for the figures."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("march_search", "pages")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("report.html.j2")


def _style(name: str) -> str:
    """A style sheet of this package."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _resolved(style: str) -> str:
    """A style sheet with the light colours in place of the page's variables."""
    import re

    light = dict(re.findall(r"(--[\w-]+): light-dark\((#\w+),", _style("report.css")))
    return re.sub(r"var\((--[\w-]+)\)", lambda m: light[m[1]], style).replace("system-ui, ", "")
