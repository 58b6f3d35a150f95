"""From what the user gave to what can be opened: a folder or a hub name becomes its parts; a wrong path becomes a clear error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightune.data import arrow_files, files, objects
from lightune.data.columns import PARTS, part_name
from lightune.data.tables import Table
from lightune.errors import InputError, MissingExtra, nearest

FORMATS = {
    **dict.fromkeys((".csv", ".tsv", ".tab"), "delimited"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".parquet", ".pq", ".arrow", ".ipc", ".feather"), "arrow"),
    ".txt": "text",
}
PART_ORDER = tuple(dict.fromkeys(PARTS.values()))


def resolve(source: Any) -> Any:
    """The source itself, or {part: source} in the order train, dev, test where its parts lie apart.

    Raises:
        InputError: no such file, a folder that is no data set, a hub data set that cannot be loaded.
    """
    if isinstance(source, str) and source.startswith("hub:"):
        source = _from_hub(source)
    elif isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        source = _from_folder(path) if path.is_dir() else _existing(path)
    if isinstance(source, Mapping) and source and all(part_name(name) for name in source):
        named = {part_name(name): each for name, each in source.items()}
        return {part: named[part] for part in PART_ORDER if part in named}
    return source


def format_of(path: Path) -> str | None:
    """delimited, json, arrow or text by the file's name, without .gz or .zst; None where the name says nothing."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if files.compression(path):
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def table(source: Any, name: str) -> Table:
    """Open a source that is not a file: a DataFrame, a `datasets.Dataset`, a list or dict, (texts, labels)."""
    package = type(source).__module__.split(".")[0]
    if package == "datasets" and hasattr(source, "data"):
        return arrow_files.open_dataset(source, name)
    if package == "pandas" and hasattr(source, "iloc") and hasattr(source, "columns"):
        return objects.frame(source)
    if isinstance(source, Mapping):
        return objects.dict_of_columns(source)
    if isinstance(source, tuple) and len(source) == 2 and not any(isinstance(each, (str, Mapping)) for each in source):
        return objects.texts_and_labels(*source)
    if isinstance(source, (list, tuple)):
        return objects.list_of_dicts(source)
    raise InputError(
        f"A source of type {type(source).__name__} cannot be read. Give a path, 'hub:owner/name', a DataFrame, a datasets.Dataset, "
        "a list of dicts, or (texts, labels)."
    )


def check_there(source: str) -> None:
    """Refuse a path where nothing lies; a hub name is not asked for.

    Raises:
        InputError: no such file.
    """
    if not source.startswith("hub:"):
        _existing(Path(source).expanduser())


def _existing(path: Path) -> Path:
    if path.exists():
        return path
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"There is no file {path}: its folder does not exist. Correct the path.")
    near = nearest(path.name, (each.name for each in folder.iterdir()))
    raise InputError(f"There is no file {path}.{near} Give the path of a CSV, TSV, JSON, JSON Lines, text, Parquet or Arrow file.")


def _from_folder(path: Path) -> Any:
    """What `datasets` saved there, else the files that are named after parts, else the only data file."""
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _load(str(path), lambda datasets: datasets.load_from_disk(str(path)))
    found = sorted(each for each in path.iterdir() if each.is_file() and format_of(each))
    named: dict[str, list[Path]] = {}
    for each in found:
        if part := part_name(each.name.split(".")[0]):
            named.setdefault(part, []).append(each)
    twice = [f"{' and '.join(each.name for each in several)} are both {part}" for part, several in named.items() if len(several) > 1]
    if twice:
        raise InputError(f"In {path}, {'; '.join(twice)}. Keep one file for each part.")
    if named:
        return {part: several[0] for part, several in named.items()}
    if len(found) == 1:
        return found[0]
    holds = ", ".join(sorted(each.name for each in path.iterdir())[:10]) or "nothing"
    raise InputError(
        f"{path} is a folder and no data set: it holds {holds}. "
        "Give a file, or a folder with a file named train (train.csv, train.jsonl, ...), perhaps also dev and test."
    )


def _from_hub(source: str) -> Any:
    """hub:OWNER/NAME[:CONFIG][@REVISION], from the hub's own cache where it is there."""
    name, _, revision = source.removeprefix("hub:").partition("@")
    name, _, config = name.partition(":")
    return _load(source, lambda datasets: datasets.load_dataset(name, config or None, revision=revision or None))


def _load(source: str, load: Any) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtra(f"reading {source}", "datasets", "train") from None
    try:
        return load(datasets)
    except Exception as problem:  # what `datasets` and the network below it raise has no common root
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise InputError(f"{source} cannot be loaded ({reason}). Check the name, the network, or give a file.") from problem
