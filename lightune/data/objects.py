"""Objects in memory as tables: DataFrames, dicts of columns, lists of dicts, texts with labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lightune.data.tables import Record, Table, column_names, transposed
from lightune.errors import InputError


def _python(value: Any) -> Any:
    """A numpy scalar or array as what Python itself has for it."""
    return value.tolist() if hasattr(value, "tolist") else value


def frame(source: Any) -> Table:
    """A pandas DataFrame; a missing value of any kind is None. Rows are counted by position, from 1."""
    plain = source.astype(object).where(source.notna(), None)
    names = column_names([str(column) for column in plain.columns])
    values = [[_python(value) for value in plain.iloc[:, index].tolist()] for index in range(len(names))]
    return Table("the DataFrame", transposed(names, values), {"format": "DataFrame"}, names)


def dict_of_columns(source: Mapping[str, Sequence[Any]]) -> Table:
    """A dict of columns of the same length."""
    odd = [str(name) for name, values in source.items() if isinstance(values, (str, bytes)) or not isinstance(values, Iterable)]
    if odd:
        raise InputError(f"In the dict, {', '.join(map(repr, odd))} hold one value, expected a list of values for each column.")
    values = {str(name): [_python(value) for value in column] for name, column in source.items()}
    lengths = {name: len(column) for name, column in values.items()}
    if len(set(lengths.values())) > 1:
        raise InputError(f"The columns of the dict have different lengths: {lengths}. Give as many values in each.")
    return Table("the dict", transposed(tuple(values), list(values.values())), {"format": "dict"}, tuple(values))


def list_of_dicts(source: Iterable[Mapping[str, Any]]) -> Table:
    """A list of dicts."""

    def records() -> Iterator[tuple[int, Record]]:
        for number, row in enumerate(source, start=1):
            if not isinstance(row, Mapping):
                raise InputError(
                    f"Row {number} of the list is {type(row).__name__}, expected a dict such as {{'text': ..., 'label': ...}}."
                )
            yield number, {str(name): _python(value) for name, value in row.items()}

    return Table("the list", records(), {"format": "list"})


def texts_and_labels(texts: Sequence[Any], labels: Sequence[Any]) -> Table:
    """(texts, labels): a text may be a tuple of two texts."""
    texts, labels = list(texts), [_python(label) for label in labels]
    if len(texts) != len(labels):
        raise InputError(f"{len(texts):,} texts and {len(labels):,} labels, expected as many of each.")
    paired = bool(texts) and all(isinstance(text, (tuple, list)) and len(text) == 2 for text in texts)
    split = [tuple(text) for text in texts] if paired else [(text,) for text in texts]
    names = ("text", "pair", "label") if paired else ("text", "label")
    records = (
        (number, dict(zip(names, (*text, label), strict=True)))
        for number, (text, label) in enumerate(zip(split, labels, strict=True), start=1)
    )
    return Table("the list", records, {"format": "list"}, names)
