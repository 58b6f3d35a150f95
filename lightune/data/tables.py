"""Table: any source as one stream of records, (row number, {column: value}), parsed as it is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightune.data.columns import MADE_UP
from lightune.errors import InputError

Record = dict[str, Any]
SHOWN = 10  # row numbers named in a message


@dataclass
class Table:
    """A source that is open. `records` can be read once; `facts` is complete when they have been read."""

    source: str
    records: Iterator[tuple[int, Record]]
    facts: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()  # empty where only the records tell them (JSON)


class Complaints:
    """What is wrong with single rows, collected so that all of it is said at once."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._found: dict[tuple[str, str], list[Any]] = {}

    def add(self, what: str, where: int | str, cure: str) -> None:
        """Note that `what` happened at this line or row."""
        seen = self._found.setdefault((what, cure), [0])
        seen[0] += 1
        if len(seen) <= SHOWN:
            seen.append(where)

    def check(self) -> None:
        """Raise one InputError for all that was noted, with the first ten places and the count of each kind."""
        if self._found:
            raise InputError(" ".join(f"{self._source}: {what}: {_places(seen)}. {cure}" for (what, cure), seen in self._found.items()))


def _places(seen: list[Any]) -> str:
    count, shown = seen[0], ", ".join(map(str, seen[1:]))
    return shown if count <= SHOWN else f"{shown}, ... ({count:,} in all)"


def column_names(header: list[str]) -> tuple[str, ...]:
    """Column names that are all there and all different: an empty one is column3, a second 'text' is text.2."""
    names: list[str] = []
    for index, cell in enumerate(header):
        plain = cell.strip() or f"{MADE_UP}{index + 1}"
        name, again = plain, 1
        while name in names:
            again += 1
            name = f"{plain}.{again}"
        names.append(name)
    return tuple(names)


def transposed(names: Sequence[str], columns: Sequence[Sequence[Any]]) -> Iterator[tuple[int, Record]]:
    """The records of columns of the same length."""
    for number, values in enumerate(zip(*columns, strict=True), start=1):
        yield number, dict(zip(names, values, strict=True))


def peek(table: Table, count: int) -> list[Record]:
    """The first records, which stay to be read."""
    first = list(itertools.islice(table.records, count))
    table.records = itertools.chain(first, table.records)
    table.names = table.names or tuple(dict.fromkeys(name for _, record in first for name in record))
    return [record for _, record in first]
