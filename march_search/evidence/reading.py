"""Collect everything that `march-search rank` reports about a study: tables with notes, and plain values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from march_search.evidence.effects import Effect, Effects, effects
from march_search.evidence.findings import Answer, findings
from march_search.evidence.horizon import Horizon, horizon
from march_search.evidence.noise import PUBLISHED, SeedNoise
from march_search.evidence.ranking import Ranking, rank
from march_search.evidence.regime import Regime, regime
from march_search.evidence.rungs import Rung, rungs
from march_search.evidence.trials import StudyRecord
from march_search.evidence.words import notes
from march_search.report import architectures
from march_search.report.tables import Column, chance, count, plural, si


@dataclass(frozen=True)
class Section:
    """One table with the notes below it."""

    title: str
    rows: Sequence[dict[str, Any]]
    columns: tuple[Column, ...]
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    """Notes that the reader must not overlook."""
    is_ranking: bool = False


@dataclass(frozen=True)
class Evidence:
    """Results of a study and what can be concluded from them."""

    study: StudyRecord
    ranking: Ranking
    regime: Regime | None
    rungs: tuple[Rung, ...]
    horizon: Horizon | None
    """Predicted ranking at a longer budget; None unless requested."""
    effects: Effects | None
    """Effect of each dimension; None unless requested."""
    answers: tuple[Answer, ...]
    """Answers to the named findings; empty unless requested."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the regime that the ranking describes."""
        return self.regime.sentences if self.regime else ()

    @property
    def notes(self) -> list[str]:
        """Notes that explain the ranking."""
        return notes(self.study, self.ranking, self.rungs)

    @property
    def sections(self) -> list[Section]:
        """Tables, in order."""
        ranking, many = self.ranking, len(self.study.trials)
        done = sum(t.state == "complete" for t in self.study.trials)
        title = f"{self.study.name}: {done} of {many} trials complete, ranked by validation loss"
        if ranking.rows:
            title += f" after {si(ranking.rows[0]['tokens'])} tokens"
        columns = architectures.rank_columns(ranking.rows)
        sections = [Section(title, ranking.rows, columns, self.notes, self.warnings, is_ranking=True)]
        if ranking.others:
            sections.append(Section("not ranked", ranking.others, architectures.OTHER_COLUMNS))
        if self.horizon:
            sections.append(_horizon_section(self.horizon, ranking))
        if self.effects:
            sections += [_effects_section(self.effects)] if self.effects.effects else []
            sections += [_findings_section(self.answers)]
        return sections

    @property
    def values(self) -> dict[str, Any]:
        """Values that are not in the rows, for JSON."""
        ranking = self.ranking
        return {
            "training_noise": ranking.seeds,
            "data_noise": ranking.data
            and {"degrees": ranking.data.degrees, "over": getattr(ranking.documents, "kind", "")},
            "adjusted_p": ranking.comparison and ranking.comparison.adjusted_AA.tolist(),
            "compute_equivalent_gain": ranking.reference
            and {"reference": ranking.reference.architecture.name, "slope": ranking.slope},
            "regime": self.regime,
            "rungs": self.rungs,
            "horizon": self.horizon
            and {
                "tokens": self.horizon.tokens,
                "rows": self.horizon.rows,
                "flip_probability": self.horizon.flip_probability,
                "mix": self.horizon.mix,
                "caveats": self.horizon.caveats,
            },
            "effects": self.effects,
            "findings": self.answers,
        }


def evidence(
    study: StudyRecord, assumed: SeedNoise | None = PUBLISHED, tokens: int | None = None, with_effects: bool = False
) -> Evidence:
    """Collect the results of a study.

    Args:
        study: The study.
        assumed: Seed noise used if no architecture has two seeds; None to leave it out.
        tokens: Data budget at which to predict the ranking; None for no prediction.
        with_effects: Whether to estimate effects and test the named findings.
    """
    ranking = rank(study, assumed)
    shapes, means = [p.architecture for p in ranking.pooled], [p.loss for p in ranking.pooled]
    counts = [len(p.trials) for p in ranking.pooled]
    return Evidence(
        study,
        ranking,
        regime(study, ranking),
        rungs(ranking.pooled),
        None if tokens is None else horizon(study, ranking, tokens),
        effects(shapes, means, with_importance=True) if with_effects else None,
        findings(shapes, means, counts, ranking.seeds, ranking.data) if with_effects else (),
    )


def _horizon_section(found: Horizon, ranking: Ranking) -> Section:
    """Return the section of the predicted ranking."""
    leader = ranking.rows[0]["name"]
    warning = f"{leader} leads now; the probability that another is the best then is {chance(found.flip_probability)}."
    title = f"predicted after {count(found.tokens)} tokens"
    return Section(title, found.rows, architectures.HORIZON_COLUMNS, found.caveats, (warning,))


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
    return Section("which dimension matters", rows, architectures.EFFECT_COLUMNS, lines)


def _why_not(effect: Effect) -> str:
    """Return why an effect is not separable."""
    if effect.is_told_apart:
        return "its interval contains 0"
    return f"moves with {', '.join(effect.entangled_with)}" if effect.entangled_with else "too few architectures"


def _findings_section(found: Sequence[Answer]) -> Section:
    """Return the section of findings, one row per tested statement."""
    rows = [
        {
            "statement": answer.statement,
            "verdict": answer.verdict,
            "difference": answer.difference,
            "low": answer.interval and answer.interval.low,
            "high": answer.interval and answer.interval.high,
            "pairs_shown": f"{answer.agreeing}/{answer.pairs}" if answer.pairs else None,
            "confounds_shown": ", ".join(answer.confounds) or None,
        }
        for answer in found
        if answer.verdict != "not tested"
    ]
    untested = len(found) - len(rows)
    lines = (
        "nats: mean difference in loss over the pairs that the statement compares, with its 95 % interval from both "
        "noises; negative is better.",
        "pairs: number of pairs that agree. also differs: other dimensions that differ in at least half of the pairs.",
        f"{untested} of {plural(len(found), 'statement')} from the 2023 study have no pairs to compare here.",
    )
    return Section("findings of the 2023 study, tested on this one", rows, architectures.FINDING_COLUMNS, lines)
