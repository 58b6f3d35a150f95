"""The manifest of an artefact folder: bytes and sha256 of every file, written last and checked before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightune.errors import InputError, IntegrityError

FORMAT = 1
NAME = "manifest.json"
CURE = "Copy the folder again, or export the model again."


def write(folder: Path, version: str) -> None:
    """Write `manifest.json` for every file that lies in the folder; `version` is Lightune's."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != NAME)
    entries = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}
    text = json.dumps({"format": FORMAT, "lightune": version, "files": entries}, indent=1)
    (folder / NAME).write_text(text, encoding="utf-8")


def check(folder: Path, needed: Iterable[str], *, contents: bool = True) -> None:
    """Compare the folder with its manifest: every listed file by size and, if `contents`, by sha256; every needed file is listed.

    Raises:
        InputError: there is no such folder, or it may not be read.
        IntegrityError: no manifest, another format, or files that are missing, truncated or altered: all of them in one message.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder, expected an exported model. Name the folder that holds {NAME}.")
    entries = _entries(folder)
    problems = [f"{name} is not in {NAME}" for name in needed if name not in entries]
    problems += [problem for name, entry in entries.items() if (problem := _problem(folder / name, entry, contents))]
    if problems:
        raise IntegrityError(f"{folder} is not as it was exported: {'; '.join(problems)}. {CURE}")


def read_task(folder: Path, form: int, kinds: Sequence[str]) -> dict[str, Any]:
    """What task.json says of a model that generates.

    Raises:
        IntegrityError: it has another format, or none of these kinds.
    """
    facts = read_json(folder / "task.json")
    if facts.get("format") != form or facts.get("kind") not in kinds:
        raise IntegrityError(
            f"{folder / 'task.json'} has the format {facts.get('format')!r} and the kind {facts.get('kind')!r}, expected {form} and "
            f"{' or '.join(map(repr, kinds))}. Export with this version of Lightune."
        )
    return facts


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of the folder.

    Raises:
        IntegrityError: the file is missing or holds no JSON object. InputError: it may not be read.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise InputError(f"{path} may not be read ({error.strerror}). Change its permissions.") from error
    except FileNotFoundError as error:
        raise IntegrityError(f"{path.parent} has no {path.name}, so it is no complete exported model. {CURE}") from error
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read ({error}). {CURE}") from error
    if not isinstance(values, dict):
        raise IntegrityError(f"{path} holds a {type(values).__name__}, expected an object. {CURE}")
    return values


def sha256(path: Path) -> str:
    """The sha256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entries(folder: Path) -> dict[str, Any]:
    values = read_json(folder / NAME)
    if values.get("format") != FORMAT:
        raise IntegrityError(
            f"{folder / NAME} has the format {values.get('format')!r}, expected {FORMAT}. Export with this version of Lightune."
        )
    entries = values.get("files")
    if not isinstance(entries, dict) or any(Path(name).name != name for name in entries):
        raise IntegrityError(f"{folder / NAME} lists no files of this folder. {CURE}")
    return entries


def _problem(path: Path, entry: Any, contents: bool) -> str | None:
    if not isinstance(entry, dict):
        return f"{path.name} has no size and sha256 in {NAME}"
    try:
        size = path.stat().st_size
        digest = sha256(path) if contents and size == entry.get("bytes") else None
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    if size != entry.get("bytes"):
        return f"{path.name} has {size} bytes, expected {entry.get('bytes')}"
    if contents and digest != entry.get("sha256"):
        return f"{path.name} was altered (its sha256 differs)"
    return None
