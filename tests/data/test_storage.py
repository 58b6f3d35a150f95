"""Rows that are too many for memory: written once, mapped, and the same as in memory in every other respect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightune.data import Examples, examine, read, read_parts, split
from lightune.data.storage import ArrowRows
from lightune.errors import InputError, IntegrityError

pytest.importorskip("pyarrow")

KINDS = {
    "classify": [{"text": f"text {index % 2990} é的😀", "label": index % 3} for index in range(3000)],
    "pair": [{"premise": f"one {index}", "hypothesis": f"two {index}", "label": "abc"[index % 3]} for index in range(3000)],
    "regress": [{"text": f"text {index}", "score": None if index == 7 else index / 9} for index in range(3000)],
    "multilabel": [{"text": f"text {index}", "labels": ["a", "b"][: index % 3]} for index in range(3000)],
}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def on_disk(path: Path, cache: Path) -> Examples:
    examples = read(path, memory_limit=1000, cache=cache)
    assert isinstance(examples._rows, ArrowRows)
    return examples


@pytest.mark.parametrize("task", KINDS)
def test_rows_on_disk_are_the_rows_in_memory(tmp_path: Path, task: str) -> None:
    path = write(tmp_path / "a.jsonl", KINDS[task])
    memory, disk = read(path), on_disk(path, tmp_path / "cache")
    assert disk.columns == memory.columns
    assert disk.columns.task == task
    assert list(disk) == list(memory)
    assert (disk[0], disk[2050], disk[-1]) == (memory[0], memory[2050], memory[-1])
    assert list(disk[10:20]) == list(memory[10:20])
    assert list(disk.take([2999, 5, 5, 2048])) == list(memory.take([2999, 5, 5, 2048]))
    assert disk.labels == memory.labels
    assert disk.facts["rows"] == 3000
    assert disk.facts["unlabelled"] == memory.facts["unlabelled"]
    assert f"they are read from {tmp_path / 'cache'}" in disk.facts["told"][-1]
    for name, part in split(memory).parts.items():
        assert list(split(disk).parts[name]) == list(part)
    assert examine({"train": disk}) == examine({"train": memory})
    with pytest.raises(IndexError):
        disk[3000]


def test_rows_are_written_once_and_found_again(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "a.jsonl", KINDS["classify"]), tmp_path / "cache"
    first = on_disk(path, cache)
    written = [(each, each.stat().st_mtime_ns) for each in sorted(cache.rglob("*"))]
    again = on_disk(path, cache)
    assert [(each, each.stat().st_mtime_ns) for each in sorted(cache.rglob("*"))] == written
    assert (list(again), again.columns, again.facts) == (list(first), first.columns, first.facts)
    write(path, KINDS["classify"][:100])
    assert len(read(path, memory_limit=1000, cache=cache)) == 100


def test_the_parts_of_a_split_column_are_kept(tmp_path: Path) -> None:
    rows = [{**row, "split": "train" if index % 10 else "test"} for index, row in enumerate(KINDS["classify"])]
    parts = read_parts(write(tmp_path / "a.jsonl", rows), memory_limit=1000, cache=tmp_path / "cache")
    assert {name: len(part) for name, part in parts.items()} == {"train": 2700, "test": 300}
    assert [example.row for example in parts["test"]][:3] == [1, 11, 21]


def test_a_failed_read_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", KINDS["classify"] * 4)  # more rows than are looked at to guess the columns
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(InputError, match="broken JSON: 12001"):
        read(path, memory_limit=1000, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", KINDS["classify"])
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"cannot be written to .*XDG_CACHE_HOME"):
        read(path, memory_limit=1000, cache=tmp_path / "cache")


def test_damaged_rows_are_refused(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "a.jsonl", KINDS["classify"]), tmp_path / "cache"
    on_disk(path, cache)
    (rows,) = cache.rglob("rows.arrow")
    rows.write_bytes(rows.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="Delete the folder"):
        read(path, memory_limit=1000, cache=cache)


def test_parquet_and_datasets_that_are_too_large_stay_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(KINDS["classify"])
    saved.to_parquet(tmp_path / "a.parquet")
    expected = list(read(saved))
    for source in (saved, tmp_path / "a.parquet"):
        assert list(on_disk(source, tmp_path / "cache")) == expected
