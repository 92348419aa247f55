"""Choose the notes that matter for one study and order them by importance; the methods are in `sentences.py`."""

from collections.abc import Sequence
from dataclasses import dataclass

from march_search.analysis.evidence import Evidence
from march_search.analysis.ranking import Ranking
from march_search.analysis.shorter_budgets import branch_budgets
from march_search.display.regime_sentences import regime_notes
from march_search.units import plural, si

MOST = 5
"""Largest number of lines below the ranking on a terminal."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """Something about a study that its reader should know."""

    text: str
    """The note in one sentence or two."""
    more: str = ""
    """Details, shown with `--explain`."""
    is_warning: bool = False
    """Whether it limits what the ranking means."""

    @property
    def full(self) -> str:
        """The note with its details."""
        return f"{self.text} {self.more}".strip()


def study_notes(evidence: Evidence) -> list[Note]:
    """Return all notes on a study, the most important first.

    What limits the meaning of the whole order comes first (regime), then what is missing from it (damage), then what
    its uncertainty rests on (noise), then unequal treatment of the architectures (learning rates), then speed.
    """
    ranking, study = evidence.ranking, evidence.study
    warnings = [Note(text=text, more=more, is_warning=True) for text, more in regime_notes(evidence)]
    damage = [Note(text=text) for text in study.notes]
    rest = [_branch_note(evidence), _noise_note(ranking), *_rate_notes(evidence), _speed_note(evidence)]
    return [*warnings[:2], *damage[:1], *(note for note in rest if note), *warnings[2:], *damage[1:]]


def shown_notes(notes: Sequence[Note]) -> list[Note]:
    """Return at most `MOST` notes for a terminal; the last one tells what `--explain` adds."""
    shown = list(notes[: MOST - 1])
    left = len(notes) - len(shown)
    more = f"{plural(left, 'more note')}, the columns and the methods" if left else "The columns and the methods"
    return [*shown, Note(text=f"{more}: add --explain.")]


def _branch_note(evidence: Evidence) -> Note | None:
    """Return a note on the data budgets that decay branches give results at."""
    study = evidence.study
    if study.whole is not None:
        end = si(study.config.training.tokens)
        more = "Trials that were stopped before a branch keep the losses of their stable run."
        return Note(text=f"Results of decay branches; without --at, the ranking is that after {end} tokens.", more=more)
    budgets = branch_budgets(study)
    if not budgets:
        return None
    shown = ", ".join(si(tokens) for tokens in budgets)
    return Note(text=f"Decay branches give rankings at shorter budgets, too ({shown} tokens): add --at {budgets[0]:_}.")


def _noise_note(ranking: Ranking) -> Note | None:
    """Return a note if an interval rests on assumed noise, or if seed noise is left out."""
    rows = ranking.rows
    if not rows:
        return None
    if ranking.seeds is None:
        return Note(text="Seed noise is left out: ties and P(best) cover the choice of documents only.")
    assumed = sum(row["interval_kind"] == "assumed" for row in rows)
    if not assumed:
        return None
    if assumed == len(rows):
        return Note(text="One seed each: figures with ? rest on assumed seed noise, not on seeds.")
    return Note(text=f"{assumed} of {len(rows)} architectures have one seed: figures with ? assume seed noise.")


def _rate_notes(evidence: Evidence) -> list[Note]:
    """Return notes on learning rates: unequal effort, best rates at the edge of the list, and one rate for all."""
    ranking = evidence.ranking
    if not ranking.pooled:
        return []
    (fewest, most), training = ranking.num_rates, ranking.pooled[0].trials[0].config.training
    if most == 1:
        scaled = ", scaled by width and depth" if training.learning_rate_scaling == "width" else ""
        rate = f"{training.learning_rate:g}{scaled}"
        one = Note(text=f"One learning rate for all ({rate}): the order assumes that it suits all alike.")
        return [one] if len(ranking.rows) > 1 else []
    notes = []
    if fewest != most:
        text = f"Unequal effort: {fewest} to {most} learning rates each, and more tries find a better one."
        notes.append(Note(text=text, more="Compare those with equally many.", is_warning=True))
    edges = sum(bool(row["learning_rate_edge"]) for row in ranking.rows)
    if edges:
        text = f"rate!: at the edge of the list for {edges} of {len(ranking.rows)}; a rate beyond may be better."
        notes.append(Note(text=text))
    return notes


def _speed_note(evidence: Evidence) -> Note | None:
    """Return a note on speeds that other trials may have lowered, or that differ between seeds."""
    rows = [row for row in evidence.ranking.rows if row["speed_is_rough"]]
    if not rows:
        return None
    most = max(t.config.devices.parallel_trials for t in evidence.study.trials)
    why = f"up to {most} trials ran at a time" if most > 1 else "speeds of seeds differ by over 10%"
    more = "A slower neighbour may be the reason for a difference. Speeds are medians over log lines, then over seeds."
    return Note(text=f"tokens/s with ~ are rough: {why}.", more=more)
