"""All that `march-search rank` tells of a study: tables with their notes, and the same as plain values."""

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
    """One table with what has to be said below it."""

    title: str
    rows: Sequence[dict[str, Any]]
    columns: tuple[Column, ...]
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    """What must not be overlooked."""
    is_ranking: bool = False


@dataclass(frozen=True)
class Evidence:
    """What a study says."""

    study: StudyRecord
    ranking: Ranking
    regime: Regime | None
    rungs: tuple[Rung, ...]
    horizon: Horizon | None
    """None unless a horizon was asked for."""
    effects: Effects | None
    """None unless asked for."""
    answers: tuple[Answer, ...]
    """To the named findings; none unless asked for."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Which regime the ranking describes, in words."""
        return self.regime.sentences if self.regime else ()

    @property
    def notes(self) -> list[str]:
        """What else a reader of the ranking has to know."""
        return notes(self.study, self.ranking, self.rungs)

    @property
    def sections(self) -> list[Section]:
        """The tables, in order."""
        ranking, many = self.ranking, len(self.study.trials)
        done = sum(t.state == "complete" for t in self.study.trials)
        title = f"{self.study.name}: {done} of {many} trials complete, ranked by validation loss"
        if ranking.rows:
            title += f" after {si(ranking.rows[0]['tokens'])} tokens"
        columns = architectures.rank_columns(ranking.rows)
        found = [Section(title, ranking.rows, columns, self.notes, self.warnings, is_ranking=True)]
        if ranking.others:
            found.append(Section("not ranked", ranking.others, architectures.OTHER_COLUMNS))
        if self.horizon:
            found.append(_horizon_section(self.horizon, ranking))
        if self.effects:
            found += [_effects_section(self.effects)] if self.effects.effects else []
            found += [_findings_section(self.answers)]
        return found

    @property
    def values(self) -> dict[str, Any]:
        """What the rows do not hold, for JSON."""
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
    """Everything about a study; the ranking at `tokens`, and effects with findings, where they are wanted."""
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
    """The predicted ranking."""
    leader = ranking.rows[0]["name"]
    said = f"{leader} leads now; with a chance of {chance(found.flip_probability)} another one is the best then."
    title = f"predicted after {count(found.tokens)} tokens"
    return Section(title, found.rows, architectures.HORIZON_COLUMNS, found.caveats, (said,))


def _effects_section(found: Effects) -> Section:
    """One row a dimension."""
    rows = [
        {
            "axis": one.axis,
            "nats": one.nats,
            "low": one.interval and one.interval.low,
            "high": one.interval and one.interval.high,
            "separable": "yes" if one.is_separable else f"no: {_why_not(one)}",
            "importance": one.importance,
        }
        for one in found.effects
    ]
    said = ["nats: change of the loss when the dimension doubles, or by gating, the others held (least squares)."]
    if found.fixed:
        said.append(f"The same, or within a quarter, in all architectures: {', '.join(found.fixed)}.")
    if found.degrees < 1 and rows:
        said.append(f"{plural(len(rows), 'dimension')}, and too few architectures for intervals.")
    said.append("importance: PED-ANOVA's share of what decides who is in the better half; it needs 8 architectures.")
    return Section("which dimension matters", rows, architectures.EFFECT_COLUMNS, said)


def _why_not(effect: Effect) -> str:
    """Why an effect is not separable."""
    if effect.is_told_apart:
        return "its interval holds 0"
    return f"moves with {', '.join(effect.entangled_with)}" if effect.entangled_with else "too few architectures"


def _findings_section(found: Sequence[Answer]) -> Section:
    """One row a statement."""
    rows = [
        {
            "statement": one.statement,
            "verdict": one.verdict,
            "difference": one.difference,
            "low": one.interval and one.interval.low,
            "high": one.interval and one.interval.high,
            "pairs_shown": f"{one.agreeing}/{one.pairs}" if one.pairs else None,
            "confounds_shown": ", ".join(one.confounds) or None,
        }
        for one in found
        if one.verdict != "not tested"
    ]
    silent = len(found) - len(rows)
    said = (
        "nats: mean difference over the pairs that differ as the statement says, 95 % by both noises; below 0: better.",
        "pairs: how many agree. also differs: dimensions that the statement does not name and that moved as well.",
        f"{silent} of {plural(len(found), 'statement')} that the 2023 study made or left open find no such pair here.",
    )
    return Section("findings of the 2023 study, asked of this one", rows, architectures.FINDING_COLUMNS, said)
