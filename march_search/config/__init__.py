"""Study and trial settings: one dataclass per table of a study's TOML file, validated before anything starts."""

from march_search.config.data_config import DataConfig
from march_search.config.devices_config import BatchPlan, DevicesConfig
from march_search.config.search_config import ADAPTIVE, OBJECTIVES, ConfirmConfig, PrunerConfig, SearchConfig
from march_search.config.study_config import StudyConfig, TrialConfig
from march_search.config.training_config import TrainingConfig, spread

__all__ = [
    "ADAPTIVE",
    "OBJECTIVES",
    "BatchPlan",
    "ConfirmConfig",
    "DataConfig",
    "DevicesConfig",
    "PrunerConfig",
    "SearchConfig",
    "StudyConfig",
    "TrainingConfig",
    "TrialConfig",
    "spread",
]
