"""The results of a study as tables with notes, for the terminal, Markdown and the report, and as values for JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from march_search.analysis.effects import Effect, Effects
from march_search.analysis.evidence import Evidence
from march_search.analysis.findings import Answer, Step
from march_search.analysis.horizon import Horizon
from march_search.analysis.level import Level
from march_search.analysis.phase import study_phase
from march_search.analysis.ranking import Ranking
from march_search.analysis.rate_noise import RECORDED
from march_search.analysis.shorter_budgets import BudgetOrder, branch_values
from march_search.analysis.trial_counts import recorded_counts
from march_search.display import architectures
from march_search.display.answer import study_answer
from march_search.display.notes import study_notes
from march_search.display.regime_sentences import regime_sentences
from march_search.display.sentences import explanation
from march_search.display.tables import Column, markdown_text
from march_search.display.wording import level_breaks
from march_search.units import chance, count, plural, si


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table with the notes below it."""

    title: str
    rows: Sequence[dict[str, Any]]
    columns: tuple[Column, ...]
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    """Notes that the reader must not overlook."""
    breaks: Mapping[int, str] = field(default_factory=dict)
    """Text of the rule above a row, by the row's index."""
    empty: str = "Too few architectures for this analysis."
    """What stands in place of the table if it has no rows."""


def sections(evidence: Evidence) -> list[Section]:
    """Return the tables of a study, in order; the ranking is the first."""
    ranking = evidence.ranking
    found = [ranking_section(evidence)]
    if ranking.others:
        found.append(Section(title="not ranked", rows=ranking.others, columns=architectures.OTHER_COLUMNS))
    if evidence.budget_orders:
        found.append(_budgets_section(evidence.budget_orders))
    if evidence.horizon:
        found.append(_horizon_section(evidence.horizon, ranking))
    if evidence.effects:
        found += [_effects_section(evidence.effects)] if evidence.effects.effects else []
        found += [_findings_section(evidence.answers)]
    return found


def ranking_section(evidence: Evidence) -> Section:
    """Return the ranking, with its notes in full and what its columns mean."""
    ranking, study = evidence.ranking, evidence.study
    counts = recorded_counts(study)
    title = f"{study.name}: {counts.complete} of {counts.total} trials complete"
    if ranking.rows:
        title += f", ranked by validation loss after {si(ranking.rows[0]['level_tokens'])} tokens"
        title += " (decay branches)" if study.whole and ranking.rows[0]["is_final"] else ""
    notes = study_notes(evidence)
    return Section(
        title=title,
        rows=ranking.rows,
        columns=architectures.rank_columns(ranking),
        notes=[*(note.full for note in notes if not note.is_warning), *explanation(evidence)],
        warnings=[note.full for note in notes if note.is_warning],
        breaks=level_breaks(ranking.rows),
        empty="No architecture is ranked yet.",
    )


def heading_lines(evidence: Evidence) -> list[tuple[str, str]]:
    """Return what stands above the ranking: the question of the study, its answer, and its phase, by name."""
    settings, phase = evidence.study.settings, study_phase(evidence.study)
    lines = [("Question", settings.get("question") or ""), ("Answer", study_answer(evidence).text)]
    if phase.name != "complete":
        lines.append(("Phase", f"{phase.name}. {phase.detail[:1].upper()}{phase.detail[1:]}"))
    return [(name, text) for name, text in lines if text]


def markdown_sections(evidence: Evidence, heading: str = "", with_answer: bool = True) -> str:
    """Return the answer and every table as Markdown, each table followed by its warnings and notes as a list.

    Args:
        evidence: Results of a study.
        heading: Prefix of each title, such as `## `.
        with_answer: Whether the question, the answer and the phase stand above the first table.
    """
    parts = []
    for section in sections(evidence):
        parts.append(markdown_section(section, heading))
    if with_answer:
        title, rest = parts[0].split("\n\n", 1)
        parts[:1] = [title, *(f"**{name}:** {text}" for name, text in heading_lines(evidence)), rest]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def markdown_section(section: Section, heading: str = "") -> str:
    """Return a section as Markdown: its title, its table, and its warnings and notes as a list."""
    table = _markdown_table(section) if section.rows else section.empty
    remarks = [*(f"**{warning}**" for warning in section.warnings), *section.notes]
    parts = [f"{heading}{section.title or 'ranking'}", table, "\n".join(f"- {remark}" for remark in remarks)]
    return "\n\n".join(part.strip() for part in parts if part.strip())


def _markdown_table(section: Section) -> str:
    """Return the rows of a section as Markdown; several levels get a column with the tokens that they stopped at."""
    columns = list(section.columns)
    if section.breaks:
        after = next(index for index, column in enumerate(columns) if column.key == "loss")
        columns.insert(after, Column(key="level_tokens", heading="after tokens", short="tokens", show=si))
    return markdown_text(section.rows, columns)


def json_values(evidence: Evidence) -> dict[str, Any]:
    """Return all results as values that JSON supports; numbers that are not finite become None."""
    ranking, horizon = evidence.ranking, evidence.horizon
    values: dict[str, Any] = {
        "schema_version": 3,
        "study": evidence.study.name,
        "question": evidence.study.settings.get("question") or None,
        "answer": study_answer(evidence),
        "phase": study_phase(evidence.study),
        "reference": evidence.study.reference,
        "ranked": ranking.rows,
        "not_ranked": ranking.others,
        "levels": [_level_values(level) for level in ranking.levels],
        "notes": [note.full for note in study_notes(evidence)],
        "damage": evidence.study.notes,
        "explanation": explanation(evidence),
        "compute_equivalent_gain": ranking.reference
        and {"reference": ranking.reference.architecture.name, "slope": ranking.slope},
        "regime": evidence.regime and asdict(evidence.regime) | {"sentences": regime_sentences(evidence)},
        "rungs": evidence.early_orders,
        **branch_values(evidence.study),
        "budget_orders": evidence.budget_orders,
        "horizon": horizon
        and {
            "tokens": horizon.tokens,
            "rows": horizon.rows,
            "flip_probability": horizon.flip_probability,
            "ratio": horizon.ratio,
            "caveats": horizon.caveats,
        },
        "effects": evidence.effects,
        "findings": evidence.answers,
    }
    plain = _plain(values)
    assert isinstance(plain, dict)
    return plain


def _level_values(level: Level) -> dict[str, Any]:
    """Return one level of the ranking: who is compared after how many tokens, and the noise and tests behind it."""
    return {
        "tokens": level.tokens,
        "is_final": level.is_final,
        "names": [pooled.architecture.name for pooled in level.pooled],
        "training_noise": level.seeds,
        "data_noise": level.data and {"degrees": level.data.degrees, "over": getattr(level.documents, "kind", "")},
        "adjusted_p": level.comparison and level.comparison.adjusted_AA.tolist(),
        "leader_p": level.comparison and level.comparison.leader_p,
    }


def _plain(value: Any) -> Any:
    """Convert `value` to types that JSON supports."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _budgets_section(found: Sequence[BudgetOrder]) -> Section:
    """Return the section of the orders at the data budgets of decay branches, one row per budget."""
    rows = [
        {
            "tokens": order.tokens,
            "name": order.leader,
            "architectures": order.architectures,
            "next": f"{order.kept_next} of {order.pairs_next}" if order.pairs_next else None,
            "last": f"{order.kept} of {order.pairs}" if order.pairs else None,
            "kendall": order.kendall,
            "regret": order.regret,
        }
        for order in found
    ]
    lines = [
        "Losses after the decay to each data budget. kept: pairs of architectures whose order is the same there. "
        "Kendall's tau: correlation of the order with that at the longest budget. regret: loss of the leader at the "
        "longest budget above the lowest there.",
        "These counts do not account for noise: pairs that noise hides may change their order by chance.",
    ]
    return Section(title="order by data budget", rows=rows, columns=architectures.BUDGET_COLUMNS, notes=lines)


def _horizon_section(found: Horizon, ranking: Ranking) -> Section:
    """Return the section of the predicted ranking."""
    warnings = []
    if found.flip_probability is not None:
        warnings.append(
            f"{ranking.first_rows[0]['name']} leads now; the probability that another is the best then is "
            f"{chance(found.flip_probability)}."
        )
    title = f"predicted after {count(found.tokens)} tokens"
    columns = [c for c in architectures.HORIZON_COLUMNS if any(c.value(row) is not None for row in found.rows)]
    return Section(title=title, rows=found.rows, columns=tuple(columns), notes=found.caveats, warnings=warnings)


def _effects_section(found: Effects) -> Section:
    """Return the section of effects, one row per dimension."""
    rows = [
        {
            "axis": effect.axis,
            "nats": effect.nats,
            "low": effect.interval and effect.interval.low,
            "high": effect.interval and effect.interval.high,
            "separable": "yes" if effect.is_separable else f"no: {_why_not(effect)}",
            "importance": effect.importance,
        }
        for effect in found.effects
    ]
    lines = [
        "nats: change in loss when the dimension doubles (or with gating), other dimensions fixed (least squares)."
    ]
    if found.fixed:
        lines.append(f"Equal, or within a factor of 1.25, in all architectures: {', '.join(found.fixed)}.")
    if found.degrees < 1 and rows:
        lines.append(f"{plural(len(rows), 'dimension')}: too few architectures for intervals.")
    lines.append("importance (PED-ANOVA, from 8 architectures): share in deciding which ones are in the better half.")
    return Section(title="which dimension matters", rows=rows, columns=architectures.EFFECT_COLUMNS, notes=lines)


def _why_not(effect: Effect) -> str:
    """Return why an effect is not separable."""
    if effect.is_told_apart and effect.interval is not None:
        is_inside = effect.interval.low <= 0 <= effect.interval.high
        return "its interval contains 0" if is_inside else "not after correction for the number of dimensions"
    return f"moves with {', '.join(effect.entangled_with)}" if effect.entangled_with else "too few architectures"


def _findings_section(found: Sequence[Answer]) -> Section:
    """Return the section of findings: one row per step of an ordered quantity, or per statement about two groups."""
    rows = [_step_row(answer, step) for answer in found for step in answer.steps]
    tested = [answer for answer in found if answer.steps]
    lines = [
        f"{answer.statement}: {answer.answer} ({', '.join(f'{step.step}: {step.answer}' for step in answer.steps)})."
        for answer in tested
        if answer.verdict_at_rate == "turns" or answer.verdict == "turns"
    ]
    several = sorted({rate for answer in tested for step in answer.steps for rate in step.by_rate})
    if any(not step.by_rate for answer in tested for step in answer.steps):
        lines.append(
            "Differences were measured at one learning rate. How much the rate moves them is assumed, from "
            f"{RECORDED.source}: {RECORDED.per_doubling:g} nats per doubling of d_model and {RECORDED.deviation:g} per "
            "architecture."
        )
    if several:
        rates = ", ".join(f"{rate:g}" for rate in several)
        lines.append(f"Steps with trials at several learning rates ({rates}) have to hold at each of them.")
    lines += [
        "nats: loss of the favoured side minus the other; negative is better. 95%: interval of each row alone, over "
        "seeds, documents and the learning rate.",
        f"answer: after Holm's correction over {plural(len(rows), 'row')}. at this rate: not if the learning rate is "
        "among the uncertainties.",
        "pairs: number of pairs that agree. also differs: other dimensions that differ in at least half of the pairs.",
        f"{len(found) - len(tested)} of {plural(len(found), 'statement')} have no pairs to compare here.",
    ]
    return Section(
        title="statements, tested on this study",
        rows=rows,
        columns=architectures.FINDING_COLUMNS,
        notes=lines,
    )


def _step_row(answer: Answer, step: Step) -> dict[str, Any]:
    """Return the row of one contrast; the statement stands in the first row of its steps."""
    at_rate, over_rates = step.at_rate.interval, step.over_rates.interval
    return {
        "statement": answer.statement if step is answer.steps[0] else "",
        "step": step.step or None,
        "answer": step.answer,
        "difference": step.at_rate.difference,
        "low": over_rates and over_rates.low,
        "high": over_rates and over_rates.high,
        "low_at_rate": at_rate and at_rate.low,
        "high_at_rate": at_rate and at_rate.high,
        "agreeing": step.agreeing,
        "pairs": step.pairs,
        "confounds": step.confounds or None,
    }
