"""`python -m gpu_acceptance.work WORK FOLDER`: one experiment in its own process, as a child of a part.

It reads arguments.json in FOLDER and writes found.json, or the reason of a failure to failure.json.
"""

import os
import sys
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from march_search.doctor.bench import in_words
from march_search.files.json_tables import read_json, write_json
from march_search.processes import die_with_parent
from march_search.training.launch import allocator_environment


def main(arguments: list[str]) -> int:
    """Do the work and return the exit code."""
    die_with_parent()
    work, folder = arguments[0], Path(arguments[1])
    given = read_json(folder / "arguments.json")
    os.environ.update(allocator_environment(given["kind"], os.environ, version("torch")))  # as in a trial
    try:
        module, _, name = WORKS[work].partition(":")
        write_json(folder / "found.json", getattr(import_module(f"gpu_acceptance.{module}"), name)(folder, **given))
        return 0
    except Exception as error:
        write_json(folder / "failure.json", {"state": "failed", "reason": in_words(error)})
        raise


def device(_folder: Path, kind: str, **_: Any) -> dict[str, Any]:
    """Return the device as the cost model knows it."""
    from gpu_acceptance.acceptance_run import known_device

    return asdict(known_device(kind))


WORKS = {
    "device": "work:device",
    "agreement": "agreement:agreement",
    "flex": "agreement:flex_agreement",
    "session": "session:one_session",
    "toggles": "toggles:toggles",
    "huggingface": "huggingface:huggingface",
    "constants": "constants:measured",
    "hold": "trials:hold_memory",
}
"""Module and function of each experiment. A function takes its folder and the arguments, and returns what it found."""


if __name__ == "__main__":
    code = 1
    try:
        code = main(sys.argv[1:])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if code == 0:
            os._exit(0)  # unloading torch after using gloo occasionally aborts
