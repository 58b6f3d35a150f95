"""From limits to a few smaller models that generate and are worth training: how deep, how wide, how many tokens, in how many bits.

Bytes are counted tensor by tensor. What is written a second follows from them, since every weight is read for every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from lightune import importance
from lightune.costs import Shape
from lightune.exports.gguf.families import collect_tensors, find_family
from lightune.exports.gguf.sizes import count_bytes
from lightune.models import Model
from lightune.vocabularies import Vocabulary

TYPES = {"q8_0": 0.0, "q4_k_m": 0.03, "q4_0": 0.08}  # of files, and how much each hurts beside the cuts
NEURONS = (1.0, 5 / 6, 2 / 3, 1 / 2)  # shares of the feed-forward neurons; multiples of 32 of the usual sizes
SIDE = 70  # bytes of a token in the tokenizer's two forms, its merges included
ROOM = 1000  # tokens for words that the data happen to lack
MARGIN = 0.97  # a prediction must stay below this share of a limit
SHARES = (1 / 2, 1 / 3)  # of the reference's bytes, where neither bytes nor milliseconds are limited


@dataclass(frozen=True)
class Candidate:
    """A smaller model that could be made: its steps, its file's target, its feed-forward neurons, predicted bytes and milliseconds, and
    expected damage from 0 to 1."""

    steps: tuple[str, ...]
    target: str
    ffn: int
    bytes: int
    milliseconds: float
    damage: float


def propose(
    model: Model, found: importance.Importance, limits: Mapping[str, float], reference: Mapping[str, Any], count: int
) -> list[Candidate]:
    """The least damaged candidates of each width that hold the limits, the most promising first; the nearest where none does.

    Args:
        found: what each part is worth, `tokens` counted over all training rows. reference: bytes and milliseconds of the model before.
    """
    known = sorted(enumerate_candidates(model, found, reference), key=lambda item: item.damage)
    chosen: dict[tuple[str, ...], Candidate] = {}
    levels = _levels(limits, reference)
    for level in levels:
        of_widths = {item.ffn: item for item in reversed(known) if _excess(item, level) <= MARGIN}  # the least damaged of each width
        for item in sorted(of_widths.values(), key=lambda item: item.damage)[: -(-count // len(levels))]:
            chosen.setdefault(item.steps, item)
    return list(chosen.values())[:count] or [min(known, key=lambda item: _excess(item, limits))]


def enumerate_candidates(model: Model, found: importance.Importance, reference: Mapping[str, Any]) -> Iterator[Candidate]:
    """Every depth, width and type with the tokens that the data need, and what it will cost."""
    network, base = model.network, Shape.of(model)
    shapes = {name: tuple(value.shape) for name, value in collect_tensors(network, find_family(network.backbone)).items()}
    tokens = min(needed_tokens(model, found.tokens), base.vocabulary)
    pace = reference["milliseconds"] / reference["bytes"]
    for layers, neurons, (kind, harm) in product(range(base.layers, 0, -1), NEURONS, TYPES.items()):
        ffn = round(base.ffn * neurons)
        steps = (
            [f"vocab={tokens}"] * (tokens < base.vocabulary) + [f"depth={layers}"] * (layers < base.layers) + [f"ffn={ffn}"] * (neurons < 1)
        )
        size = count_bytes(shapes, kind, layers=layers, neurons=neurons, tokens=tokens, tied=network.tied)
        lost = importance.shares(found, layers=layers, ffn=ffn)
        damage = 1 - (1 - lost["layers"]) * (1 - lost["ffn"]) * (1 - harm)
        if steps:
            yield Candidate(tuple(steps), f"gguf:type={kind}", ffn, size + SIDE * tokens, size * pace, damage)


def needed_tokens(model: Model, counts: np.ndarray) -> int:
    """How many tokens spell the data as now, keep every text readable, and leave some room."""
    least = len(Vocabulary.of(model.encoder.tokenizer).essential)
    return -(-(least + int((counts > 0).sum()) + ROOM) // 100) * 100


def _levels(limits: Mapping[str, float], reference: Mapping[str, Any]) -> list[dict[str, float]]:
    """The limits, or levels of bytes to look at where neither bytes nor milliseconds are limited."""
    if "max_mb" in limits or "max_ms" in limits:
        return [dict(limits)]
    return [{**limits, "max_mb": reference["bytes"] * share / 1e6} for share in SHARES]


def _excess(item: Candidate, limits: Mapping[str, float]) -> float:
    """By what factor a candidate is predicted to miss the limit that it misses most."""
    costs = {"max_mb": item.bytes / 1e6, "max_ms": item.milliseconds}
    return max((costs[name] / limit for name, limit in limits.items() if name in costs), default=0.0)
