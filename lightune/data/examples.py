"""Example, Columns and Examples: what every later part sees of the user's data."""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, overload, runtime_checkable


@dataclass(frozen=True, slots=True)
class Example:
    """One row of the user's data.

    text, pair: as the user wrote them; `pair` is the second text, where there is one.
    target: None where unlabelled; classify and pair: the label as text; multilabel: a tuple of labels, perhaps empty; regress: a float.
    row: the row as the user counts it, from 1: the line of a JSON Lines or text file, else the record (a CSV's header is not counted).
    """

    text: str
    pair: str | None = None
    target: Any = None
    row: int = 0


@dataclass(frozen=True)
class Columns:
    """Which columns are used for what. `target` is one name, many for a multilabel table of 0 and 1, none where the data has no labels."""

    task: str
    text: str
    pair: str | None
    target: tuple[str, ...]

    def arguments(self) -> dict[str, Any]:
        """What to pass to `read` so that another file is read by the same columns: ``read(test, **train.columns.arguments())``."""
        return {"task": self.task, "text": self.text, "pair": self.pair, "label": self.target or None}

    def as_dict(self) -> dict[str, Any]:
        """The columns, ready for JSON."""
        return {"task": self.task, "text": self.text, "pair": self.pair, "target": list(self.target)}


@runtime_checkable
class Selectable(Protocol):
    """Rows that are faster to get together than one by one, as rows on disk are."""

    def select(self, indices: Sequence[int]) -> Iterator[Example]:
        """The examples at these positions, in this order."""
        ...


class Examples(Sequence[Example]):
    """Rows in order, in memory or memory-mapped from disk, perhaps only a selection of them.

    source: where they come from, for messages. columns: see `Columns`. facts: what reading found out about the whole source (format,
    encoding, delimiter, rows, parts, ..., and under "told" the sentences that a user should see).
    """

    def __init__(
        self,
        rows: Sequence[Example],
        columns: Columns,
        *,
        source: str = "rows",
        facts: dict[str, Any] | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        self._rows, self._indices = rows, indices
        self.columns, self.source = columns, source
        self.facts: dict[str, Any] = facts if facts is not None else {}

    def __len__(self) -> int:
        return len(self._rows) if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Examples: ...
    def __getitem__(self, index: int | slice) -> Example | Examples:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self._rows[index if self._indices is None else self._indices[index]]

    def __iter__(self) -> Iterator[Example]:
        if self._indices is None:
            return iter(self._rows)
        if isinstance(self._rows, Selectable):
            return self._rows.select(self._indices)
        return (self._rows[index] for index in self._indices)

    def __repr__(self) -> str:
        return f"Examples({len(self)} rows of {self.source}, {self.columns.task})"

    def take(self, indices: Iterable[int]) -> Examples:
        """Only the examples at these positions, in this order; nothing is copied."""
        chosen = array("q", indices if self._indices is None else (self._indices[index] for index in indices))
        return Examples(self._rows, self.columns, source=self.source, facts=self.facts, indices=chosen)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The label names: a 0/1 table's columns in their order, else the labels that occur, sorted (numbers by value). None to regress."""
        if self.columns.task == "regress":
            return ()
        if len(self.columns.target) > 1:
            return self.columns.target
        return sort_labels({label for example in self for label in labels_of(example)})


def labels_of(example: Example) -> tuple[str, ...]:
    """The labels of one example of a task that has labels: none where it is unlabelled."""
    if example.target is None:
        return ()
    return example.target if isinstance(example.target, tuple) else (example.target,)


def sort_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Labels in their natural order: by value where all are whole numbers, else by the alphabet."""
    labels = list(labels)
    whole = all(label.removeprefix("-").isdecimal() and len(label) < 20 for label in labels)
    return tuple(sorted(labels, key=(lambda label: (int(label), label)) if whole else None))


def normalise(text: str) -> str:
    """The text without what does not tell two texts apart: case, runs of blanks, and whether an accent is a character of its own."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.casefold().split())


def fingerprint(example: Example) -> bytes:
    """16 bytes that are the same for two examples whose normalised text and pair are the same. Millions of them fit in memory."""
    key = normalise(example.text) if example.pair is None else f"{normalise(example.text)}\0{normalise(example.pair)}"
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
