"""A record and the chosen columns become an Example. What is changed on the way is counted; what cannot be used is named by row."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from lightune.data.columns import FLAGS, Choice, part_name
from lightune.data.examples import Example
from lightune.data.tables import Complaints, Table


class Unusable(ValueError):
    """A value that is no text, label or number. Its message completes 'column X is ...'."""


def label_text(value: Any) -> str | None:
    """A label as text: 1 and 1.0 are '1', true is 'true', a text stays as it is but for blanks around it; None where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (list, tuple, set, dict)):
        raise Unusable("a list or an object, expected one label")
    return str(value).strip() or None


def number(value: Any) -> float | None:
    """A target to regress, or None where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip()):
        return None
    try:
        found = math.nan if isinstance(value, str) and "_" in value else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise Unusable("no finite number, such as 3.5 with a decimal point")
    return found


class Converter:
    """Turns the records of one source into (example, part), and counts what it meets. `facts` is complete when all have been read."""

    def __init__(self, table: Table, choice: Choice) -> None:
        self._table, self._choice = table, choice
        self._counts: Counter[str] = Counter()
        self._parts: Counter[str] = Counter()
        self._strays: dict[str, Counter[str]] = {}
        self._complaints = Complaints(table.source)

    def examples(self) -> Iterator[tuple[Example, str | None]]:
        """Every record as an example, with the part that its split column gives it.

        Raises:
            InputError: after the last record, for all values that could not be used, by row.
        """
        columns, split = self._choice.columns, self._choice.split
        for row, record in self._table.records:
            text = self._text(record, columns.text, row) or ""
            pair = (self._text(record, columns.pair, row) or "") if columns.pair else None
            target = self._target(record, row)
            part = part_name(record.get(split)) if split else None
            self._counts["rows"] += 1
            self._counts["unlabelled"] += target is None
            if split:
                if part is None:
                    self._complaints.add(f"column {split!r} is none of train, dev, test", f"row {row}", "Write one of them.")
                else:
                    self._parts[part] += 1
            yield Example(text, pair, target, row), part
        self._complaints.check()

    @property
    def facts(self) -> dict[str, Any]:
        """How many rows there are, how many of them unlabelled, and how many in each part."""
        parts = {part: self._parts[part] for part in ("train", "dev", "test") if self._parts[part]}
        return {"rows": self._counts["rows"], "unlabelled": self._counts["unlabelled"], "parts": parts}

    @property
    def told(self) -> list[str]:
        """A sentence for everything that the values made necessary."""
        told, counts, parts = [], self._counts, self.facts["parts"]
        if parts:
            told.append(
                f"Column {self._choice.split!r} gives the parts: " + ", ".join(f"{part} {count:,}" for part, count in parts.items()) + "."
            )
        if counts["unlabelled"] and self._choice.columns.target:
            told.append(f"{counts['unlabelled']:,} of {counts['rows']:,} rows have no label.")
        if counts["blanks"]:
            told.append(f"Blanks around {counts['blanks']:,} labels were removed.")
        if counts["surrogates"]:
            told.append(f"{counts['surrogates']:,} texts held half a character (a lone surrogate), which was replaced by U+FFFD.")
        if counts["numbers"]:
            told.append(f"{counts['numbers']:,} texts are numbers in the source and were taken as they are written.")
        if self._choice.separator:
            told.append(f"Column {self._choice.columns.target[0]!r} was split into labels at {self._choice.separator!r}.")
        for column, strays in self._strays.items():
            values = ", ".join(f"{value!r} in {count:,} rows" for value, count in strays.most_common(5))
            told.append(f"Column {column!r} has values other than 0 and 1 ({values}): a label counts as given only where the value is 1.")
        return told

    def _text(self, record: dict[str, Any], column: str, row: int) -> str | None:
        value = record.get(column)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if not isinstance(value, str):
            if isinstance(value, (list, tuple, dict, set, bytes)):
                self._complain(column, row, f"{type(value).__name__}, expected a text")
                return None
            self._counts["numbers"] += 1
            value = str(value)
        return self._whole(value)

    def _whole(self, text: str) -> str:
        """The text without halves of characters, which no tokenizer and no file can take."""
        try:
            text.encode()
        except UnicodeEncodeError:
            self._counts["surrogates"] += 1
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text

    def _target(self, record: dict[str, Any], row: int) -> Any:
        columns = self._choice.columns
        if len(columns.target) > 1:
            return self._flagged(record)
        for column in columns.target:
            try:
                if columns.task == "regress":
                    return number(record.get(column))
                return self._labels(record.get(column)) if columns.task == "multilabel" else self._label(record.get(column))
            except Unusable as problem:
                self._complain(column, row, str(problem))
        return None

    def _label(self, value: Any) -> str | None:
        label = label_text(value)
        if label is None:
            return None
        self._counts["blanks"] += isinstance(value, str) and len(label) != len(value)
        return self._whole(label)

    def _labels(self, value: Any) -> tuple[str, ...] | None:
        """The labels of a list, or of a text that separates them; each once, in the user's order."""
        if isinstance(value, str):
            value = self._separated(value)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        items = value if isinstance(value, (list, tuple, set)) else [value]
        labels = (self._label(item) for item in (sorted(items, key=str) if isinstance(items, set) else items))
        return tuple(dict.fromkeys(label for label in labels if label is not None))

    def _separated(self, text: str) -> list[Any] | None:
        if not text.strip():
            return None
        if self._choice.separator != "json":
            return text.split(self._choice.separator) if self._choice.separator else [text]
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list):
            raise Unusable('no list of labels such as ["a", "b"]')
        return found

    def _flagged(self, record: dict[str, Any]) -> tuple[str, ...] | None:
        """The columns that are 1; None where every one of them is empty."""
        given, empty = [], True
        for column in self._choice.columns.target:
            value = record.get(column)
            word = "" if value is None or value != value else str(value).strip().lower()
            flag = FLAGS.get(word)
            empty = empty and not word
            if flag:
                given.append(column)
            elif flag is None and word:
                self._strays.setdefault(column, Counter())[word] += 1
        return None if empty else tuple(given)

    def _complain(self, column: str, row: int, problem: str) -> None:
        self._complaints.add(f"column {column!r} is {problem}", f"row {row}", "Correct these rows, or name another column.")
