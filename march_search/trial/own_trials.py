"""Find the trials that a study itself wrote in its folder. Whatever else lies there never counts as a result."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from march_search.config import TrialConfig
from march_search.errors import MarchSearchError, StorageError
from march_search.files.atomic import one_line
from march_search.files.json_tables import read_json
from march_search.trial.settings import SETTINGS, read_settings

_NAME = re.compile(r"(\d{4,})-(L\d.*)-s(\d+)(?:-lr([0-9.e+-]+))?", re.ASCII)


def trial_name(number: int, architecture: str, seed: int, learning_rate: float | None = None) -> str:
    """Return the name of a trial's folder; `learning_rate` is None for the study's own."""
    rate = "" if learning_rate is None else f"-lr{learning_rate:g}"
    return f"{number:04d}-{architecture}-s{seed}{rate}"


@dataclass(frozen=True)
class OwnTrial:
    """A trial of a study."""

    folder: Path
    number: int
    """Trial number in Optuna."""
    config: TrialConfig


@dataclass(frozen=True, kw_only=True)
class DamagedTrial:
    """A trial of a study with a damaged file, as far as the name of its folder tells."""

    folder: Path
    number: int
    """Trial number in Optuna."""
    architecture: str
    seed: int
    reason: str
    """The file and its fault, in one line."""


@dataclass
class FoundTrials:
    """Content of the folder `trials` of a study."""

    trials: list[OwnTrial] = field(default_factory=list)
    """The study's own trials, by number."""
    damaged: list[DamagedTrial] = field(default_factory=list)
    """Its trials whose trial.json is damaged or missing."""
    strays: list[str] = field(default_factory=list)
    """Everything else, as the name and the reason."""

    @property
    def notes(self) -> list[str]:
        """A sentence that names the strays; none if there are none."""
        if not self.strays:
            return []
        more = f"; and {len(self.strays) - 5} more" if len(self.strays) > 5 else ""
        return [f"Ignored in trials/, because this study did not write it: {'; '.join(self.strays[:5])}{more}."]


def find_trials(study: Path) -> FoundTrials:
    """Return the trials in the folder of a study, and name what is none of them.

    Raises:
        StorageError: If the folder cannot be read.
    """
    found, identity = FoundTrials(), study_id(study)
    for path in _entries(study / "trials"):
        name = _NAME.fullmatch(path.name)
        if name is None or not path.is_dir():
            found.strays.append(f"{path.name} (not a trial's folder)")
        else:
            _add(found, path, name, identity)
    _drop_second(found)
    return found


def _add(found: FoundTrials, path: Path, name: "re.Match[str]", identity: str | None) -> None:
    """Add the folder `path` to `found`."""
    number, damage = int(name[1]), ""
    try:
        config = read_settings(path)
    except MarchSearchError as error:
        if not (path / SETTINGS).exists() and not (path / "metrics.jsonl").exists():
            return  # the worker was killed before it wrote trial.json
        damage = f"{one_line(error)}."
    else:
        fault = foreign(path, config, identity)
        if not fault:
            found.trials.append(OwnTrial(path, number, config))
            return
        if config.number != number or config.study != identity:
            found.strays.append(f"{path.name} ({fault})")
            return
        damage = f"{path / SETTINGS}: does not match the name of its folder, so it was changed."
    found.damaged.append(
        DamagedTrial(folder=path, number=number, architecture=name[2], seed=int(name[3]), reason=damage)
    )


def foreign(folder: Path, config: TrialConfig, identity: str | None) -> str:
    """Return why a folder is not that of the trial in its trial.json; empty if it is.

    Args:
        folder: Trial folder.
        config: Settings in its trial.json.
        identity: ID of the study; None if it is not known.
    """
    number = folder.name.partition("-")[0]
    if not number.isdecimal():
        return "not a trial's folder"
    rates = (None, config.training.learning_rate)
    if folder.name not in [trial_name(int(number), config.architecture, config.seed, rate) for rate in rates]:
        return "its trial.json describes another trial"
    if config.number is not None and config.number != int(number):
        return f"a copy of trial {config.number}"
    if config.study is not None and identity is not None and config.study != identity:
        return "a trial of another study"
    return ""


def study_id(study: Path) -> str | None:
    """Return the ID in the study.json of the folder `study`; None if there is none."""
    record = read_json(study / "study.json")
    identity = record.get("id") if isinstance(record, dict) else None
    return identity if isinstance(identity, str) else None


def _entries(folder: Path) -> Iterator[Path]:
    """Yield what is in a folder, except hidden files, by name; raise StorageError if it cannot be read."""
    try:
        yield from sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read: {error.strerror}.") from None


def _drop_second(found: FoundTrials) -> None:
    """Remove trials whose number another trial has, because at most one of them is the study's own."""
    numbers = [trial.number for trial in found.trials]
    twice = {number for number in numbers if numbers.count(number) > 1}
    for trial in [trial for trial in found.trials if trial.number in twice]:
        if trial.config.number is None:  # with its number in trial.json, it is the study's own
            found.trials.remove(trial)
            found.strays.append(f"{trial.folder.name} (several folders have the number {trial.number})")
    own = {trial.number for trial in found.trials}
    for damaged in [damaged for damaged in found.damaged if damaged.number in own]:
        found.damaged.remove(damaged)
        found.strays.append(f"{damaged.folder.name} (several folders have the number {damaged.number})")
    found.trials.sort(key=lambda trial: trial.number)
