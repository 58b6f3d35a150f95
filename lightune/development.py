"""What says, while a model is trained, how good its weights are: its scores on development data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from lightune.data import Example
from lightune.models import Model
from lightune.runtime.answers import Answers


class Judge(Protocol):
    """Scores by name, `loss` always among them.

    primary: the metric that chooses the best weights where none is named.
    """

    primary: str

    def __len__(self) -> int:
        """How many development rows there are; with none nothing is judged."""
        ...

    def names(self) -> list[str]:
        """The metrics that can be asked for."""
        ...

    def scores(self, metric: str) -> dict[str, float]:
        """The metrics that are quick to compute, and the one that is asked for."""
        ...

    def ignorant(self, metric: str) -> float:
        """What the metric is where nothing has been learned: a run must end with a better one."""
        ...

    def keep(self) -> None:
        """The weights that were scored last are the best so far."""
        ...

    def calibrate(self) -> None:
        """Fit the temperature or thresholds of a model that holds its best weights again, where it has any."""
        ...

    def final(self) -> float:
        """The primary metric of the model that was calibrated."""
        ...


class LabelJudge:
    """The judge of tasks with labels or numbers.

    targets: those of the training rows, [n] or [n, k]; what a model would answer that knows only how often they occur is the ignorant score.
    answer: gives the logits of the development rows; may be exchanged by what gives the same ones faster.
    """

    last: np.ndarray | None = None  # logits of the weights that were scored last, and of the best, which are not read again at the end
    best: np.ndarray | None = None

    def __init__(self, model: Model, examples: Sequence[Example], targets: np.ndarray) -> None:
        self.model, self.examples = model, examples
        self.task = model.task  # not calibrated, as the scores during training
        self.primary: str = model.task.primary
        self.seen = targets
        self.targets = model.task.targets(examples)
        self.answer: Callable[[], np.ndarray] = lambda: model.logits(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def names(self) -> list[str]:
        outputs = np.zeros((len(self.examples), self.model.answers.outputs), dtype=np.float32)
        return [*self.task.score(outputs, self.targets), *self.task.rank(outputs, self.targets), "loss"]

    def scores(self, metric: str) -> dict[str, float]:
        self.last = self.answer()
        return self._judged(self.last, metric)

    def keep(self) -> None:
        self.best = self.last

    def ignorant(self, metric: str) -> float:
        """The score of the best constant answer."""
        if self.seen.ndim == 2:
            share = self.seen.mean(0).clip(1e-6, 1 - 1e-6)
            row = np.log(share / (1 - share))
        elif self.model.answers.outputs == 1:
            row = np.array([self.seen.mean()])
        else:
            row = np.log(np.bincount(self.seen, minlength=self.model.answers.outputs) + 1e-6)
        return self._judged(np.tile(row.astype(np.float32), (len(self.examples), 1)), metric)[metric]

    def calibrate(self) -> None:
        self.model.task = self.model.task.calibrate(self._read_best(), self.targets)

    def final(self) -> float:
        return float(self.model.task.score(self._read_best(), self.targets)[self.primary])

    def _read_best(self) -> np.ndarray:
        """The logits of the best weights, which the model holds where none were kept."""
        self.best = self.answer() if self.best is None else self.best
        return self.best

    def _judged(self, logits: np.ndarray, metric: str) -> dict[str, float]:
        """The quick metrics and the loss, and those that sort only where one of them is asked for."""
        found: dict[str, Any] = self.task.score(logits, self.targets)
        if metric not in (*found, "loss"):
            found = found | self.task.rank(logits, self.targets)
        with torch.no_grad():
            loss = float(self.task.losses(torch.from_numpy(logits), torch.from_numpy(self.targets), 0.0).mean())
        return {**found, "loss": loss}


class LikenessJudge(LabelJudge):
    """The judge of students: how far their answers are from those of the model before, see `measure_distance`.

    Chance moves the score of some hundred rows by more than one student is better than another, and such distances by far less.

    goal: logits of the model before for the development rows, [n, k].
    """

    def __init__(self, model: Model, examples: Sequence[Example], targets: np.ndarray, goal: np.ndarray) -> None:
        super().__init__(model, examples, targets)
        self.primary, self.goal = "distance", goal

    def names(self) -> list[str]:
        return [*super().names(), "distance"]

    def final(self) -> float:
        return float(self.model.task.score(self._read_best(), self.targets)[self.model.task.primary])

    def _judged(self, logits: np.ndarray, metric: str) -> dict[str, float]:
        distance = measure_distance(self.model.answers, self.goal, logits)
        return {**super()._judged(logits, metric if metric != "distance" else "loss"), "distance": distance}


def measure_distance(answers: Answers, one: np.ndarray, other: np.ndarray) -> float:
    """How far the answers of two sets of logits [n, k] are apart, from 0 to 1: the mean total variation distance of their probabilities.

    Of numbers, by how much their correlation falls short of 1.
    """
    if answers.kind == "regress":
        return 1.0 - float(np.corrcoef(one[:, 0], other[:, 0])[0, 1])
    gaps = np.abs(answers.probabilities(one) - answers.probabilities(other))
    return float(gaps.mean()) if answers.kind == "multilabel" else float(gaps.sum(axis=1).mean() / 2)
