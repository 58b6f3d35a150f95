"""Scores of answers: thin calls of scikit-learn and SciPy, and the bootstrap interval of any of them.

Every function takes arrays over the same n examples and gives a dict of floats; higher is better unless the name is `mse` or `mae`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lightune.errors import MissingExtra

LOWER_IS_BETTER = frozenset({"loss", "mse", "mae", "ece", "hamming_loss", "distance"})

PRF = ("precision", "recall", "f1")

Metrics = dict[str, float]


def _averages(table: tuple[np.ndarray, ...]) -> Metrics:
    """Macro and weighted means of precision, recall and F1 by label, as scikit-learn defines them, from one table of all labels."""
    *columns, support = table
    weights = support if support.sum() else None
    macro = {f"macro_{name}": float(column.mean()) for name, column in zip(PRF, columns, strict=True)}
    return macro | {f"weighted_{name}": float(np.average(column, weights=weights)) for name, column in zip(PRF, columns, strict=True)}


def _sklearn() -> Any:
    try:
        import sklearn.metrics
    except ImportError:
        raise MissingExtra("evaluating", "scikit-learn", "metrics") from None
    return sklearn.metrics


def single_label(gold: np.ndarray, answers: np.ndarray) -> Metrics:
    """Accuracy, macro and weighted precision, recall and F1, and MCC. gold, answers: int [n]."""
    sk = _sklearn()
    scores = {"accuracy": float((gold == answers).mean())}
    scores |= _averages(sk.precision_recall_fscore_support(gold, answers, average=None, zero_division=0))
    one_label = len(np.union1d(gold, answers)) == 1  # nothing to correlate: scikit-learn would warn and give 0
    return scores | {"mcc": 0.0 if one_label else float(sk.matthews_corrcoef(gold, answers))}


def rank_single_label(gold: np.ndarray, chances: np.ndarray) -> Metrics:
    """Where every label occurs, AUROC (one against the rest, macro) and for two labels average precision. gold: int [n]; chances: [n, k]."""
    sk, scores = _sklearn(), Metrics()
    present = np.unique(gold)
    if len(present) == chances.shape[1] == 2:
        scores["auroc"] = float(sk.roc_auc_score(gold, chances[:, 1]))
        scores["average_precision"] = float(sk.average_precision_score(gold, chances[:, 1]))
    elif len(present) == chances.shape[1]:
        scores["auroc"] = float(sk.roc_auc_score(gold, chances, multi_class="ovr"))
    return scores


def many_labels(gold: np.ndarray, holds: np.ndarray) -> Metrics:
    """Micro, macro and weighted precision, recall and F1, exact match and Hamming loss. gold, holds: bool [n, k]."""
    sk = _sklearn()
    micro = sk.precision_recall_fscore_support(gold, holds, average="micro", zero_division=0, **_positive(gold))[:3]
    scores = {f"micro_{name}": float(value) for name, value in zip(PRF, micro, strict=True)}
    scores |= _averages(sk.precision_recall_fscore_support(gold, holds, average=None, zero_division=0, **_positive(gold)))
    scores["exact_match"] = float((gold == holds).all(axis=1).mean())
    return scores | {"hamming_loss": float((gold != holds).mean())}


def rank_many_labels(gold: np.ndarray, chances: np.ndarray) -> Metrics:
    """AUROC and average precision, means over the labels that occur and are not always there. gold: bool [n, k]; chances: [n, k]."""
    sk, scores = _sklearn(), Metrics()
    both = [k for k in range(gold.shape[1]) if 0 < gold[:, k].sum() < len(gold)]
    if both:
        scores["auroc"] = float(np.mean([sk.roc_auc_score(gold[:, k], chances[:, k]) for k in both]))
        scores["average_precision"] = float(np.mean([sk.average_precision_score(gold[:, k], chances[:, k]) for k in both]))
    return scores


def numbers(gold: np.ndarray, values: np.ndarray) -> Metrics:
    """Pearson, Spearman, mean squared and absolute error of float [n] against float [n]; a constant side correlates by 0."""
    try:
        from scipy import stats
    except ImportError:
        raise MissingExtra("evaluating a regression", "scipy", "metrics") from None
    errors = values - gold
    scores = {"mse": float((errors**2).mean()), "mae": float(np.abs(errors).mean())}
    varied = len(gold) > 1 and np.ptp(gold) > 0 and np.ptp(values) > 0
    pearson, spearman = (stats.pearsonr(gold, values)[0], stats.spearmanr(gold, values)[0]) if varied else (0.0, 0.0)
    return {"spearman": float(spearman), "pearson": float(pearson), **scores}


def by_label(gold: np.ndarray, answers: np.ndarray, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of every label; int [n] columns, or bool [n, k] for several labels."""
    which = {"labels": range(len(labels))} if gold.ndim == 1 else _positive(gold)
    table = _sklearn().precision_recall_fscore_support(gold, answers, average=None, zero_division=0, **which)
    return [
        {"label": label, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for label, p, r, f, s in zip(labels, *table, strict=True)
    ]


def _positive(gold: np.ndarray) -> dict[str, Any]:
    """scikit-learn takes a table of one column for two classes, yes and no: only yes is asked for."""
    return {"labels": [True]} if gold.shape[1] == 1 else {}


def confusion(gold: np.ndarray, answers: np.ndarray, count: int) -> np.ndarray:
    """Int [count, count]: rows are the true labels, columns the answers."""
    return np.bincount(gold * count + answers, minlength=count * count).reshape(count, count)


def calibration(chance: np.ndarray, correct: np.ndarray, bins: int = 10) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error (Guo et al. 2017, equation 3) of the chosen answers' probabilities, and its bins."""
    place = np.minimum((chance * bins).astype(int), bins - 1)
    table = []
    for number in range(bins):
        inside = place == number
        if inside.any():
            row = {"low": number / bins, "high": (number + 1) / bins, "count": int(inside.sum())}
            table.append({**row, "confidence": float(chance[inside].mean()), "accuracy": float(correct[inside].mean())})
    error = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in table) / max(len(chance), 1)
    return float(error), table


def bootstrap(
    score: Callable[[np.ndarray], Mapping[str, float]], count: int, *, resamples: int = 300, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The 95 % percentile interval of every metric over resampled examples (Efron 1979).

    score: maps int [count] row numbers, drawn with replacement, to metrics.
    """
    if resamples < 1 or count < 2:
        return {}
    draw = np.random.default_rng(seed)
    seen: dict[str, list[float]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample may lack a label: scikit-learn warns about each
        for _ in range(resamples):
            for name, value in score(draw.integers(0, count, count)).items():
                seen.setdefault(name, []).append(value)
    return {name: (float(np.nanquantile(values, 0.025)), float(np.nanquantile(values, 0.975))) for name, values in seen.items()}


def kept_share(
    score: Callable[[np.ndarray], tuple[float, float]], count: int, least: float | None = None, *, resamples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """The share of a reference's score that another model keeps on the same rows, by a paired bootstrap (Efron and Tibshirani 1993, ch. 16).

    Args:
        score: maps int [count] row numbers to the other's score and the reference's.
        least: the share that is asked for.

    Returns:
        value; low and high, its 95 % interval; p, the share of resamples in which less than `least` is kept (only where it is given).
    """
    other, reference = score(np.arange(count))
    draw = np.random.default_rng(seed)
    shares = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(resamples):
            one, base = score(draw.integers(0, count, count))
            shares.append(one / base if base else 0.0)
    found = {"value": other / reference if reference else 0.0}
    found |= {"low": float(np.quantile(shares, 0.025)), "high": float(np.quantile(shares, 0.975))}
    return found | ({"p": float(np.mean(np.array(shares) < least))} if least is not None else {})
