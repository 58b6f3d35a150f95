"""The files of one RUN folder, read into one value. Any file may be missing; what is there must be whole."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightune.errors import InputError, IntegrityError
from lightune.reports.formats import is_number

FILES = ("run.json", "evaluation.json", "data.json", "steps.jsonl", "environment.json", "recipe.toml", "front.json")
# Control characters and lone surrogates: legal inside JSON, illegal in XML, HTML and UTF-8.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Record:
    """What a run left behind. A missing file is an empty value."""

    folder: Path
    run: dict[str, Any]
    evaluation: dict[str, Any]
    data: dict[str, Any]
    steps: tuple[dict[str, Any], ...]
    checks: tuple[dict[str, Any], ...]  # the evaluations during training
    environment: dict[str, Any]
    recipe: str
    front: dict[str, Any]  # what a search for a smaller model tried

    @property
    def name(self) -> str:
        """The name that the run was given, else that of its folder."""
        return str(self.run.get("name") or self.folder.name)

    @property
    def primary(self) -> str:
        """The name of the metric that decides, or nothing."""
        return str((self.run.get("scores") or self.evaluation.get("scores") or {}).get("primary", ""))

    @property
    def scores(self) -> dict[str, Any]:
        """The model's scores on the test part, as {name: {value, low, high}}."""
        return drop_primary(self.run.get("scores") or self.evaluation.get("scores"))

    @property
    def artifacts(self) -> list[dict[str, Any]]:
        """The exported artefacts, in the order they were written."""
        return self.run.get("artifacts") or []


def read_record(folder: Path) -> Record:
    """Read a RUN folder. InputError where it is none, IntegrityError where a file in it is broken."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in FILES):
        state = "holds none of a run's files" if folder.is_dir() else "is not a folder"
        raise InputError(f"{str(folder)!r} {state} (expected {', '.join(FILES)}). Name a folder that `lightune fit` wrote.")
    steps, checks = _read_steps(folder / "steps.jsonl")
    return Record(
        folder=folder.resolve(),
        run=_read_json(folder / "run.json"),
        evaluation=_read_json(folder / "evaluation.json"),
        data=_read_json(folder / "data.json"),
        steps=steps,
        checks=checks,
        environment=_read_json(folder / "environment.json"),
        recipe=printable(_read_text(folder / "recipe.toml")),
        front=_read_json(folder / "front.json"),
    )


def drop_primary(scores: dict[str, Any] | None) -> dict[str, Any]:
    """Scores without the entry that only names the primary one; the primary comes first."""
    scores = scores or {}
    names = sorted((name for name in scores if name != "primary"), key=lambda name: name != scores.get("primary"))
    return {name: scores[name] for name in names}


def read_bounds(score: dict[str, Any] | None) -> tuple[float, float, float] | None:
    """(value, low, high) of a score, or None where one of them is missing."""
    value, low, high = ((score or {}).get(key) for key in ("value", "low", "high"))
    return (value, low, high) if is_number(value) and is_number(low) and is_number(high) else None


def printable(value: Any) -> Any:
    """The same JSON value with every character that no page can show replaced by U+FFFD."""
    if isinstance(value, str):
        return UNPRINTABLE.sub("\ufffd", value.replace("\r\n", "\n"))
    if isinstance(value, list):
        return [printable(part) for part in value]
    if isinstance(value, dict):
        return {printable(key): printable(part) for key, part in value.items()}
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (UnicodeDecodeError, OSError) as error:
        raise IntegrityError(f"{str(path)!r} cannot be read: {error}. Run `lightune fit` again, or delete the file.") from error


def _read_json(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    if not text and not path.exists():
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        cure = "Resume or repeat the run, or delete the file to leave its part out."
        raise IntegrityError(f"{str(path)!r} is not whole: {error.msg} at line {error.lineno}. {cure}") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{str(path)!r} holds a {type(value).__name__}, expected an object of names and values. Repeat the run.")
    return printable(value)


def _read_steps(path: Path) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    """Steps and evaluations by rising step. A resumed run may tell a step twice, then the later line counts; a killed one may end in
    half a line, which is left out."""
    kinds: dict[str, dict[float, dict[str, Any]]] = {"step": {}, "evaluation": {}}
    lines = _read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = printable(json.loads(line)) if line.strip() else {}
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise IntegrityError(f"{str(path)!r} is broken at line {number}: {error.msg}. Delete that line, or repeat the run.") from error
        if entry.get("kind") in kinds and "step" in entry:
            kinds[entry["kind"]][entry["step"]] = entry
    return tuple(sorted(kinds["step"].values(), key=_by_step)), tuple(sorted(kinds["evaluation"].values(), key=_by_step))


def _by_step(entry: dict[str, Any]) -> float:
    return entry["step"]
