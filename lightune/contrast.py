"""Few labels: the base first learns which texts belong together, then a head is fitted on its vectors (SetFit, Tunstall et al. 2022).

Every row is paired with rows of its own label and of others. A batch of pairs goes through the base once, and every two texts in it count, not
only those that were drawn together: b pairs give up to 2b · (2b - 1) / 2 comparisons for the cost of 2b texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lightune.data import Example
from lightune.errors import InputError
from lightune.models import Model
from lightune.networks import Network, tensors
from lightune.recipes import TrainOptions
from lightune.runtime.tokenization import Encoded, Encoder
from lightune.training import Objective, Rows, Training

TASKS = ("classify", "pair")  # of which a row has one label
EPOCHS = 1.0  # over the pairs
LEAST_PARTNERS, MOST_PARTNERS, SHARED_PARTNERS = 2, 10, 60  # of a row; the last are divided among the labels
NEED_HEAD = ("patience", "metric", "evaluate_every", "r_drop", "label_smoothing")  # options that mean nothing without a head


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows: int64 [n] left and right, float32 [n] same, 1 where both have the same label and 0 where not."""

    left: np.ndarray
    right: np.ndarray
    same: np.ndarray

    def __len__(self) -> int:
        return len(self.same)


def suggest_partners(labels: int) -> int:
    """How many partners of each kind a row should have: the fewer, the more labels there are, for steps are as many as rows times partners, and
    with too many of them the base only fits the few rows closer."""
    return min(MOST_PARTNERS, max(LEAST_PARTNERS, SHARED_PARTNERS // labels))


def draw_pairs(labels: np.ndarray, times: int, seed: int = 0) -> Pairs:
    """`times` partners of the same label and `times` of another for every row; one partner comes again only after all others have come.

    labels: int64 [n]. A row that is alone with its label is paired with itself.

    Raises:
        InputError: all rows have the same label.
    """
    draw = np.random.default_rng(seed)
    if len(np.unique(labels)) < 2:
        raise InputError("All training rows have the same label, so no pair differs. Give rows of at least two labels.")
    left, right, same = [], [], []
    for row, label in enumerate(labels):
        fellows = np.flatnonzero(labels == label)
        fellows = fellows[fellows != row] if len(fellows) > 1 else fellows
        for partners, alike in ((fellows, 1.0), (np.flatnonzero(labels != label), 0.0)):
            turns = [draw.permutation(partners) for _ in range(-(-times // len(partners)))]
            right.append(np.concatenate(turns)[:times])
            left.append(np.full(times, row))
            same.append(np.full(times, alike, dtype=np.float32))
    return Pairs(np.concatenate(left), np.concatenate(right), np.concatenate(same))


def open_training(model: Model, train: Sequence[Example], dev: Sequence[Example], options: TrainOptions) -> Training:
    """The training that the options ask for: over pairs, or over the rows themselves."""
    return warm_up(model, train, options) if options.contrast else Training(model, train, dev, options)


def warm_up(model: Model, train: Sequence[Example], options: TrainOptions) -> Training:
    """The contrastive training of a model's base: a Training like any other, over pairs. `fit_head` comes after it.

    Raises:
        InputError: as `check_suits` does, or rows of one label only.
    """
    check_suits(model, options)
    rows = Rows.of(model, train)
    pairs = draw_pairs(rows.targets, options.contrast, options.seed)
    settled = dataclasses.replace(options, epochs=options.epochs or EPOCHS)
    objective = compare(model.encoder, rows.encoded, rows.targets, pairs)
    return Training(model, Rows(_joined(rows.encoded, pairs), pairs.same, np.ones(len(pairs), dtype=np.float32)), [], settled, objective)


def check_suits(model: Model, options: TrainOptions) -> None:
    """Refuse what contrast cannot do.

    Raises:
        InputError: a task without single labels, a method that trains nothing of the base, or options that need a head during training.
    """
    if model.answers.kind not in TASKS:
        raise InputError(f"contrast needs one label a row (task {' or '.join(TASKS)}), but the task is {model.answers.kind}. Leave it out.")
    if not any(item.requires_grad for item in model.network.backbone.parameters()):
        raise InputError("contrast trains the base, but the method leaves all of it frozen. Use --method full or lora.")
    if asked := [name for name in NEED_HEAD if getattr(options, name)]:
        raise InputError(
            f"{', '.join(asked)} cannot go with contrast, where the head is fitted after training. Leave out one or the other."
        )


def compare(encoder: Encoder, encoded: Encoded, labels: np.ndarray, pairs: Pairs) -> Objective:
    """The mean squared distance of cosine similarities from 1 (same label) or 0, over every two texts of a batch.

    Same and different count half each, however many there are of each.
    """

    def losses(network: Network, batch: dict[str, Tensor], targets: Tensor, places: np.ndarray) -> Tensor:
        texts = np.unique(np.concatenate([pairs.left[places], pairs.right[places]]))
        inputs = tensors(encoder.pad(encoded, texts), targets.device)
        vectors = functional.normalize(_pool(network, inputs), dim=-1)
        own = torch.from_numpy(labels[texts]).to(targets.device)
        same = (own[:, None] == own[None]).float()
        apart = 1 - torch.eye(len(texts), device=targets.device)
        distances = (vectors @ vectors.T - same) ** 2
        halves = [(distances * kind).sum() / kind.sum().clamp(min=1) for kind in (same * apart, 1 - same)]
        return torch.stack(halves).mean().expand(len(places))

    return losses


def fit_head(model: Model, train: Sequence[Example], dev: Sequence[Example], *, balanced: bool = False) -> None:
    """Put a logistic regression on the base's vectors of the training rows into the head, and calibrate it on the development rows."""
    from sklearn.linear_model import LogisticRegression

    rows = Rows.of(model, train)
    vectors = read_vectors(model, rows.encoded)
    size = float(np.linalg.norm(vectors, axis=1).mean()) or 1.0  # so that the penalty means the same for every base
    # A label stands against all others, so the more there are, the larger the weights must be: the usual C = 1 suits two.
    regression = LogisticRegression(C=len(model.answers.labels) / 2, max_iter=1000, class_weight="balanced" if balanced else None)
    found: Any = regression.fit(vectors / size, rows.targets)
    weight, bias = found.coef_ / size, found.intercept_
    if len(weight) == 1:  # two labels: one boundary, half of it on each side
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        model.network.head.weight.copy_(torch.from_numpy(weight))
        model.network.head.bias.copy_(torch.from_numpy(bias))
    model.network.eval()
    if len(dev):
        model.task = model.task.calibrate(model.logits(dev), model.task.targets(dev))


def read_vectors(model: Model, encoded: Encoded) -> np.ndarray:
    """The base's pooled vectors of rows, float32 [n, d], as the head sees them."""
    network = model.network
    found = np.zeros((len(encoded), network.head.in_features), dtype=np.float32)
    for rows, vectors in model.read(encoded, lambda batch: _pool(network, batch)):
        found[rows] = vectors.cpu().numpy()
    return found


def _pool(network: Network, batch: dict[str, Tensor]) -> Tensor:
    """The pooled vectors of a batch's texts, float32 [b, d]."""
    return network.pool(network.read(**batch).last_hidden_state, batch.get("attention_mask")).float()


def _joined(encoded: Encoded, pairs: Pairs) -> Encoded:
    """Both texts of every pair in one row: the loop groups pairs by their tokens and counts them; the objective takes the texts apart."""
    ids = [np.concatenate([encoded.ids[one], encoded.ids[other]]) for one, other in zip(pairs.left, pairs.right, strict=True)]
    return Encoded(ids, None, np.array([len(row) for row in ids], dtype=np.int64), 0)
