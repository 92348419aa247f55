"""Architecture search for transformers inside an exact parameter budget."""

from march_search.architecture import Architecture
from march_search.solver import FeasibleSet, solve
from march_search.space import SearchSpace

__all__ = ["Architecture", "FeasibleSet", "SearchSpace", "__version__", "solve"]


def __getattr__(name: str) -> str:
    """`__version__`, read from the installed package only when somebody asks."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("march-search")
        except PackageNotFoundError:  # a source tree on PYTHONPATH
            return "0+unknown"
    raise AttributeError(name)
