"""What a reader of a ranking has to know, in sentences: for the table, Markdown and the report."""

from march_search.evidence.noise import SeedNoise
from march_search.evidence.power import MOST
from march_search.evidence.ranking import Ranking
from march_search.evidence.rungs import Rung, enough
from march_search.evidence.trials import StudyRecord


def loss_notes(study: StudyRecord) -> list[str]:
    """What the losses are, and those of models that know less."""
    is_text = study.trials[0].architecture.structure == "decoder-only"
    lines = ["loss: nats per token of text; there is no input apart from it, and so no context gain."]
    if not is_text:
        lines = [
            "loss: nats per target token. "
            "gain: loss with another document's input minus loss; 0: the input is not used."
        ]
    key, where = ("text", "this text") if is_text else ("target", "these targets")
    unigram, bigram = (study.reference.get(f"{key}_{model}_nats") for model in ("unigram", "bigram"))
    if unigram is not None:
        pairs = "" if bigram is None else f", one that knows pairs of tokens {bigram:.3f}"
        lines.append(f"A model that knows only token frequencies has a loss of {unigram:.3f} on {where}{pairs}.")
    return lines


def noise_notes(ranking: Ranking) -> list[str]:
    """What noise the ranking knows of, and how ties, chances and further seeds are meant."""
    if len(ranking.pooled) < 2:
        return []
    lines = [_training_noise(ranking.seeds)]
    if ranking.documents is None:
        lines.append("Data noise: not measured (the losses of single validation examples are missing).")
    else:
        widest = max((row["data_deviation_to_best"] or 0.0) for row in ranking.rows)
        lines.append(
            f"Data noise: paired losses on the same {ranking.documents.kind}; deviations of the differences to "
            f"the best are up to {widest:.4f} nats."
        )
    if ranking.comparison:
        lines.append(
            "ties: who shares a letter is not separated (both noises, all pairs at 5 % by Holm's method). best: chance "
            "of being the best."
        )
    if ranking.seeds:
        lines.append(
            "+seeds: further seeds of each that would separate it from the next (5 %, 80 % power, that pair alone); "
            f">{MOST}: or never, on so few documents."
        )
    return lines


def _training_noise(seeds: SeedNoise | None) -> str:
    """Where the noise between seeds is known from."""
    if seeds is None:
        return "Training noise: left out. One seed each: ties and chances know the validation documents only."
    if seeds.is_measured:
        unequal = (
            " Some vary more than others with the seed (Bartlett's test, p < 0.01): for those that vary most, ± is too "
            "narrow, for the others too wide."
            if seeds.equal_chance < 0.01
            else ""
        )
        return (
            f"Training noise: ± is the 95 % interval of the mean of seeds (t, {_freedom(seeds)}, "
            f"deviation {seeds.deviation:.4f} nats, {seeds.source}).{unequal}"
        )
    return (
        f"One seed each: no ±, training noise was not measured. ASSUMED for ties and chances: {seeds.deviation:g} nats "
        f"a seed, {seeds.source}. Small or short runs may vary more; --seed-noise NATS or none changes it."
    )


def _freedom(seeds: SeedNoise) -> str:
    """`1 degree of freedom`, `8 degrees of freedom`."""
    return f"{seeds.degrees:.0f} degree{'s' * (seeds.degrees != 1)} of freedom"


def gain_note(ranking: Ranking, decay: str) -> str:
    """What the compute-equivalent gain is; empty if no row has one."""
    if ranking.reference is None or all(row["compute_equivalent_gain"] is None for row in ranking.rows):
        return ""
    slope = "" if ranking.slope is None else f", whose loss falls by {ranking.slope:.3f} nats per e-fold of tokens"
    return (
        f"CEG: compute that {ranking.reference.architecture.name}{slope}, would need for that loss, over the compute "
        "used." + (f" Its learning rate decays ({decay}): the slope is too steep, gains too near 1." if decay else "")
    )


def rung_note(found: tuple[Rung, ...], tolerance: float) -> str:
    """Which evaluation would have been enough; empty without evaluations to compare."""
    if not found:
        return ""
    first, soon = found[0], enough(found, tolerance)
    line = (
        f"Early order: after {first.share:.0%} of the tokens, rank correlation with the last was {first.kendall:.2f} "
        f"(Kendall), {first.spearman:.2f} (Spearman)"
    )
    if soon is None:
        return line + "; no evaluation before the last had a leader as good as the final one."
    return line + f"; from {soon.share:.0%} on the leader was the final one or within {tolerance:.3f} nats of it."


def edge_note(ranking: Ranking) -> str:
    """Architectures whose best learning rate is the last of the list; empty if none."""
    edges = [row for row in ranking.rows if row["learning_rate_edge"]]
    if not edges:
        return ""
    names = ", ".join(row["name"] for row in edges[:3]) + (f" and {len(edges) - 3} more" if len(edges) > 3 else "")
    return f"rate!: on the edge of the list of learning rates; a rate beyond it may be better ({names})."


def notes(study: StudyRecord, ranking: Ranking, found: tuple[Rung, ...]) -> list[str]:
    """All of it; the regime has sentences of its own."""
    tolerance = ranking.seeds.deviation if ranking.seeds else 0.0
    lines = [*loss_notes(study), *noise_notes(ranking)]
    return [*lines, *filter(None, (gain_note(ranking, study.decay), rung_note(found, tolerance), edge_note(ranking)))]
