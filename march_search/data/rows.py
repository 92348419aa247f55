"""Documents in files: text, JSON and Parquet, of which only the text is read. Rows that cannot be used are counted."""

import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from march_search.errors import DataError, shown
from march_search.files.atomic import one_line

KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""Suffixes of files and their kinds. Files are read kind by kind, and in path order within a kind."""

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Second suffixes of compressed text and JSON files."""

SUPPORTED = ".txt, .jsonl, .json (also with .gz or .zst) and .parquet"
"""Supported files, for messages."""

ENOUGH = 1000
"""Number of unusable rows after which their share is checked at every row, and not only at the end of the text."""

MOST_COLUMNS = 20
"""Number of columns that a message lists."""

EXAMPLES = 3
"""Number of unusable rows of which place and reason are kept."""


class Unusable(NamedTuple):
    """A row without usable text."""

    where: str
    """File and line, or file and row."""
    reason: str


@dataclass
class RowCount:
    """Count of the rows of a text, and of those that cannot be used."""

    rows: int = 0
    unusable: int = 0
    examples: list[Unusable] = field(default_factory=list)

    def texts(self, rows: Iterable[str | Unusable], label: str, tolerance: float) -> Iterator[str]:
        """Yield the texts in `rows`, and count all rows.

        Raises:
            DataError: If the fraction of unusable rows exceeds `tolerance`.
        """
        for row in rows:
            self.rows += 1
            if isinstance(row, str):
                yield row
                continue
            self.unusable += 1
            self.examples += [row][: EXAMPLES - len(self.examples)]
            if self.unusable >= ENOUGH:
                self._check(label, tolerance)
        self._check(label, tolerance)

    def _check(self, label: str, tolerance: float) -> None:
        if self.unusable > tolerance * self.rows:
            where, reason = self.examples[0]
            raise DataError(
                f"{label}: {self.unusable:,} of {self.rows:,} rows cannot be used, but bad_row_tolerance is "
                f"{tolerance:g}; the first is {where}: {reason}."
            )

    def record(self) -> dict[str, Any]:
        """Return the entry of the index of a token store."""
        examples = [f"{where}: {reason}" for where, reason in self.examples]
        return {"rows": self.rows, "unusable": self.unusable, "first": examples}


def skipped(record: dict[str, Any]) -> str:
    """Describe the skipped rows of a `RowCount.record` in a sentence."""
    first = "; ".join(record["first"]) + ("; ..." if record["unusable"] > len(record["first"]) else "")
    return f"skipped {record['unusable']:,} of {record['rows']:,} rows: {first}"


def kind_of(file: Path) -> str | None:
    """Return the kind of a file by its name, or None if it is not supported."""
    kind, compression = _suffixes(file)
    found = KINDS.get(kind)
    return None if found == "parquet" and compression else found


def is_compressed(file: Path) -> bool:
    """Return whether a file may hold more bytes of text than it has, by its name."""
    return kind_of(file) == "parquet" or bool(_suffixes(file)[1])


def type_of(file: Path) -> str:
    """Return the type of a file for messages, such as `.tar.gz`."""
    return "".join(_suffixes(file)) or "without a suffix"


def _suffixes(file: Path) -> tuple[str, str]:
    """Return the suffix and the compression of a file, in lower case."""
    suffixes = ["", *(suffix.lower() for suffix in file.suffixes)]
    if suffixes[-1] in COMPRESSIONS:
        return suffixes[-2], suffixes[-1]
    return suffixes[-1], ""


def read(file: Path, name: str, column: str) -> Iterator[str | Unusable]:
    """Yield the text of each row of a file, or why the row cannot be used. A text file is one row.

    Args:
        file: A file of which `kind_of` is not None.
        name: Name of the file in `Unusable.where`.
        column: Column with the text. Dots descend into nested columns.

    Raises:
        DataError: If the file cannot be read or has no such column of text.
    """
    readers = {"text": _text, "json": _json, "parquet": _parquet}
    try:
        yield from readers[kind_of(file) or ""](file, name, column)
    except DataError:
        raise
    except _read_errors() as error:
        raise DataError(f"{file}: cannot be read ({one_line(error)}). Check the file.") from None


def _read_errors() -> tuple[type[Exception], ...]:
    """Return the errors of files that cannot be read. Only compressed and Parquet files load pyarrow."""
    pyarrow = sys.modules.get("pyarrow")
    return OSError, ValueError, RecursionError, *([] if pyarrow is None else [pyarrow.ArrowException])


def _open(file: Path) -> BinaryIO:
    """Open a file to read its uncompressed bytes."""
    compression = COMPRESSIONS.get(_suffixes(file)[1])
    if compression is None:
        return file.open("rb")
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(file), compression=compression), 1 << 20)


def _text(file: Path, _name: str, _column: str) -> Iterator[str]:
    """Yield the content of a text file."""
    with _open(file) as opened:
        content = opened.read()
    try:
        yield content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text (byte {error.start}).") from None


def _json(file: Path, name: str, column: str) -> Iterator[str | Unusable]:
    """Yield the texts of JSON Lines, or of one array of objects in a .json file."""
    with _open(file) as opened:
        first = opened.readline().removeprefix(b"\xef\xbb\xbf")
        if _suffixes(file)[0] == ".json" and first.lstrip().startswith(b"["):
            for number, row in enumerate(json.loads(first + opened.read()), 1):
                yield text_in(row, column, f"{name} row {number:,}")
            return
        for number, line in enumerate(itertools.chain([first], opened), 1):
            yield from json_line(line, column, f"{name} line {number:,}")


def json_line(line: bytes | str, column: str, where: str) -> Iterator[str | Unusable]:
    """Yield the text of a line of JSON, or nothing if the line is blank."""
    if not line or line.isspace():
        return
    try:
        text = line.decode() if isinstance(line, bytes) else line
        row = json.loads(text.rstrip("\r\n"))
    except UnicodeDecodeError:
        yield Unusable(where, "not UTF-8 text")
    except json.JSONDecodeError as error:
        yield Unusable(where, f"not JSON ({error.msg} at character {error.pos + 1})")
    except (ValueError, RecursionError):  # numbers of thousands of digits; nested too deep
        yield Unusable(where, "JSON that cannot be read")
    else:
        yield text_in(row, column, where)


def text_in(row: Any, column: str, where: str) -> str | Unusable:
    """Return the text in a column of a row, with null as empty text."""
    if not isinstance(row, dict):
        return Unusable(where, f"expected a JSON object, got {type(row).__name__}")
    value = row
    for key in [column] if column in row else column.split("."):
        if not isinstance(value, dict) or key not in value:
            return Unusable(where, no_column(column, _columns(row)))
        value = value[key]
        if value is None:
            return ""
    if not isinstance(value, str):
        return Unusable(where, f'column "{column}" must contain text, got {type(value).__name__}')
    try:
        value.encode()
    except UnicodeEncodeError:
        return Unusable(where, f'column "{column}" is not valid Unicode')
    return value


def no_column(column: str, columns: Sequence[str]) -> str:
    """Return the reason why a row or file cannot be used, with the columns that it has."""
    names = [name if name.isprintable() else shown(name) for name in columns[:MOST_COLUMNS]]
    names += [f"and {len(columns) - MOST_COLUMNS:,} more"] if len(columns) > MOST_COLUMNS else []
    return f'no column "{column}"; set text_column to one of: {", ".join(names)}'


def _columns(row: dict[str, Any]) -> list[str]:
    """Return the columns of a row, those of nested objects with dots."""
    columns = []
    for key, value in row.items():
        columns += [f"{key}.{inner}" for inner in value] if isinstance(value, dict) and value else [key]
    return columns


def _parquet(file: Path, name: str, column: str) -> Iterator[str | Unusable]:
    """Yield the texts of a Parquet file; other columns are not read."""
    import pyarrow.compute
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        keys = [column] if column in schema.names else column.split(".")
        kind: Any = pyarrow.struct(list(schema))
        for key in keys:
            if not pyarrow.types.is_struct(kind) or kind.get_field_index(key) < 0:
                leaves = map(parquet.schema.column, range(len(parquet.schema)))
                raise DataError(f"{file}: {no_column(column, [leaf.path.split('.list.')[0] for leaf in leaves])}.")
            kind = kind.field(key).type
        value_type = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        is_text = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_null)
        if not any(check(value_type) for check in is_text):
            raise DataError(f'{file}: column "{column}" must contain text, got {kind}.')
        number = 0
        for batch in parquet.iter_batches(batch_size=1024, columns=[column]):
            values = batch.column(0)
            for key in keys[1:]:
                values = pyarrow.compute.struct_field(values, key)
            for value in values:
                number += 1
                try:
                    yield value.as_py() or ""
                except UnicodeDecodeError:
                    yield Unusable(f"{name} row {number:,}", f'column "{column}" is not valid UTF-8')
