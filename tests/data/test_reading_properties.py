"""What holds for `read` whatever the rows and whatever the bytes."""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import io
import json
import tempfile
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lightune.data import read
from lightune.errors import InputError

QUICK = settings(max_examples=120, deadline=None)
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".csv.gz", ".jsonl.gz", ".csv.zst", ".parquet", ".arrow", "")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
labels = texts.map(str.strip).filter(bool)
tables = st.lists(st.tuples(texts, texts, labels), min_size=1, max_size=8)
json_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
structural = st.text(st.sampled_from('{}[]",:;|\t\n\r\\ a1-.\ufeff\0é的'), max_size=80).map(str.encode)


def read_back(content: bytes, suffix: str) -> list[tuple[str, str | None, str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content)
        examples = read(path, task="pair", text="text", pair="other", label="label")
        return [(example.text, example.pair, example.target) for example in examples]


def as_csv(rows: list[tuple[str, str, str]], **options: str) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, **options).writerows([("text", "other", "label"), *rows])  # type: ignore[arg-type]
    return buffer.getvalue().encode()


@QUICK
@given(tables, st.sampled_from([",", ";", "|"]))
def test_any_table_written_as_csv_reads_back_equal(rows: list[tuple[str, str, str]], delimiter: str) -> None:
    content = as_csv(rows, delimiter=delimiter)
    assert read_back(content, ".csv") == rows
    assert read_back(gzip.compress(content), ".csv.gz") == rows


@QUICK
@given(tables.filter(lambda rows: not any(mark in cell for row in rows for cell in row for mark in "\t\r\n")))
def test_any_table_written_as_tsv_reads_back_equal(rows: list[tuple[str, str, str]]) -> None:
    # A line break and a tab inside quotes can make every line look like a full row, which is how a file without quoting is told.
    assert read_back(as_csv(rows, delimiter="\t"), ".tsv") == rows


@QUICK
@given(st.lists(st.tuples(json_texts, json_texts, labels), min_size=1, max_size=8), st.booleans())
def test_any_table_written_as_json_reads_back_equal(rows: list[tuple[str, str, str]], ascii_only: bool) -> None:
    objects = [{"text": text, "other": other, "label": label} for text, other, label in rows]
    written = "\n".join(json.dumps(each, ensure_ascii=ascii_only) for each in objects).encode()
    assert read_back(written, ".jsonl") == rows
    assert read_back(gzip.compress(written), ".jsonl.gz") == rows
    assert read_back(json.dumps(objects, ensure_ascii=ascii_only, indent=1).encode(), ".json") == rows


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=40, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), structural), packed=st.booleans(), labelled=st.booleans())
def test_any_bytes_are_read_or_are_an_input_error(suffix: str, content: bytes, packed: bool, labelled: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(gzip.compress(content) if packed and suffix.endswith(".gz") else content)
        problem = None
        try:
            examples = read(path, labelled=labelled)
        except InputError as caught:
            problem = caught
        if problem is None:
            assert len(examples) > 0
            assert all(isinstance(example.text, str) for example in examples)
        else:
            assert str(path) in str(problem)


@QUICK
@given(
    suffix=st.sampled_from((".csv", ".jsonl.gz", ".csv.zst", ".parquet", ".arrow")),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_damaged_file_is_read_or_is_an_input_error(suffix: str, changes: list[tuple[int, int]]) -> None:
    content = bytearray(whole_file(suffix))
    for place, byte in changes:
        content[place % len(content)] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            assert len(read(path)) > 0


@functools.cache
def whole_file(suffix: str) -> bytes:
    """A good file of this format."""
    rows = [{"text": f"text {index}, é的😀", "label": f"label {index % 3}"} for index in range(20)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = as_csv([(row["text"], "", row["label"]) for row in rows])
    if suffix in (".csv", ".jsonl.gz"):
        return table if suffix == ".csv" else gzip.compress(lines)
    if suffix == ".csv.zst":
        return zstandard.compress(table)
    buffer = pyarrow.BufferOutputStream()
    columns = pyarrow.Table.from_pylist(rows)
    if suffix == ".parquet":
        parquet.write_table(columns, buffer)
    else:
        with pyarrow.ipc.new_file(buffer, columns.schema) as writer:
            writer.write_table(columns)
    return buffer.getvalue().to_pybytes()
