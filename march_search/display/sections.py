"""The results of a study as tables with notes, for the terminal, Markdown and the report, and as values for JSON."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from march_search.analysis.effects import Effect, Effects
from march_search.analysis.evidence import Evidence
from march_search.analysis.findings import Answer, Step
from march_search.analysis.horizon import Horizon
from march_search.analysis.ranking import Ranking
from march_search.analysis.rate_noise import LADDER
from march_search.display import architectures
from march_search.display.regime_sentences import regime_sentences
from march_search.display.sentences import notes
from march_search.display.tables import Column, chance, count, markdown_text, plural, si


@dataclass(frozen=True, kw_only=True)
class Section:
    """One table with the notes below it."""

    title: str
    rows: Sequence[dict[str, Any]]
    columns: tuple[Column, ...]
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    """Notes that the reader must not overlook."""
    is_ranking: bool = False


def sections(evidence: Evidence) -> list[Section]:
    """Return the tables of a study, in order; the ranking is the first."""
    ranking, study = evidence.ranking, evidence.study
    done, started = sum(trial.state == "complete" for trial in study.trials), len(study.trials) + len(study.damaged)
    title = f"{study.name}: {done} of {started} trials complete, ranked by validation loss"
    if ranking.rows:
        title += f" after {si(ranking.rows[0]['tokens'])} tokens"
    columns, warnings = architectures.rank_columns(ranking), regime_sentences(evidence)
    found = [
        Section(
            title=title, rows=ranking.rows, columns=columns, notes=notes(evidence), warnings=warnings, is_ranking=True
        )
    ]
    if ranking.others:
        found.append(Section(title="not ranked", rows=ranking.others, columns=architectures.OTHER_COLUMNS))
    if evidence.horizon:
        found.append(_horizon_section(evidence.horizon, ranking))
    if evidence.effects:
        found += [_effects_section(evidence.effects)] if evidence.effects.effects else []
        found += [_findings_section(evidence.answers)]
    return found


def markdown_sections(evidence: Evidence, heading: str = "") -> str:
    """Return every table as Markdown, each followed by its warnings and notes as a list.

    Args:
        evidence: Results of a study.
        heading: Prefix of each title, such as `## `.
    """
    parts = []
    for section in sections(evidence):
        title = section.title or "ranking"
        table = markdown_text(section.rows, section.columns) if section.rows else "There are no rows yet."
        remarks = [*(f"**{warning}**" for warning in section.warnings), *section.notes]
        parts += [f"{heading}{title}", table, "\n".join(f"- {remark}" for remark in remarks)]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def json_values(evidence: Evidence) -> dict[str, Any]:
    """Return all results as values that JSON supports; numbers that are not finite become None."""
    ranking, horizon = evidence.ranking, evidence.horizon
    values: dict[str, Any] = {
        "schema_version": 2,
        "study": evidence.study.name,
        "reference": evidence.study.reference,
        "ranked": ranking.rows,
        "not_ranked": ranking.others,
        "notes": notes(evidence),
        "training_noise": ranking.seeds,
        "data_noise": ranking.data
        and {"degrees": ranking.data.degrees, "over": getattr(ranking.documents, "kind", "")},
        "adjusted_p": ranking.comparison and ranking.comparison.adjusted_AA.tolist(),
        "compute_equivalent_gain": ranking.reference
        and {"reference": ranking.reference.architecture.name, "slope": ranking.slope},
        "regime": evidence.regime and asdict(evidence.regime) | {"sentences": regime_sentences(evidence)},
        "rungs": evidence.early_orders,
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


def _plain(value: Any) -> Any:
    """Convert `value` to types that JSON supports."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
            f"{LADDER.source}: {LADDER.per_doubling:g} nats per doubling of d_model and {LADDER.deviation:g} per "
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
        f"{len(found) - len(tested)} of {plural(len(found), 'statement')} from the 2023 study have no pairs to "
        "compare here.",
    ]
    return Section(
        title="findings of the 2023 study, tested on this one",
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
