"""Learning curves of the trials of a study, or of the studies of a ladder, as a table that `replay` reads."""

from dataclasses import replace
from pathlib import Path

from march_search.analysis.study_record import StudyRecord, TrialRecord
from march_search.architecture.flops import flops_per_token
from march_search.errors import ConfigError, UsageError
from march_search.ladders.ladder_record import LadderRecord, arm_trials, carried_rate, is_finished, size_study
from march_search.replay.learning_curves import Curve, LearningCurves

UNIT = "nats per target token"


def study_curves(study: StudyRecord) -> LearningCurves:
    """Return the curves of the complete trials of a study; other trials are omitted.

    Raises:
        ConfigError: If fewer than two trials are complete.
    """
    runs = tuple(_run(trial) for trial in study.trials if trial.state == "complete")
    source = f"march-search study {study.name}: {len(runs)} of {len(study.trials)} trials are complete."
    return _table(study.name, source, runs)


def ladder_study_curves(ladder: LadderRecord, root: Path) -> LearningCurves:
    """Return the curves of a ladder: all complete trials at the carried learning rate, of every finished size and arm.

    A size that is still trained is left out, because its arms that have not ended would count as missing.

    Args:
        ladder: The ladder.
        root: Folder of its studies.

    Raises:
        ConfigError: If fewer than two arms have a complete trial at every finished size.
        UsageError: If no size is finished.
    """
    studies = [size_study(ladder, size, root) for size in ladder.sizes]
    rate = carried_rate(ladder, studies)
    done = [(size, study) for size, study in zip(ladder.sizes, studies, strict=True) if study and is_finished(study)]
    if rate is None or not done:
        raise UsageError(f"{ladder.name} has no finished size yet: run march-search study run {ladder.name}.")
    runs: list[Curve] = []
    for size, study in done:
        own = arm_trials(study, size.architectures, rate)
        for arm, shape in zip(ladder.arms, size.architectures, strict=True):
            runs += [
                replace(_run(trial), name=f"{size.size}-{arm}-s{trial.seed}", family=arm, arm=arm, size=size.size)
                for trial in own.get(shape.name, ())
            ]
    sizes = ", ".join(dict.fromkeys(run.size or "" for run in runs))
    source = f"march-search ladder {ladder.name}: {len(runs)} complete trials at {sizes}, learning rate {rate:g}."
    return _table(ladder.name, source, tuple(runs))


def _table(name: str, source: str, runs: tuple[Curve, ...]) -> LearningCurves:
    """Return a table of curves.

    Raises:
        ConfigError: If it has too few; the message begins with the study's name.
    """
    try:
        return LearningCurves(2, source, UNIT, runs)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _run(trial: TrialRecord) -> Curve:
    """Convert a complete trial to a run."""
    data = trial.config.data
    return Curve(
        name=f"{trial.number}-{trial.architecture.name}",
        evaluations=tuple(sorted(trial.curve.items())),
        architecture=trial.architecture.name,
        seed=trial.seed,
        num_params=trial.architecture.num_params,
        tokens_per_second=trial.tokens_per_second,
        flops_per_token=float(
            flops_per_token(trial.architecture, data.sequence_length, data.noise_density, data.mean_span_length)
        ),
    )
