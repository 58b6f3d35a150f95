"""One label of several for a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from lightune import metrics
from lightune.data import Example
from lightune.data.examples import sort_labels
from lightune.errors import InputError
from lightune.runtime.answers import Answers
from lightune.tasks.calibration import fit_temperature

if TYPE_CHECKING:
    from torch import Tensor

Self = TypeVar("Self", bound="Classify")


@dataclass(frozen=True)
class Classify:
    """Cross entropy over the user's own labels."""

    answers: Answers
    kind: ClassVar[str] = "classify"
    primary: ClassVar[str] = "accuracy"

    @classmethod
    def describe(cls: type[Self], examples: Sequence[Example]) -> Self:
        """The labels that occur, in their natural order."""
        return cls(Answers(cls.kind, sort_labels({example.target for example in examples})))

    def targets(self, examples: Sequence[Example]) -> np.ndarray:
        """Int64 [n]: the column of every example's label."""
        column = {label: number for number, label in enumerate(self.answers.labels)}
        strangers = sorted({example.target for example in examples} - column.keys())
        if strangers:
            known = ", ".join(self.answers.labels[:10])
            raise InputError(
                f"Labels {', '.join(map(repr, strangers[:5]))} are not among those of the training data ({known}). Correct them or train on them."
            )
        return np.array([column[example.target] for example in examples], dtype=np.int64)

    def weights(self, targets: np.ndarray, balanced: bool) -> np.ndarray:
        """1 for every example, or n / (k · count of its label)."""
        if not balanced:
            return np.ones(len(targets), dtype=np.float32)
        counts = np.bincount(targets, minlength=self.answers.outputs)
        return (len(targets) / (np.count_nonzero(counts) * counts[targets])).astype(np.float32)

    def losses(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Cross entropy of logits [b, k] and int64 targets [b], with label smoothing (Szegedy et al. 2016, section 7)."""
        from torch.nn import functional

        return functional.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")

    def divergences(self, one: Tensor, other: Tensor) -> Tensor:
        """Half the sum of both KL divergences (Liang et al. 2021, R-Drop, equation 2)."""
        first, second = one.log_softmax(-1), other.log_softmax(-1)
        return ((first.exp() - second.exp()) * (first - second)).sum(-1) / 2

    def imitate(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL divergence from the teacher's softened answers, times the squared temperature (Hinton et al. 2015, section 2)."""
        soft = (teacher / temperature).log_softmax(-1)
        return (soft.exp() * (soft - (logits / temperature).log_softmax(-1))).sum(-1) * temperature**2

    def score(self, logits: np.ndarray, targets: np.ndarray) -> metrics.Metrics:
        """The metrics of `metrics.single_label`."""
        chances = self.answers.probabilities(logits)
        return metrics.single_label(targets, chances.argmax(1))

    def rank(self, logits: np.ndarray, targets: np.ndarray) -> metrics.Metrics:
        """The metrics of `metrics.rank_single_label`."""
        return metrics.rank_single_label(targets, self.answers.probabilities(logits))

    def calibrate(self: Self, logits: np.ndarray, targets: np.ndarray) -> Self:
        """The temperature that makes the probabilities most likely (Guo et al. 2017, section 4.2)."""
        return dataclasses.replace(self, answers=dataclasses.replace(self.answers, temperature=fit_temperature(logits, targets)))
