"""What exists and what is installed, as tables: (title, headers, rows)."""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
from importlib import metadata
from typing import Any

from lightune import sources
from lightune.errors import unknown
from lightune.exports import EXPORTS, GENERATIVE
from lightune.methods import METHODS
from lightune.requirements import NEEDED
from lightune.tasks import GENERATIVE as GENERATIVE_TASKS
from lightune.tasks import TASKS

Table = tuple[str, list[str], list[list[Any]]]


def tables(kind: str | None = None) -> list[Table]:
    """The tables of `lightune list`, or the one that `kind` names."""
    makers = {"models": _models, "data": _data, "tasks": _tasks, "methods": _methods, "targets": _targets}
    if kind is not None and kind not in makers:
        raise unknown("list", kind, makers)
    return [make() for name, make in makers.items() if kind in (None, name)]


def installed() -> list[dict[str, str | None]]:
    """One row for each thing that Lightune can use: name, version (None where it is missing), the extra that brings it, what it is for."""
    rows: list[dict[str, str | None]] = [
        {"name": "Python", "version": platform.python_version(), "extra": "", "use": f"{os.cpu_count()} cores"}
    ]
    for name, extra, use in NEEDED:
        try:
            version: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = None
        rows.append({"name": name, "version": version, "extra": extra, "use": use})
    return rows


def _entries(kind: str) -> list[list[Any]]:
    return [
        [
            entry.name,
            f"{entry.megabytes:g} MB",
            ", ".join(entry.languages),
            entry.licence,
            "yes" if entry.cached else "no",
            entry.description,
        ]
        for entry in sources.entries()
        if entry.kind == kind
    ]


def _models() -> Table:
    return "Models (any hub id, folder or GGUF file works too)", ["name", "size", "languages", "licence", "here", "what"], _entries("model")


def _data() -> Table:
    return "Data (any file, folder or hub:owner/name works too)", ["name", "size", "languages", "licence", "here", "what"], _entries("data")


def _tasks() -> Table:
    found = [
        (name, getattr(importlib.import_module(f"lightune.tasks.{name}"), title)) for name, title in {**TASKS, **GENERATIVE_TASKS}.items()
    ]
    return (
        "Tasks",
        ["name", "main metric", "what"],
        [[name, cls.primary, (cls.__doc__ or "").strip().splitlines()[0]] for name, cls in found],
    )


def _methods() -> Table:
    try:
        found = [(name, getattr(importlib.import_module(f"lightune.methods.{name}"), title)) for name, title in METHODS.items()]
    except ImportError:  # torch is not installed: the names are still known
        return "Methods", ["name"], [[name] for name in METHODS]
    rows = []
    for name, cls in found:
        options = ", ".join(f"{item.name}={item.default}" for item in dataclasses.fields(cls))
        rows.append([name, f"{cls.rate:g}", options, (cls.__doc__ or "").strip().splitlines()[0]])
    return "Methods", ["name", "rate", "options", "what"], rows


def _targets() -> Table:
    rows = [[name, "those that predict", target.help] for name, target in EXPORTS.items()]
    rows += [[name, ", ".join(target.tasks), target.help] for name, target in GENERATIVE.items()]
    return "Export targets", ["name", "tasks", "what"], rows
