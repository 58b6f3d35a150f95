"""What each shrink step could take from a model: the share of its importance that would go, and the bytes and milliseconds it would save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from lightune import architectures, dimensions, importance
from lightune.costs import Shape
from lightune.errors import InputError
from lightune.exports.onnx import trace
from lightune.importance import Importance
from lightune.models import Model
from lightune.profiling import Setting, measure_export
from lightune.steps import UNWEIGHED, make_step

CURVE = 40  # points of a curve, beside its beginning
STEPS = {"depth": "depth=1/2", "ffn": "ffn=1/2", "heads": "heads=1/2", "hidden": "hidden=1/2", "pool": "pool=1/2", "vocab": "vocab=1/4"}
TARGETS = {"int8": "onnx-int8", "int4": "onnx-int4"}
PLAIN = "onnx"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Saving:
    """What a model costs after one step alone.

    knob: depth, ffn, heads, hidden, pool, vocab, int8 or int4; "none" for the model as it is. spec: the step or the export target.
    bytes: of the whole artefact folder. milliseconds: from text to logits, median. Both None where the step is not possible, and
    then note says why. lost: the share of importance that goes, None where it was not measured.
    """

    knob: str
    spec: str
    bytes: int | None = None
    milliseconds: float | None = None
    lost: float | None = None
    note: str = ""


def measure_savings(
    model: Model, graph: ir.Model, setting: Setting, known: Importance | None, tell: Tell = lambda _: None
) -> Iterator[Saving]:
    """Make the model smaller by each step alone, export it in fp32, and time the file; then the whole model in lower precision.

    Args:
        graph: the model's own, from `exports.onnx.trace`. known: its importance, where it was measured.
    """
    tell("Timing the model as it is")
    yield Saving("none", PLAIN, *measure_export(model, graph, PLAIN, setting))
    for knob, spec in {**STEPS, **TARGETS}.items():
        tell(f"Trying {spec}")
        try:
            if knob in TARGETS:
                yield Saving(knob, spec, *measure_export(model, graph, spec, setting))
            else:
                yield _after_step(model, knob, setting, known)
        except InputError as error:
            yield Saving(knob, spec, note=str(error))


def _after_step(model: Model, knob: str, setting: Setting, known: Importance | None) -> Saving:
    """What a copy of the model costs after one step."""
    student = model.copy().shrink(make_step(STEPS[knob]), known or level_importance(model))
    cost = measure_export(student, trace(student.network.eval(), student.encoder.inputs), PLAIN, setting)
    lost = lost_share(known, knob, Shape.of(student)) if known and knob not in UNWEIGHED else None
    return Saving(knob, STEPS[knob], *cost, lost)


def level_importance(model: Model) -> Importance:
    """An importance to which every unit is worth the same: enough to see what a step saves, whichever units it chooses."""
    backbone: Any = model.network.backbone
    found = dimensions.describe(backbone)
    layers = getattr(backbone.config, "num_hidden_layers", len(architectures.blocks(backbone)))
    heads, ffn = tuple(np.ones(each.size * found.queries) for each in found.heads), tuple(np.ones(each.size) for each in found.ffn)
    return Importance(np.ones(layers), heads, ffn, np.ones(found.hidden.size), np.ones(found.tokens.size, dtype=np.int64), 0, found.queries)


def trace_curves(known: Importance) -> dict[str, list[tuple[float, float]]]:
    """For each knob the points (share that is removed, share of importance that is lost), the least important going first, [0, 1] both."""
    sizes = {
        "depth": len(known.blocks), "ffn": len(known.ffn[0]), "heads": len(known.heads[0]), "hidden": len(known.hidden),
        "vocab": len(known.tokens),
    }  # fmt: skip
    units = {"heads": known.queries}  # heads go in groups that share their keys
    points = {knob: [units.get(knob, 1) * count for count in _counts(size // units.get(knob, 1))] for knob, size in sizes.items()}
    return {
        knob: [(round(1 - keep / size, 6), round(_lost(known, knob, keep), 6)) for keep in points[knob]] for knob, size in sizes.items()
    }


def lost_share(known: Importance, knob: str, shape: Shape) -> float:
    """The share of importance that a shape takes away by one knob."""
    kept = {"depth": shape.layers, "ffn": shape.ffn, "heads": shape.heads, "hidden": shape.hidden, "vocab": shape.vocabulary}
    return _lost(known, knob, kept[knob])


def rank_blocks(known: Importance) -> list[dict[str, Any]]:
    """For each layer its influence, its share of all influence, and what its least important half of heads and neurons is worth.

    Layers that share a block share its halves.
    """
    whole = float(known.blocks.sum())
    return [
        {
            "block": place,
            "influence": float(influence),
            "share": float(influence) / whole if whole > 0 else 0.0,
            "half_of_heads": _lower_half(_at(known.heads, place)),
            "half_of_ffn": _lower_half(_at(known.ffn, place)),
        }
        for place, influence in enumerate(known.blocks)
    ]


def _lost(known: Importance, knob: str, keep: int) -> float:
    if knob == "vocab":
        counts = np.sort(known.tokens)[::-1]
        return float(counts[keep:].sum() / max(counts.sum(), 1))
    name = "layers" if knob == "depth" else knob
    return importance.shares(known, **{name: keep})[name]


def _counts(size: int) -> list[int]:
    """How many units stay at each point of a curve, from all to none."""
    return sorted({round(size * place / CURVE) for place in range(CURVE + 1)}, reverse=True)


def _at(groups: Sequence[np.ndarray], place: int) -> np.ndarray:
    return groups[place] if place < len(groups) else groups[-1]


def _lower_half(scores: np.ndarray) -> float:
    """The share of a block's importance in the less important half of its units."""
    ordered, whole = np.sort(scores), float(scores.sum())
    return float(ordered[: len(ordered) // 2].sum()) / whole if whole > 0 else 0.0
