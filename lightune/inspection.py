"""`inspect`: what a model is made of, or what is wrong with data, as one dict and as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightune import sources
from lightune.catalogue import CATALOGUE
from lightune.data import doctor, read_parts
from lightune.errors import MissingExtra

Table = tuple[str, list[str], list[list[Any]]]
DATA_SUFFIXES = {".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".txt", ".gz", ".zst"}


def inspect(target: str, **columns: Any) -> dict[str, Any]:
    """Facts on a model {"model": ...} or on data {"data": ...}, whichever the name or path is.

    Raises:
        InputError: neither a model nor data.
    """
    entry = CATALOGUE.get(target)
    if (
        (entry and entry.kind == "data")
        or target.startswith("hub:")
        or Path(target).suffix.lower() in DATA_SUFFIXES
        or _is_data_folder(target)
    ):
        return {"data": inspect_data(target, **columns)}
    return {"model": inspect_model(target)}


def inspect_data(target: str, **columns: Any) -> dict[str, Any]:
    """What the doctor finds in the parts of the data: the form of data.json. Lengths in tokens need a model and are left to `fit`."""
    parts = read_parts(sources.locate_data(target), **columns)
    return doctor.describe(parts, doctor.examine(parts))


def inspect_model(target: str) -> dict[str, Any]:
    """Parameters, bytes and multiply-adds a token of each part of a model: token tables, attention, feed-forward, norms, the rest."""
    try:
        from lightune import anatomy
    except ImportError:
        raise MissingExtra("inspecting a model", "torch", "train") from None
    return anatomy.describe_model(target)


def tables(facts: dict[str, Any]) -> list[Table]:
    """The facts as (title, headers, rows)."""
    return _data_tables(facts["data"]) if "data" in facts else _model_tables(facts["model"])


def _is_data_folder(target: str) -> bool:
    folder = Path(target)
    return folder.is_dir() and not any((folder / name).exists() for name in ("config.json", "model.json", "manifest.json", "recipe.toml"))


def _data_tables(data: dict[str, Any]) -> list[Table]:
    parts = [
        [name, part["rows"], part["characters"]["median"], part["characters"]["max"], len(part["labels"])]
        for name, part in data["parts"].items()
    ]
    found: list[Table] = [("Parts", ["part", "rows", "median characters", "longest", "labels"], parts)]
    found.append(("Read", [""], [[sentence] for sentence in data["told"]]))
    rows = [[finding["level"], f"{finding['message']} {finding['cure']}"] for finding in data["findings"]]
    found.append(("Findings", ["level", "what, and the cure"], rows or [["", "nothing wrong was found"]]))
    return found


def _model_tables(model: dict[str, Any]) -> list[Table]:
    rows = [
        [
            part["part"],
            f"{part['parameters']:,}",
            f"{part['bytes'] / 1e6:.1f} MB",
            f"{part['share']:.1%}",
            f"{part['multiply_adds_per_token']:,}",
        ]
        for part in model["parts"]
    ]
    title = f"{model['name']}: {model['type']}, {model['blocks']} blocks of {model['hidden']}, {model['heads']} heads, at most {model['longest_input']} tokens"
    return [(title, ["part", "parameters", "fp32", "share", "multiply-adds a token"], rows)]
