"""Self-training: a model that learned from few labels says what unlabelled texts mean, and one that begins anew learns from both.

Only answers that the model is sure of are taken, sure meaning what it means on the development rows, and a round is kept only where these
rows say that it helped (Scudder 1965; Lee 2013, "Pseudo-Label"; Xie et al. 2020, section 2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightune.data import Example
from lightune.errors import InputError
from lightune.evaluation import evaluate
from lightune.metrics import LOWER_IS_BETTER
from lightune.models import Model
from lightune.recipes import TrainOptions
from lightune.training import Rows, Training

TASKS = ("classify", "pair")
LEAST_DEV = 20  # development rows on which a confidence can be chosen
LEAST_SURE = 10  # of them at or above it


@dataclass(frozen=True)
class Round:
    """One round: how many texts were taken at which confidence, and the score on the development rows before and after."""

    confidence: float
    taken: int
    before: float
    after: float
    kept: bool


@dataclass(frozen=True)
class Taught:
    """The best model, the training that made it (None: it is the first one), and what every round did."""

    model: Model
    training: Training | None
    rounds: tuple[Round, ...]


def teach(
    teacher: Model,
    fresh: Model,
    train: Sequence[Example],
    dev: Sequence[Example],
    unlabelled: Sequence[Example],
    options: TrainOptions,
    *,
    rounds: int = 1,
    run: Callable[[Training], Any] = lambda training: list(training.steps()),
) -> Taught:
    """Up to so many rounds, until one does not help.

    teacher: the model that learned from `train`. fresh: the model as it was before. run: takes a training to its end.

    Raises:
        InputError: as `check_suits` does.
    """
    check_suits(teacher, dev, unlabelled)
    best, training, done = teacher, None, list[Round]()
    plain = dataclasses.replace(options, contrast=0)  # rows are no longer few
    for _ in range(rounds):
        confidence = choose_confidence(best, dev)
        sure, chances = answer(best, unlabelled, confidence) if confidence is not None else ([], np.zeros(0))
        if confidence is None or not sure:
            break
        student = fresh.copy()
        trial = Training(student, weigh(student, train, sure, chances, options), dev, plain)
        run(trial)
        before, after = (score(model, dev) for model in (best, student))
        kept = after < before if student.task.primary in LOWER_IS_BETTER else after > before
        done.append(Round(confidence, len(sure), before, after, kept))
        if not kept:
            break
        best, training = student, trial
    return Taught(best, training, tuple(done))


def check_suits(model: Model, dev: Sequence[Example], unlabelled: Sequence[Example]) -> None:
    """Refuse what self-training cannot do.

    Raises:
        InputError: a task without single labels, too few development rows, or no rows without a label.
    """
    if model.answers.kind not in TASKS:
        raise InputError(
            f"Self-training needs one label a row (task {' or '.join(TASKS)}), but the task is {model.answers.kind}. Leave it out."
        )
    if len(dev) < LEAST_DEV:
        raise InputError(
            f"Self-training chooses by development rows, of which there are {len(dev)}; it needs {LEAST_DEV}. Give --dev or a larger --dev-share."
        )
    if not len(unlabelled):
        raise InputError(
            "Self-training needs rows without labels, of which there are none. Leave their label empty, or give --unlabelled FILE."
        )


def choose_confidence(model: Model, dev: Sequence[Example]) -> float | None:
    """The lowest probability from which the model's answers on the development rows are wrong at most half as often as all of them.

    None where there is none, or fewer than LEAST_SURE rows lie above it.
    """
    chances = model.predict_proba(dev)
    order = np.argsort(-chances.max(1), kind="stable")
    right = (chances.argmax(1) == model.task.targets(dev))[order]
    shares = np.cumsum(right) / np.arange(1, len(right) + 1)
    enough = np.flatnonzero(shares >= (1 + right.mean()) / 2)
    enough = enough[enough >= LEAST_SURE - 1]
    return float(chances.max(1)[order][enough[-1]]) if len(enough) else None


def answer(model: Model, rows: Sequence[Example], confidence: float) -> tuple[list[Example], np.ndarray]:
    """The rows of whose label the model is at least so sure, with that label, and how sure it is, float32 [n]."""
    chances = model.predict_proba(rows)
    sure = np.flatnonzero(chances.max(1) >= confidence)
    named = [dataclasses.replace(rows[int(place)], target=model.answers.labels[chances[place].argmax()]) for place in sure]
    return named, chances[sure].max(1).astype(np.float32)


def weigh(model: Model, train: Sequence[Example], sure: Sequence[Example], chances: np.ndarray, options: TrainOptions) -> Rows:
    """Labelled and answered rows together; an answered one counts as much as the model was sure of it."""
    rows = Rows.of(model, [*train, *sure], options.class_weights == "balanced")
    rows.weights[len(train) :] *= chances
    return rows


def score(model: Model, dev: Sequence[Example]) -> float:
    """The task's own metric on the development rows."""
    return evaluate(model, dev, part="dev", resamples=0)[model.task.primary]
