"""`march-search doctor`: check the installation and print one table. The exit code is 1 if a check fails."""

import argparse
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands import Verbs
from march_search.commands.options import add_format, add_root, positive

if TYPE_CHECKING:
    from march_search.doctor.bench import Check


def add(verbs: Verbs) -> None:
    """Add the command to the parser."""
    doctor = verbs.add_parser(
        "doctor", help="check the installation: libraries, devices, DeepSpeed, disk, a tiny trial"
    )
    add_root(doctor)
    doctor.add_argument("--only", metavar="A,B,...", help="run only these checks (default: all)")
    doctor.add_argument(
        "--timeout",
        type=positive,
        default=120,
        metavar="S",
        help="time limit in seconds for each process of a check (default: 120)",
    )
    add_format(doctor)
    doctor.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the checks and print their findings; return 1 if a check failed, else 0."""
    from march_search.doctor.bench import Bench, row

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that every `finally` runs
    with tempfile.TemporaryDirectory(prefix="march-search-doctor-") as folder:
        checks = _chosen(_checks(Bench(Path(folder), options.timeout), options.root), options.only)
        rows = []
        for number, (name, check) in enumerate(checks.items(), 1):
            print(f"{number}/{len(checks)} {name} ...", file=sys.stderr, flush=True)
            rows.append(row(name, check))
    failed = sum(row["state"] == "failed" for row in rows)
    _print(options.format, rows, failed)
    return 1 if failed else 0


def _checks(bench: Any, root: Path) -> "dict[str, Check]":
    """Return all checks by name, in the order in which they run."""
    from march_search.doctor import checks

    parities = [("fp32", stage) for stage in range(4)] + [("bf16", stage) for stage in range(1, 4)]
    return {
        "python": checks.python,
        "libraries": checks.libraries,
        "compiler": checks.compiler,
        "root": partial(checks.root, root),
        "devices": partial(checks.devices, bench),
        **{
            f"{precision}-zero{stage}": partial(checks.parity, bench, precision, stage) for precision, stage in parities
        },
        "trial": partial(checks.trial, bench),
        "two-ranks": partial(checks.two_ranks, bench),
    }


def _chosen(checks: "dict[str, Check]", only: str | None) -> "dict[str, Check]":
    """Return the checks named in `only`, or all checks if it is None.

    Raises:
        UsageError: If a name is unknown.
    """
    from march_search.errors import UsageError, nearest

    names = list(checks) if only is None else only.split(",")
    for name in names:
        if name not in checks:
            raise UsageError(f'--only: unknown check "{name}". {nearest(name, checks)}')
    return {name: checks[name] for name in names}


def _print(output_format: str, rows: list[dict[str, Any]], failed: int) -> None:
    """Print one row per check: the result, the finding, and how to fix a problem."""
    from march_search.commands.output import print_rows
    from march_search.display.tables import Column, plural

    colours = {"ok": "green", "note": "yellow", "failed": "bold red"}
    columns = (
        Column(key="check", heading="check", short="check", left=True),
        Column(key="state", heading="result", short="result", left=True, style=colours.__getitem__),
        Column(
            key="text",
            heading="finding",
            short="finding",
            left=True,
            derive=lambda row: ". Fix: ".join(filter(None, (row["text"], row["fix"]))),
        ),
    )
    title = f"{plural(failed, 'check')} of {len(rows)} failed" if failed else f"{plural(len(rows), 'check')} passed"
    print_rows(output_format, rows, columns, title=title, head={"passed": not failed}, name="checks")
