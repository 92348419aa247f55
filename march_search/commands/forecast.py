"""`march-search forecast`: write down what a ladder forecasts for a size before it is trained."""

import argparse
import os
from typing import Any

from march_search.commands.options import add_examples, add_root


def add(forecast: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    forecast.add_argument("study", metavar="LADDER", help="a ladder that was started, by name, folder or TOML file")
    add_root(forecast)
    forecast.add_argument(
        "--at",
        metavar="PARAMETERS",
        required=True,
        help="parameter budget to forecast, above all trained sizes, e.g. 4M",
    )
    forecast.add_argument(
        "-o", "--output", metavar="FILE", help="also write the forecast to this new file, or - for the standard output"
    )
    add_examples(forecast, "march-search forecast cpu-ladder --at 0.9M")
    forecast.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the forecast and print it."""
    from march_search.commands.output import print_or_write, print_pairs
    from march_search.commands.studies import named_study
    from march_search.config.counts import parse_parameters
    from march_search.config.ladder_config import size_name
    from march_search.display.tables import console
    from march_search.errors import UsageError
    from march_search.files.json_tables import json_text
    from march_search.ladders.ladder import ladder_evidence
    from march_search.study.forecast_file import forecast_table, keep_forecast, refuse_trained

    parameters = parse_parameters(options.at)
    named = named_study(options.study, options.root)
    named.refuse_isoflop("a forecast")
    ladder, folder = named.ladder(), named.folder.path
    if ladder is None:
        raise UsageError(
            f"{named.name} is not a ladder that was started in {folder.parent}: run march-search study run LADDER "
            "--up-to SIZE first."
        )
    if options.output not in (None, "-") and os.path.lexists(options.output):
        raise UsageError(f"-o {options.output}: exists, and a forecast is never overwritten: choose a new file.")
    refuse_trained(ladder, folder.parent, parameters)
    names = {size.parameters: size.size for size in ladder.sizes}
    found = ladder_evidence(ladder, folder.parent, None, parameters)
    table = forecast_table(found, names.get(parameters, size_name(options.at)))
    path = keep_forecast(folder, table)
    if options.output is None or print_or_write(options.output, json_text(table)):
        copies = [str(path), *([options.output] if options.output else [])]
        rows = [("written to", ", ".join(copies)), ("sha256", table["sha256"]), *_lines(table)]
        print_pairs(console(), f"{ladder.name}: forecast of {table['size']}", rows)
    return 0


def _lines(table: dict[str, Any]) -> list[tuple[str, str]]:
    """Return one labelled line per arm, lowest expected loss first."""
    from march_search.units import chance, plural

    next_to = {(pair["better"], pair["worse"]): pair["probability"] for pair in table["pairs"]}
    arms, lines = table["arms"], []
    for row, after in zip(arms, [*arms[1:], None], strict=True):
        (low, high), (low_trained, high_trained) = row["interval"], row["interval_trained"]
        text = (
            f"{row['loss']:.4f}, 95% interval {low:.4f} to {high:.4f}, of {plural(row['seeds'], 'seed')} "
            f"{low_trained:.4f} to {high_trained:.4f}; P(best) {chance(row['probability_best'])}"
        )
        if after:
            text += f"; {chance(next_to[row['arm'], after['arm']])} to be below {after['arm']}"
        lines.append((row["arm"], text))
    return lines
