"""Study and trial settings: one dataclass per table of a study's TOML file, validated before anything starts."""

from importlib import import_module

TYPE_CHECKING = False  # importing typing takes longer than this file
if TYPE_CHECKING:
    from typing import Any

    from march_search.config.data_config import DataConfig
    from march_search.config.devices_config import BatchPlan, DevicesConfig
    from march_search.config.search_config import ADAPTIVE, OBJECTIVES, ConfirmConfig, PrunerConfig, SearchConfig
    from march_search.config.study_config import BlockConfig, StudyConfig, TrialConfig
    from march_search.config.tracking_config import TrackingConfig
    from march_search.config.training_config import TrainingConfig

__all__ = [
    "ADAPTIVE",
    "OBJECTIVES",
    "BatchPlan",
    "BlockConfig",
    "ConfirmConfig",
    "DataConfig",
    "DevicesConfig",
    "PrunerConfig",
    "SearchConfig",
    "StudyConfig",
    "TrackingConfig",
    "TrainingConfig",
    "TrialConfig",
]

_HOMES = {
    "ADAPTIVE": "search_config",
    "OBJECTIVES": "search_config",
    "BatchPlan": "devices_config",
    "BlockConfig": "study_config",
    "ConfirmConfig": "search_config",
    "DataConfig": "data_config",
    "DevicesConfig": "devices_config",
    "PrunerConfig": "search_config",
    "SearchConfig": "search_config",
    "StudyConfig": "study_config",
    "TrackingConfig": "tracking_config",
    "TrainingConfig": "training_config",
    "TrialConfig": "study_config",
}
"""Module of each exported name."""


def __getattr__(name: str) -> "Any":
    """Load exported names on demand: `solve` needs counts and files, not the settings of a study."""
    if name in _HOMES:
        return getattr(import_module(f"march_search.config.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
