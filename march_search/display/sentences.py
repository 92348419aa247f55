"""Write the notes that explain a ranking, in sentences, for tables, Markdown and the report."""

from march_search.analysis.early_order import EarlyOrder, enough
from march_search.analysis.evidence import Evidence
from march_search.analysis.further_seeds import MOST
from march_search.analysis.noise import SeedNoise
from march_search.analysis.ranking import Ranking
from march_search.analysis.study_record import StudyRecord


def explanation(evidence: Evidence) -> list[str]:
    """Return what the columns of a ranking mean and how its figures come about, one paragraph per figure."""
    study, ranking = evidence.study, evidence.ranking
    tolerance = ranking.seeds.deviations[0] if ranking.seeds and ranking.pooled else 0.0
    optional = (
        rate_correction_note(ranking),
        gain_note(ranking, study.decay),
        rung_note(evidence.early_orders, tolerance),
    )
    return [*loss_notes(study), *noise_notes(ranking), *filter(None, optional), SPEED]


SPEED = (
    "tokens/s: median over the log lines of a trial, then over seeds. ~: trials ran beside others on the same machine, "
    "or the seeds differ by over 10%."
)


def loss_unit(study: StudyRecord) -> str:
    """Return the unit in which the losses of a study are counted: `target token`, or `token of text`."""
    is_text = any(trial.architecture.structure == "decoder-only" for trial in study.trials)
    return "token of text" if is_text else "target token"


def loss_notes(study: StudyRecord) -> list[str]:
    """Return notes on the losses and on those of n-gram models."""
    unit = loss_unit(study)
    key, where = ("text", "this text") if unit == "token of text" else ("target", "these targets")
    gain = "loss with another document's input minus loss; 0: the input is not used."
    if key == "text":
        gain = "loss with all but the last few tokens of context cut off minus loss; 0: no more than these are used."
    lines = [f"loss: nats per {unit}, mean over seeds.", f"context gain: {gain}"]
    factor = study.reference.get(f"{key}_bits_per_nat")
    if any(trial.bits_per_byte is not None for trial in study.trials):
        text = "the text" if key == "text" else "the text that the targets spell"
        lines.insert(1, f"bits/byte: the same loss per byte of {text}, which does not depend on the vocabulary.")
    unigram, bigram = (study.reference.get(f"{key}_{model}_nats") for model in ("unigram", "bigram"))

    def loss(nats: float) -> str:
        return f"{nats:.3f}" + ("" if factor is None else f" ({nats * factor:.3f} bits/byte)")

    if unigram is not None:
        pairs = "" if bigram is None else f", a bigram model (token pairs) of {loss(bigram)}"
        lines.append(f"A unigram model (token frequencies) has a loss of {loss(unigram)} on {where}{pairs}.")
    return lines


def noise_notes(ranking: Ranking) -> list[str]:
    """Return notes on the noise and on how to read ties, probabilities and further seeds."""
    if len(ranking.rows) < 2:
        return []
    lines = [_training_noise(ranking.seeds)]
    if ranking.documents is None:
        lines.append("Data noise: not measured, because losses per validation example are missing.")
    else:
        widest = max((row["data_deviation_to_best"] or 0.0) for row in ranking.first_rows)
        lines.append(
            f"Data noise: losses are paired on the same {ranking.documents.kind}; the standard deviation of a "
            f"difference to the best is at most {widest:.4f} nats."
        )
    if ranking.comparison:
        lines.append(
            "ties: architectures that share a letter are not separated (both noises, 5% over all pairs of a level). "
            "P(best): probability of being the best of those trained furthest."
        )
    if ranking.seeds:
        lines.append(
            "+seeds: further seeds of both that would separate an architecture from the next (5%, 80% power, that "
            f"pair only), over the interval of their difference. 4+: 4 to over {MOST}. >{MOST}: more, or impossible "
            "with so few documents."
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
        f"with a prior, from {seeds.source}. A figure with ? rests on the prior alone; --seed-noise changes it."
    )


def gain_note(ranking: Ranking, decay: str) -> str:
    """Return a note on the compute-equivalent gain; empty if no row has one."""
    if ranking.reference is None or all(row["compute_equivalent_gain"] is None for row in ranking.rows):
        return ""
    slope = "" if ranking.slope is None else f" (its loss falls by {ranking.slope:.3f} nats per e-fold of tokens)"
    return (
        f"CEG: compute that {ranking.reference.architecture.name}{slope} would need for the same loss, divided by the "
        "compute used, with its 95% interval."
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


def rate_correction_note(ranking: Ranking) -> str:
    """Return a note on what the choice of the best of several learning rates does to losses; empty without one."""
    largest = max((row["rate_correction"] for row in ranking.rows), default=0.0)
    if not largest:
        return ""
    return (
        "The lowest of the losses at several learning rates is too low by chance. Losses are raised by what noise is "
        f"expected to lower them, at most {largest:.4f} nats."
    )
