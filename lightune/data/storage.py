"""Rows that are too many for memory: an Arrow file in the cache, memory-mapped, which behaves like a list of examples."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from lightune.data.columns import PARTS
from lightune.data.examples import Columns, Example
from lightune.errors import InputError, IntegrityError, MissingExtra

VERSION = 1  # of the layout of the file; part of every key, so that another version's files are not read
BATCH = 2048
PART_NAMES = (None, *dict.fromkeys(PARTS.values()))


def cache_folder() -> Path:
    """Where rows are kept: lightune/data in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "lightune" / "data"


def key(*parts: Any) -> str:
    """The name under which rows are kept: the same for the same source, columns and options."""
    return hashlib.sha256(json.dumps([VERSION, *parts], sort_keys=True, default=str).encode()).hexdigest()[:32]


class ArrowRows(Sequence[Example]):
    """Examples in a memory-mapped Arrow file: what is not asked for is not in memory."""

    def __init__(self, path: Path, task: str) -> None:
        pyarrow = _pyarrow()
        self.path, self._multilabel = path, task == "multilabel"
        try:
            with pyarrow.memory_map(str(path)) as source:
                reader = pyarrow.ipc.open_file(source)
                self._batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
            for batch in self._batches:
                batch.validate()
        except (OSError, pyarrow.ArrowException) as problem:
            raise IntegrityError(
                f"{path} is damaged ({problem}). Delete the folder {path.parent}; it is written again from the source."
            ) from problem
        self._ends = list(itertools.accumulate(batch.num_rows for batch in self._batches))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[each] for each in range(len(self))[index]]
        index = range(len(self))[index]
        place = bisect.bisect_right(self._ends, index)
        within = index - (self._ends[place - 1] if place else 0)
        return self._example(*(self._batches[place].column(column)[within].as_py() for column in range(4)))

    def __iter__(self) -> Iterator[Example]:
        for batch in self._batches:
            for values in zip(*(batch.column(column).to_pylist() for column in range(4)), strict=True):
                yield self._example(*values)

    def select(self, indices: Sequence[int]) -> Iterator[Example]:
        """The examples at these positions, in this order; neighbours in one batch are decoded together."""
        for place, run in itertools.groupby(indices, lambda index: bisect.bisect_right(self._ends, index)):
            start = self._ends[place - 1] if place else 0
            chosen = self._batches[place].take([index - start for index in run])
            for values in zip(*(chosen.column(column).to_pylist() for column in range(4)), strict=True):
                yield self._example(*values)

    def parts(self) -> Iterator[str | None]:
        """The part of every row, as its source's split column gave it."""
        for batch in self._batches:
            yield from (PART_NAMES[code] for code in batch.column(4).to_pylist())

    def _example(self, text: str, pair: str | None, target: Any, row: int) -> Example:
        return Example(text, pair, tuple(target) if self._multilabel and target is not None else target, row)


def stored(folder: Path, name: str) -> dict[str, Any] | None:
    """What `store` returned for the rows under this name, or None where there are no such rows."""
    path = folder / name / "facts.json"
    try:
        return json.loads(path.read_text())
    except OSError:
        return None
    except ValueError as problem:
        raise IntegrityError(
            f"{path} is damaged ({problem}). Delete the folder {path.parent}; it is written again from the source."
        ) from problem


def store(
    folder: Path, name: str, columns: Columns, examples: Iterator[tuple[Example, str | None]], facts: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Write rows as they stream, then their facts, to a temporary folder that gets its name when it is complete.

    Returns {"used": the columns, "facts": facts()}: what `stored` gives later.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{name}.", suffix=".partial", dir=folder))
    except OSError as problem:
        raise _unwritable(folder, problem) from problem
    try:
        _write(partial / "rows.arrow", columns.task, examples)
        kept = {"used": columns.as_dict(), "facts": facts()}
        (partial / "facts.json").write_text(json.dumps(kept))
        try:
            partial.rename(folder / name)
        except OSError:
            if not (folder / name).is_dir():  # else another process was faster with the same rows
                raise
        return kept
    except OSError as problem:
        raise _unwritable(folder, problem) from problem
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unwritable(folder: Path, problem: OSError) -> InputError:
    return InputError(
        f"The rows are too many for memory and cannot be written to {folder}: {problem.strerror or problem}. "
        "Free space there, or set XDG_CACHE_HOME to a folder with space."
    )


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise MissingExtra("reading data that is too large for memory", "pyarrow", "train") from None
    return pyarrow


def _write(path: Path, task: str, examples: Iterator[tuple[Example, str | None]]) -> None:
    pyarrow = _pyarrow()
    target = {"regress": pyarrow.float64(), "multilabel": pyarrow.list_(pyarrow.string())}.get(task, pyarrow.string())
    kinds = {"text": pyarrow.string(), "pair": pyarrow.string(), "target": target, "row": pyarrow.int64(), "part": pyarrow.int8()}
    schema = pyarrow.schema(list(kinds.items()))
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, schema) as writer:
        while chunk := list(itertools.islice(examples, BATCH)):
            rows = [(example.text, example.pair, example.target, example.row, PART_NAMES.index(part)) for example, part in chunk]
            columns = zip(*rows, strict=True)
            writer.write_batch(
                pyarrow.record_batch([pyarrow.array(values, kind) for values, kind in zip(columns, kinds.values(), strict=True)], schema)
            )
