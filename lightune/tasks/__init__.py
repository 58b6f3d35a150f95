"""What a model can be for. A task is one file with one class, named in TASKS; everything else follows from the table.

The contract of a task class (a frozen dataclass with the one field `answers`):

    kind, primary                       its name, and the metric that chooses the best weights
    describe(examples) -> task          the labels (or the centre and spread) that the training examples show
    targets(examples) -> ndarray        what the loss compares with: [n] or [n, k]
    weights(targets, balanced) -> [n]   how much every example counts in the loss, float32
    losses(logits, targets, smoothing)  the loss of every example, [b] (the only part that needs torch)
    divergences(one, other)             the symmetric divergence of two passes, [b] (R-Drop)
    imitate(logits, teacher, temperature)  how far every example's logits are from a teacher's, [b] (distillation)
    score(logits, targets) -> dict      every metric that is quick to compute, by name
    rank(logits, targets) -> dict       the metrics that sort all probabilities: AUROC and average precision
    calibrate(logits, targets) -> task  the same task with its temperature or thresholds fitted on development data

A target that the training data lack is an error that names it.

The tasks of GENERATIVE answer in text: they have only `kind`, `primary` and `answers`. Their rows are conversations, of translate the
source and the target of each answer, their loss is that of the answers' tokens (`language`), and they are scored by `language_evaluation`.
"""

from __future__ import annotations

import importlib
from typing import Any

from lightune.errors import unknown

TASKS: dict[str, str] = {"classify": "Classify", "pair": "Pair", "multilabel": "Multilabel", "regress": "Regress"}
GENERATIVE: dict[str, str] = {"generate": "Generate", "translate": "Translate"}


def find_task(name: str) -> Any:
    """The class of a task by its name."""
    known = TASKS | GENERATIVE
    if name not in known:
        raise unknown("task", name, known)
    return getattr(importlib.import_module(f"lightune.tasks.{name}"), known[name])


def task_for(answers: Any) -> Any:
    """The task that gives such answers: how a saved model or an artefact finds its metrics."""
    return find_task(answers.kind)(answers)
