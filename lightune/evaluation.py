"""Scores of a model or of an exported file, by the same code: only `logits(examples)`, `answers` and `truncated_tokens` are asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lightune import metrics
from lightune.data import Example
from lightune.errors import InputError
from lightune.runtime.answers import Answers
from lightune.tasks import task_for

WORST = 20  # errors listed
POINTS = 500  # points of a regression plot


class Predictor(Protocol):
    """What can be evaluated: a Model, or an artefact opened by `lightune.runtime.load`."""

    @property
    def answers(self) -> Answers: ...

    @property
    def truncated_tokens(self) -> int: ...

    def logits(self, examples: Sequence[Any]) -> np.ndarray: ...


@dataclass(frozen=True)
class Score:
    """A metric and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Rounded to six digits, ready for JSON."""
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


@dataclass(frozen=True)
class Scores:
    """Everything an evaluation found.

    primary: the name of the metric that matters most. values: every metric. rows: how many examples.
    details: labels (per label table), confusion, calibration, worst, regression: see `to_dict`.
    """

    primary: str
    values: dict[str, Score]
    rows: int
    part: str
    truncated_tokens: int
    details: dict[str, Any]

    def __getitem__(self, name: str) -> float:
        return self.values[name].value

    def summary(self) -> dict[str, Any]:
        """The form of `run.json`: {"primary": name, name: {value, low, high}, ...}."""
        return {"primary": self.primary, **{name: score.to_dict() for name, score in self.values.items()}}

    def to_dict(self) -> dict[str, Any]:
        """The form of `evaluation.json`."""
        return {"part": self.part, "rows": self.rows, "scores": self.summary(), "truncated_tokens": self.truncated_tokens, **self.details}


def evaluate(predictor: Predictor, examples: Sequence[Example], *, part: str = "test", resamples: int = 300, seed: int = 0) -> Scores:
    """Score a model or an artefact on labelled examples.

    Args:
        resamples: bootstrap resamples of the examples behind each interval, a sixth of them for metrics that sort; 0 gives none.

    Raises:
        InputError: there are no labelled examples, or a label that the model does not know.
    """
    labelled = [example for example in examples if example.target is not None]
    if not labelled:
        raise InputError(f"The {part} data have no labelled rows, expected at least one. Name the label column.")
    task = task_for(predictor.answers)
    targets = task.targets(labelled)
    before = predictor.truncated_tokens
    logits = predictor.logits(labelled)
    values = task.score(logits, targets) | task.rank(logits, targets)
    ranges = metrics.bootstrap(lambda rows: task.score(logits[rows], targets[rows]), len(labelled), resamples=resamples, seed=seed)
    ranges |= metrics.bootstrap(lambda rows: task.rank(logits[rows], targets[rows]), len(labelled), resamples=resamples // 6, seed=seed)
    scores = {name: Score(value, *ranges.get(name, (value, value))) for name, value in values.items()}
    details = _details(predictor.answers, logits, targets, labelled)
    return Scores(task.primary, scores, len(labelled), part, predictor.truncated_tokens - before, details)


def _details(answers: Answers, logits: np.ndarray, targets: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
    chances = answers.probabilities(logits)
    found: dict[str, Any] = {"labels": [], "confusion": None, "calibration": None, "thresholds": None, "regression": None}
    if answers.kind == "regress":
        gold = targets * answers.scale + answers.center
        losses = (chances[:, 0] - gold) ** 2
        pairs = list(zip(gold[:POINTS].tolist(), chances[:POINTS, 0].tolist(), strict=True))
        found["regression"] = {"points": [[round(float(x), 4), round(float(y), 4)] for x, y in pairs]}
        return found | {"worst": _worst(answers, losses, chances, examples, losses > 0)}
    if answers.kind == "multilabel":
        gold = targets.astype(bool)
        holds = chances >= np.asarray(answers.thresholds or 0.5)
        error, bins = metrics.calibration(np.where(holds, chances, 1 - chances).ravel(), (holds == gold).ravel())
        losses = -np.log(np.where(gold, chances, 1 - chances).clip(1e-12)).sum(1)
        wrong = (holds != gold).any(1)
        found["labels"] = metrics.by_label(gold, holds, answers.labels)
        found["thresholds"] = dict(zip(answers.labels, answers.thresholds or [0.5] * len(answers.labels), strict=True))
    else:
        decided = chances.argmax(1)
        error, bins = metrics.calibration(chances.max(1), decided == targets)
        losses = -np.log(chances[np.arange(len(targets)), targets].clip(1e-12))
        wrong = decided != targets
        found["labels"] = metrics.by_label(targets, decided, answers.labels)
        counts = metrics.confusion(targets, decided, len(answers.labels))
        found["confusion"] = {"labels": list(answers.labels), "counts": counts.tolist()}
    found["calibration"] = {"ece": round(error, 6), "temperature": answers.temperature, "bins": bins}
    return found | {"worst": _worst(answers, losses, chances, examples, wrong)}


def _worst(
    answers: Answers, losses: np.ndarray, chances: np.ndarray, examples: Sequence[Example], wrong: np.ndarray
) -> list[dict[str, Any]]:
    """The wrong rows with the largest loss."""
    order = [int(row) for row in np.argsort(-losses, kind="stable") if wrong[row]][:WORST]
    table = []
    for row in order:
        example = examples[row]
        answer: Any
        if answers.kind == "regress":
            answer, chance = round(float(chances[row, 0]), 4), None
        elif answers.kind == "multilabel":
            held = chances[row] >= np.asarray(answers.thresholds or 0.5)
            answer, chance = [name for name, yes in zip(answers.labels, held, strict=True) if yes], None
        else:
            best = int(chances[row].argmax())
            answer, chance = answers.labels[best], round(float(chances[row, best]), 4)
        target = list(example.target) if isinstance(example.target, tuple) else example.target
        facts = {"row": example.row, "text": example.text, "pair": example.pair, "target": target, "answer": answer}
        table.append({**facts, "probability": chance, "loss": round(float(losses[row]), 4)})
    return table
