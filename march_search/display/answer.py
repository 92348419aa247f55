"""Answer the question of a study in one or two sentences: the best architecture, or those that may be the best.

One test of the leader against each rival is exact if the number of seeds was fixed before. While a study confirms, it
looks at the results after every seed, so that its answer rests on the elimination that allows for this (`finals`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from march_search.analysis.comparison import CONFIDENCE
from march_search.analysis.evidence import Evidence
from march_search.analysis.finals import Finals, finals
from march_search.analysis.phase import seed_trials
from march_search.architecture.architecture import Architecture
from march_search.display.wording import listed, p_text, short_names
from march_search.units import plural, si

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StudyAnswer:
    """What a study found, over the architectures that were trained furthest."""

    outcome: Literal["none", "alone", "unknown", "tied", "best"]
    """`none`: nothing is ranked; `alone`: only one architecture was trained so far; `unknown`: no noise is known;
    `tied`: the leader is not separated from others; `best`: it is better than every rival."""
    leader: str | None
    """Name of the architecture with the lowest loss."""
    rivals: int
    """Number of other architectures that were trained as far."""
    tied: tuple[str, ...]
    """Names of the rivals that are not separated from the leader."""
    p: float | None
    """p-value of the test that the leader is the best, against every rival; None without such a test."""
    text: str
    """The answer in one or two sentences, with names shortened as by `short_names`."""


def study_answer(evidence: Evidence) -> StudyAnswer:
    """Return the answer of a study."""
    ranking, short = evidence.ranking, short_names(evidence)
    first = list(ranking.first_rows)
    if not first:
        text = "No architecture can be ranked yet."
        return StudyAnswer(outcome="none", leader=None, rivals=0, tied=(), p=None, text=text)
    leader, rivals, lower = first[0], first[1:], len(ranking.rows) - len(first)
    confirmed = _confirmed(evidence)
    tied = _tied(evidence, first, confirmed)
    p = ranking.comparison.leader_p if ranking.comparison and rivals else None
    name, field = (
        short[leader["name"]],
        plural(len(first), "finalist" if lower and leader["is_final"] else "architecture"),
    )
    outcome: Literal["alone", "unknown", "tied", "best"]
    if not rivals:
        outcome, text = "alone", f"{name} was trained furthest, alone: nothing was trained as far to compare it with."
        if not lower:
            text = f"{name} is the only architecture with a loss, so there is nothing to compare it with."
    elif p is None:
        gap = rivals[0]["loss"] - leader["loss"]
        outcome = "unknown"
        text = f"{name} has the lowest loss of {field}, by {gap:.4f} nats; no noise is known, so it may be chance."
    elif not tied:
        outcome, text = "best", f"{name} is the best of {field}, {_proof(p, first, confirmed)}."
    else:
        outcome, text = "tied", f"No single best of {field}: {_leads(first, tied, short)}."
    start = ""
    if not leader["is_final"]:
        start, text = f"So far, after {si(leader['level_tokens'])} tokens: ", text.replace("No single", "no single", 1)
    return StudyAnswer(
        outcome=outcome,
        leader=leader["name"],
        rivals=len(rivals),
        tied=tuple(row["name"] for row in tied),
        p=p,
        text=f"{start}{text}{_baseline(evidence, first, tied, short)}",
    )


def _confirmed(evidence: Evidence) -> Finals | None:
    """Return what the confirmation has found; None if the study has trained no further seeds, or no finalist."""
    study = evidence.study
    if not evidence.ranking.first_rows[0]["is_final"]:
        return None
    has_further = any(trial.seed not in study.config.search.seeds for trial in study.trials)
    return finals(seed_trials(study.trials), study.config) if has_further else None


def _tied(evidence: Evidence, first: Sequence[Row], confirmed: Finals | None) -> list[Row]:
    """Return the rivals that are not separated from the leader.

    Finalists with further seeds are separated by elimination. Any other rival is separated if the leader is better than
    each such rival at the 5% level; if not, those that share a letter with it are tied.
    """
    comparison, leader = evidence.ranking.comparison, first[0]
    if comparison is None:
        return []
    looked = confirmed.losses if confirmed and leader["name"] in confirmed.left else {}
    tied = [row for row in first[1:] if confirmed and row["name"] in looked and row["name"] in confirmed.left]
    others = [(index, row) for index, row in enumerate(first) if index and row["name"] not in looked]
    if any(comparison.p_AA[0, index] >= 1 - CONFIDENCE for index, _ in others):
        tied += [row for _, row in others if shares_letter(row, leader)]
    return sorted(tied, key=lambda row: float(row["loss"]))


def shares_letter(row: Row, leader: Row) -> bool:
    """Return whether an architecture is in a tie group of the leader."""
    return bool(set(row["letters"] or "") & set(leader["letters"] or ""))


def _proof(p: float, first: Sequence[Row], confirmed: Finals | None) -> str:
    """Return how far the leader is ahead, and the test that shows that it is the best."""
    leader, rivals = first[0], first[1:]
    gap = f"{rivals[0]['loss'] - leader['loss']:.4f} nats ahead"
    sharing = sum(shares_letter(row, leader) for row in rivals)
    letters = f"; {sharing} {'shares' if sharing == 1 else 'share'} a letter with it" if sharing else ""
    if confirmed and confirmed.is_separated and confirmed.left == (leader["name"],):
        return f"{gap} (separated from all finalists by further seeds{letters})"
    assumed = ", seed noise assumed" if any(row["interval_kind"] == "assumed" for row in first) else ""
    return f"{gap} ({p_text(p)} against every rival{assumed}{letters})"


def _leads(first: Sequence[Row], tied: Sequence[Row], short: dict[str, str]) -> str:
    """Return who leads, who is not separated from it, and who is."""
    leader, rivals = first[0], first[1:]
    gap, others = rivals[0]["loss"] - leader["loss"], [row for row in rivals if row not in tied]
    lead = f"{short[leader['name']]} leads by {gap:.4f} nats, but"
    letters = "".join(sorted({*leader["letters"]} & {letter for row in tied for letter in row["letters"]}))
    lettered = [row for row in tied if shares_letter(row, leader)]
    which = f" (ties {letters})" if len(lettered) == len(tied) and letters else ""
    apart = [short[row["name"]] for row in tied if row not in lettered]
    if leader["letters"] and apart:  # the confirmation looked at them several times, and its test allows for that
        has = "has" if len(apart) == 1 else "have"
        which = f" by the confirmation, whose test is stricter than the letters: {listed(apart)} {has} other letters"
    if not others and len(rivals) > 1:
        return f"{lead} none of the other {len(rivals)} is separated from it{which}"
    are = "is" if len(tied) == 1 else "are"
    text = f"{lead} {listed([short[row['name']] for row in tied])} {are} not separated from it{which}"
    rest = f"{short[others[0]['name']]} is" if len(others) == 1 else f"the other {len(others)} are"
    return f"{text}; {rest} separated" if others else text


def _baseline(evidence: Evidence, first: Sequence[Row], tied: Sequence[Row], short: dict[str, str]) -> str:
    """Return a sentence on the baseline, the first architecture that the study lists; empty if it lists none."""
    listed_names = evidence.study.settings.get("search", {}).get("architectures") or ()
    names = [Architecture.parse(text).name for text in listed_names[:1]]
    rows = {row["name"]: row for row in evidence.ranking.rows}
    if not names or names[0] not in rows or len(rows) < 2:
        return ""
    row, leader = rows[names[0]], first[0]
    if row is leader:
        return " The leader is the baseline itself."
    if row not in first:
        return f" The baseline, {short[row['name']]}, stopped after {si(row['level_tokens'])} tokens."
    known = "" if not leader["letters"] else ", not separated" if row in tied else ", separated"
    return f" The baseline, {short[row['name']]}, is {row['loss'] - leader['loss']:.4f} nats worse{known}."
