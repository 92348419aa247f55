"""The page of a ladder: how far a small ranking carries, or where the loss of a compute budget is lowest."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from march_search.display.isoflop_sections import isoflop_answer, isoflop_rows, isoflop_sections
from march_search.display.ladder_sections import ladder_answer, ladder_rows, ladder_sections
from march_search.display.sections import Section
from march_search.display.tables import Column
from march_search.display.wording import shortened
from march_search.ladders.isoflop import IsoflopEvidence
from march_search.ladders.ladder import LadderEvidence
from march_search.report import svg
from march_search.report.isoflop_figures import isoflop_figures
from march_search.report.ladder_figures import ladder_figures
from march_search.report.page import drawings, rendered, standalone, table
from march_search.units import count, plural

SHAPES = (
    Column(key="arm", heading="arm", short="arm", left=True),
    Column(key="size", heading="size", short="size", left=True),
    Column(key="name", heading="architecture", short="name", left=True),
    Column(key="parameters", heading="parameters", short="params", show=count),
    Column(key="tokens", heading="tokens", short="tokens", show=count),
    Column(key="seeds", heading="seeds", short="seeds"),
    Column(key="not_kept", heading="not kept", short="not kept", left=True),
)
"""Columns of the table of shapes."""


def ladder_page(found: LadderEvidence, command: str) -> str:
    """Return the HTML page of a ladder.

    Args:
        found: Results of the ladder.
        command: Commands that make the page again.
    """
    captions = {
        "losses": "Bars are 95% intervals over seeds; arms at one size are moved apart. Lines: the law of each arm."
        + (" Hollow: the forecast." if found.forecast else ""),
        "effects": f"Left of the line, the arm is better than {found.arms[0]}. Grey: {found.records[0].size}, blue: "
        f"{found.records[-1].size}. Bars are 95% intervals over seeds.",
    }
    sections = ladder_sections(found)
    rows = ladder_rows(found)
    unfinished = f"; not finished: {', '.join(found.unfinished)}" if found.unfinished else ""
    return _page(
        name=found.ladder.name,
        question=found.ladder.question,
        answer=ladder_answer(found),
        facts=f"{plural(len(found.arms), 'arm')}, {plural(len(found.records), 'finished size')}{unfinished}",
        is_finished=not found.unfinished,
        figures=(ladder_figures(found), ladder_figures(found, svg.COLUMN)),
        captions=captions,
        first="losses",
        beside="effects",
        sections=[*sections, _shapes(rows)],
        coloured=len(found.arms),
        command=command,
    )


def isoflop_page(found: IsoflopEvidence, command: str) -> str:
    """Return the HTML page of a ladder with compute budgets.

    Args:
        found: Results of the ladder.
        command: Commands that make the page again.
    """
    figures = isoflop_figures(found), isoflop_figures(found, svg.COLUMN)
    curve = (
        "Every dot is a size with equal training FLOPs; bars are 95% intervals over seeds. Lines: the fitted law. "
        "Hollow: the lowest loss, where it is inside the sizes."
    )
    captions = {name: curve for name in figures[0] if name.startswith("isoflop")}
    losses, *optima = isoflop_sections(found)
    captions["growth"] = "Bars are 95% intervals. Only optima inside the sizes that were trained."
    ladder, waiting = found.ladder, len(found.unfinished)
    unfinished = f"; {waiting} {'study is' if waiting == 1 else 'studies are'} not finished" if waiting else ""
    return _page(
        name=ladder.name,
        question=ladder.question,
        answer=isoflop_answer(found),
        facts=f"{plural(len(ladder.budgets), 'compute budget')}, {plural(len(ladder.arms), 'arm')}, "
        f"{plural(len(ladder.sizes), 'size')}{unfinished}",
        is_finished=not found.unfinished,
        figures=figures,
        captions=captions,
        first=next(iter(figures[0]), ""),
        beside="growth",
        sections=[*optima, losses, _shapes(isoflop_rows(found))],
        coloured=0,
        command=command,
    )


def _shapes(rows: Sequence[Mapping[str, Any]]) -> Section:
    """Return the table of the shapes that were trained, one row per arm and size."""
    distinct = {(row["arm"], row["size"], row["tokens"]): {**row, "not_kept": row["not_kept"] or None} for row in rows}
    ordered = sorted(distinct.values(), key=lambda row: [one["arm"] for one in rows].index(row["arm"]))
    return Section(title="shapes", rows=ordered, columns=SHAPES)


def _page(
    *,
    figures: tuple[dict[str, svg.Figure], dict[str, svg.Figure]],
    captions: dict[str, str],
    sections: Sequence[Section],
    coloured: int,
    **values: Any,
) -> str:
    """Return the page from its template."""
    names = [row["name"] for row in sections[-1].rows]
    plain = [replace(one, title=one.title.removeprefix(f"{values['name']}: ")) for one in sections]
    first, *others = plain
    tables = [table(first, {}, min(coloured, svg.SERIES), head="arm"), *(_table(one, names) for one in others)]
    return rendered("ladder.html.j2", figures=drawings(*figures, captions), sections=tables, **values)


def _table(section: Section, names: Sequence[str]) -> dict[str, Any]:
    """Return a section in the form that the template expects."""
    return table(section, shortened(names), head="sizes" if section.columns[0].key == "sizes" else "arm")


def ladder_files(found: LadderEvidence) -> dict[str, str]:
    """Return each figure as the text of an SVG file for one column of a paper, by name."""
    return {name: standalone(figure) for name, figure in ladder_figures(found, svg.COLUMN).items()}


def isoflop_files(found: IsoflopEvidence) -> dict[str, str]:
    """Return each figure as the text of an SVG file for one column of a paper, by name."""
    return {name: standalone(figure) for name, figure in isoflop_figures(found, svg.COLUMN).items()}
