"""`march-search rank`: rank the architectures of a study, with ties and uncertainty."""

import argparse
import json
import math
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from march_search.commands import Verbs

if TYPE_CHECKING:
    from march_search.evidence.noise import SeedNoise
    from march_search.evidence.reading import Evidence


def add(verbs: Verbs) -> None:
    """Add the command to the parser."""
    rank = verbs.add_parser("rank", help="rank the architectures of a study, with ties and uncertainty")
    rank.add_argument("study", metavar="STUDY", help="name of a study in the --root folder, or its folder")
    rank.add_argument("--root", default="runs", metavar="DIR", help="folder of the studies (default: runs)")
    rank.add_argument("--format", choices=("table", "json", "csv", "markdown"), default="table")
    rank.add_argument(
        "--seed-noise",
        default="published",
        metavar="NATS",
        help="standard deviation over seeds, used if no architecture has two seeds: nats, published (default), or none",
    )
    rank.add_argument("--horizon", metavar="TOKENS", help="also predict the ranking at this data budget, e.g. 10B")
    rank.add_argument(
        "--effects",
        action="store_true",
        help="also print the effect of each dimension, and test the claims of the 2023 study",
    )
    rank.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the ranking."""
    from march_search.budget import parse_count
    from march_search.evidence.reading import evidence
    from march_search.evidence.trials import read_study

    study = read_study(options.study, Path(options.root))
    tokens = parse_count(options.horizon, "horizon") if options.horizon else None
    found = evidence(study, _assumed(options.seed_noise), tokens, options.effects)
    {"json": print_json, "csv": print_csv, "markdown": print_markdown, "table": _print_tables}[options.format](found)
    return 0


def _assumed(text: str) -> "SeedNoise | None":
    """Return the seed noise given by --seed-noise, or None for "none".

    Raises:
        UsageError: If the text is neither a valid number of nats, "published" nor "none".
    """
    from march_search.errors import UsageError
    from march_search.evidence.noise import PUBLISHED, SeedNoise

    if text in ("published", "none"):
        return PUBLISHED if text == "published" else None
    try:
        nats = float(text)
    except ValueError:
        nats = math.nan
    if not 0 < nats < 100:
        raise UsageError(f"--seed-noise {text}: must be nats above 0 (e.g. 0.006), published, or none.")
    return SeedNoise(nats, math.inf, "set by --seed-noise")


def print_json(found: "Evidence") -> None:
    """Print all results as one JSON object."""
    from march_search.report import architectures

    value: dict[str, Any] = {"schema_version": 2, "study": found.study.name, "reference": found.study.reference}
    value |= {"ranked": architectures.public(list(found.ranking.rows))}
    value |= {"not_ranked": architectures.public(list(found.ranking.others)), "notes": found.notes}
    print(json.dumps(_plain(value | found.values), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    """Convert `value` to types that JSON supports; numbers that are not finite become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_csv(found: "Evidence") -> None:
    """Print one CSV table of the ranked and the unranked rows; only JSON and Markdown contain the other tables."""
    from march_search.report import architectures, tables

    rows = architectures.public([*found.ranking.rows, *found.ranking.others])
    first = ["rank", "name", "loss", "interval_low", "interval_high", "letters", "probability_best", "perplexity"]
    first += ["context_gain", "tokens", "tokens_per_second", "compute_equivalent_gain", "state", "reason"]
    keys = list(dict.fromkeys([*first, *(key for row in rows for key in row)]))
    sys.stdout.write(tables.csv_text(rows, keys))


def print_markdown(found: "Evidence") -> None:
    """Print every table as Markdown, followed by its warnings and notes as a list."""
    from march_search.report import tables

    for section in found.sections:
        if section.title:
            sys.stdout.write(f"{section.title}\n\n")
        sys.stdout.write(tables.markdown_text(section.rows, section.columns) + "\n")
        remarks = [*(f"**{warning}**" for warning in section.warnings), *section.notes]
        sys.stdout.writelines(f"- {line}\n" for line in remarks)
        sys.stdout.write("\n" * bool(remarks))


def _print_tables(found: "Evidence") -> None:
    """Print the ranking, then the other tables."""
    from march_search.report import architectures, tables

    out = tables.console()
    for section in found.sections:
        legend = architectures.NARROW_LEGEND if section.is_ranking else ""
        tables.print_table(out, section.rows, section.columns, section.title, section.notes, legend, section.warnings)
