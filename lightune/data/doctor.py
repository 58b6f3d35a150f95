"""The doctor: what is wrong with the data, counted, with row numbers and the cure; and the data in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightune.data.checks import CHECKS, LIMITS, Finding, cut_tokens, tokens_cut
from lightune.data.examples import Examples, labels_of
from lightune.data.surveying import survey

__all__ = ["LEVELS", "Finding", "describe", "examine"]

LEVELS = ("error", "warning", "note")


def examine(
    splits: Mapping[str, Examples], *, lengths: Mapping[str, np.ndarray] | None = None, max_length: int | None = None
) -> tuple[Finding, ...]:
    """Examine the parts of a data set: 'train' and, where there are, 'dev', 'test', 'unlabelled'. Errors come first.

    lengths: {part: tokens of each example, uncut, special tokens included [n]}. max_length: the tokens at which training would cut.
    """
    surveys = {part: survey(part, examples) for part, examples in splits.items()}
    found = [finding for check in CHECKS for finding in check(surveys)]
    for part, tokens in (lengths or {}).items():
        found += cut_tokens(surveys[part], np.asarray(tokens), max_length) if max_length else ()
    return tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level)))


def describe(
    splits: Mapping[str, Examples], findings: Sequence[Finding] = (), *, lengths: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """The data set in figures, ready for JSON.

    {"parts": {part: {"rows", "source", "sha256" (of a file), "labels": {label: rows}, "values" (to regress), "characters", "tokens"}},
    "columns", "facts" (how the first part was read), "told", "findings"}. Characters, tokens and values have min, median, p95, max and
    total; tokens also "cut_at": {limit: tokens that it would cut}. `lengths` as in `examine`.
    """
    first = next(iter(splits.values()))
    told = dict.fromkeys(sentence for examples in splits.values() for sentence in examples.facts.get("told", ()))
    return {
        "parts": {part: _figures(examples, (lengths or {}).get(part)) for part, examples in splits.items()},
        "columns": first.columns.as_dict(),
        "facts": {name: value for name, value in first.facts.items() if name != "told"},
        "told": list(told),
        "findings": [finding.as_dict() for finding in findings],
    }


def _figures(examples: Examples, tokens: np.ndarray | None) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": len(examples), "source": examples.source}
    if "sha256" in examples.facts:
        found["sha256"] = examples.facts["sha256"]
    counts = Counter(label for example in examples for label in labels_of(example)) if examples.labels else Counter()
    found["labels"] = {label: counts[label] for label in examples.labels}
    if examples.columns.task == "regress":
        found["values"] = _spread(np.array([example.target for example in examples if example.target is not None], dtype=np.float64))
    found["characters"] = _spread(np.array([len(example.text) + len(example.pair or "") for example in examples], dtype=np.int64))
    if tokens is not None:
        tokens = np.asarray(tokens)
        found["tokens"] = {**_spread(tokens), "cut_at": {str(limit): tokens_cut(tokens, limit) for limit in LIMITS}}
    return found


def _spread(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    median, p95 = np.percentile(values, [50, 95]).tolist()
    return {"min": values.min().item(), "median": median, "p95": p95, "max": values.max().item(), "total": values.sum().item()}
