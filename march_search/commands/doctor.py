"""`march-search doctor`: check the installation and print one table. The exit code is 1 if a check fails."""

import argparse
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands.options import add_examples, add_format, add_root, positive, refuse_without_effect

if TYPE_CHECKING:
    from march_search.doctor.bench import Check


PARITIES = [("fp32", stage) for stage in range(4)] + [("bf16", stage) for stage in range(1, 4)]
"""Precisions and ZeRO stages in which DeepSpeed is compared with plain torch."""

CHECKS = (
    *("python", "libraries", "compiler", "disk", "devices"),
    *(f"{precision}-zero{stage}" for precision, stage in PARITIES),
    *("trial", "two-ranks"),
)
"""Names of the checks, in the order in which they run."""


def add(doctor: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add_root(doctor)
    doctor.add_argument(
        "--only", metavar="A,B,...", help=f"run only these checks (default: all of {', '.join(CHECKS)})"
    )
    doctor.add_argument(
        "--study", metavar="STUDY", help="instead of the checks, train a few steps of this study's shapes and price it"
    )
    doctor.add_argument(
        "--space", metavar="SPACE", help="instead of the checks, check the block that [model] of this space names"
    )
    doctor.add_argument(
        "--timeout",
        type=positive,
        default=120,
        metavar="S",
        help="time limit in seconds for each process of a check (default: 120)",
    )
    add_format(doctor, holds="the finding of each check; json also what was measured")
    add_examples(
        doctor,
        "march-search doctor",
        "march-search doctor --only disk,devices",
        "march-search doctor --study cpu-demo",
        "march-search doctor --space examples/moe-space.toml",
    )
    doctor.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the checks and print their findings; return 1 if a check failed, else 0. With a study, rehearse it."""
    from march_search.doctor.bench import Bench, row

    if options.space is not None:
        refuse_without_effect(options, ("only", "study"), "with --space, which checks its block only")
        return _check_block(options)
    if options.study is not None:
        refuse_without_effect(options, ("only",), "with --study, which runs no checks")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that every `finally` runs
    with tempfile.TemporaryDirectory(prefix="march-search-doctor-") as folder:
        if options.study is not None:
            _rehearse(options, Bench(Path(folder), options.timeout))
            return 0
        checks = _chosen(_checks(Bench(Path(folder), options.timeout), options.root), options.only)
        rows = []
        for number, (name, check) in enumerate(checks.items(), 1):
            print(f"{number}/{len(checks)} {name} ...", file=sys.stderr, flush=True)
            rows.append(row(name, check))
    failed = sum(row["state"] == "failed" for row in rows)
    _print(options.format, rows, failed)
    return 1 if failed else 0


def _check_block(options: argparse.Namespace) -> int:
    """Check the block of a space at random shapes, and print the finding; raise UsageError if it has none."""
    from march_search.doctor.bench import Finding, row
    from march_search.errors import ConfigError, UsageError
    from march_search.space.space import SearchSpace

    block = SearchSpace.load(options.space).block
    if block is None:
        raise UsageError(f"--space: {options.space} has no block: name its file as module in [model].")

    def check() -> Finding:
        from march_search.model.block_check import check_block

        try:
            found = check_block(block)
        except ConfigError as error:
            return Finding("failed", str(error).rstrip("."), "correct the formula or the module")
        return Finding("note" if found.unreached or found.mixes_examples else "ok", str(found))

    checked = row(block.name, check)
    _print(options.format, [checked], checked["state"] == "failed")
    return 1 if checked["state"] == "failed" else 0


def _rehearse(options: argparse.Namespace, bench: Any) -> None:
    """Train a few steps of the study's shapes, and print their speed and the hours of the study."""
    from march_search.commands.output import print_rows
    from march_search.commands.studies import named_study
    from march_search.display.tables import Column
    from march_search.doctor.rehearsal import STEPS, rehearse
    from march_search.errors import UsageError
    from march_search.planning import candidates
    from march_search.units import si, size

    study = named_study(options.study, options.root)
    config, base = study.load()
    if config.ladder.budgets:
        raise UsageError(
            f"{study.name} is a ladder, whose studies differ in size: march-search study run {study.argument} "
            "--dry-run prices each of them; --study takes one that was started."
        )
    found = rehearse(bench, config, candidates.choose(config, base))
    columns = (
        Column(key="name", heading="name", short="name", left=True),
        Column(key="tokens_per_second", heading="tokens/s", short="tok/s", show=si),
        Column(key="predicted", heading="predicted", short="predicted", show=si),
        Column(key="micro_batch", heading="micro batch", short="micro"),
        Column(key="memory_bytes", heading="memory", short="memory", show=size),
        Column(key="predicted_memory_bytes", heading="predicted", short="predicted", show=size),
    )[: 4 if found.device.name == "cpu" else 6]  # on a CPU, the memory includes the program
    notes = [
        f"{STEPS} steps of each shape on {found.device}, on made-up text; the optimizer's step is scaled to the batch.",
        f"Training takes {found.factor:.2f} times the predicted time here: {found.trial_hours:.3g} hours per trial, "
        f"{found.device_hours:,.3g} device-hours if no trial stops early, without evaluations.",
    ]
    head = {
        "device": str(found.device),
        "factor": found.factor,
        "trial_hours": found.trial_hours,
        "device_hours": found.device_hours,
    }
    rows = list(found.rows)
    print_rows(options.format, rows, columns, title=f"study {study.name}", notes=notes, head=head, name="shapes")


def _checks(bench: Any, root: Path) -> "dict[str, Check]":
    """Return all checks by name, in the order in which they run."""
    from march_search.doctor import checks

    return {
        "python": checks.python,
        "libraries": checks.libraries,
        "compiler": checks.compiler,
        "disk": partial(checks.disk, root),
        "devices": partial(checks.devices, bench),
        **{
            f"{precision}-zero{stage}": partial(checks.parity, bench, precision, stage) for precision, stage in PARITIES
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
    from march_search.display.tables import Column
    from march_search.units import plural

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
    if output_format == "csv":  # what was measured differs from check to check, so it has no columns
        rows = [{key: value for key, value in row.items() if key != "values"} for row in rows]
    print_rows(output_format, rows, columns, title=title, head={"passed": not failed}, name="checks")
