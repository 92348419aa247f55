"""Write docs/settings.md and docs/commands.md from the settings' docstrings and the command line's parsers.

python scripts/make_docs.py            writes the pages
python scripts/make_docs.py --check    exits with 1 if they are not current
"""

import argparse
import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from march_search import cli
from march_search.config.data_config import DataConfig
from march_search.config.devices_config import DevicesConfig
from march_search.config.search_config import ConfirmConfig, PrunerConfig, SearchConfig
from march_search.config.study_config import StudyConfig
from march_search.config.training_config import TrainingConfig

DOCS = Path(__file__).parent.parent / "docs"

TABLES = {
    "": StudyConfig,
    "search": SearchConfig,
    "pruner": PrunerConfig,
    "confirm": ConfirmConfig,
    "data": DataConfig,
    "training": TrainingConfig,
    "devices": DevicesConfig,
}
"""Settings classes by the name of their table in a study's TOML file; the first has the keys above all tables."""

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
    for name, cls in TABLES.items():
        parts.append(f"## {f'`[{name}]`' if name else 'Top-level keys'}\n")
        if name:
            parts.append(_summary(cls) + "\n")
        for field, kind, default, text in _fields(cls):
            if field in TABLES:
                continue
            parts.append(f"### `{field}`\n")
            parts.append(f"{kind}. {'Required' if default is None else f'Default: `{default}`'}.\n")
            parts.append(text + "\n")
    return "\n".join(parts)


def _summary(cls: type) -> str:
    """Return the class docstring without the table's name in front."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return re.sub(r"^`\[\w+\]`: (\w)", lambda match: match[1].upper(), text)


def _fields(cls: type) -> Iterator[tuple[str, str, str | None, str]]:
    """Yield name, type, default (None if required) and docstring of each field of a settings class."""
    [tree] = [n for n in ast.parse(inspect.getsource(cls)).body if isinstance(n, ast.ClassDef)]
    defaults = {field.name: field for field in dataclasses.fields(cls)}
    for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        has_doc = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        text = inspect.cleandoc(str(following.value.value)) if has_doc else ""  # type: ignore[union-attr]
        yield node.target.id, _kind(ast.unparse(node.annotation)), _default(defaults[node.target.id]), text


def _kind(annotation: str) -> str:
    """Return a type annotation in words."""
    optional = annotation.endswith(" | None")
    text = annotation.removesuffix(" | None")
    words = {
        "str": "Text",
        "NumberText": "Text or number",
        "int": "Whole number",
        "float": "Number",
        "bool": "`true` or `false`",
        "dict[str, Any]": "Table, or the path of a JSON or Hjson file",
        "tuple[str, ...]": "List of texts",
        "tuple[int, ...]": "List of whole numbers",
        "tuple[float, ...]": "List of numbers",
    }
    if text.startswith("Literal["):
        text = "One of " + ", ".join(f"`{json_text(choice)}`" for choice in ast.literal_eval(f"[{text[8:-1]}]"))
    return words.get(text, text) + (", optional" if optional else "")


def json_text(value: object) -> str:
    """Return a value as a TOML file writes it."""
    return f'"{value}"' if isinstance(value, str) else str(value)


def _default(field: "dataclasses.Field[Any]") -> str | None:
    """Return a default as a TOML file writes it; None if the key is required, `unset` for Python's None."""
    if field.default_factory is not dataclasses.MISSING:
        return "{}"
    value = field.default
    if value is dataclasses.MISSING:
        return None
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(json_text(item) for item in value) + "]"
    return f"{value:_}" if isinstance(value, int) else f"{value:.6g}" if isinstance(value, float) else json_text(value)


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
