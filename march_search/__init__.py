"""Architecture search for transformers inside an exact parameter budget."""

from importlib import import_module

TYPE_CHECKING = False  # importing typing takes longer than this package
if TYPE_CHECKING:
    from typing import Any

    from march_search.architecture.architecture import Architecture
    from march_search.architecture.block import Block, register_block
    from march_search.sampler.feasible_sampler import FeasibleSampler
    from march_search.space.feasible_set import FeasibleSet
    from march_search.space.solver import solve
    from march_search.space.space import SearchSpace
    from march_search.study.objective import TrainingObjective

__all__ = [
    "Architecture",
    "Block",
    "FeasibleSampler",
    "FeasibleSet",
    "SearchSpace",
    "TrainingObjective",
    "__version__",
    "register_block",
    "solve",
]

__version__ = "0.1.0"

_HOMES = {
    "Architecture": "architecture.architecture",
    "Block": "architecture.block",
    "FeasibleSampler": "sampler.feasible_sampler",
    "FeasibleSet": "space.feasible_set",
    "SearchSpace": "space.space",
    "TrainingObjective": "study.objective",
    "register_block": "architecture.block",
    "solve": "space.solver",
}
"""Module of each exported name."""


def __getattr__(name: str) -> "Any":
    """Load exported names on demand: most need numpy, some need Optuna, and `model` needs torch."""
    if name == "model":
        return import_module("march_search.model")
    if name in _HOMES:
        return getattr(import_module(f"march_search.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the module, with those that are loaded on demand."""
    return sorted({*globals(), *__all__, "model"})
