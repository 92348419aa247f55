"""Name what is damaged in a trial's folder."""

from pathlib import Path

from march_search.errors import MarchSearchError
from march_search.files.atomic import one_line
from march_search.trial.metrics import read_metrics
from march_search.trial.outcome import read_outcome
from march_search.trial.result import read_result
from march_search.trial.settings import SETTINGS, changed_settings, changed_words, read_settings


def trial_faults(folder: Path) -> list[str]:
    """Return one line for each damaged file of the trial in `folder`; none for a trial that has not started."""
    if not (folder / SETTINGS).exists() and not (folder / "metrics.jsonl").exists():
        return []
    faults: list[str] = []
    try:
        config = read_settings(folder)
        if changes := changed_settings(folder, config):
            faults.append(changed_words(folder, changes))
        read_result(folder, config)
    except MarchSearchError as error:
        faults.append(f"{one_line(error)}.")
    try:
        read_outcome(folder)
    except MarchSearchError as error:
        faults.append(f"{one_line(error)}.")
    fault = read_metrics(folder).fault
    return [*faults, fault] if fault else faults
