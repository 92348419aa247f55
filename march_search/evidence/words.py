"""Write the notes that explain a ranking, in sentences, for tables, Markdown and the report."""

from march_search.evidence.noise import SeedNoise
from march_search.evidence.power import MOST
from march_search.evidence.ranking import Ranking
from march_search.evidence.rungs import Rung, enough
from march_search.evidence.trials import StudyRecord


def loss_notes(study: StudyRecord) -> list[str]:
    """Return notes on the losses and on those of n-gram models."""
    is_text = study.trials[0].architecture.structure == "decoder-only"
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
            "ties: architectures that share a letter are not separated (both noises, all pairs at 5 % by Holm's "
            "method). best: probability of being the best."
        )
    if ranking.seeds:
        lines.append(
            "+seeds: further seeds of both that would separate an architecture from the next (5 %, 80 % power, that "
            f"pair only); >{MOST}: more, or impossible with so few documents."
        )
    return lines


def _training_noise(seeds: SeedNoise | None) -> str:
    """Return a note on the source of the training noise."""
    if seeds is None:
        return "Training noise: left out. With one seed each, ties and probabilities cover data noise only."
    if seeds.is_measured:
        unequal = (
            " Some architectures vary more with the seed than others (Bartlett's test, p < 0.01): ± is too narrow for "
            "those and too wide for the rest."
            if seeds.equal_chance < 0.01
            else ""
        )
        return (
            f"Training noise: ± is the 95 % interval of the mean over seeds (t, {_freedom(seeds)}, "
            f"standard deviation {seeds.deviation:.4f} nats, {seeds.source}).{unequal}"
        )
    return (
        "One seed each: training noise was not measured, so there is no ±. ASSUMED for ties and probabilities: a "
        f"standard deviation of {seeds.deviation:g} nats, {seeds.source}. Small or short runs may vary more; change it "
        "with --seed-noise NATS or none."
    )


def _freedom(seeds: SeedNoise) -> str:
    """Return `1 degree of freedom` or `8 degrees of freedom`."""
    return f"{seeds.degrees:.0f} degree{'s' * (seeds.degrees != 1)} of freedom"


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


def rung_note(found: tuple[Rung, ...], tolerance: float) -> str:
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


def notes(study: StudyRecord, ranking: Ranking, found: tuple[Rung, ...]) -> list[str]:
    """Return all notes; the regime has separate sentences."""
    tolerance = ranking.seeds.deviation if ranking.seeds else 0.0
    lines = [*loss_notes(study), *noise_notes(ranking)]
    return [*lines, *filter(None, (gain_note(ranking, study.decay), rung_note(found, tolerance), edge_note(ranking)))]
