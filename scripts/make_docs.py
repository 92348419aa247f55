"""Write docs/settings.md and docs/commands.md from the settings' docstrings and the command line's parsers.

python scripts/make_docs.py            writes the pages
python scripts/make_docs.py --check    exits with 1 if they are not current
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from march_search import cli
from march_search.config.key_reference import TABLES, keys_of, table_summary

DOCS = Path(__file__).parent.parent / "docs"

MADE = "<!-- Made by scripts/make_docs.py. Edit the docstrings or the parsers instead. -->\n"


def settings_page() -> str:
    """Return the reference page of every key of a study file."""
    parts = [
        "# Settings reference\n",
        MADE,
        "A study is a TOML file. This page lists every key with its type and default.",
        "[Write a study](studies.md) explains how they work together.",
        'Whole numbers may be written as `1_000_000_000`, `1e9`, or in quotes as `"1B"`, `"1.5 M"` or `"1,000,000"`.\n',
    ]
    for name in TABLES:
        parts.append(f"## {f'`[{name}]`' if name else 'Top-level keys'}\n")
        if name:
            parts.append(table_summary(name) + "\n")
        for key in keys_of(name):
            parts.append(f"### `{key.name}`\n")
            parts.append(f"{key.kind}. {'Required' if key.default is None else f'Default: `{key.default}`'}.\n")
            parts.append(key.text + "\n")
    return "\n".join(parts)


def commands_page() -> str:
    """Return the reference page of every command and option."""
    parts = ["# Command reference\n", MADE, "Tables go to standard output, progress and errors to standard error.\n"]
    parts += ["Exit codes: 0 success, 1 a trial or check failed, 2 usage or settings, 3 nothing feasible, 4 storage,"]
    parts += ["5 data, 130 and 143 interrupted by a signal (the same command resumes).\n"]
    for name, parser in _commands(cli.parser()):
        parts.append(f"## `{name}`\n")
        description = parser.description or ""
        if description:
            parts.append(description + "\n")
        parts += [f"- {line}" for line in _options(parser)]
        parts.append("")
        examples = [line.strip() for line in (parser.epilog or "").splitlines()[1:]]
        parts += ["```sh", *examples, "```\n"]
    return "\n".join(parts).rstrip() + "\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield every command that can be run, with its parser, depth first."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser.prog, parser
    for group in groups:
        helps = {choice.dest: choice.help for choice in group._choices_actions}
        for name, inner in group.choices.items():
            inner.description = inner.description or _sentence(helps.get(name) or "")
            yield from _commands(inner)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield one line for each argument and option."""
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        if action.option_strings and action.nargs != 0:
            values = action.metavar or "|".join(map(str, action.choices or ())) or action.dest.upper()
            name += f" {values}"
        elif action.nargs in ("?", "*"):
            name = f"[{name}]"
        text = (action.help or "").replace("%%", "%")
        if not action.help and action.default is not None and action.option_strings:
            text = f"default: {action.default}"
        yield f"`{name}`: {_sentence(text)}" if text else f"`{name}`"


def _sentence(text: str) -> str:
    """Return `text` with a capital first letter and a full stop."""
    return text[:1].upper() + text[1:].removesuffix(".") + "." if text else text


PAGES = {"settings.md": settings_page, "commands.md": commands_page}


def main(arguments: list[str]) -> int:
    """Write or check the pages; return the exit code."""
    stale = [name for name, page in PAGES.items() if not (DOCS / name).is_file() or (DOCS / name).read_text() != page()]
    if "--check" in arguments:
        if stale:
            print(f"not current: {', '.join(stale)}; run python scripts/make_docs.py", file=sys.stderr)
        return int(bool(stale))
    DOCS.mkdir(exist_ok=True)
    for name in stale:
        (DOCS / name).write_text(PAGES[name]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
