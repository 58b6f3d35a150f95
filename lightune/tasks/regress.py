"""A number for a text, or for two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lightune import metrics
from lightune.data import Example
from lightune.runtime.answers import Answers

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Regress:
    """Squared error of the standardised value."""

    answers: Answers
    kind: ClassVar[str] = "regress"
    primary: ClassVar[str] = "pearson"

    @classmethod
    def describe(cls, examples: Sequence[Example]) -> Regress:
        """The centre and spread of the training values, so that the model's own output is near 0 ± 1."""
        values = np.array([example.target for example in examples], dtype=np.float64)
        scale = float(values.std()) if np.ptp(values) > 0 else 1.0  # rounding gives equal values a spread of their own
        return cls(Answers(cls.kind, (), center=float(values.mean()), scale=scale))

    def targets(self, examples: Sequence[Example]) -> np.ndarray:
        """Float32 [n]: the standardised values."""
        values = np.array([example.target for example in examples], dtype=np.float64)
        return ((values - self.answers.center) / self.answers.scale).astype(np.float32)

    def weights(self, targets: np.ndarray, balanced: bool) -> np.ndarray:
        """1 for every example: a number has no class to balance."""
        return np.ones(len(targets), dtype=np.float32)

    def losses(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Squared error of logits [b, 1] and targets [b]; smoothing has no meaning here."""
        return (logits[:, 0] - targets) ** 2

    def divergences(self, one: Tensor, other: Tensor) -> Tensor:
        """Squared difference of two passes."""
        return ((one - other) ** 2).sum(-1)

    def imitate(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Squared difference from the teacher's value; a temperature has no meaning here."""
        return ((logits - teacher) ** 2).sum(-1)

    def score(self, logits: np.ndarray, targets: np.ndarray) -> metrics.Metrics:
        """The metrics of `metrics.numbers`, in the user's own units."""
        gold = targets.astype(np.float64) * self.answers.scale + self.answers.center
        return metrics.numbers(gold, self.answers.probabilities(logits)[:, 0])

    def rank(self, logits: np.ndarray, targets: np.ndarray) -> metrics.Metrics:
        """None: the correlations of `score` are ranks already."""
        return {}

    def calibrate(self, logits: np.ndarray, targets: np.ndarray) -> Regress:
        """The task itself: a value needs no probability."""
        return self
