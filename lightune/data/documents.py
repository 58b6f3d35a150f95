"""JSON in its several forms, and plain lines of text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lightune.data import files
from lightune.data.tables import Complaints, Record, Table, transposed
from lightune.errors import InputError

WINDOW = 1 << 18  # characters of a JSON array that are looked at together


def open_lines(path: Path, encoding: str) -> Table:
    """A plain text file, one text a line, in the column 'text'."""
    facts: dict[str, Any] = {"format": "lines of text", "blank_lines": 0}

    def records() -> Iterator[tuple[int, Record]]:
        with files.open_text(path, encoding, newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                text = line.rstrip("\r\n")
                if text.strip():
                    yield number, {"text": text}
                else:
                    facts["blank_lines"] += 1

    return Table(str(path), records(), facts, ("text",))


def open_json(path: Path, encoding: str) -> Table:
    """JSON Lines, an array of objects, an object with one such array, or an object of columns: told apart by how the file begins."""
    with files.open_text(path, encoding) as stream:
        first = next((line.strip() for line in stream if line.strip()), "")
        more = any(line.strip() for line in stream)
    facts: dict[str, Any] = {"format": "json", "blank_lines": 0}
    if first.startswith("["):
        return Table(str(path), _array_records(path, encoding), facts)
    if path.suffix.lower() == ".json" and not (more and _is_object(first)):
        return Table(str(path), _object_records(path, encoding), facts)
    facts["format"] = "jsonl"
    return Table(str(path), _line_records(path, encoding, facts), facts)


def _parse(text: str) -> Any:
    """The value of a JSON text; raises ValueError for anything that is none, nesting too deep for Python included."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _is_object(text: str) -> bool:
    try:
        return isinstance(_parse(text), dict)
    except ValueError:
        return False


def _line_records(path: Path, encoding: str, facts: dict[str, Any]) -> Iterator[tuple[int, Record]]:
    complaints = Complaints(str(path))
    with files.open_text(path, encoding, newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                facts["blank_lines"] += 1
                continue
            try:
                value = _parse(line)
            except ValueError:
                complaints.add("lines that are broken JSON", number, 'Write one {"column": value, ...} a line.')
                continue
            if isinstance(value, dict):
                yield number, value
            else:
                complaints.add("lines that are no JSON object", number, 'Write one {"column": value, ...} a line.')
    complaints.check()


class _Window:
    """A piece of a JSON text that moves along, and grows only while one value needs it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._text, self._at = stream, "", 0
        self._decode = json.JSONDecoder().raw_decode

    def next(self) -> str:
        """The next character that is not blank; '' at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._refill():
                return ""

    def skip(self) -> None:
        """Pass over one character."""
        self._at += 1

    def value(self) -> Any:
        """The JSON value that begins here."""
        while True:
            try:
                value, self._at = self._decode(self._text, self._at)
                return value
            except (ValueError, RecursionError):
                if not self._refill():
                    raise

    def _refill(self) -> bool:
        more = self._stream.read(max(WINDOW, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)


def _array_records(path: Path, encoding: str) -> Iterator[tuple[int, Record]]:
    complaints, number = Complaints(str(path)), 0
    broken = "{}: the JSON array is broken after its element {} ({}). Write [{{...}}, {{...}}], or one object a line."
    with files.open_text(path, encoding) as stream:
        window = _Window(stream)
        window.next()
        window.skip()
        while window.next() != "]" or number:
            try:
                value = window.value()
            except (ValueError, RecursionError) as problem:
                raise InputError(broken.format(path, number, problem)) from None
            number += 1
            if isinstance(value, dict):
                yield number, value
            else:
                complaints.add("elements that are no JSON object", number, 'Write [{"column": value, ...}, ...].')
            if (separator := window.next()) not in (",", "]"):
                raise InputError(broken.format(path, number, "no comma follows" if separator else "it is not closed"))
            if separator == "]":
                break
            window.skip()
        window.skip()
        if window.next():
            raise InputError(f"{path}: text follows the end of the JSON array. Keep one array in the file, or write JSON Lines.")
    complaints.check()


def _object_records(path: Path, encoding: str) -> Iterator[tuple[int, Record]]:
    cure = 'Write [{"column": value, ...}, ...] or {"column": [value, ...], ...}, or one object a line.'
    with files.open_text(path, encoding) as stream:
        try:
            value = _parse(stream.read())
        except ValueError as problem:
            raise InputError(f"{path} is broken JSON ({problem}). {cure}") from problem
    columns = list(value.values()) if isinstance(value, dict) else []
    if len(columns) == 1 and isinstance(columns[0], list) and columns[0] and all(isinstance(row, dict) for row in columns[0]):
        yield from enumerate(columns[0], start=1)
    elif columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        yield from transposed(list(value), columns)
    elif columns and all(isinstance(column, dict) and column.keys() == columns[0].keys() for column in columns):
        yield from transposed(list(value), [list(column.values()) for column in columns])
    else:
        raise InputError(f"{path} holds no table: its JSON is {type(value).__name__}, expected a list of objects. {cure}")
