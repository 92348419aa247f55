"""What a check found: ok, a note, or failed with the way out."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from march_search.errors import MarchSearchError


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    state: Literal["ok", "note", "failed"]
    """`note`: nothing is broken, and something that a person may want is not there."""
    found: str
    """What was seen, in words."""
    way_out: str = ""
    """What to do about it; empty where nothing has to be done."""
    values: dict[str, Any] = field(default_factory=dict)
    """The same in numbers."""


NEW_ENVIRONMENT = "make a new environment with the versions of constraints.txt"

Check = Callable[[], Finding]


def row(name: str, check: Check) -> dict[str, Any]:
    """The finding of a check as a table's row; a check that raises has failed."""
    began = time.monotonic()
    try:
        finding = check()
    except Exception as error:
        finding = Finding("failed", in_words(error), f"try --only {name}; if it fails again, {NEW_ENVIRONMENT}")
    return {"check": name} | asdict(finding) | {"seconds": round(time.monotonic() - began, 3)}


def in_words(error: Exception) -> str:
    """An exception as one line."""
    text = " ".join(str(error).split())[:300].rstrip(".")
    return text if isinstance(error, MarchSearchError) else f"{type(error).__name__}: {text}"
