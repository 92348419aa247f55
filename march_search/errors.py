"""Exceptions for problems that the user can fix. Each message is one line: the rule, the values, and what to do.

MarchSearchError
├── UsageError            the command or its arguments (exit 2)
├── ConfigError           a study, space or trial file with an unknown key or an invalid value (exit 2)
├── ArchitectureError     dimensions that do not form a transformer (exit 2)
├── BudgetError           text that is not a valid budget or tolerance (exit 2)
├── EmptySetError         no architecture is feasible (exit 3)
├── StorageError          a folder, lock or Optuna storage that cannot be used (exit 4)
├── DataError             a corpus, tokenizer or token store that cannot be used (exit 5)
└── TrialError            a trial that cannot continue, with the reason (exit 1)
    └── DivergedError     the loss or a gradient is not finite
"""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the known word closest to `word`, or all known words if none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f'Did you mean "{close[0]}"?' if close else f"Known: {', '.join(known)}."


class MarchSearchError(ValueError):
    """Base class of all errors that are reported to the user."""

    exit_code = 1


class UsageError(MarchSearchError):
    """A command or an argument that is not valid."""

    exit_code = 2


class ConfigError(MarchSearchError):
    """A TOML or JSON file with invalid content."""

    exit_code = 2


class ArchitectureError(MarchSearchError):
    """A combination of dimensions that does not form a transformer."""

    exit_code = 2


class BudgetError(MarchSearchError):
    """Text that is neither a parameter count, a known budget name, nor a tolerance."""

    exit_code = 2


class EmptySetError(MarchSearchError):
    """A search space without any architecture inside the budget."""

    exit_code = 3


class StorageError(MarchSearchError):
    """A folder, a lock or an Optuna storage that cannot be used."""

    exit_code = 4


class DataError(MarchSearchError):
    """A corpus, tokenizer or token store that is missing or damaged."""

    exit_code = 5


class TrialError(MarchSearchError):
    """A trial that cannot continue."""

    state = "failed"
    """State recorded for a trial that ends with this error."""


class DivergedError(TrialError):
    """A loss or a gradient that is not finite."""

    state = "diverged"
