"""Rank the architectures of a study by loss, with ties and uncertainty; list all other trials separately.

Losses are compared only after equally many tokens. Complete architectures are ranked first. Those that were stopped, or
wait, follow by the point that they reached, and are compared among themselves there.
"""

from dataclasses import dataclass
from typing import Any

from march_search.analysis.comparison import Comparison
from march_search.analysis.documents import Documents
from march_search.analysis.gain import LocalLaw, local_law
from march_search.analysis.level import Level, complete_architectures, study_levels
from march_search.analysis.noise import DataNoise, SeedNoise
from march_search.analysis.pooling import Pooled
from march_search.analysis.ranking_rows import level_rows, other_rows
from march_search.analysis.study_record import StudyRecord, TrialRecord
from march_search.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Architectures of a study, ranked and compared."""

    levels: tuple[Level, ...]
    """Complete architectures, then those stopped or waiting, by falling tokens; empty if nothing can be compared."""
    rows: tuple[dict[str, Any], ...]
    """One row per architecture of every level, for tables, JSON and CSV."""
    others: tuple[dict[str, Any], ...]
    """Trials without a rank, each with its reason."""
    reference: Pooled | None
    """Architecture of the first trial on the first level, whose compute-equivalent gain is 1."""
    law: LocalLaw | None
    """Law of the reference's loss near its end, for the compute-equivalent gain; None with too few evaluations."""

    @property
    def slope(self) -> float | None:
        """Drop in the reference's loss at its end, in nats per e-fold of tokens."""
        return self.law.slope if self.law else None

    @property
    def pooled(self) -> tuple[Pooled, ...]:
        """Architectures of the first level, best first."""
        return self.levels[0].pooled if self.levels else ()

    @property
    def first_rows(self) -> tuple[dict[str, Any], ...]:
        """Rows of the first level, in the order of `pooled`; only these losses may be compared with each other."""
        return self.rows[: len(self.pooled)]

    @property
    def num_rates(self) -> tuple[int, int]:
        """Fewest and most learning rates that an architecture was tried at; equal if all had the same chance."""
        counts = [p.num_rates for level in self.levels for p in level.pooled]
        return min(counts, default=0), max(counts, default=0)

    @property
    def seeds(self) -> SeedNoise | None:
        """Training noise of each architecture of the first level."""
        return self.levels[0].seeds if self.levels else None

    @property
    def data(self) -> DataNoise | None:
        """Data noise of the first level."""
        return self.levels[0].data if self.levels else None

    @property
    def documents(self) -> Documents | None:
        """Documents of the first level."""
        return self.levels[0].documents if self.levels else None

    @property
    def comparison(self) -> Comparison | None:
        """Comparison of the first level."""
        return self.levels[0].comparison if self.levels else None


def rank(study: StudyRecord, assumed: float | None = None, with_seed_noise: bool = True) -> Ranking:
    """Rank a study.

    Args:
        study: The study.
        assumed: Deviation over seeds of every architecture's prior, in nats; None for the recorded priors.
        with_seed_noise: Whether ties and probabilities cover the choice of seeds.
    """
    levels = study_levels(study, assumed, with_seed_noise)
    first = levels[0].pooled if levels else ()
    reference = min(first, key=lambda p: min(t.number for t in p.trials)) if first else None
    rows: list[dict[str, Any]] = []
    for level in levels:
        rows += level_rows(level, reference, rows)
    return Ranking(
        levels=levels,
        rows=tuple(rows),
        others=tuple(other_rows(study, [t.number for level in levels for p in level.pooled for t in p.trials])),
        reference=reference,
        law=local_law(reference.curve, reference.trials[0].config.training.warmup_tokens) if reference else None,
    )


def find_trial(study: StudyRecord, text: str) -> TrialRecord:
    """Return the trial given by `text`: `best`, the name of its architecture, or its number.

    `best` is the trial of the best complete architecture with the lowest loss.

    Raises:
        UsageError: If no trial of the study matches, or more than one.
    """
    if text == "best":
        pooled = complete_architectures(study)
        if not pooled:
            raise UsageError(f"{study.name} has no complete trial, so there is no best trial yet; use a trial number.")
        return pooled[0].best_trial
    matches = [t for t in study.trials if text in (str(t.number), t.architecture.name)]
    if len(matches) == 1:
        return matches[0]
    numbers = ", ".join(str(t.number) for t in matches or study.trials)
    if matches:
        raise UsageError(f"{study.name} has several trials of {text}; use a trial number ({numbers}).")
    for damaged in study.damaged:
        if text in (str(damaged.number), damaged.architecture):
            raise UsageError(f"{study.name}: trial {damaged.number} is damaged: {damaged.reason}")
    if not study.trials:
        raise UsageError(f'{study.name} has no trial "{text}": none of its trials can be read.')
    raise UsageError(
        f'{study.name} has no trial "{text}"; use best, an architecture name or a trial number ({numbers}).'
    )
