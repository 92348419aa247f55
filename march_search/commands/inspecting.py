"""Tables that `march-search data` prints about a prepared text."""

from typing import Any

from rich import box
from rich.table import Table

from march_search.commands.preparing import repeats
from march_search.config import StudyConfig
from march_search.data import tokenizer as bpe
from march_search.data.batches import Batches
from march_search.data.store import Store
from march_search.report.examples import ExampleText
from march_search.report.tables import Column, console, count, print_table


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
