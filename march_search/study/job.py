"""What a worker, its survey and the study's run share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna

from march_search.config import StudyConfig
from march_search.planning.adaptive import NextTrial
from march_search.storage.study_folder import StudyFolder
from march_search.storage.trial_process import TRAINING


@dataclass(frozen=True, kw_only=True)
class Job:
    """Study, storage and command that a worker works with."""

    config: StudyConfig
    folder: StudyFolder
    study: optuna.Study
    store: Path
    """Folder of the token store."""
    command: Sequence[str] = TRAINING
    """Command that trains a trial; the trial folder is appended to it."""
    propose: NextTrial | None = None
    """Proposes the next trial of a study with a sampler; None if there is no sampler."""
