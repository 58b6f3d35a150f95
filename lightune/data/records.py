"""`read_records`: the rows of any source as they are, for what needs other columns than texts, labels and answers."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from lightune.data import origins
from lightune.data.columns import part_name
from lightune.data.reading import Request, lies_apart, open_file, source_name
from lightune.data.tables import Record, Table
from lightune.errors import InputError


def read_records(
    source: Any, *, part: str | None = None, limit: int | None = None, delimiter: str | None = None, encoding: str | None = None
) -> list[tuple[int, Record]]:
    """Row numbers, from 1, and the values of all columns.

    part: of a source whose parts lie apart; test by default. The rest as in `read`.

    Raises:
        InputError: anything wrong with the source, no such part, or no rows.
    """
    resolved, name = origins.resolve(source), source_name(source)
    if lies_apart(resolved):
        chosen = part_name(part) if part else next(iter(resolved)) if len(resolved) == 1 else "test"
        if chosen not in resolved:
            raise InputError(f"{name} has no part {part or 'test'!r}; it has {', '.join(resolved)}. Name one with --part.")
        resolved, name = resolved[chosen], f"{name} ({chosen})"
    elif part:
        raise InputError(f"{name} has no parts that lie apart, and part {part!r} was asked for. Leave part out.")
    rows = list(islice(_open(resolved, name, delimiter, encoding).records, limit))
    if not rows:
        raise InputError(f"{name} has no rows. Give a source with at least one row.")
    return rows


def _open(source: Any, name: str, delimiter: str | None, encoding: str | None) -> Table:
    if not isinstance(source, (str, Path)):
        return origins.table(source, name)
    return open_file(Path(source).expanduser(), Request(labelled=False, delimiter=delimiter, encoding=encoding))
