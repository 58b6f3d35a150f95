"""CSV, TSV and their kin: the delimiter, the quotes and the header line found out, then one row after another."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightune.data import files
from lightune.data.columns import ID_NAMES, LABEL_NAMES, SPLIT_NAMES, TEXT_NAMES
from lightune.data.tables import Complaints, Record, Table, column_names
from lightune.errors import InputError

DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
PROBE, PROBE_LINES = 1 << 18, 20  # the characters, and at least so many lines, from which the delimiter and the header are told
FIELD_LIMIT = 2**31 - 1  # the csv module stops at 131,072 characters a field, and a text may be longer
USUAL_NAMES = frozenset((*TEXT_NAMES, *LABEL_NAMES, *SPLIT_NAMES, *ID_NAMES))


@dataclass(frozen=True)
class Dialect:
    """How a delimited text file is written."""

    delimiter: str
    quotes: str = "doubled"  # doubled, escaped by a backslash, or none at all

    @property
    def options(self) -> dict[str, Any]:
        kinds: dict[str, dict[str, Any]] = {
            "doubled": {"doublequote": True},
            "escaped": {"doublequote": False, "escapechar": "\\"},
            "none": {"quoting": csv.QUOTE_NONE},
        }
        return {"delimiter": self.delimiter, "strict": True, **kinds[self.quotes]}


@dataclass(frozen=True)
class Probe:
    """The lines with which a file begins, and whether they are all of it."""

    lines: tuple[str, ...]
    whole: bool

    def rows(self, dialect: Dialect) -> list[list[str]]:
        """The rows of these lines; the last one may be cut, and is left out where the file goes on."""
        rows: list[list[str]] = []
        try:
            for row in csv.reader(self.lines, **{**dialect.options, "strict": False}):
                rows.append(row)
        except csv.Error:
            pass  # `_dialect` reads the whole file and names the line; here the rows before it are enough
        return [row for row in (rows if self.whole or len(rows) < 2 else rows[:-1]) if row]


def _probe(path: Path, encoding: str) -> Probe:
    lines: list[str] = []
    characters = 0
    with files.open_text(path, encoding) as stream:
        for line in stream:
            if characters >= PROBE and len(lines) >= PROBE_LINES:
                return Probe(tuple(lines), whole=False)
            lines.append(line)
            characters += len(line)
    return Probe(tuple(lines), whole=True)


def open_table(path: Path, encoding: str, delimiter: str | None, wanted: Sequence[str]) -> Table:
    """A CSV or TSV file. `wanted` are the column names that the caller gave: a first line that has them is a header."""
    csv.field_size_limit(FIELD_LIMIT)
    probe = _probe(path, encoding)
    chosen = _one_character(delimiter) if delimiter else _delimiter(probe, path, wanted)
    dialect = _dialect(path, encoding, chosen)
    first = probe.rows(dialect)
    header = bool(first) and _has_header(first, wanted)
    names = column_names(first[0] if header else [""] * len(first[0])) if first else ()
    facts = {"format": "delimited text", "delimiter": chosen, "quotes": dialect.quotes, "header": header, "blank_lines": 0}
    return Table(str(path), _records(path, encoding, dialect, names, header, facts), facts, names)


def kind_of_text(path: Path, encoding: str, wanted: Sequence[str]) -> str:
    """json, delimited or text, by how a file begins whose name does not tell."""
    probe = _probe(path, encoding)
    if next((line for line in probe.lines if line.strip()), "").lstrip().startswith(("{", "[")):
        return "json"
    rows = probe.rows(Dialect(_delimiter(probe, path, wanted)))
    even = len({len(row) for row in rows}) == 1 and len(rows[0]) > 1
    return "delimited" if even or (rows and not set(wanted).isdisjoint(rows[0])) else "text"


def _one_character(delimiter: str) -> str:
    delimiter = {"\\t": "\t", "tab": "\t", "comma": ",", "semicolon": ";"}.get(delimiter, delimiter)
    if len(delimiter) != 1 or delimiter in '"\r\n\0':
        raise InputError(f"delimiter is {delimiter!r}, expected one character such as ',' or 'tab'.")
    return delimiter


def _delimiter(probe: Probe, path: Path, wanted: Sequence[str]) -> str:
    """The delimiter that splits the first line and splits every other line into as many fields."""

    def evidence(delimiter: str) -> tuple[float, ...]:
        rows = probe.rows(Dialect(delimiter))
        if not rows or len(rows[0]) < 2:
            return (0.0, 0.0, 0.0)
        alike = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        return (float(not set(wanted).isdisjoint(rows[0])), alike, float(delimiter == "\t" and ".tsv" in path.suffixes))

    return max(DELIMITERS, key=evidence)  # the first of equals: the comma


def _dialect(path: Path, encoding: str, delimiter: str) -> Dialect:
    """How the file treats quotes: the first way in which all of it can be read, strictly."""
    doubled, plain, escaped = (Dialect(delimiter, quotes) for quotes in ("doubled", "none", "escaped"))
    quoted = _widths(path, encoding, doubled)
    if delimiter == "\t":
        lines = _widths(path, encoding, plain)
        if lines is not None and len(lines) == 1 and lines != quoted:
            return plain  # every line is a full row: the quotes are letters like any other
    if quoted is not None:
        return doubled
    if _widths(path, encoding, escaped) is not None:
        return escaped
    raise _bad_quotes(path, encoding, doubled)


def _widths(path: Path, encoding: str, dialect: Dialect) -> Counter[int] | None:
    """How many rows have how many fields, or None where the file cannot be read this way."""
    try:
        return Counter(len(row) for _, row in _rows(path, encoding, dialect) if row)
    except csv.Error:
        return None


def _rows(path: Path, encoding: str, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Every row with the number of the line on which it begins."""
    with files.open_text(path, encoding) as stream:
        reader = csv.reader(stream, **dialect.options)
        line = 1
        for row in reader:
            yield line, row
            line = reader.line_num + 1


def _bad_quotes(path: Path, encoding: str, dialect: Dialect) -> InputError:
    line = 1
    try:
        for line, _ in _rows(path, encoding, dialect):  # noqa: B007
            pass
    except csv.Error as problem:
        return InputError(
            f"{path}: the quotes of the row after line {line} are not closed, or text follows them ({problem}). "
            'Write a quote inside a quoted field as two quotes (""), or save the file as JSON Lines.'
        )
    raise AssertionError("read without a fault now")  # pragma: no cover


def _has_header(rows: list[list[str]], wanted: Sequence[str]) -> bool:
    """Whether the first row names the columns: it does unless it looks like the rows below it."""
    first, rest = [cell.strip() for cell in rows[0]], rows[1:]
    numbered = first == [str(index) for index in range(len(first))]
    if numbered or not set(wanted).isdisjoint(first) or sum(cell.lower() in USUAL_NAMES for cell in first) >= 2:
        return True
    for index, cell in enumerate(first):
        below = {row[index].strip() for row in rest if len(row) > index}
        sentence = len(cell) > 100 or cell.endswith((".", "!", "。", "！", "？")) or len(cell.split()) > 12
        if cell and (cell in below or _is_number(cell) or sentence):
            return False
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _records(
    path: Path, encoding: str, dialect: Dialect, names: tuple[str, ...], header: bool, facts: dict[str, Any]
) -> Iterator[tuple[int, Record]]:
    complaints, number, skip = Complaints(str(path)), 0, header
    cure = "Quote the fields that contain the delimiter or a line break, or name the delimiter: delimiter=';'."
    for line, row in _rows(path, encoding, dialect):
        if not row or (len(row) == 1 < len(names) and not row[0].strip()):
            facts["blank_lines"] += 1
        elif skip:
            skip = False
        elif len(row) != len(names):
            number += 1
            complaints.add(f"rows with other than {len(names)} fields", f"line {line} has {len(row)}", cure)
        else:
            number += 1
            yield number, dict(zip(names, row, strict=True))
    complaints.check()
