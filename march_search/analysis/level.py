"""Compare architectures that were trained equally far: one level of a ranking."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from march_search.analysis.comparison import Comparison, compare
from march_search.analysis.documents import Documents, example_losses, read_documents
from march_search.analysis.noise import DataNoise, SeedNoise, data_noise, seed_noise
from march_search.analysis.pooling import Pooled, pool
from march_search.analysis.rate_bias import rate_corrections
from march_search.analysis.study_record import StudyRecord


@dataclass(frozen=True, kw_only=True)
class Level:
    """Architectures that were trained equally far, compared with each other."""

    tokens: int
    """Tokens at which they are compared."""
    is_final: bool
    """Whether their trials are complete."""
    pooled: tuple[Pooled, ...]
    """Architectures, best first; the fields below use the same order."""
    seeds: SeedNoise | None
    """Training noise of each architecture; None if it is left out."""
    data: DataNoise | None
    """Data noise at these tokens; None if it could not be measured."""
    documents: Documents | None
    """Documents over which data noise was measured."""
    comparison: Comparison | None
    """p-values and tie groups, on the first level also probabilities of being the best; None if no noise is known."""


def study_levels(study: StudyRecord, assumed: float | None = None, with_seed_noise: bool = True) -> tuple[Level, ...]:
    """Return the levels of a study: complete architectures, then the others by falling tokens.

    Args:
        study: The study.
        assumed: Deviation over seeds of every architecture's prior, in nats; None for the recorded priors.
        with_seed_noise: Whether ties and probabilities cover the choice of seeds.
    """
    groups = groupby(pool(study), key=lambda p: (p.is_final, p.tokens))
    own = [tuple(group) for _, group in groups]
    return tuple(_level(group, assumed, with_seed_noise, is_first=group is own[0]) for group in own)


def complete_architectures(study: StudyRecord) -> tuple[Pooled, ...]:
    """Return the architectures with a complete trial, best first."""
    pooled = tuple(p for p in pool(study) if p.is_final)
    return _corrected(pooled, _seed_noise(pooled, None)) if pooled else ()


def _level(pooled: tuple[Pooled, ...], assumed: float | None, with_seed_noise: bool, is_first: bool) -> Level:
    """Compare architectures that were trained equally far."""
    seeds = None
    if with_seed_noise:
        pooled = _corrected(pooled, _seed_noise(pooled, assumed))
        seeds = _seed_noise(pooled, assumed)
    data, documents = _data_noise(pooled)
    return Level(
        tokens=pooled[0].tokens,
        is_final=pooled[0].is_final,
        pooled=pooled,
        seeds=seeds,
        data=data,
        documents=documents,
        comparison=compare(
            [p.loss for p in pooled],
            [len(p.trials) for p in pooled],
            seeds,
            data,
            with_best=is_first and len(pooled) > 1,
        ),
    )


def _seed_noise(pooled: Sequence[Pooled], assumed: float | None) -> SeedNoise:
    """Return the seed noise of architectures, in their order."""
    return seed_noise([p.architecture for p in pooled], [p.losses for p in pooled], assumed)


def _corrected(pooled: Sequence[Pooled], seeds: SeedNoise) -> tuple[Pooled, ...]:
    """Return the architectures with their losses corrected for the choice of the learning rate, best first."""
    deviations = [d / math.sqrt(max(1, p.num_shared)) for p, d in zip(pooled, seeds.deviations, strict=True)]
    corrections = rate_corrections([p.shared_means for p in pooled], deviations)
    changed = [
        replace(p, rate_correction=correction * p.num_shared / len(p.trials))
        for p, correction in zip(pooled, corrections, strict=True)
    ]
    return tuple(sorted(changed, key=lambda p: (p.loss, p.trials[0].number)))


def _data_noise(pooled: Sequence[Pooled]) -> tuple[DataNoise | None, Documents | None]:
    """Estimate data noise over the validation documents, if every trial recorded its per-example losses."""
    losses = [example_losses(p.trials, p.tokens) for p in pooled]
    known = [values for values in losses if values is not None]
    if len(known) < max(2, len(pooled)) or len({len(values) for values in known}) > 1:
        return None, None
    documents = read_documents(pooled[0].trials[0], len(known[0]))
    return data_noise(np.array(known), documents.numbers_N), documents
