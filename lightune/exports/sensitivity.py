"""Which matrices and tables cost most when they lose bits, and so should keep theirs (mixed precision)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir

from lightune.errors import InputError
from lightune.exports.editing import find_products, find_tables
from lightune.exports.parity import equal_answers
from lightune.exports.quantization import quantize
from lightune.precision import Precision
from lightune.runtime.answers import Answers
from lightune.runtime.predictor import open_session
from lightune.runtime.tokenization import Encoder, texts_and_pairs

ROWS = 64
TINY = 1e-12


def measure_damage(answers: Answers, ours: np.ndarray, theirs: np.ndarray) -> float:
    """How far the answers of other logits [n, k] are from a model's own: their mean Kullback-Leibler divergence, or mean squared difference.

    Labels of which each may hold are summed; a number is compared in standard deviations of the target.
    """
    if answers.kind == "regress":
        return float(np.square(ours - theirs).mean())
    p, q = answers.probabilities(ours), answers.probabilities(theirs)
    divergence = _divergence(p, q) + (_divergence(1 - p, 1 - q) if answers.kind == "multilabel" else 0)
    return float(divergence.sum(axis=1).mean())


def measure_sensitivity(
    model: ir.Model,
    answers: Answers,
    encoder: Encoder,
    examples: Sequence[Any],
    precision: Precision,
    smoothing: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """For every matrix and table that `precision` would quantize: the damage that quantizing it alone does, the largest first.

    Args:
        model: an fp32 model, from `exports.onnx.trace`.
        examples: rows, labelled or not; the first 64 are answered.
        smoothing: see `quantize`.
    """
    run = _Runner(encoder, examples)
    return _damages(model, answers, run, run(model), precision, smoothing)


def back_off(
    model: ir.Model,
    answers: Answers,
    encoder: Encoder,
    examples: Sequence[Any],
    precision: Precision,
    *,
    agree: float = 0.99,
    most: int = 4,
    smoothing: Mapping[str, np.ndarray] | None = None,
) -> Precision:
    """A precision with which at least a share `agree` of the answers stay what they are, if giving bits back to `most` parts suffices for it.

    The most sensitive get them first: those of 4 bits get 8, those of 8 stay floating point. Where `most` do not suffice, they all get them.
    """
    run = _Runner(encoder, examples)
    ours = run(model)

    def agrees(trial: Precision) -> bool:
        return float(equal_answers(answers, ours, run(quantize(model, trial, smoothing))).mean()) >= agree

    if agrees(precision):
        return precision
    tables, trial = find_tables(model.graph), precision
    for name in list(_damages(model, answers, run, ours, precision, smoothing))[:most]:
        if precision.bits(name, table=name in tables) == 8:
            trial = dataclasses.replace(trial, keep=(*trial.keep, name))
        else:
            trial = dataclasses.replace(trial, eight=(*trial.eight, name))
        if agrees(trial):
            break
    return trial


class _Runner:
    """Runs graphs on the same few examples."""

    def __init__(self, encoder: Encoder, examples: Sequence[Any]) -> None:
        if not len(examples):
            raise InputError("Got no examples to measure with, expected at least one.")
        encoded = encoder.encode(*texts_and_pairs(examples[:ROWS]))
        self.feeds = [encoder.pad(encoded, [row]) for row in range(len(encoded))]  # one by one: an activation's range is that of its batch

    def __call__(self, model: ir.Model) -> np.ndarray:
        """Logits, float32 [n, k]."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            ir.save(model, path, external_data="weights")
            session = open_session(path, 1)
        return np.concatenate([session.run(["logits"], feed)[0] for feed in self.feeds])


def _damages(
    model: ir.Model, answers: Answers, run: _Runner, ours: np.ndarray, precision: Precision, smoothing: Mapping[str, np.ndarray] | None
) -> dict[str, float]:
    """The damage that quantizing each part alone does to the model's own logits, the largest first."""
    names = _names(model, precision)
    found = {}
    for name in names:
        others = tuple(other for other in names if other != name)
        alone = dataclasses.replace(precision, keep=(*precision.keep, *others))
        found[name] = measure_damage(answers, ours, run(quantize(model, alone, smoothing)))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _names(model: ir.Model, precision: Precision) -> list[str]:
    """The matrices and tables that lose bits."""
    tables = find_tables(model.graph)
    names = dict.fromkeys([*tables, *(product.name for product in find_products(model.graph))])
    return [name for name in names if precision.bits(name, table=name in tables) < 32]


def _divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return p * np.log((p + TINY) / (q + TINY))
