"""`python -m gpu_acceptance.work WORK FOLDER`: one experiment in its own process, as a child of a part.

It reads arguments.json in FOLDER and writes found.json, or the reason of a failure to failure.json.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from march_search.doctor.bench import in_words
from march_search.files.json_tables import read_json, write_json
from march_search.processes import die_with_parent


def main(arguments: list[str]) -> int:
    """Do the work and return the exit code."""
    die_with_parent()
    work, folder = arguments[0], Path(arguments[1])
    given = read_json(folder / "arguments.json")
    try:
        write_json(folder / "found.json", WORKS[work](folder, **given))
        return 0
    except Exception as error:
        write_json(folder / "failure.json", {"state": "failed", "reason": in_words(error)})
        raise


def _device(_folder: Path, kind: str, **_: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from gpu_acceptance.acceptance_run import known_device

    return asdict(known_device(kind))


def _agreement(_folder: Path, **given: Any) -> dict[str, Any]:
    from gpu_acceptance.agreement import agreement

    return agreement(**given)


def _flex(_folder: Path, **given: Any) -> dict[str, Any]:
    from gpu_acceptance.agreement import flex_agreement

    return flex_agreement(**given)


def _session(folder: Path, **given: Any) -> dict[str, Any]:
    from gpu_acceptance.session import one_session

    return one_session(folder, **given)


def _toggles(folder: Path, **given: Any) -> dict[str, Any]:
    from gpu_acceptance.toggles import toggles

    return toggles(folder, **given)


def _huggingface(folder: Path, **given: Any) -> dict[str, Any]:
    from gpu_acceptance.huggingface import huggingface

    return huggingface(folder, **given)


def _constants(_folder: Path, **given: Any) -> dict[str, Any]:
    from gpu_acceptance.constants import measured

    return measured(**given)


def _hold(folder: Path, **given: Any) -> dict[str, Any]:
    from gpu_acceptance.trials import hold_memory

    return hold_memory(folder, **given)


WORKS: dict[str, Callable[..., dict[str, Any]]] = {
    "device": _device,
    "agreement": _agreement,
    "flex": _flex,
    "session": _session,
    "toggles": _toggles,
    "huggingface": _huggingface,
    "constants": _constants,
    "hold": _hold,
}


if __name__ == "__main__":
    code = 1
    try:
        code = main(sys.argv[1:])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if code == 0:
            os._exit(0)  # unloading torch after using gloo occasionally aborts
