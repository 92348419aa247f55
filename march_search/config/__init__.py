"""Study and trial settings: one dataclass per table of a study's TOML file, validated before anything starts."""

from march_search.config.data import DataConfig
from march_search.config.devices import BatchPlan, DevicesConfig
from march_search.config.search import ADAPTIVE, OBJECTIVES, PrunerConfig, SearchConfig
from march_search.config.study import StudyConfig, TrialConfig
from march_search.config.training import TrainingConfig, spread

__all__ = [
    "ADAPTIVE",
    "OBJECTIVES",
    "BatchPlan",
    "DataConfig",
    "DevicesConfig",
    "PrunerConfig",
    "SearchConfig",
    "StudyConfig",
    "TrainingConfig",
    "TrialConfig",
    "spread",
]
