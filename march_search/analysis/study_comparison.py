"""Compare two studies: the loss of each architecture that both trained, and how far they agree on the order.

A difference of losses has the seed noise of both studies and, if both recorded the losses of the same validation
examples, the paired noise of the documents. It needs the same text, tokenizer and examples; orders do not.

How far two orders agree is counted over pairs of architectures. Pairs that noise hides in either study may lie either
way. The interval of a count therefore runs from all of them against to all of them in favour. A pair is hidden unless
both studies separate it, each at half of the error over all pairs (`comparison.py`), so that the interval holds with a
probability of at least `CONFIDENCE`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from march_search.analysis.comparison import CONFIDENCE, Interval, difference_variance, holm, two_sided
from march_search.analysis.documents import example_losses, read_documents
from march_search.analysis.evidence import Evidence
from march_search.analysis.noise import DataNoise, data_noise, seed_noise
from march_search.analysis.pooling import Pooled
from march_search.analysis.study_record import StudyRecord
from march_search.architecture.architecture import Architecture
from march_search.config import StudyConfig
from march_search.config.changes import filled
from march_search.data.store import Store
from march_search.errors import DataError

IMMATERIAL = {"hub_revision", "bad_row_tolerance", "text_column"}
"""Settings of `[data]` that say where text comes from; the token stores show whether the text is the same."""

UNCOMPARED = {"architectures", "description", "question", "answer", "storage", "heartbeat_seconds"}
"""Settings that do not change what is trained, and the list of candidates, which the table of architectures shows."""

SHOWN_ENTRIES = 4
"""Number of entries of a list that are shown."""


@dataclass(frozen=True, kw_only=True)
class ShapeDifference:
    """One architecture that both studies trained furthest."""

    architecture: Architecture
    losses: tuple[float, float]
    """Mean loss in each study."""
    seeds: tuple[int, int]
    """Number of seeds in each study."""
    ranks: tuple[int, int]
    """Rank in each study among the architectures that both have, from 1."""
    difference: float | None
    """Loss in the second study minus that in the first, in nats; None if losses cannot be compared."""
    interval: Interval | None
    """Its interval over seeds, and over documents where they were recorded."""
    p: float | None
    """p-value of the difference, after Holm's correction over the architectures."""


@dataclass(frozen=True, kw_only=True)
class OrderAgreement:
    """How far two studies agree on the order of the architectures that both have."""

    pairs: int
    agreeing: int
    """Pairs that have the same order in both."""
    separated: int
    """Pairs that both studies separate from noise."""
    reversals: tuple[tuple[Architecture, Architecture], ...]
    """Pairs that both separate, but in opposite orders; the one that is better in the first study comes first."""
    kendall: float | None
    """Rank correlation (Kendall's tau-b); None with fewer than three architectures, or equal losses."""
    accuracy_interval: Interval | None
    """Interval of the share of pairs that agree; None if no noise is known."""
    kendall_interval: Interval | None
    """Interval of the rank correlation."""

    @property
    def accuracy(self) -> float:
        """Share of pairs that agree."""
        return self.agreeing / self.pairs


@dataclass(frozen=True, kw_only=True)
class StudyComparison:
    """What two studies have in common."""

    first: Evidence
    second: Evidence
    faults: tuple[str, ...]
    """Why losses cannot be compared, one entry per difference; empty if they can."""
    shapes: tuple[ShapeDifference, ...]
    """Architectures that both trained furthest, in the order of the first study."""
    num_common: int
    """Number of architectures that both ranked, at any number of tokens."""
    order: OrderAgreement | None
    """None with fewer than two architectures in `shapes`."""


def compare_studies(first: Evidence, second: Evidence) -> StudyComparison:
    """Compare the architectures that two studies trained furthest."""
    faults = tuple(comparability_faults(first.study, second.study))
    own, other = ({p.architecture: p for p in evidence.ranking.pooled} for evidence in (first, second))
    common = [architecture for architecture in own if architecture in other]
    ranked = [{p.architecture for level in e.ranking.levels for p in level.pooled} for e in (first, second)]
    return StudyComparison(
        first=first,
        second=second,
        faults=faults,
        shapes=_differences([own[a] for a in common], [other[a] for a in common], not faults),
        num_common=len(ranked[0] & ranked[1]),
        order=_agreement(first, second, common) if len(common) > 1 else None,
    )


def comparability_faults(first: StudyRecord, second: StudyRecord) -> list[str]:
    """Return why losses of two studies cannot be compared: each setting of the data, and each file that differs."""
    data = [asdict(study.trials[0].config.data) if study.trials else {} for study in (first, second)]
    faults = [
        f"data.{key}: {' and '.join(_texts([side.get(key) for side in data]))}"
        for key in data[0]
        if key not in IMMATERIAL and data[0].get(key) != data[1].get(key)
    ]
    stores = [_store(study) for study in (first, second)]
    if stores[0] and stores[1]:
        hashes = [[shard["validation"]["sha256"] for shard in store.shards] for store in stores if store]
        if stores[0].tokenizer_sha256 != stores[1].tokenizer_sha256:
            faults.append("the tokenizers differ")
        elif hashes[0] != hashes[1]:
            faults.append("the validation texts differ")
    return faults


def setting_differences(studies: Sequence[StudyRecord]) -> list[tuple[str, tuple[str, ...]]]:
    """Return each setting that is not the same in all studies, by its dotted key, with its value in each."""
    defaults = asdict(StudyConfig(space=""))  # earlier versions did not record every setting
    flat = [_flat(filled(study.settings, defaults)) for study in studies]
    keys = sorted({key for values in flat for key in values if key.split(".")[0] not in UNCOMPARED})
    rows = [(key, [_whole(values.get(key, "not set")) for values in flat]) for key in keys]
    return [(key, _texts(values)) for key, values in rows if any(value != values[0] for value in values)]


def _differences(own: Sequence[Pooled], other: Sequence[Pooled], with_losses: bool) -> tuple[ShapeDifference, ...]:
    """Return the architectures of two studies, in the order of the first, with their differences."""
    ranks = [sorted(range(len(side)), key=[p.loss for p in side].__getitem__) for side in (own, other)]
    tested = [_difference(a, b) if with_losses else None for a, b in zip(own, other, strict=True)]
    adjusted_A = holm(np.array([found[2] for found in tested if found]))
    return tuple(
        ShapeDifference(
            architecture=a.architecture,
            losses=(a.loss, b.loss),
            seeds=(len(a.trials), len(b.trials)),
            ranks=(ranks[0].index(index) + 1, ranks[1].index(index) + 1),
            difference=found[0] if found else None,
            interval=found[1] if found else None,
            p=float(adjusted_A[index]) if found else None,
        )
        for index, (a, b, found) in enumerate(zip(own, other, tested, strict=True))
    )


def _difference(a: Pooled, b: Pooled) -> tuple[float, Interval, float]:
    """Return the difference of one architecture's losses in two studies, its interval and its p-value."""
    from scipy.special import stdtrit

    seeds = seed_noise([a.architecture, b.architecture], [a.losses, b.losses])
    counts = [len(a.trials), len(b.trials)]
    variance, degrees = difference_variance(0, 1, counts, seeds, _document_noise(a, b))
    difference, half = b.loss - a.loss, float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * variance**0.5
    p = float(two_sided(difference, variance, degrees))
    return difference, Interval(difference - half, difference + half), p


def _document_noise(a: Pooled, b: Pooled) -> DataNoise | None:
    """Return the noise of the documents that both read; None if their losses are not recorded alike."""
    losses = [example_losses(p.trials, p.tokens) for p in (a, b)]
    if losses[0] is None or losses[1] is None or len(losses[0]) != len(losses[1]):
        return None
    return data_noise(np.array(losses), read_documents(a.trials[0], len(losses[0])).numbers_N)


def _agreement(first: Evidence, second: Evidence, common: Sequence[Architecture]) -> OrderAgreement:
    """Count the pairs of architectures that two studies order alike."""
    from scipy.stats import kendalltau

    signs, is_known, losses = [], [], []
    for evidence in (first, second):
        index = {p.architecture: number for number, p in enumerate(evidence.ranking.pooled)}
        loss_A = np.array([evidence.ranking.pooled[index[a]].loss for a in common])
        losses.append(loss_A)
        signs.append([float(np.sign(loss_A[k] - loss_A[i])) for i, k in combinations(range(len(common)), 2)])
        test = evidence.ranking.comparison
        is_known.append(
            [
                test is not None and bool(test.adjusted_AA[index[a], index[b]] < (1 - CONFIDENCE) / 2)
                for a, b in combinations(common, 2)
            ]
        )
    pairs = list(combinations(common, 2))
    agrees = [a == b for a, b in zip(*signs, strict=True)]
    known = [a and b for a, b in zip(*is_known, strict=True)]
    kept = sum(same and sure for same, sure in zip(agrees, known, strict=True))
    low, high = kept / len(pairs), (kept + len(pairs) - sum(known)) / len(pairs)
    has_noise = first.ranking.comparison is not None and second.ranking.comparison is not None
    tau = float(kendalltau(*losses)[0]) if len(common) > 2 else float("nan")
    return OrderAgreement(
        pairs=len(pairs),
        agreeing=sum(agrees),
        separated=sum(known),
        reversals=tuple(
            (pair if sign > 0 else pair[::-1])
            for pair, sign, same, sure in zip(pairs, signs[0], agrees, known, strict=True)
            if sure and not same
        ),
        kendall=None if np.isnan(tau) else tau,
        accuracy_interval=Interval(low, high) if has_noise else None,
        kendall_interval=Interval(2 * low - 1, 2 * high - 1) if has_noise else None,
    )


def _store(study: StudyRecord) -> Store | None:
    """Return the token store of a study; None if it cannot be read."""
    try:
        return Store.read(study.trials[0].store)
    except (DataError, OSError, IndexError, KeyError):
        return None


def _flat(settings: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Return settings by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{where}{key}.")
        else:
            flat[f"{where}{key}"] = value
    return flat


def _whole(value: Any) -> Any:
    """Return a setting in the form in which it is compared: empty ones are None, and sequences are lists."""
    return None if value in ({}, [], ()) else list(value) if isinstance(value, tuple) else value


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    """Return the values of a setting as a person reads them; long lists of one length with the entries that differ."""
    texts = []
    for value in values:
        text, differing = _text(value), []
        if isinstance(value, list | tuple) and len(value) > SHOWN_ENTRIES:
            alike = [other for other in values if _text(other) == text]
            differing = [str(entry) for n, entry in enumerate(value) if any(other[n] != entry for other in alike)]
        texts.append(f"{text}, among them {', '.join(differing[:SHOWN_ENTRIES])}" if differing else text)
    return tuple(texts)


def _text(value: Any) -> str:
    """Return a setting as a person reads it."""
    if value is None or value in ({}, [], ()):
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) if len(value) <= SHOWN_ENTRIES else f"{len(value)} entries"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
