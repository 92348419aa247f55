"""`march-search data`: prepare and inspect the text of a study."""

import argparse
import json
import sys
from pathlib import Path

from march_search.commands import Verbs
from march_search.study.folders import DEFAULT_ROOT


def add(verbs: Verbs) -> None:
    """Add the command to the parser."""
    data = verbs.add_parser("data", help="prepare or inspect the text of a study")
    actions = data.add_subparsers(dest="action", metavar="prepare | inspect", required=True, parser_class=type(data))
    preparing = actions.add_parser("prepare", help="tokenize a study's text, once for all studies that use it")
    preparing.add_argument("--repair", action="store_true", help="rewrite only the damaged files")
    preparing.add_argument("--workers", type=int, metavar="N", help="tokenizer threads (default: one per core)")
    preparing.set_defaults(run=run_prepare)
    inspecting = actions.add_parser("inspect", help="print token counts, reference losses and a few examples")
    inspecting.add_argument("--examples", type=int, default=3, metavar="N", help="examples to print (default: 3)")
    inspecting.add_argument("--format", choices=("table", "json"), default="table")
    inspecting.set_defaults(run=run_inspect)
    for parser in (preparing, inspecting):
        parser.add_argument("study", metavar="STUDY", help="TOML file of a study, or name of a shipped study")
        parser.add_argument("--root", default=DEFAULT_ROOT, metavar="DIR", help="folder of the studies (default: runs)")


def run_prepare(options: argparse.Namespace) -> int:
    """Prepare the token store of a study; print its path, its counts and how often it is read."""
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
    """Report the files that `--repair` rewrote."""
    print(f"repaired: {', '.join(names)}" if names else "nothing to repair", file=sys.stderr)


def run_inspect(options: argparse.Namespace) -> int:
    """Print the counts of a prepared text, the losses of n-gram models on it, and examples as a model reads them."""
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
