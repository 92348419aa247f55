"""Architecture search for transformers inside an exact parameter budget."""

from importlib import import_module
from typing import Any

from march_search.architecture.architecture import Architecture
from march_search.space.feasible_set import FeasibleSet, solve
from march_search.space.space import SearchSpace

__all__ = ["Architecture", "FeasibleSet", "SearchSpace", "__version__", "solve"]


def __getattr__(name: str) -> Any:
    """Load rarely used, slow attributes on demand: `__version__`, and `model`, which imports torch."""
    if name == "model":
        return import_module("march_search.model")
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("march-search")
        except PackageNotFoundError:  # not installed: a source tree on PYTHONPATH
            return "0+unknown"
    raise AttributeError(name)
