"""Answer the question of a study in one or two sentences: the best architecture, or those that may be the best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from march_search.analysis.comparison import CONFIDENCE
from march_search.analysis.evidence import Evidence
from march_search.display.tables import common_tail, plural, si

Row = dict[str, Any]

NAMED = 3
"""Largest number of architectures that a sentence names; more are counted."""


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
    ranking = evidence.ranking
    first = first_level(ranking.rows)
    if not first:
        return StudyAnswer(
            outcome="none", leader=None, rivals=0, tied=(), p=None, text="No architecture can be ranked yet."
        )
    short, leader, rivals = short_names(evidence), first[0], first[1:]
    p = ranking.comparison.leader_p if ranking.comparison and rivals else None
    tied = [row for row in rivals if set(row["letters"] or "") & set(leader["letters"] or "")]
    is_best = bool(leader["letters"]) and (not tied or (p is not None and p < 1 - CONFIDENCE))
    start, lower = _start(leader), len(ranking.rows) - len(first)
    name, field = short[leader["name"]], f"{_the(first, lower)}"
    if not rivals:
        outcome, text = "alone", f"{name} was trained furthest, alone: nothing was trained as far to compare it with."
        if not lower:
            text = f"{name} is the only architecture with a loss, so there is nothing to compare it with."
    elif not leader["letters"]:
        gap = rivals[0]["loss"] - leader["loss"]
        outcome = "unknown"
        text = f"{name} has the lowest loss of {field}, by {gap:.4f} nats; no noise is known, so it may be chance."
    elif is_best:
        outcome, text = "best", f"{name} is the best of {field}, {_evidence(p, tied, leader, rivals)}."
    else:
        outcome, text = "tied", f"No single best of {field}: {_leads(leader, rivals, tied, short)}."
    text = f"{start}{text}{_baseline(evidence, first, tied, short)}"
    return StudyAnswer(
        outcome=outcome,  # type: ignore[arg-type]
        leader=leader["name"],
        rivals=len(rivals),
        tied=tuple(row["name"] for row in tied),
        p=p,
        text=text,
    )


def first_level(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the architectures that were trained furthest, best first."""
    return [row for row in rows if row["level_tokens"] == rows[0]["level_tokens"]]


def level_breaks(rows: Sequence[Row]) -> dict[int, str]:
    """Return what stands above the first row of each level but the first, by the row's index."""
    return {
        index: level_title(rows, row["level_tokens"])
        for index, row in enumerate(rows)
        if index and row["level_tokens"] != rows[index - 1]["level_tokens"]
    }


def level_title(rows: Sequence[Row], tokens: int) -> str:
    """Return the title of the level that is compared after `tokens` tokens, such as `stopped after 21M tokens`."""
    level = [row for row in rows if row["level_tokens"] == tokens]
    if level[0]["is_final"]:
        return f"trained to the end: {si(tokens)} tokens"
    is_stopped = all(row["state"] == "pruned" for row in level)
    return f"stopped after {si(tokens)} tokens" if is_stopped else f"compared after {si(tokens)} tokens"


def short_names(evidence: Evidence) -> dict[str, str]:
    """Return the short name of each architecture: its name without the ending that all have in common."""
    full_names = [trial.architecture.name for trial in evidence.study.trials]
    tail = common_tail(list(dict.fromkeys(full_names)))
    return {name: name.removesuffix(tail) or name for name in full_names}


def listed(names: Sequence[str]) -> str:
    """Return names as part of a sentence: `A`, `A and B`, `A, B and 4 others`."""
    shown = list(names[:NAMED] if len(names) <= NAMED else names[: NAMED - 1])
    if len(names) > NAMED:
        shown.append(f"{len(names) - len(shown)} others")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def p_text(p: float) -> str:
    """Format a p-value: `p = 0.012`, `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _start(leader: Row) -> str:
    """Return how the answer begins: with a reservation while no architecture has been trained to the end."""
    return "" if leader["is_final"] else f"So far, after {si(leader['level_tokens'])} tokens: "


def _the(first: Sequence[Row], lower: int) -> str:
    """Return the architectures that are compared: `4 finalists`, or `6 architectures` if none stopped earlier."""
    return plural(len(first), "finalist" if lower and first[0]["is_final"] else "architecture")


def _evidence(p: float | None, tied: Sequence[Row], leader: Row, rivals: Sequence[Row]) -> str:
    """Return how far the leader is ahead, and the test that shows that it is the best."""
    gap = f"{rivals[0]['loss'] - leader['loss']:.4f} nats ahead"
    assumed = ", seed noise assumed" if any(row["interval_kind"] == "assumed" for row in (leader, *rivals)) else ""
    if p is None or p >= 1 - CONFIDENCE:
        return f"{gap} (5% level, all pairs{assumed})"
    letters = f"; {len(tied)} {'shares' if len(tied) == 1 else 'share'} a letter with it" if tied else ""
    return f"{gap} ({p_text(p)} against every rival{assumed}{letters})"


def _leads(leader: Row, rivals: Sequence[Row], tied: Sequence[Row], short: dict[str, str]) -> str:
    """Return who leads, who is not separated from it, and who is."""
    shared = next(letter for letter in leader["letters"] if any(letter in row["letters"] for row in tied))
    gap, others = rivals[0]["loss"] - leader["loss"], [row for row in rivals if row not in tied]
    lead = f"{short[leader['name']]} leads by {gap:.4f} nats, but"
    if not others:
        if len(rivals) == 1:
            return f"{lead} {short[rivals[0]['name']]} is not separated from it (ties {shared})"
        return f"{lead} none of the other {len(rivals)} is separated from it (ties {shared})"
    are = "is" if len(tied) == 1 else "are"
    rest = f"{short[others[0]['name']]} is" if len(others) == 1 else f"the other {len(others)} are"
    return (
        f"{lead} {listed([short[row['name']] for row in tied])} {are} not separated from it (ties {shared}); {rest} "
        "separated"
    )


def _baseline(evidence: Evidence, first: Sequence[Row], tied: Sequence[Row], short: dict[str, str]) -> str:
    """Return a sentence on the baseline, the first architecture that the study lists; empty if it lists none."""
    names = evidence.study.settings.get("search", {}).get("architectures") or ()
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
