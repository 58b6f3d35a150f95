"""Any number of labels, perhaps none, for a text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lightune import metrics
from lightune.data import Example
from lightune.errors import InputError
from lightune.runtime.answers import Answers
from lightune.tasks.calibration import fit_thresholds

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Multilabel:
    """A yes or no for each label: binary cross entropy, thresholds fitted on development data."""

    answers: Answers
    kind: ClassVar[str] = "multilabel"
    primary: ClassVar[str] = "micro_f1"

    @classmethod
    def describe(cls, examples: Sequence[Example]) -> Multilabel:
        """The labels that occur; where columns name them, every column in its order, so that rows of other parts may have any of them."""
        named = getattr(getattr(examples, "columns", None), "target", ())
        ordered = named if len(named) > 1 else sorted({label for example in examples for label in example.target})
        return cls(Answers(cls.kind, tuple(ordered)))

    def targets(self, examples: Sequence[Example]) -> np.ndarray:
        """Float32 [n, k]: 1 where the example has the label."""
        column = {label: number for number, label in enumerate(self.answers.labels)}
        table = np.zeros((len(examples), len(column)), dtype=np.float32)
        strangers = set()
        for row, example in enumerate(examples):
            for label in example.target:
                if label in column:
                    table[row, column[label]] = 1
                else:
                    strangers.add(label)
        if strangers:
            names = ", ".join(map(repr, sorted(strangers)[:5]))
            raise InputError(f"Labels {names} are not among those of the training data. Correct them or train on them.")
        return table

    def weights(self, targets: np.ndarray, balanced: bool) -> np.ndarray:
        """1 for every example; balanced: the mean over its labels of the inverse of their frequency, 1 on average."""
        if not balanced:
            return np.ones(len(targets), dtype=np.float32)
        rarity = len(targets) / np.maximum(targets.sum(0), 1)
        weights = np.where(targets.any(1), (targets * rarity).sum(1) / np.maximum(targets.sum(1), 1), 1.0)
        return (weights / weights.mean()).astype(np.float32)

    def losses(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Binary cross entropy of logits [b, k] and targets [b, k], summed over the labels."""
        from torch.nn import functional

        soft = targets * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, soft, reduction="none").sum(-1)

    def divergences(self, one: Tensor, other: Tensor) -> Tensor:
        """Half the sum of both KL divergences of every label's yes or no, summed over the labels."""
        return ((one.sigmoid() - other.sigmoid()) * (one - other)).sum(-1) / 2

    def imitate(self, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL divergence from the teacher's softened yes or no of every label, summed over them, times the squared temperature."""
        from torch.nn import functional

        yes, own = teacher / temperature, logits / temperature
        cross = functional.binary_cross_entropy_with_logits(own, yes.sigmoid(), reduction="none")
        entropy = functional.binary_cross_entropy_with_logits(yes, yes.sigmoid(), reduction="none")
        return (cross - entropy).sum(-1) * temperature**2

    def score(self, logits: np.ndarray, targets: np.ndarray) -> metrics.Metrics:
        """The metrics of `metrics.many_labels`, at the fitted thresholds."""
        chances = self.answers.probabilities(logits)
        holds = chances >= np.asarray(self.answers.thresholds or 0.5)
        return metrics.many_labels(targets.astype(bool), holds)

    def rank(self, logits: np.ndarray, targets: np.ndarray) -> metrics.Metrics:
        """The metrics of `metrics.rank_many_labels`."""
        return metrics.rank_many_labels(targets.astype(bool), self.answers.probabilities(logits))

    def calibrate(self, logits: np.ndarray, targets: np.ndarray) -> Multilabel:
        """The threshold of each label that gives it the best F1."""
        thresholds = fit_thresholds(self.answers.probabilities(logits), targets.astype(bool))
        return dataclasses.replace(self, answers=dataclasses.replace(self.answers, thresholds=thresholds))
