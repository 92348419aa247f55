"""Exceptions for problems that the user can fix. Each message is one line: the rule, the values, and what to do.

MarchSearchError
├── UsageError            the command or its arguments (exit 2)
├── ConfigError           a study, space or trial file with an unknown key or an invalid value (exit 2)
├── ArchitectureError     dimensions that do not form a transformer (exit 2)
├── BudgetError           text that is not a valid budget or tolerance (exit 2)
├── EmptySetError         no architecture is feasible (exit 3)
├── StorageError          a folder, lock or Optuna storage that cannot be used (exit 4)
│   └── NoTrialsError     a study that has no trials yet
├── DataError             a corpus, tokenizer or token store that cannot be used (exit 5)
└── TrialError            a trial that cannot continue, with the reason (exit 1)
    └── DivergedError     the loss or a gradient is not finite
"""

TYPE_CHECKING = False  # importing typing takes longer than this file
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def shown(value: object) -> str:
    """Return a value for an error message: text in quotes, and anything long or deeply nested cut short."""
    if isinstance(value, str):
        text = value if len(value) <= 60 else f"{value[:40]}…{value[-10:]}"
        return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + '"'
    import reprlib  # here, because only errors need it

    short = reprlib.Repr()
    short.maxstring, short.maxlong, short.maxother, short.maxlevel = 60, 40, 60, 3
    try:
        return short.repr(value)
    except ValueError:  # Python prints no number of more than 4,300 digits
        return "a number of thousands of digits"


_PICTURES = {code: chr(0x2400 + code) for code in range(32)} | {0x0A: "↵ ", 0x7F: "␡"}
_REORDERING = (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_UNSEEN = _PICTURES | dict.fromkeys((*range(0x80, 0xA0), *_REORDERING), "\ufffd")
"""What is printed for characters that would move the cursor, colour or reorder what follows, or forge a line."""


def visible(text: str, lines: bool = False) -> str:
    """Return text from outside as a terminal may print it: control characters are replaced by pictures of them.

    Args:
        text: The text.
        lines: Whether to keep line breaks and tabs.
    """
    return text.translate({code: sign for code, sign in _UNSEEN.items() if code not in (9, 10)} if lines else _UNSEEN)


MOST_FAULTS = 20
"""Number of faults of one file that an error lists."""


def nearest(word: str, known: "Iterable[str]") -> str:
    """Return the end of an error message: the known word closest to `word`, or all known words if none is close."""
    import difflib  # here, because only errors need it

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
    """A TOML or JSON file with invalid content; `faults` has one sentence for each fault of one table."""

    exit_code = 2

    def __init__(self, *faults: str) -> None:
        super().__init__(*faults)
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(self.faults)

    @classmethod
    def of_file(cls, source: str, faults: "Sequence[str]") -> "ConfigError":
        """Return the error for all faults of a file: one line if there is one fault, else the file and a list."""
        if len(faults) == 1:
            return cls(f"{source}: {faults[0]}")
        more = [f"and {len(faults) - MOST_FAULTS} more."] if len(faults) > MOST_FAULTS else []
        return cls("\n  ".join([f"{source}: {len(faults)} faults:", *faults[:MOST_FAULTS], *more]))


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


class NoTrialsError(StorageError):
    """A study that has no trials yet."""


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
