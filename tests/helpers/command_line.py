"""Run `march-search` in this process or in one of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from march_search.cli import main

Ended = subprocess.CompletedProcess[str]
Command = Callable[..., Ended]


def command_in_process(capture: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs `march-search` in this process and captures what it prints."""

    def command(*arguments: str) -> Ended:
        capture.readouterr()
        try:
            code = main(arguments)
        except SystemExit as error:  # argparse
            code = error.code
        out, err = capture.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    return command


def run_command(*arguments: str, **environment: str) -> Ended:
    """Run `march-search` in a process of its own."""
    command = [sys.executable, "-m", "march_search", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | environment, timeout=600, check=False
    )


def imported_by(*arguments: str) -> set[str]:
    """Run `march-search` in a process of its own, which must succeed, and return the packages that it imported."""
    code = (
        "import sys; from march_search.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as error: code = error.code\n"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr); sys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(ended.stderr.splitlines()[-1].split())


def json_of(ended: Ended) -> dict[str, Any]:
    """Return the JSON object that a successful command printed."""
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def one_line_error(ended: Ended) -> str:
    """Return the error of a command that printed one line to stderr and nothing to stdout."""
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr
