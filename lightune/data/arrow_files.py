"""Parquet and Arrow files, and `datasets.Dataset`s, with the label names that they carry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightune.data.tables import Record, Table
from lightune.errors import InputError, MissingExtra


def open_file(path: Path) -> Table:
    """A Parquet or Arrow file. Numbers of a Hugging Face ClassLabel column become the label names that the file itself holds."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra(f"reading {path.name}", "pyarrow", "train") from None
    kind = "parquet" if path.suffix.lower() in (".parquet", ".pq") else "arrow"
    try:
        if kind == "parquet":
            file = parquet.ParquetFile(path)
            schema, size, batches = file.schema_arrow, sum(_group_bytes(file)), file.iter_batches(batch_size=4096)
        else:
            reader = _arrow_reader(path)
            schema, size, batches = reader.schema, path.stat().st_size, iter(reader)
        named, names = _class_names(schema), tuple(schema.names)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as problem:
        raise _bad_arrow(path, kind, problem) from problem

    def records() -> Iterator[tuple[int, Record]]:
        number = 0
        try:
            for batch in batches:
                batch.validate(full=True)  # a damaged file would else lead Python to memory that is not there
                for record in batch.to_pylist():
                    number += 1
                    yield number, _with_label_names(record, named)
        except (pyarrow.ArrowException, OSError, ValueError, TypeError) as problem:
            raise _bad_arrow(path, kind, problem) from problem

    return Table(str(path), records(), {"format": kind, "bytes": size}, names)


def _bad_arrow(path: Path, kind: str, problem: Exception) -> InputError:
    return InputError(
        f"{path} is no readable {kind} file ({str(problem).splitlines()[0] if str(problem) else type(problem).__name__}). Write it again."
    )


def _group_bytes(file: Any) -> Iterator[int]:
    return (file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups))


def _arrow_reader(path: Path) -> Any:
    """The batches of an Arrow file in either of its two forms."""
    import pyarrow

    source = pyarrow.memory_map(str(path))
    try:
        reader = pyarrow.ipc.open_file(source)
    except pyarrow.ArrowInvalid:
        source.seek(0)
        return pyarrow.ipc.open_stream(source)
    return pyarrow.RecordBatchReader.from_batches(reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches)))


def _class_names(schema: Any) -> dict[str, list[str]]:
    """{column: label names} of the ClassLabel columns, and columns of lists of them, that `datasets` noted in a schema."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        own = {name: feature.get("feature", feature) for name, feature in features.items() if isinstance(feature, dict)}
        return {name: list(feature["names"]) for name, feature in own.items() if feature.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def _with_label_names(record: Record, named: Mapping[str, Sequence[str]]) -> Record:
    for column, names in named.items():
        value = record.get(column)
        record[column] = [_label_name(item, names) for item in value] if isinstance(value, list) else _label_name(value, names)
    return record


def _label_name(value: Any, names: Sequence[str]) -> Any:
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None  # -1 is how hidden test labels are written


def open_dataset(source: Any, name: str) -> Table:
    """A `datasets.Dataset`; the numbers of a ClassLabel column become its label names."""
    own = {column: getattr(feature, "feature", feature) for column, feature in (source.features or {}).items()}
    named = {column: feature.names for column, feature in own.items() if hasattr(feature, "names")}
    rows = source.with_format(None)
    records = ((number, _with_label_names(dict(record), named)) for number, record in enumerate(rows, start=1))
    facts = {"format": "dataset", "bytes": int(source.data.nbytes), "fingerprint": source._fingerprint}
    return Table(name, records, facts, tuple(source.column_names))
