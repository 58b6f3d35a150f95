"""Whether an exported file answers as its model does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightune.errors import CheckFailed, InputError
from lightune.runtime import load
from lightune.runtime.answers import Answers
from lightune.runtime.tokenization import texts_and_pairs

SAME_VALUE = 0.1  # two numbers are the same answer if their logits, in standard deviations of the target, differ by no more


@dataclass(frozen=True)
class Tolerance:
    """How far an exported file may be from its model.

    agree: the least share of equal answers; one unequal answer is always allowed, since few rows cannot show a share.
    difference: the largest difference of two logits, as a share of the largest logit where that is above 1; None means any.
    """

    agree: float
    difference: float | None = None


@dataclass(frozen=True)
class Parity:
    """What a comparison found: the largest difference of two logits, the share of equal answers, and on how many rows.

    An answer is a label, a yes or no for each of many labels, or a number (equal within a tenth of the target's standard deviation).
    """

    max_abs: float
    agree: float
    rows: int

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON."""
        return asdict(self)


def verify(model_logits: np.ndarray, folder: str | Path, examples: Sequence[Any], tolerance: Tolerance) -> Parity:
    """Run an exported folder with `lightune.runtime` and compare its logits with the model's own, [n, k], on the same examples.

    Raises:
        CheckFailed: beyond the tolerance, or logits that are no finite numbers; the message names the worst example.
        InputError: no examples, or not as many as logits.
    """
    if not len(examples) or len(examples) != len(model_logits):
        raise InputError(f"Got {len(examples)} examples and {len(model_logits)} rows of logits, expected as many of both and at least one.")
    predictor = load(folder)
    exported = predictor.logits(examples)
    same = equal_answers(predictor.answers, model_logits, exported)
    gaps = np.where(np.isfinite(exported) & np.isfinite(model_logits), np.abs(exported - model_logits), np.inf).max(axis=1)
    parity = Parity(float(gaps.max()), float(same.mean()), len(examples))
    problems = _problems(parity, same.size, float(np.abs(model_logits).max()), tolerance)
    if problems:
        worst = int(np.lexsort((gaps, ~same.all(axis=1)))[-1])
        told = _told(predictor.answers, examples[worst], worst, model_logits[worst], exported[worst])
        raise CheckFailed(
            f"The {predictor.precision} export of {predictor.name} does not answer as the model does: {'; '.join(problems)}. {told} "
            "Export with another target, or train again with another seed."
        )
    return parity


def _problems(parity: Parity, answers: int, largest: float, tolerance: Tolerance) -> list[str]:
    problems = []
    if not np.isfinite(parity.max_abs):
        problems.append("some logits are no finite numbers")
    allowed = None if tolerance.difference is None else tolerance.difference * max(1.0, largest)
    if allowed is not None and parity.max_abs > allowed:
        problems.append(f"logits differ by up to {parity.max_abs:.3g}, allowed {allowed:.3g}")
    if round((1 - parity.agree) * answers) > max(1, (1 - tolerance.agree) * answers):
        problems.append(f"{parity.agree:.1%} of {answers} answers are equal, expected at least {tolerance.agree:.1%}")
    return problems


def equal_answers(answers: Answers, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Whether two models give the same answer: bool [n, 1], or [n, k] where every label is an answer of its own."""
    if answers.kind == "regress":
        return np.abs(ours - theirs) <= SAME_VALUE
    if answers.kind == "multilabel":
        thresholds = np.asarray(answers.thresholds if answers.thresholds is not None else 0.5)
        return (answers.probabilities(ours) >= thresholds) == (answers.probabilities(theirs) >= thresholds)
    return (ours.argmax(axis=1) == theirs.argmax(axis=1))[:, None]


def _told(answers: Answers, example: Any, place: int, ours: np.ndarray, theirs: np.ndarray) -> str:
    """The worst example in words."""
    texts, _ = texts_and_pairs([example])
    text = texts[0] if len(texts[0]) <= 60 else texts[0][:59] + "…"
    before, after = answers.decide(np.stack([ours, theirs]))
    row = getattr(example, "row", place + 1)
    return f"Worst is row {row}, {text!r}: the model says {before!r} and the export {after!r}, logits {_list(ours)} and {_list(theirs)}."


def _list(logits: np.ndarray) -> str:
    shown = ", ".join(f"{value:.3g}" for value in logits[:6])
    return f"[{shown}{', …' if len(logits) > 6 else ''}]"
