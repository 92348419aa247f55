"""The comparison of studies as an answer in sentences, tables with notes, and values for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from march_search.analysis.comparison import CONFIDENCE, Interval
from march_search.analysis.study_comparison import ShapeDifference, StudyComparison, setting_differences
from march_search.display.sections import Section, markdown_section
from march_search.display.tables import Column
from march_search.display.wording import listed, p_text, shortened
from march_search.units import plural, si

Row = dict[str, Any]


def comparison_names(found: Sequence[StudyComparison]) -> dict[str, str]:
    """Return the short name of each architecture in the studies."""
    studies = [found[0].first.study, *(c.second.study for c in found)]
    return shortened([trial.architecture.name for study in studies for trial in study.trials])


def comparison_answer(found: StudyComparison, short: dict[str, str]) -> str:
    """Return in sentences what two studies have in common: architectures, losses, and the order."""
    first, second = found.first.study.name, found.second.study.name
    if not found.shapes:
        also = f", though {plural(found.num_common, 'architecture')} stopped earlier in one" if found.num_common else ""
        return f"No architecture was trained furthest in both {first} and {second}{also}: there is nothing to compare."
    parts = [f"{first} and {second} have {plural(len(found.shapes), 'architecture')} in common"]
    if found.num_common > len(found.shapes):
        parts[0] += f" that both trained furthest, of {found.num_common} that both ranked"
    parts[0] += "."
    parts.append(_losses_sentence(found, short))
    if found.order:
        parts.append(_order_sentence(found, short))
    return " ".join(part for part in parts if part)


def comparison_sections(found: Sequence[StudyComparison]) -> list[Section]:
    """Return one table of architectures for each comparison, then the table of settings that differ."""
    sections = [_shapes_section(comparison) for comparison in found]
    studies = [found[0].first.study, *(c.second.study for c in found)]
    rows = [
        {"setting": key} | {f"study{index}": value for index, value in enumerate(values)}
        for key, values in setting_differences(studies)
    ]
    columns = (
        Column(key="setting", heading="setting", short="setting", left=True),
        *(
            Column(key=f"study{index}", heading=study.name, short=study.name, left=True)
            for index, study in enumerate(studies)
        ),
    )
    notes = ["Not listed: names, questions, the storage, and the lists of architectures."]
    settings = Section(title="settings that differ", rows=rows, columns=columns, notes=notes)
    return [section for section in (*sections, settings) if section.rows]


def comparison_rows(found: Sequence[StudyComparison]) -> list[Row]:
    """Return one row per architecture and comparison, with all values, for CSV."""
    return [
        {"first": c.first.study.name, "second": c.second.study.name} | _row(shape) for c in found for shape in c.shapes
    ]


def comparison_values(found: Sequence[StudyComparison]) -> dict[str, Any]:
    """Return the comparisons as values that JSON supports."""
    short = comparison_names(found)
    studies = [found[0].first.study, *(c.second.study for c in found)]
    return {
        "schema_version": 1,
        "studies": [study.name for study in studies],
        "comparisons": [
            {
                "first": c.first.study.name,
                "second": c.second.study.name,
                "answer": comparison_answer(c, short),
                "not_comparable": list(c.faults),
                "num_common": c.num_common,
                "architectures": [_row(shape) for shape in c.shapes],
                "order": c.order
                and asdict(c.order)
                | {"accuracy": c.order.accuracy, "reversals": [[a.name, b.name] for a, b in c.order.reversals]},
            }
            for c in found
        ],
        "settings": [{"key": key, "values": list(values)} for key, values in setting_differences(studies)],
    }


def comparison_markdown(found: Sequence[StudyComparison]) -> str:
    """Return the comparisons as Markdown."""
    short = comparison_names(found)
    parts = [comparison_answer(c, short) for c in found]
    parts += [markdown_section(section) for section in comparison_sections(found)]
    return "\n\n".join(parts) + "\n"


def _losses_sentence(found: StudyComparison, short: dict[str, str]) -> str:
    """Return a sentence on the differences of losses, or on why there are none."""
    first, second = found.first.study.name, found.second.study.name
    if found.faults:
        return f"Their losses cannot be compared ({'; '.join(found.faults)}), only their orders."
    known = [(shape, shape.difference) for shape in found.shapes if shape.difference is not None]
    differences = sorted(difference for _, difference in known)
    clear = [shape for shape in found.shapes if shape.p is not None and shape.p < 1 - CONFIDENCE]
    tokens = [evidence.ranking.levels[0].tokens for evidence in (found.first, found.second)]
    after = f", after {si(tokens[1])} tokens instead of {si(tokens[0])}" if tokens[0] != tokens[1] else ""
    if len(known) == 1:
        shape, difference = known[0]
        sure = f"{p_text(shape.p or 0.0)}{'' if clear else ', within noise'}"
        name = short[shape.architecture.name]
        return f"{name} has {_change(difference)} in {second} than in {first}{after} ({sure})."
    lower = sum(difference < 0 for difference in differences)
    size = f"from {differences[0]:+.4f} to {differences[-1]:+.4f} nats"
    exceed = "1 exceeds" if len(clear) == 1 else f"{len(clear) or 'none'} {'exceed' if clear else 'exceeds'}"
    return (
        f"{second} has a lower loss than {first} on {lower} of {len(differences)}{after}: differences run {size}, and "
        f"{exceed} noise."
    )


def _change(difference: float) -> str:
    """Return a difference in words."""
    return f"a loss {abs(difference):.4f} nats {'lower' if difference < 0 else 'higher'}"


def _order_sentence(found: StudyComparison, short: dict[str, str]) -> str:
    """Return sentences on how far the orders agree."""
    order = found.order
    if order is None:
        return ""
    text = f"They order {order.agreeing} of {plural(order.pairs, 'pair')} alike"
    if order.kendall is not None:
        text += f" (Kendall's tau {order.kendall:.2f}{_range(order.kendall_interval)})"
    if not order.accuracy_interval:
        return f"{text}; no noise is known."
    if order.reversals:
        pairs = [f"{short[a.name]} before {short[b.name]}" for a, b in order.reversals]
        are = "is" if len(pairs) == 1 else "are"
        kept = order.separated - len(pairs)
        rest = f", and {kept} the same" if kept else ""
        return (
            f"{text}. Of {plural(order.separated, 'pair')} that both separate from noise, {len(pairs)} {are} "
            f"reversed{rest}: {found.first.study.name} has {listed(pairs)}."
        )
    if not order.separated:
        return f"{text}, but no pair is separated from noise in both: the orders may agree fully, or not at all."
    if order.separated == 1:
        return f"{text}. The one pair that both separate from noise has the same order."
    return f"{text}. All {order.separated} pairs that both separate from noise have the same order."


def _range(interval: Interval | None) -> str:
    """Return an interval as the second part of a number's text."""
    return "" if interval is None else f", 95% interval {interval.low:.2f} to {interval.high:.2f}"


def _shapes_section(found: StudyComparison) -> Section:
    """Return the table of the architectures that two studies have in common."""
    first, second = found.first.study.name, found.second.study.name
    columns = (
        Column(
            key="ranks", heading="rank", short="#", derive=lambda row: f"{row['rank_first']} → {row['rank_second']}"
        ),
        Column(key="name", heading="name", short="name", left=True),
        Column(key="seeds", heading="seeds", short="seeds"),
        Column(key="loss_first", heading=f"loss in {first}", short="first", show="{:.4f}".format),
        Column(key="loss_second", heading=f"loss in {second}", short="second", show="{:.4f}".format),
        Column(key="difference", heading="difference", short="difference", show="{:+.4f}".format),
        Column(key="low", heading="95% from", short="from", show="{:+.4f}".format),
        Column(key="high", heading="to", short="to", show="{:+.4f}".format),
        Column(key="p", heading="p", short="p", show=lambda p: "<0.001" if p < 0.001 else f"{p:.2g}"),
    )
    rows = [_row(shape) | {"seeds": "+".join(map(str, shape.seeds))} for shape in found.shapes]
    notes = [f"rank: in {first} → in {second}, among the architectures that both trained furthest."]
    if rows and not found.faults:
        notes.append(
            f"difference: loss in {second} minus loss in {first}, in nats; below 0, {second} is better. The interval "
            "is over the seeds of both studies, and over the validation documents where their losses were recorded. "
            f"p: after Holm's correction over {plural(len(rows), 'architecture')}."
        )
    notes += [f"Only in {name}, of those trained furthest: {listed(own)}." for name, own in _own_names(found) if own]
    if found.order and found.order.accuracy_interval:
        held = found.order.accuracy_interval
        notes.append(
            f"Pairs ordered alike: {found.order.accuracy:.0%}, 95% interval {held.low:.0%} to {held.high:.0%}. It runs "
            "from all pairs that noise hides in either study being reversed to all of them being the same."
        )
    warnings = [f"The losses cannot be compared: {'; '.join(found.faults)}."] if found.faults else []
    return Section(
        title=f"architectures in {first} and {second}", rows=rows, columns=columns, notes=notes, warnings=warnings
    )


def _own_names(found: StudyComparison) -> list[tuple[str, list[str]]]:
    """Return the architectures that only one of the studies trained furthest."""
    common = {shape.architecture for shape in found.shapes}
    return [
        (e.study.name, [p.architecture.name for p in e.ranking.pooled if p.architecture not in common])
        for e in (found.first, found.second)
    ]


def _row(shape: ShapeDifference) -> Row:
    """Return one architecture as a row."""
    return {
        "name": shape.architecture.name,
        "rank_first": shape.ranks[0],
        "rank_second": shape.ranks[1],
        "seeds_first": shape.seeds[0],
        "seeds_second": shape.seeds[1],
        "loss_first": shape.losses[0],
        "loss_second": shape.losses[1],
        "difference": shape.difference,
        "low": shape.interval and shape.interval.low,
        "high": shape.interval and shape.interval.high,
        "p": shape.p,
    }
