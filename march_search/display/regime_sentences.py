"""Describe the regime of a ranking in sentences, and what is known about orders measured in it."""

from march_search.analysis.evidence import Evidence
from march_search.analysis.regime import NEAR_NATS, Regime

RECORDED = (
    "On recorded runs, most pairs kept their order from such a point on, but differences halved: of the 300 pairs of "
    "the 2023 study, 93% kept it from 30% of the tokens to the end, and differences above 0.05 nats fell to 53% in the "
    "median; of 204 pairs in studies/results whose models did not use their input yet, 82% kept it over five times the "
    "tokens, and differences fell to 54%."
)
"""What recorded runs say about orders taken early (`benchmarks/horizon.py`)."""


def regime_sentences(evidence: Evidence) -> tuple[str, ...]:
    """Return the regime that the ranking describes, in sentences; none for a study without a ranked architecture."""
    return tuple(f"{text} {more}".strip() for text, more in regime_notes(evidence))


def regime_notes(evidence: Evidence) -> list[tuple[str, str]]:
    """Return (note, details) pairs on the regime that the ranking describes, the most important first."""
    found = evidence.regime
    if found is None:
        return []
    is_text = evidence.ranking.pooled[0].architecture.structure == "decoder-only"
    notes = [*_ngrams(found), *_unused(found, "context" if is_text else "input")]
    if notes:
        notes[-1] = notes[-1][0], f"{notes[-1][1]} {RECORDED}"
    if found.crossings:
        pairs = found.num_compared * (found.num_compared - 1) // 2
        split = f"; {found.separated_crossings} of them are separated at the end" if found.separated_crossings else ""
        text = f"Curves still cross: {len(found.crossings)} of {pairs} pairs changed places in the last third."
        notes.append((text, f"That is, of training{split}. A longer budget may change the order."))
    return notes


def _ngrams(found: Regime) -> list[tuple[str, str]]:
    """Return at most one note: how many architectures do not beat a bigram model."""
    if not found.num_near_ngrams or found.bigram is None:
        return []
    who, are = _who(found.num_near_ngrams, found.num_compared), "is" if found.num_compared == 1 else "are"
    return [(
        f"Regime: n-grams. {who} {are} near or above a bigram model's loss.",
        f"Near: less than {NEAR_NATS:g} nats below {found.bigram:.3f}; the lowest loss is {found.losses[0]:.3f}. The "
        "order so far is that of learning n-grams.",
    )]  # fmt: skip


def _unused(found: Regime, context: str) -> list[tuple[str, str]]:
    """Return at most one note: how many architectures do not use their context yet."""
    if not found.num_unused or found.gains is None:
        return []
    (low, high), total = found.gains, found.num_measured
    gains = f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f} to {high:.3f}"
    noise = "" if found.gain_noise is None else f"; its noise is {found.gain_noise:.3f}"
    parts = "encoder and cross-attention" if context == "input" else "attention to distant text"
    if found.num_unused == total:
        verb = "does" if total == 1 else "do"
        text = f"Regime: the {context} is hardly used. {_who(total, total)} {verb} not use it yet."
    else:
        verb = "uses its" if found.num_unused == 1 else "use their"
        text = f"Regime: {_who(found.num_unused, total)} hardly {verb} {context} yet."
    return [(
        text,
        f"The context gain is {gains}; below {found.gain_limit:.2f} counts as zero{noise}. Differences in {parts} were "
        f"not put to the test{'' if found.num_unused == total else ' there'}.",
    )]  # fmt: skip


def _who(count: int, total: int) -> str:
    """Return `All 4 architectures`, `3 of 4 architectures` or `The architecture`."""
    if total == 1:
        return "The architecture"
    return f"All {total} architectures" if count == total else f"{count} of {total} architectures"
