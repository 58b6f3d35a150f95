"""What the knobs would take and save."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import tiny_models

from lightune import importance, knobs
from lightune.costs import Shape
from lightune.errors import InputError
from lightune.exports.onnx import trace
from lightune.importance import Importance
from lightune.knobs import STEPS, TARGETS, Saving, level_importance, lost_share, measure_savings, rank_blocks, trace_curves
from lightune.models import Model
from lightune.profiling import Setting
from lightune.sources import Source

TEXT = ("the food was lovely but the staff very slow", None)


def start(tiny_source: Callable[[str], Source], family: str = "bert") -> Model:
    model = tiny_models.start(tiny_source(family), tiny_models.make_rows(24))
    model.network.eval()
    return model


def make_importance() -> Importance:
    """Two blocks of four heads and eight neurons, of which the first units matter more and more."""
    heads, ffn = np.arange(4.0), np.arange(8.0) ** 2
    tokens = np.array([90, 0, 9, 1, 0], dtype=np.int64)
    return Importance(np.array([0.3, 0.1]), (heads, heads), (ffn, np.ones(8)), np.arange(16.0), tokens, 12)


def test_curves_begin_at_nothing_end_at_everything_and_only_rise() -> None:
    curves = trace_curves(make_importance())
    assert list(curves) == ["depth", "ffn", "heads", "hidden", "vocab"]
    for curve in curves.values():
        assert curve[0] == (0, 0)
        assert curve[-1] == (1, 1)
        removed, lost = zip(*curve, strict=True)
        assert list(removed) == sorted(removed)
        assert all(later >= earlier - 1e-12 for earlier, later in pairwise(lost))
        assert all(share >= value - 1e-12 for share, value in curve)  # the least important go first


def test_curves_tell_the_shares_that_go() -> None:
    curves = {knob: dict(curve) for knob, curve in trace_curves(make_importance()).items()}
    assert curves["depth"][0.5] == pytest.approx(0.1 / 0.4)
    assert curves["heads"][0.5] == pytest.approx((0 + 1) / 6, abs=1e-6)
    assert curves["vocab"] == {0: 0, 0.2: 0, 0.4: 0, 0.6: 0.01, 0.8: 0.1, 1: 1}


def test_long_curves_are_thinned() -> None:
    known = make_importance()
    wide = Importance(known.blocks, known.heads, known.ffn, np.arange(10_000.0), known.tokens, 1)
    assert len(trace_curves(wide)["hidden"]) == knobs.CURVE + 1


def test_blocks_tell_their_lesser_halves() -> None:
    first, second = rank_blocks(make_importance())
    assert (first["share"], second["share"]) == (pytest.approx(0.75), pytest.approx(0.25))
    assert first["half_of_heads"] == pytest.approx(1 / 6)
    assert first["half_of_ffn"] == pytest.approx((0 + 1 + 4 + 9) / 140)
    assert second["half_of_ffn"] == pytest.approx(0.5)


def test_nothing_that_matters_is_no_division_by_zero() -> None:
    zero = Importance(np.zeros(2), (np.zeros(4),) * 2, (np.zeros(8),) * 2, np.zeros(16), np.zeros(5, dtype=np.int64), 1)
    assert all(value == 0 for curve in trace_curves(zero).values() for _, value in curve)
    assert rank_blocks(zero)[0]["half_of_ffn"] == 0


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_level_importance_has_the_shape_that_a_measured_one_has(family: str, tiny_source: Callable[[str], Source]) -> None:
    model = start(tiny_source, family)
    level, known = level_importance(model), importance.measure(model, tiny_models.make_rows(8))
    for one, other in ((level.blocks, known.blocks), (level.hidden, known.hidden), (level.tokens, known.tokens)):
        assert one.shape == other.shape
    for name in ("heads", "ffn"):
        assert [part.shape for part in getattr(level, name)] == [part.shape for part in getattr(known, name)]
    assert level.queries == known.queries


def test_each_knob_saves_what_it_cuts(tiny_source: Callable[[str], Source]) -> None:
    model = start(tiny_source)
    before = {name: item.clone() for name, item in model.network.state_dict().items()}
    known = importance.measure(model, tiny_models.make_rows(24))
    said: list[str] = []
    found = list(measure_savings(model, trace(model.network, model.encoder.inputs), Setting(TEXT), known, said.append))
    savings = {saving.knob: saving for saving in found}
    assert list(savings) == ["none", *STEPS, *TARGETS]
    whole = savings["none"]
    for saving in found[1:]:
        assert saving.bytes is not None or saving.note
        assert saving.knob in ("pool", *TARGETS) or saving.bytes < whole.bytes  # what is tiny is not quantized
    assert savings["pool"].lost is None
    block = sum(item.numel() for item in model.network.backbone.encoder.layer[0].parameters())
    assert whole.bytes - savings["depth"].bytes == pytest.approx(4 * block, rel=0.5)  # and the operators' own bytes
    assert savings["ffn"].lost == pytest.approx(lost_share(known, "ffn", Shape(2, 32, 4, 32, 64)))
    assert savings["int8"].lost is None
    assert len(said) == len(found)
    assert all((item == before[name]).all() for name, item in model.network.state_dict().items())


def test_a_step_that_is_not_possible_says_why(tiny_source: Callable[[str], Source], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: str) -> None:
        raise InputError(f"{spec} is not possible here.")

    monkeypatch.setattr(knobs, "make_step", refuse)
    model = start(tiny_source)
    found = list(measure_savings(model, trace(model.network, model.encoder.inputs), Setting(TEXT), None))
    assert found[1] == Saving("depth", "depth=1/2", note="depth=1/2 is not possible here.")
    assert found[-1].bytes is not None
