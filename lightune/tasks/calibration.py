"""Probabilities that mean what they say, fitted on development data."""

from __future__ import annotations

import numpy as np


def fit_temperature(logits: np.ndarray, targets: np.ndarray, low: float = 0.05, high: float = 20.0) -> float:
    """The temperature between `low` and `high` with the least negative log-likelihood of int targets [n], by golden-section search.

    The likelihood has one optimum in the temperature's logarithm (Guo et al. 2017). Every row counts as wrong by one part in n + 2
    (Platt 1999, section 2.2): few rows that are all right do not make the model sure of everything.
    """
    if len(targets) < 2:
        return 1.0
    rows = np.arange(len(targets))
    scores = np.asarray(logits, dtype=np.float64)
    doubt = scores.shape[1] / (scores.shape[1] - 1) / (len(targets) + 2)

    def cost(exponent: float) -> float:
        scaled = scores / np.exp(exponent)
        scaled -= scaled.max(1, keepdims=True)
        chances = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
        return -float(np.mean((1 - doubt) * chances[rows, targets] + doubt * chances.mean(1)))

    left, right, ratio = np.log(low), np.log(high), (5**0.5 - 1) / 2
    for _ in range(60):
        a, b = right - ratio * (right - left), left + ratio * (right - left)
        left, right = (left, b) if cost(a) <= cost(b) else (a, right)
    return round(float(np.exp((left + right) / 2)), 4)


def fit_thresholds(chances: np.ndarray, targets: np.ndarray, least: int = 5) -> tuple[float, ...]:
    """For every label the probability from which it holds: the one with the best F1; 0.5 where fewer than `least` rows have it.

    chances: [n, k]; targets: bool [n, k].
    """
    found = []
    for chance, gold in zip(chances.T, targets.T, strict=True):
        order = np.argsort(-chance, kind="stable")
        hits = np.cumsum(gold[order])
        f1 = 2 * hits / (np.arange(1, len(gold) + 1) + max(gold.sum(), 1))
        ends = np.append(chance[order][1:] < chance[order][:-1], True)  # equal probabilities cannot be told apart
        best = int(np.argmax(np.where(ends, f1, -1.0)))
        below = chance[order][best + 1] if best + 1 < len(gold) else 0.0
        found.append(float((chance[order][best] + below) / 2) if gold.sum() >= least else 0.5)
    return tuple(found)
