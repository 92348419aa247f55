"""Architecture search for transformers inside an exact parameter budget."""

from importlib import import_module
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.space.feasible_set import FeasibleSet, solve
from march_search.space.space import SearchSpace

__all__ = ["Architecture", "FeasibleSampler", "FeasibleSet", "SearchSpace", "__version__", "solve"]


def __getattr__(name: str) -> Any:
    """Load slow attributes on demand: `FeasibleSampler` imports Optuna, `model` imports torch."""
    if name == "model":
        return import_module("march_search.model")
    if name == "FeasibleSampler":
        return import_module("march_search.sampler.feasible_sampler").FeasibleSampler
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("march-search")
        except PackageNotFoundError:  # not installed: a source tree on PYTHONPATH
            return "0+unknown"
    raise AttributeError(name)
