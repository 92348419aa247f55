"""The result of a check: ok, a note, or failed with a suggested fix."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from march_search.errors import MarchSearchError


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    state: Literal["ok", "note", "failed"]
    """`note`: nothing is broken, but something that the user may want is missing."""
    found: str
    """What the check found, as text."""
    way_out: str = ""
    """Suggested fix; empty if there is nothing to do."""
    values: dict[str, Any] = field(default_factory=dict)
    """Values behind the text, for JSON output."""


NEW_ENVIRONMENT = "create a new environment with the versions in constraints.txt"

Check = Callable[[], Finding]


def row(name: str, check: Check) -> dict[str, Any]:
    """Run a check and return its finding as a table row; a check that raises has failed."""
    start = time.monotonic()
    try:
        finding = check()
    except Exception as error:
        finding = Finding("failed", in_words(error), f"rerun with --only {name}; if it fails again, {NEW_ENVIRONMENT}")
    return {"check": name} | asdict(finding) | {"seconds": round(time.monotonic() - start, 3)}


def in_words(error: Exception) -> str:
    """Format an exception as one line."""
    text = " ".join(str(error).split())[:300].rstrip(".")
    return text if isinstance(error, MarchSearchError) else f"{type(error).__name__}: {text}"
