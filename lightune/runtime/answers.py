"""What a model's logits mean: from numbers to labels, probabilities and values. Needs numpy alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightune.errors import InputError, nearest

KINDS = ("classify", "pair", "multilabel", "regress", "generate", "translate")

Decision = str | tuple[str, ...] | float


@dataclass(frozen=True)
class Answers:
    """How logits become answers.

    kind: classify, pair (one label of several), multilabel (any number of labels), regress (a number) or generate and translate (text, not by logits of a row).
    labels: the user's own names, in the order of the logits' columns; for regress none, or the name of the value.
    temperature: logits are divided by it before they become probabilities; 1 leaves them alone.
    thresholds: multilabel only, the probability from which each label holds; None means 0.5 for all.
    center, scale: regress only, value = logit * scale + center.
    """

    kind: str
    labels: tuple[str, ...]
    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    center: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise InputError("; ".join(problems) + ".")

    def _problems(self) -> list[str]:
        problems = []
        if self.kind not in KINDS:
            problems.append(f"kind of answer is {self.kind!r}, expected one of {', '.join(KINDS)}{nearest(self.kind, KINDS)}")
        least = {"classify": 2, "pair": 2, "multilabel": 1}.get(self.kind, 0)
        if len(self.labels) < least:
            problems.append(f"{self.kind} has {len(self.labels)} labels, expected at least {least}")
        if len(set(self.labels)) < len(self.labels):
            problems.append(f"labels are {self.labels!r}, expected each name once")
        if not 0 < self.temperature < float("inf"):
            problems.append(f"temperature is {self.temperature!r}, expected more than 0")
        if self.thresholds is not None and len(self.thresholds) != len(self.labels):
            problems.append(f"{len(self.thresholds)} thresholds for {len(self.labels)} labels, expected one for each")
        return problems

    @property
    def outputs(self) -> int:
        """How many columns the logits have."""
        return 1 if self.kind == "regress" else len(self.labels)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Float64 [n, k] from logits [n, k]: rows sum to 1; for multilabel each column stands alone; for regress the values themselves."""
        scores = self._checked(logits)
        if self.kind == "regress":
            return scores * self.scale + self.center
        scores = scores / self.temperature
        if self.kind == "multilabel":
            return np.exp(-np.logaddexp(0.0, -scores))
        powers = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
        return powers / powers.sum(axis=1, keepdims=True)

    def decide(self, logits: np.ndarray) -> list[Decision]:
        """One answer for each row of logits [n, k]: a label, a tuple of labels (perhaps empty), or a number."""
        return self._decide(self.probabilities(logits))

    def explain(self, logits: np.ndarray) -> list[dict[str, Any]]:
        """One JSON-ready dict for each row of logits [n, k].

        classify, pair: label, probability (of it), probabilities (by label) · multilabel: labels, probabilities · regress: value.
        """
        chances = self.probabilities(logits)
        decisions = self._decide(chances)
        if self.kind == "regress":
            return [{"value": value} for value in decisions]
        tables = [dict(zip(self.labels, row, strict=True)) for row in chances.tolist()]
        if self.kind == "multilabel":
            return [{"labels": list(names), "probabilities": table} for names, table in zip(decisions, tables, strict=True)]  # type: ignore[arg-type]
        return [{"label": name, "probability": table[name], "probabilities": table} for name, table in zip(decisions, tables, strict=True)]  # type: ignore[index]

    def _decide(self, chances: np.ndarray) -> list[Decision]:
        if self.kind == "regress":
            return chances[:, 0].tolist()
        if self.kind == "multilabel":
            holds = chances >= np.asarray(self.thresholds if self.thresholds is not None else 0.5)
            return [tuple(self.labels[column] for column in np.flatnonzero(row)) for row in holds]
        return [self.labels[column] for column in chances.argmax(axis=1)]

    def _checked(self, logits: np.ndarray) -> np.ndarray:
        scores = np.asarray(logits, dtype=np.float64)
        if scores.ndim != 2 or scores.shape[1] != self.outputs:
            raise InputError(f"logits have the shape {list(scores.shape)}, expected [rows, {self.outputs}] for {self.kind}.")
        return scores

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON."""
        lists = {"labels": list(self.labels), "thresholds": None if self.thresholds is None else list(self.thresholds)}
        return dataclasses.asdict(self) | lists

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Answers:
        """The inverse of `to_dict`.

        Raises:
            InputError: a field that is missing, unknown or wrong.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        wrong = [f"unknown {key!r}" for key in values if key not in known]
        wrong += [f"no {key!r}" for key in ("kind", "labels") if key not in values]
        if wrong:
            raise InputError(f"The description of the answers has {', '.join(wrong)}; expected {', '.join(sorted(known))}.")
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**{**values, **lists})
