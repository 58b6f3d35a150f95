"""The files of one RUN folder, read into one value. Any file may be missing; what is there must be whole."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightune.errors import InputError, IntegrityError
from lightune.reports.formats import is_number
from lightune.tasks import GENERATIVE

FILES = ("run.json", "evaluation.json", "data.json", "steps.jsonl", "environment.json", "recipe.toml", "front.json", "samples.jsonl")
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
    checks: tuple[dict[str, Any], ...]  # the evaluations during training, and at step 0 where the run tells the loss before it
    samples: tuple[dict[str, Any], ...]  # what a model that generates answered during training
    environment: dict[str, Any]
    recipe: str
    front: dict[str, Any]  # what a search for a smaller model tried
    chat: dict[str, Any]  # how the model of a run that generates reads conversations

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

    @property
    def part(self) -> str:
        """The part of the data that the scores are of."""
        return str(self.evaluation.get("part") or "test")

    @property
    def generates(self) -> bool:
        """Whether the model writes text."""
        return (self.run.get("task") or self.data.get("task")) in GENERATIVE

    @property
    def ledger(self) -> dict[str, dict[str, Any]]:
        """For each part of the data what became of its rows and tokens, where answers are learned."""
        return self.run.get("ledger") or self.data.get("ledger") or {}


def read_record(folder: Path) -> Record:
    """Read a RUN folder. InputError where it is none, IntegrityError where a file in it is broken."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in FILES):
        state = "holds none of a run's files" if folder.is_dir() else "is not a folder"
        raise InputError(f"{str(folder)!r} {state} (expected {', '.join(FILES)}). Name a folder that `lightune fit` wrote.")
    facts, run = _read_lines(folder / "steps.jsonl"), _read_json(folder / "run.json")
    return Record(
        folder=folder.resolve(),
        run=run,
        evaluation=_read_json(folder / "evaluation.json"),
        data=_read_json(folder / "data.json"),
        steps=_by_step(facts, "step"),
        checks=(*_check_before(run), *_by_step(facts, "evaluation")),
        samples=_by_step(_read_lines(folder / "samples.jsonl"), "samples"),
        environment=_read_json(folder / "environment.json"),
        recipe=printable(_read_text(folder / "recipe.toml")),
        front=_read_json(folder / "front.json"),
        chat=_read_json(folder / "model" / "model.json").get("chat") or {},
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


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file. A killed run may leave half a last line, which is left out."""
    found = []
    lines = _read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            found.append(printable(json.loads(line)) if line.strip() else {})
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise IntegrityError(f"{str(path)!r} is broken at line {number}: {error.msg}. Delete that line, or repeat the run.") from error
    return found


def _by_step(facts: Iterable[dict[str, Any]], kind: str) -> tuple[dict[str, Any], ...]:
    """The facts of a kind by rising step. A resumed run may tell a step twice, then the later line counts."""
    found = {fact["step"]: fact for fact in facts if fact.get("kind") == kind and "step" in fact}
    return tuple(found[step] for step in sorted(found))


def _check_before(run: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The evaluation before training, as far as the loss tells it."""
    loss = run.get("loss_before")
    if not is_number(loss):
        return ()
    return ({"step": 0, "epoch": 0.0, "loss": loss, "scores": {"loss": loss, "perplexity": math.exp(min(loss, 80.0))}},)
