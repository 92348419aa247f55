"""`march-search data`: prepare and inspect the text of a study."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from march_search.commands.options import (
    add_action,
    add_actions,
    add_examples,
    add_format,
    add_study,
    natural,
    positive,
    refuse_without_effect,
)
from march_search.errors import UsageError, visible

if TYPE_CHECKING:
    from rich.text import Text

    from march_search.config.study_config import StudyConfig
    from march_search.data.store import Store

EXAMPLES = 3
"""Examples printed by default."""

MOST_EXAMPLES = 1000
"""Largest number of examples to print."""


def add(data: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    actions = add_actions(data, "prepare | inspect")
    preparing = add_action(actions, "prepare", "tokenize a study's text, once for all studies that use it")
    add_study(preparing)
    add_examples(preparing, "march-search data prepare cpu-demo", "march-search data prepare my.toml --workers 4")
    preparing.add_argument("--repair", action="store_true", help="rewrite only the damaged files")
    preparing.add_argument("--workers", type=positive, metavar="N", help="tokenizer threads (default: one per core)")
    add_format(preparing, holds="the tokens of each split")
    preparing.set_defaults(run=run_prepare)
    inspecting = add_action(actions, "inspect", "print token counts, reference losses and a few examples")
    add_study(inspecting)
    add_examples(inspecting, "march-search data inspect cpu-demo --examples 5")
    inspecting.add_argument(
        "--examples",
        type=natural,
        metavar="N",
        help=f"examples to print, up to {MOST_EXAMPLES:,} (default: {EXAMPLES})",
    )
    add_format(inspecting, holds="the tokens of each split; json also the reference losses")
    inspecting.set_defaults(run=run_inspect)


def run_prepare(options: argparse.Namespace) -> int:
    """Prepare the token store of a study; print its path, its counts and how often it is read."""
    from march_search.commands.prepare import prepared_store, repeats
    from march_search.commands.studies import named_study
    from march_search.data.rows import skipped
    from march_search.files.atomic import make_folder

    study = named_study(options.study, options.root)
    config, base = study.load()
    repaired = _report_repaired if options.repair else None
    store = prepared_store(config, make_folder(study.folder.path.parent), base, options.workers, repaired)
    notes = [f"{skipped(store.index['skipped'])}."] if "skipped" in store.index else []
    print_counts(options.format, store, [f"{repeats(config, store)}.", *notes])
    return 0


def _report_repaired(names: list[str]) -> None:
    """Report the files that `--repair` rewrote."""
    print(f"repaired: {', '.join(names)}" if names else "nothing to repair", file=sys.stderr)


def run_inspect(options: argparse.Namespace) -> int:
    """Print the counts of a prepared text, the losses of n-gram models on it, and examples as a model reads them."""
    from march_search.commands.output import print_json
    from march_search.commands.studies import named_study
    from march_search.data.ngrams import reference_nats
    from march_search.data.prepare import find_store
    from march_search.data.store import Store
    from march_search.planning import candidates
    from march_search.planning.study_state import restored_candidates

    if options.format != "table":
        refuse_without_effect(options, ("examples",), "without --format table")
    if options.examples is not None and options.examples > MOST_EXAMPLES:
        raise UsageError(f"--examples {options.examples:,}: use at most {MOST_EXAMPLES:,}.")
    study = named_study(options.study, options.root)
    config, base = study.load()
    if study.file is None:
        study.folder.load_block()
        store, space = Store.open(study.folder.store), restored_candidates(study.folder.path).found.space
    else:
        store = Store.open(find_store(config.data, study.folder.path.parent, base, tokens=config.training.tokens))
        space = candidates.load_space(config, base)
    losses = reference_nats(store, config.data)
    if options.format == "json":
        print_json({"study": study.name, "folder": str(store.folder), "index": store.index, "reference": losses})
        return 0
    print_counts(options.format, store)
    if options.format == "table":
        print_facts(config, store, losses)
        number = EXAMPLES if options.examples is None else options.examples
        print_examples(config, store, candidates.structure(config.search.architectures, space), number)
    return 0


def print_counts(output_format: str, store: "Store", notes: Sequence[str] = ()) -> None:
    """Print documents, tokens and bytes of both splits."""
    from march_search.commands.output import print_rows
    from march_search.display.tables import Column
    from march_search.units import count

    rows = [
        counts | {"split": split, "bytes_per_token": counts["text_bytes"] / max(1, counts["tokens"])}
        for split, counts in store.index["splits"].items()
    ]
    columns = (
        Column(key="split", heading="split", short="split", left=True),
        Column(key="documents", heading="documents", short="documents", show=count),
        Column(key="tokens", heading="tokens", short="tokens", show=count),
        Column(key="text_bytes", heading="bytes of text", short="bytes", show=count),
        Column(key="bytes_per_token", heading="bytes per token", short="per token", show="{:.2f}".format),
    )
    head = {"folder": str(store.folder), "notes": list(notes)}
    print_rows(output_format, rows, columns, title=str(store.folder), notes=notes, head=head, name="splits")


def print_facts(config: "StudyConfig", store: "Store", losses: dict[str, Any]) -> None:
    """Print the source, the tokenizer, the data budget and the reference losses."""
    from march_search.commands.output import print_pairs
    from march_search.commands.prepare import repeats
    from march_search.data.rows import skipped
    from march_search.display.tables import console

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
    if "skipped" in store.index:
        rows.append(("rows", skipped(store.index["skipped"])))
    for key, label in (("target", "targets"), ("text", "text")):
        if f"{key}_unigram_nats" not in losses:
            continue
        factor = losses.get(f"{key}_bits_per_nat")
        for model in ("unigram", "bigram"):
            nats = losses[f"{key}_{model}_nats"]
            bits = "" if factor is None else f", {nats * factor:.3f} bits per byte"
            rows.append((f"{model} loss on {label}", f"{nats:.3f} nats per token{bits}"))
    print_pairs(console(), "", rows)


def print_examples(config: "StudyConfig", store: "Store", structure: str, number: int) -> None:
    """Print the first training examples as a model reads them."""
    from rich import box
    from rich.table import Table

    from march_search.data import tokenizer as bpe
    from march_search.data.batches import Batches
    from march_search.display.tables import console

    batches = Batches(store, config.data, config.search.seeds[0], structure)
    inputs, targets = batches.train(0, number)
    text = ExampleText(
        bpe.load(store.folder / "tokenizer.json", store.vocab_size).decode,
        store.special.first_sentinel,
        store.special.step,
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


class ExampleText:
    """Converter from token ids to coloured terminal text."""

    def __init__(self, decode: Callable[..., str], first_sentinel: int | None, step: int) -> None:
        """Create a converter for ids in which sentinel i, from 0 to 99, is `first_sentinel + step * i`.

        Without sentinels, `first_sentinel` is None.
        """
        self._decode, self._first, self._step = decode, first_sentinel, step

    def of(self, ids: Sequence[int]) -> "Text":
        """Return the text of `ids`, with sentinels as coloured <0>, <1>, ..."""
        from rich.text import Text

        text, words = Text(), list[int]()
        for token in [*ids, None]:
            number = None if token is None or self._first is None else (token - self._first) * self._step
            if token is not None and not (number is not None and 0 <= number < 100):
                words.append(token)
                continue
            text.append(visible(self._decode(words, skip_special_tokens=False)))
            words = []
            if number is not None:
                text.append(f"<{number}>", style=f"bold {SENTINEL_COLOURS[number % len(SENTINEL_COLOURS)]}")
        return text
