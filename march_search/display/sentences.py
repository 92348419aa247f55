"""Write the notes that explain a ranking, in sentences, for tables, Markdown and the report."""

import math

from march_search.analysis.early_order import EarlyOrder, enough
from march_search.analysis.evidence import Evidence
from march_search.analysis.further_seeds import MOST
from march_search.analysis.noise import SeedNoise
from march_search.analysis.ranking import Ranking
from march_search.analysis.regime import FARTHEST, NEAR_GAIN, NEAR_NATS, Regime
from march_search.analysis.study_record import StudyRecord
from march_search.display.tables import si


def loss_notes(study: StudyRecord) -> list[str]:
    """Return notes on the losses and on those of n-gram models."""
    is_text = any(trial.architecture.structure == "decoder-only" for trial in study.trials)
    lines = ["loss: nats per token of text. Decoder-only models have no separate input, so there is no context gain."]
    if not is_text:
        lines = [
            "loss: nats per target token. "
            "gain: loss with another document's input minus loss; 0 means that the input is not used."
        ]
    key, where = ("text", "this text") if is_text else ("target", "these targets")
    unigram, bigram = (study.reference.get(f"{key}_{model}_nats") for model in ("unigram", "bigram"))
    if unigram is not None:
        pairs = "" if bigram is None else f", a bigram model (token pairs) of {bigram:.3f}"
        lines.append(f"A unigram model (token frequencies) has a loss of {unigram:.3f} on {where}{pairs}.")
    return lines


def noise_notes(ranking: Ranking) -> list[str]:
    """Return notes on the noise and on how to read ties, probabilities and further seeds."""
    if len(ranking.pooled) < 2:
        return []
    lines = [_training_noise(ranking.seeds)]
    if ranking.documents is None:
        lines.append("Data noise: not measured, because losses per validation example are missing.")
    else:
        widest = max((row["data_deviation_to_best"] or 0.0) for row in ranking.rows)
        lines.append(
            f"Data noise: losses are paired on the same {ranking.documents.kind}; the standard deviation of a "
            f"difference to the best is at most {widest:.4f} nats."
        )
    if ranking.comparison:
        lines.append(
            "ties: architectures that share a letter are not separated (both noises, 5% over all pairs). best: "
            "probability of being the best."
        )
    if ranking.seeds:
        lines.append(
            "+seeds: further seeds of both that would separate an architecture from the next (5%, 80% power, that "
            f"pair only); >{MOST}: more, or impossible with so few documents."
        )
    return lines


def _training_noise(seeds: SeedNoise | None) -> str:
    """Return a note on the source of the training noise."""
    if seeds is None:
        return "Training noise: left out. With one seed each, ties and probabilities cover data noise only."
    several = sum(seeds.is_measured)
    measured = f"{several} of {len(seeds.is_measured)} architectures have several seeds" if several else "One seed each"
    return (
        f"Training noise: ± is the 95% interval of the mean over seeds. {measured}; the variance of each is combined "
        f"with a prior, from {seeds.source}. Change it with --seed-noise NATS or none."
    )


def gain_note(ranking: Ranking, decay: str) -> str:
    """Return a note on the compute-equivalent gain; empty if no row has one."""
    if ranking.reference is None or all(row["compute_equivalent_gain"] is None for row in ranking.rows):
        return ""
    slope = "" if ranking.slope is None else f" (its loss falls by {ranking.slope:.3f} nats per e-fold of tokens)"
    return (
        f"CEG: compute that {ranking.reference.architecture.name}{slope} would need for the same loss, divided by the "
        "compute used."
        + (f" The learning rate decays ({decay}), so the slope is too steep and gains are too near 1." if decay else "")
    )


def rung_note(found: tuple[EarlyOrder, ...], tolerance: float) -> str:
    """Return a note on the first evaluation that would have been enough; empty without evaluations to compare."""
    if not found:
        return ""
    first, soon = found[0], enough(found, tolerance)
    line = (
        f"Early order: after {first.share:.0%} of the tokens, the rank correlation with the final order was "
        f"{first.kendall:.2f} (Kendall) and {first.spearman:.2f} (Spearman)"
    )
    if soon is None:
        return line + "; no evaluation before the last had a leader as good as the final one."
    return line + f"; from {soon.share:.0%} on, the leader was the final one or within {tolerance:.3f} nats of it."


def edge_note(ranking: Ranking) -> str:
    """Return a note on architectures whose best learning rate is at an end of the list; empty if there are none."""
    edges = [row for row in ranking.rows if row["learning_rate_edge"]]
    if not edges:
        return ""
    names = ", ".join(row["name"] for row in edges[:3]) + (f" and {len(edges) - 3} more" if len(edges) > 3 else "")
    return f"rate!: at the edge of the list of learning rates; a rate beyond it may be better ({names})."


def regime_sentences(evidence: Evidence) -> tuple[str, ...]:
    """Return the regime that the ranking describes, in sentences; none for a study without a complete trial."""
    found, many, decay = evidence.regime, len(evidence.ranking.pooled), evidence.study.decay
    sentences: list[str] = []
    if found is None:
        return ()
    if found.near_ngrams:
        assert found.bigram is not None
        where = "above" if found.leader_loss > found.bigram else f"less than {NEAR_NATS:g} nats below"
        sentences.append(
            f"Regime: n-grams. The best loss, {found.leader_loss:.3f}, is {where} that of a bigram model "
            f"({found.bigram:.3f}). This ranking shows which architecture learns n-grams fastest, not which is best "
            f"after longer training. {_budget(found, decay)}"
        )
    if found.input_unused:
        assert found.leader_gain is not None
        noise = "" if found.gain_noise is None else f"; its noise is {found.gain_noise:.3f}"
        limit = max(NEAR_GAIN, 2 * (found.gain_noise or 0))
        budget = "" if found.near_ngrams else " These curves do not show how much more training is needed."
        sentences.append(
            f"Regime: the input is hardly used. The leader's context gain is {found.leader_gain:.3f} (below "
            f"{limit:.2f} counts as zero{noise}). Differences in heads, encoder or cross-attention mean nothing yet."
            f"{budget}"
        )
    if found.crossings:
        pairs = many * (many - 1) // 2
        split = f", {found.separated_crossings} of them separated at the end" if found.separated_crossings else ""
        sentences.append(
            f"Curves still cross: {len(found.crossings)} of {pairs} pairs changed places in the last third of training"
            f"{split}. A longer budget may change the order."
        )
    return tuple(sentences)


def _budget(found: Regime, decay: str) -> str:
    """Return a sentence on the data budget at which the n-gram regime ends."""
    if found.tokens_to_leave is None:
        return "These curves do not show how much more training is needed."
    low, middle, high = found.tokens_to_leave
    upper = si(high) if math.isfinite(high) else f"more than {FARTHEST:.0f} times the tokens trained"
    rough = f"; a rough estimate, because the learning rate decays ({decay})" if decay else ""
    return f"The leader should leave this regime after about {si(middle)} tokens (95%: {si(low)} to {upper}){rough}."


def notes(evidence: Evidence) -> list[str]:
    """Return the notes that explain a ranking; the regime has separate sentences."""
    study, ranking = evidence.study, evidence.ranking
    tolerance = ranking.seeds.deviations[0] if ranking.seeds and ranking.pooled else 0.0
    optional = gain_note(ranking, study.decay), rung_note(evidence.early_orders, tolerance), edge_note(ranking)
    return [*study.notes, *loss_notes(study), *noise_notes(ranking), *filter(None, optional)]
