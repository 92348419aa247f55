"""The page that compares studies: what they have in common, how losses differ, and whether orders agree."""

from collections.abc import Sequence

from march_search.analysis.study_comparison import StudyComparison
from march_search.display.comparison_sections import comparison_answer, comparison_names, comparison_sections
from march_search.display.sentences import loss_unit
from march_search.report import svg
from march_search.report.interval_figures import Bar, interval_figure
from march_search.report.page import drawings, rendered, standalone, table
from march_search.report.ranking_figure import SHOWN

CAPTIONS = {
    "differences": "Left of the line, the second study has the lower loss. Blue: after correction for the number of "
    "architectures, the difference exceeds noise.",
    "orders": "Each line is an architecture, the best at the top. Lines that cross changed their order. Highlighted: a "
    "pair that both studies separate from noise, in opposite orders.",
}
"""Caption of each figure, by kind."""


def comparison_page(found: Sequence[StudyComparison], command: str) -> str:
    """Return the HTML page that compares the first study with each of the others.

    Args:
        found: Comparisons, all with the same first study.
        command: Command that writes the page again.
    """
    short = comparison_names(found)
    names = [found[0].first.study.name, *(c.second.study.name for c in found)]
    wide, narrow = comparison_figures(found, svg.HALF), comparison_figures(found, svg.COLUMN)
    captions = {name: CAPTIONS[name.split("-")[0]] for name in wide}
    drawn = drawings(wide, narrow, captions)
    return rendered(
        "comparison.html.j2",
        name=" and ".join(names) if len(names) == 2 else f"{names[0]} and {len(names) - 1} others",
        file="comparison",
        answers=[comparison_answer(c, short) for c in found],
        drawings=[[drawn[name] for name in _figure_names(index) if name in drawn] for index in range(len(found))],
        sections=[table(section, short) for section in comparison_sections(found)],
        command=command,
    )


def comparison_files(found: Sequence[StudyComparison]) -> dict[str, str]:
    """Return each figure as the text of an SVG file for one column of a paper, by name."""
    return {name: standalone(figure) for name, figure in comparison_figures(found, svg.COLUMN).items()}


def comparison_figures(found: Sequence[StudyComparison], width: float) -> dict[str, svg.Figure]:
    """Return the figures of all comparisons, by name; the name of a comparison ends in its number."""
    drawn: dict[str, svg.Figure | None] = {}
    short = comparison_names(found)
    for index, comparison in enumerate(found):
        differences, orders = _figure_names(index)
        drawn[differences] = _differences(comparison, short, width)
        drawn[orders] = _orders(comparison, short, width)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _figure_names(index: int) -> tuple[str, str]:
    """Return the names of the figures of one comparison."""
    return f"differences-{index + 1}", f"orders-{index + 1}"


def _differences(found: StudyComparison, short: dict[str, str], width: float) -> svg.Figure | None:
    """Draw the difference of each architecture's losses, with its interval."""
    bars = [
        Bar(
            name=short[shape.architecture.name],
            point=shape.difference,
            low=shape.interval.low,
            high=shape.interval.high,
            css="s0" if shape.p is not None and shape.p < 0.05 else "rest",
            tooltip=f"{short[shape.architecture.name]}: {shape.difference:+.4f}, 95% interval "
            f"{shape.interval.low:+.4f} to {shape.interval.high:+.4f}",
        )
        for shape in found.shapes[:SHOWN]
        if shape.difference is not None and shape.interval
    ]
    if not bars:
        return None
    axis = f"difference of validation loss, nats per {loss_unit(found.first.study)}"
    title = f"Loss in {found.second.study.name} minus loss in {found.first.study.name}"
    return interval_figure(title, axis, bars, width)


def _orders(found: StudyComparison, short: dict[str, str], width: float) -> svg.Figure | None:
    """Draw each architecture as a line from its rank in the first study to that in the second."""
    shapes = found.shapes[:SHOWN]
    if len(shapes) < 2:
        return None
    last = max(rank for shape in shapes for rank in shape.ranks)
    top, step = 52, 24
    figure = svg.Figure("Order of the architectures in both studies", top + step * last, width)
    labels = [short[shape.architecture.name] for shape in shapes]
    side = min(svg.label_room(labels) + 8, 0.36 * width)
    reversed_shapes = {a for pair in (found.order.reversals if found.order else ()) for a in pair}
    names = (found.first.study.name, found.second.study.name)
    figure.text(0, 16, f"order in {names[0]} (left)", "axis")
    figure.text(0, 34, f"and in {names[1]} (right)", "axis")
    for shape, label in zip(shapes, labels, strict=True):
        heights = [top + step * (rank - 0.5) for rank in shape.ranks]
        css = "s1" if shape.architecture in reversed_shapes else "s0"
        tooltip = f"{label}: rank {shape.ranks[0]} and {shape.ranks[1]}"
        figure.path([(side + 10, heights[0]), (width - side - 10, heights[1])], f"{css} link", tooltip)
        for x, height in ((side + 10, heights[0]), (width - side - 10, heights[1])):
            figure.dot(x, height, f"{css} mark", tooltip, 4)
        figure.text(side, heights[0] + 4, label, "name", "end")
        figure.text(width - side, heights[1] + 4, label, "name")
    return figure
