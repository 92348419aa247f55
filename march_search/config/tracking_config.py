"""The `[tracking]` table: the experiment trackers that a study's metrics are sent to."""

from collections.abc import Iterator
from dataclasses import dataclass

from march_search.config.loader import refuse
from march_search.errors import nearest, shown

TRACKERS = ("wandb", "mlflow", "trackio")
"""Names of the trackers, which are also those of their libraries and of our extras."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """The `[tracking]` table: the experiment trackers that a study's metrics are sent to."""

    to: tuple[str, ...] = ()
    """Trackers, any of `wandb` (Weights & Biases), `mlflow` and `trackio`. Each needs its library, such as
    `pip install 'march-search[wandb]'`. Servers and logins are those of the library's own settings."""
    project: str = "march-search"
    """Project of Weights & Biases and trackio, experiment of MLflow. Every trial is a run in it."""

    def __post_init__(self) -> None:
        """Validate the settings."""
        refuse(self._faults())

    def _faults(self) -> Iterator[str]:
        """Yield one sentence for each setting that is refused."""
        for name in self.to:
            if name not in TRACKERS:
                yield f"[tracking]: to has {shown(name)}, which is not a tracker. {nearest(name, TRACKERS)}"
        if len(set(self.to)) < len(self.to):
            yield f"[tracking]: to names a tracker twice: {', '.join(self.to)}."
        if not self.project.strip() or "/" in self.project:
            yield f"[tracking]: project must be a name without slashes, not {shown(self.project)}."
