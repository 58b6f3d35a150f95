"""`read`: any source of rows becomes Examples, and whatever had to be guessed on the way is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lightune.data import arrow_files, delimited, documents, files, origins, storage
from lightune.data.columns import Choice, choose, part_name
from lightune.data.conversion import Converter
from lightune.data.dialogues import Conversations
from lightune.data.examples import Columns, Examples
from lightune.data.tables import Table, peek
from lightune.errors import InputError

MEMORY_LIMIT = 256 << 20  # bytes of decompressed source beyond which its rows stay on disk
SAMPLE = 10_000  # rows from which columns are guessed
Rows = TypeVar("Rows", Examples, Conversations)


@dataclass(frozen=True)
class Request:
    """How to read, as the caller asked for it; see `read`."""

    task: str | None = None
    text: str | None = None
    pair: str | None = None
    label: str | Sequence[str] | None = None
    labelled: bool = True
    delimiter: str | None = None
    encoding: str | None = None
    memory_limit: int = MEMORY_LIMIT
    cache: Path | None = None

    @property
    def named(self) -> tuple[str, ...]:
        """The column names that the caller gave."""
        labels = (self.label, *self.label.split(",")) if isinstance(self.label, str) else tuple(self.label or ())
        return tuple(name for name in (self.text, self.pair, *labels) if name)

    @property
    def folder(self) -> Path:
        """Where rows that are too many for memory are kept."""
        return Path(self.cache) if self.cache else storage.cache_folder()

    def key(self, *content: str) -> str:
        """The name of the rows of this content, read in this way."""
        return storage.key(content, self.task, self.text, self.pair, self.label, self.labelled, self.delimiter, self.encoding)


def read(
    source: Any,
    *,
    task: str | None = None,
    text: str | None = None,
    pair: str | None = None,
    label: str | Sequence[str] | None = None,
    part: str | None = None,
    limit: int | None = None,
    labelled: bool = True,
    delimiter: str | None = None,
    encoding: str | None = None,
    memory_limit: int = MEMORY_LIMIT,
    cache: Path | None = None,
) -> Examples:
    """Read labelled texts.

    source: a CSV, TSV, JSON, JSON Lines, text, Parquet or Arrow file, the texts among them also as .gz or .zst; a folder that `datasets`
        saved, or one with files named train, dev and test; "hub:OWNER/NAME[:CONFIG][@REVISION]"; a DataFrame; a `datasets.Dataset` or
        DatasetDict; a list of dicts; (texts, labels).
    task: classify, pair, multilabel or regress. text, pair, label: column names; several labels (separated by commas) are columns of 0
        and 1. What is not given is guessed from names and values, and told.
    part: only this part (train, dev or test) of a source that has parts. Without it, all rows of a source with a split column, and the
        first part (train) of a source whose parts lie apart.
    limit: at most so many rows, the first ones. labelled: False where there may be no labels at all, as in data to predict.
    delimiter, encoding: of a text file; found out otherwise.
    memory_limit: bytes of decompressed source beyond which its rows stay on disk, under `cache` (default: the user's cache folder).

    Raises:
        InputError: anything wrong with the source; the message names the lines or rows and the cure.
        MissingExtra: the format needs a package that is not installed.
    """
    request = Request(task, text, pair, label, labelled, delimiter, encoding, memory_limit, cache)
    wanted = part_name(part) if part is not None else None
    if part is not None and wanted is None:
        raise InputError(f"part is {part!r}, expected train, dev (or validation) or test.")
    resolved, name = origins.resolve(source), source_name(source)
    if not lies_apart(resolved):
        examples, parts = _load(resolved, request, name)
        return limited(only(examples, parts, wanted) if wanted else examples, limit)
    if wanted and wanted not in resolved:
        raise InputError(f"{name} has no part {part!r}; it has: {', '.join(resolved)}.")
    chosen = wanted or next(iter(resolved))
    examples, _ = _load(resolved[chosen], request, f"{name} ({chosen})")
    if not wanted and len(resolved) > 1:
        examples.facts["told"].append(f"{name} has the parts {', '.join(resolved)}; this is {chosen}.")
    return limited(examples, limit)


def read_parts(source: Any, *, limit: int | None = None, **options: Any) -> dict[str, Examples]:
    """Read every part that a source has: {"train": ..., "dev": ..., "test": ...}, or {"train": all of it} where it has no parts.

    `options` as in `read`. Parts that lie apart are all read by the columns of the first of them. `limit` counts in each part. A test
    part of which no row has a label, as competitions publish it, comes as "unlabelled".
    """
    resolved, name = origins.resolve(source), source_name(source)
    if lies_apart(resolved):
        parts = {}
        for part, each in resolved.items():
            request = Request(**{**options, "labelled": options.get("labelled", True) and part != "test"})
            parts[part], _ = _load(each, request, f"{name} ({part})")
            options.update(parts[part].columns.arguments())
    else:
        examples, places = _load(resolved, Request(**options), name)
        parts = {part: only(examples, places, part) for part in examples.facts["parts"]} or {"train": examples}
    hidden = "train" in parts and "test" in parts and all(example.target is None for example in parts["test"])
    return {"unlabelled" if part == "test" and hidden else part: limited(each, limit) for part, each in parts.items()}


def source_name(source: Any) -> str:
    """What a source is called in messages."""
    return str(source) if isinstance(source, (str, Path)) else f"the {type(source).__name__}"


def lies_apart(resolved: Any) -> bool:
    """Whether a resolved source is {part: source}."""
    return isinstance(resolved, Mapping) and bool(resolved) and all(part_name(name) for name in resolved)


def limited(examples: Rows, limit: int | None) -> Rows:
    """The first `limit` rows, which is told."""
    if limit is None or limit >= len(examples):
        return examples
    if limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1 row.")
    told = f"Only the first {limit:,} of {len(examples):,} rows are used, as asked."
    chosen = examples.take(range(limit))
    chosen.facts = {**examples.facts, "told": [*examples.facts["told"], told]}
    return chosen


def only(examples: Rows, parts: Sequence[str | None], part: str) -> Rows:
    """The rows of one part, given the part of each row."""
    has = examples.facts["parts"]
    if part not in has:
        known = f"its parts are: {', '.join(has)}" if has else "no column named 'split' says train, dev or test"
        raise InputError(f"{examples.source} has no part {part!r}: {known}.")
    return examples.take(index for index, found in enumerate(parts) if found == part)


def _load(source: Any, request: Request, name: str) -> tuple[Examples, Sequence[str | None]]:
    """The examples of one source, and the part of each of them."""
    if not isinstance(source, (str, Path)):
        table = origins.table(source, name)
        return _examples(table, request, request.key(table.facts["fingerprint"]) if "fingerprint" in table.facts else None)
    path = Path(source).expanduser()
    sha256 = files.digest(path)
    key = request.key(sha256, str(path.resolve()))  # the path too, for it is in what is told
    if kept := storage.stored(request.folder, key):
        return _from_storage(request.folder, key, kept, str(path))
    table = open_file(path, request)
    table.facts["sha256"] = sha256
    return _examples(table, request, key)


def open_file(path: Path, request: Request) -> Table:
    """Open a file by its name, or by how it begins where the name says nothing."""
    kind = origins.format_of(path)
    if kind == "arrow":
        if files.compression(path):
            raise InputError(f"{path} is a compressed file of a format that compresses itself. Decompress it first.")
        return arrow_files.open_file(path)
    scan = files.scan(path, request.encoding)
    if kind is None or (kind == "text" and (request.named or request.labelled)):
        kind = delimited.kind_of_text(path, scan.encoding, request.named)
    if kind == "delimited":
        table = delimited.open_table(path, scan.encoding, request.delimiter, request.named)
    else:
        table = documents.open_json(path, scan.encoding) if kind == "json" else documents.open_lines(path, scan.encoding)
    table.facts.update(encoding=scan.encoding, encoding_guessed=scan.guessed, compression=files.compression(path), bytes=scan.bytes)
    return table


def _examples(table: Table, request: Request, key: str | None) -> tuple[Examples, Sequence[str | None]]:
    """Read all records of a table, into memory or, where they are too many and can be found again by a key, onto the disk."""
    choice = _choice(table, request)
    converter = Converter(table, choice)

    def facts() -> dict[str, Any]:
        found = {**table.facts, **converter.facts, "columns": choice.as_dict()}
        found["told"] = [format_sentence(table, found["rows"]), *choice.told, *converter.told]
        if request.labelled and found["unlabelled"] == found["rows"]:
            names = ", ".join(map(repr, choice.columns.target[:5]))
            raise InputError(f"{table.source}: all {found['rows']:,} rows are empty in {names}. Name another label column: label='column'.")
        return found

    if key is not None and table.facts["bytes"] > request.memory_limit:
        kept = storage.store(request.folder, key, choice.columns, converter.examples(), facts)
        return _from_storage(request.folder, key, kept, table.source)
    pairs = list(converter.examples())
    return Examples([example for example, _ in pairs], choice.columns, source=table.source, facts=facts()), [part for _, part in pairs]


def _choice(table: Table, request: Request) -> Choice:
    sample = peek(table, SAMPLE)
    if not sample:
        raise InputError(f"{table.source} has no rows. Give a source with at least one row.")
    named = {"task": request.task, "text": request.text, "pair": request.pair}
    try:
        return choose(table.names, sample, **named, label=request.label, labelled=request.labelled)
    except InputError as problem:
        raise InputError(f"{table.source}: {problem}") from problem


def _from_storage(folder: Path, key: str, kept: dict[str, Any], source: str) -> tuple[Examples, Sequence[str | None]]:
    columns = Columns(**{**kept["used"], "target": tuple(kept["used"]["target"])})
    rows = storage.ArrowRows(folder / key / "rows.arrow", columns.task)
    facts = {**kept["facts"], "told": [*kept["facts"]["told"], f"The rows are too many for memory; they are read from {rows.path}."]}
    return Examples(rows, columns, source=source, facts=facts), list(rows.parts())


def format_sentence(table: Table, rows: int) -> str:
    """How the source was read: 'reviews.csv: delimited text; delimiter comma; encoding utf-8; 1,000 rows.'"""
    facts = table.facts
    details = [facts["format"], *(_delimited_details(table) if "delimiter" in facts else ())]
    if "encoding" in facts:
        guess = facts["encoding_guessed"] and facts["encoding"] != "utf-8-sig"
        details.append(f"encoding {facts['encoding'].removesuffix('-sig')}" + " (a guess from its bytes)" * guess)
    if facts.get("compression"):
        details.append(facts["compression"])
    if facts.get("blank_lines"):
        details.append(f"{facts['blank_lines']:,} blank lines skipped")
    return f"{table.source}: {'; '.join(details)}; {rows:,} rows."


def _delimited_details(table: Table) -> Iterator[str]:
    facts = table.facts
    yield f"delimiter {delimited.DELIMITERS.get(facts['delimiter'], repr(facts['delimiter']))}"
    if not facts["header"]:
        yield f"no header line, so its columns are called {', '.join(table.names[:3])}{', ...' * (len(table.names) > 3)}"
    if facts["quotes"] != "doubled":
        yield {"none": "quotes are letters like any other", "escaped": "quotes are escaped by a backslash"}[facts["quotes"]]
