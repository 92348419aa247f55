"""The exception tree: what a person can put right, each as one line that says the rule, the values and the way out.

MarchSearchError
├── UsageError            the command or its arguments (exit 2)
├── ConfigError           a study, space or trial file: unknown key, wrong type, arithmetic that does not fit (exit 2)
├── ArchitectureError     a shape that cannot exist (exit 2)
├── BudgetError           text that is no budget or no tolerance (exit 2)
├── EmptySetError         nothing is feasible (exit 3)
├── StorageError          a folder, lock or Optuna storage that cannot be used (exit 4)
├── DataError             a corpus, tokenizer or token store that cannot be used (exit 5)
└── TrialError            a trial that cannot go on, with its reason (exit 1)
    └── DivergedError     its loss or gradient is not finite
"""


class MarchSearchError(ValueError):
    """Base of every error meant for a person."""

    exit_code = 1


class UsageError(MarchSearchError):
    """The command line asks for something that does not exist."""

    exit_code = 2


class ConfigError(MarchSearchError):
    """A TOML or JSON file says something that cannot be meant."""

    exit_code = 2


class ArchitectureError(MarchSearchError):
    """A combination of dimensions that is no transformer."""

    exit_code = 2


class BudgetError(MarchSearchError):
    """Text that is neither a number of parameters nor a known budget's name."""

    exit_code = 2


class EmptySetError(MarchSearchError):
    """No architecture of the space meets the budget."""

    exit_code = 3


class StorageError(MarchSearchError):
    """A folder, a lock or an Optuna storage that cannot be used."""

    exit_code = 4


class DataError(MarchSearchError):
    """A corpus, tokenizer or token store that is missing or damaged."""

    exit_code = 5


class TrialError(MarchSearchError):
    """A trial that cannot go on."""

    state = "failed"
    """How the trial ended."""


class DivergedError(TrialError):
    """A loss or a gradient that is not finite."""

    state = "diverged"
