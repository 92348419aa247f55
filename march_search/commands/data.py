"""`march-search data`: prepare and inspect the text of a study."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from march_search.commands import Verbs
from march_search.commands.prepare import repeats
from march_search.config import StudyConfig
from march_search.data import tokenizer as bpe
from march_search.data.batches import Batches
from march_search.data.store import Store
from march_search.display.tables import Column, console, count, print_table
from march_search.study.study_folder import DEFAULT_ROOT

if TYPE_CHECKING:
    from rich.text import Text


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
    pass
    from march_search.commands.prepare import prepared_store, repeats
    from march_search.commands.study import load
    from march_search.errors import UsageError
    from march_search.files import make_folder

    if options.workers is not None and options.workers < 1:
        raise UsageError("--workers must be a whole number of at least 1.")
    config, _, folder = load(options.study)
    store = prepared_store(
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
    pass
    from march_search.commands.study import load
    from march_search.data.ngrams import reference_nats
    from march_search.data.prepare import find_store
    from march_search.data.store import Store
    from march_search.errors import UsageError
    from march_search.study import candidates

    if options.examples < 0:
        raise UsageError("--examples must be a whole number of at least 0.")
    config, name, folder = load(options.study)
    structure = candidates.choose(config, folder).architectures[0].structure
    store = Store.open(find_store(config.data, Path(options.root), folder, tokens=config.training.tokens))
    losses = reference_nats(store, config.data)
    if options.format == "json":
        value = {"schema_version": 1, "study": name, "folder": str(store.folder), "index": store.index}
        print(json.dumps(value | {"reference": losses}, indent=1))
        return 0
    print_counts(store)
    print_facts(config, store, losses)
    print_examples(config, store, structure, options.examples)
    return 0


def print_counts(store: Store) -> None:
    """Print documents, tokens and bytes of both splits."""
    rows = [
        counts | {"split": split, "bytes_per_token": counts["text_bytes"] / max(1, counts["tokens"])}
        for split, counts in store.index["splits"].items()
    ]
    columns = (
        Column("split", "split", "split", left=True),
        Column("documents", "documents", "documents", count),
        Column("tokens", "tokens", "tokens", count),
        Column("text_bytes", "bytes of text", "bytes", count),
        Column("bytes_per_token", "bytes per token", "per token", "{:.2f}".format),
    )
    print_table(console(), rows, columns, str(store.folder))


def print_facts(config: StudyConfig, store: Store, losses: dict[str, Any]) -> None:
    """Print the source, the tokenizer, the data budget and the reference losses."""
    source = store.index["source"]
    shown = ("corpus", "package", "name", "config", "version", "revision", "licence")
    rows = [
        ("source", ", ".join(str(source[key]) for key in shown if source.get(key))),
        (
            "tokenizer",
            f"{store.vocab_size:,} tokens, sha256 {store.tokenizer_sha256[:12]}, tokenizer.json in the store",
        ),
        ("budget", repeats(config, store)),
    ]
    for key, label in (("target", "targets"), ("text", "text")):
        words = (f"{model} {losses[f'{key}_{model}_nats']:.3f}" for model in ("unigram", "bigram"))
        rows.append((f"loss on {label}", f"{', '.join(words)} nats per token"))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_examples(config: StudyConfig, store: Store, structure: str, number: int) -> None:
    """Print the first training examples as a model reads them."""
    batches = Batches(store, config.data, config.search.seeds[0], structure)
    inputs, targets = batches.train(0, number)
    text = ExampleText(
        bpe.load(store.folder / "tokenizer.json").decode, store.special.first_sentinel, store.special.step
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    for heading in ("text",) if inputs is None else ("input", "target"):
        table.add_column(heading, overflow="fold", ratio=1 if heading != "input" else 2)
    for row in range(number):
        sides = (targets,) if inputs is None else (inputs, targets)
        table.add_row(*(text.of(side[row].tolist()) for side in sides))
    console().print()
    console().print(table)


SENTINEL_COLOURS = ("bright_yellow", "bright_cyan", "bright_magenta", "bright_green", "bright_red", "bright_blue")
"""Colours of the sentinels, used cyclically."""

_VISIBLE = {code: chr(0x2400 + code) for code in range(32)} | {0x0A: "↵ ", 0x7F: "␡"}
"""Replacements that keep control characters in a text from reaching the terminal."""


class ExampleText:
    """Converter from token ids to coloured terminal text."""

    def __init__(self, decode: Callable[..., str], first_sentinel: int, step: int) -> None:
        """Create a converter for ids in which sentinel i, from 0 to 99, is `first_sentinel + step * i`."""
        self._decode, self._first, self._step = decode, first_sentinel, step

    def of(self, ids: Sequence[int]) -> "Text":
        """Return the text of `ids`, with sentinels as coloured <0>, <1>, ..."""
        from rich.text import Text

        text, words = Text(), list[int]()
        for token in [*ids, None]:
            number = None if token is None else (token - self._first) * self._step
            if token is not None and not (number is not None and 0 <= number < 100):
                words.append(token)
                continue
            text.append(self._decode(words, skip_special_tokens=False).translate(_VISIBLE))
            words = []
            if number is not None:
                text.append(f"<{number}>", style=f"bold {SENTINEL_COLOURS[number % len(SENTINEL_COLOURS)]}")
        return text
