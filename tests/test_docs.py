"""The documentation is true: its commands parse, its settings build, its Python runs, its links resolve."""

import ast
import io
import re
import shlex
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from march_search import Architecture, SearchSpace, solve
from march_search.config import StudyConfig
from march_search.config.loader import build
from march_search.config.scaling import base_shape
from march_search.data import vocabulary

REPOSITORY = Path(__file__).parent.parent
GUIDE = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
"""The pages whose code is checked."""

LINKED = [
    *GUIDE,
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "studies").glob("*.md")),
    REPOSITORY / "benchmarks" / "README.md",
]
"""The pages whose links are checked."""

WRITTEN = [*GUIDE, REPOSITORY / "CONTRIBUTING.md"]

MOST_WORDS = 900
"""Words that the README may have, as counted by `wc -w`."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(path: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page; `line` is that of the opening fence."""
    page, language, begun, lines = str(path.relative_to(REPOSITORY)), "", 0, list[str]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif begun:
            yield Block(page, begun, language, "\n".join(lines) + "\n")
            begun = 0
        else:
            begun, language, lines = number, line.removeprefix("```").strip(), []
    assert not begun, f"{page}:{begun}: this block is not closed"


def prose(path: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


ALL = [block for path in GUIDE for block in blocks(path)]


def in_language(name: str) -> list[Any]:
    """Return the blocks in one language as parameters of a test."""
    return [pytest.param(block, id=str(block)) for block in ALL if block.language == name]


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").split()) <= MOST_WORDS


# Commands


def command_lines(text: str) -> Iterator[str]:
    """Yield the march-search commands of a block, also after `$ `; a backslash at the end continues a line."""
    for line in text.replace("\\\n", " ").splitlines():
        command = line.removeprefix("$ ").strip()
        if command.startswith("march-search "):
            yield command


def arguments(command: str) -> list[str]:
    """Return the arguments of one command, without a comment, a redirection or a following command."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    words = list(lexer)
    end = next((n for n, word in enumerate(words) if set(word) <= set("|&;<>")), len(words))
    return words[1:end]


FENCED = [
    pytest.param(command, id=f"{block}-{number}")
    for path in WRITTEN
    for block in blocks(path)
    if block.language not in ("python", "toml")
    for number, command in enumerate(command_lines(block.text))
]

INLINE = [
    pytest.param(command, id=f"{path.name}-{number}")
    for path in WRITTEN
    for number, command in enumerate(re.findall(r"`(march-search [^`…]+)`", " ".join(prose(path).split())))
]


def exit_code(command: str) -> int | str | None:
    """Return the code with which the parser exits on a command line; None if it accepts it."""
    from march_search.cli import parser

    try:
        parser().parse_args(arguments(command))
    except SystemExit as refused:
        return refused.code
    return None


@pytest.mark.parametrize("command", FENCED)
def test_a_command_in_a_block_parses(command: str) -> None:
    assert not exit_code(command), command


@pytest.mark.parametrize("command", INLINE)
def test_a_command_in_the_text_is_known(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence may name a command without its arguments, but not an unknown command or option."""
    assert not exit_code(command) or "are required" in capsys.readouterr().err, command


def test_commands_are_found_with_comments_pipes_and_continuations() -> None:
    text = '$ march-search solve --where "d_kv >= 64"  # a comment\nmarch-search rank a \\\n  --effects > b.txt\nls\n'
    assert list(map(arguments, command_lines(text))) == [
        ["solve", "--where", "d_kv >= 64"],
        ["rank", "a", "--effects"],
    ]


# Settings and spaces


@pytest.mark.parametrize("block", in_language("toml"))
def test_a_toml_block_builds(block: Block) -> None:
    table = tomllib.loads(block.text)
    if "axes" in table:
        assert len(solve(SearchSpace.from_table(table, source=str(block)))) > 100
        return
    config = build(StudyConfig, {"space": "t5"} | table, str(block))
    assert config.batch.sequences >= 1
    base_shape(config.training)
    for name in config.search.architectures:
        Architecture.parse(name)
    if config.data.tokenizer is None:
        assert vocabulary.check(config.data, REPOSITORY).startswith("vocabulary")


def test_every_kind_of_toml_block_is_there() -> None:
    tables = [tomllib.loads(block.text) for block in ALL if block.language == "toml"]
    wanted = {"axes", "search", "pruner", "data", "training", "devices", "storage"}
    assert wanted <= {key for table in tables for key in table}


# Python


def commented_results(source: str) -> dict[int, str]:
    """Return the comments of a source text by line, without `#`."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}


def is_value(text: str) -> bool:
    """Return whether a comment is a Python value, such as `222903552` or `'L12'`, and not a remark."""
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return False
    return True


def run_block(source: str, name: str) -> int:
    """Run a block statement by statement; check the values in its comments and return their number."""
    names: dict[str, Any] = {"__name__": "docs"}
    comments, checked = commented_results(source), 0
    for node in ast.parse(source, name).body:
        if not isinstance(node, ast.Expr):
            exec(compile(ast.Module([node], []), name, "exec"), names)
            continue
        value = eval(compile(ast.Expression(node.value), name, "eval"), names)
        comment = comments.get(node.end_lineno or node.lineno, "")
        if is_value(comment):
            assert repr(value) == comment, f"{name}, line {node.lineno} of the block"
            checked += 1
    return checked


@pytest.mark.parametrize("block", in_language("python"))
def test_a_python_block_runs_and_its_results_are_true(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    verbosity = None
    if "import optuna" in block.text:
        import optuna

        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        checked = run_block(block.text, str(block))
    finally:
        if verbosity is not None:
            optuna.logging.set_verbosity(verbosity)
    assert checked == sum(map(is_value, commented_results(block.text).values())), "a result that nothing compares"


def test_a_wrong_result_in_a_comment_is_noticed() -> None:
    assert run_block("a = 6\na * 7  # 42\na  # half a dozen\n", "block") == 1
    with pytest.raises(AssertionError):
        run_block("6 * 7  # 43\n", "block")


# Links and files


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """Return the anchors of all headings of a page; repeated ones end in -1, -2, ..."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", prose(path), flags=re.MULTILINE):
        name = slug(heading)
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found | set(re.findall(r'<a (?:id|name)="([^"]+)"', path.read_text(encoding="utf-8")))


def links(path: Path) -> list[str]:
    """Return the targets of a page's links and images that are not URLs."""
    text = re.sub(r"`[^`\n]*`", "", prose(path).replace("[`", "[").replace("`]", "]"))
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    return [target for target in targets if not re.match(r"[a-z][a-z0-9+.-]*:", target)]


@pytest.mark.parametrize("path", LINKED, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_resolves(path: Path) -> None:
    for target in links(path):
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{target}: there is no such file"
        if anchor:
            assert file.suffix == ".md", target
            assert anchor in anchors(file), f"{target}: there is no such heading"


def test_links_and_anchors_are_read_as_github_reads_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c!\n## +seeds\n## +seeds\n[`x`](a.md#b) `[no](no.md)` [u](https://a.b)\n```\n# not\n```\n"
    )
    assert anchors(page) == {"a-b-c", "seeds", "seeds-1"}
    assert links(page) == ["a.md#b"]


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_every_script_study_and_file_that_is_named_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for script in re.findall(r"\b(?:bash|python) (\w+/[\w/]+\.(?:sh|py))", text):
        assert (REPOSITORY / script).is_file(), script
    folders = "march_search|spaces|studies|tables|tests|benchmarks|examples|scripts"
    for name in re.findall(rf"(?<![\w/])((?:{folders})/[\w/.*-]*[\w/])(?![\w.*-])", text):
        if path.parent != REPOSITORY and (path.parent / name).exists():
            continue
        assert list(REPOSITORY.glob(name.rstrip("/"))), name


def test_every_page_of_the_guide_is_linked_from_the_readme() -> None:
    linked = {(REPOSITORY / target.partition("#")[0]).resolve() for target in links(REPOSITORY / "README.md")}
    wanted = [*GUIDE[1:], REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "studies" / "FINDINGS.md"]
    assert not [path.name for path in wanted if path.resolve() not in linked]


def test_the_tour_of_contributing_names_rooms_and_their_files() -> None:
    tour = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## A tour")[1].split("\n## ")[0]
    items = [item.split("\n\n")[0] for item in re.split(r"^\d+\. ", tour, flags=re.MULTILINE)[1:]]
    rooms = {room for item in items for room in re.findall(r"`([a-z_]+)/`", item)}
    package = REPOSITORY / "march_search"
    assert rooms >= {path.parent.name for path in package.glob("*/__init__.py")}
    for item in items:
        folders = [REPOSITORY, package, *(package / room for room in re.findall(r"`([a-z_]+)/`", item))]
        for name in re.findall(r"`([\w/]+\.(?:py|md))`", item):
            assert any((folder / name).is_file() for folder in folders), name


# Generated pages


def test_the_generated_pages_are_current() -> None:
    from make_docs import PAGES

    assert {"settings.md", "commands.md"} <= {Path(name).name for name in PAGES}
    for name, page in PAGES.items():
        path = REPOSITORY / "docs" / Path(name).name
        wanted = page() if callable(page) else page
        assert path.read_text(encoding="utf-8") == wanted, (
            f"run python scripts/make_docs.py: {path.name} is out of date"
        )
