"""Training sees the weights as they will be exported, and leaves them there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from lightune.architectures import blocks, linears
from lightune.exports import find_export
from lightune.exports.onnx import trace
from lightune.exports.rounding import mark_rounded, read_rounded, round_weights
from lightune.grids import fit_grid
from lightune.models import Model
from lightune.precision import FP32, Precision
from lightune.recipes import TrainOptions
from lightune.runtime import load
from lightune.simulation import simulated
from lightune.sources import Source, resolve_model
from lightune.steps import make_step
from lightune.training import Training

ROWS = tiny_models.make_rows(40)
OPTIONS = TrainOptions(epochs=2, batch_size=8, rate=2e-3, head_dropout=0.0, device="cpu", precision="fp32", threads=1)


def matrices(model: Model) -> list[np.ndarray]:
    """Rows of every matrix inside the blocks."""
    found = [layer for block in blocks(model.network.backbone) for _, layer in linears(block)]
    return [(layer.weight if type(layer).__name__ == "Linear" else layer.weight.T).detach().numpy() for layer in found]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_weights_lie_on_their_grid_after_training(family: str, bits: int, tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source(family), ROWS)
    names, before = set(model.trainable()), matrices(model)
    with simulated(model.network, Precision(weights=bits)) as grids:
        training = Training(model, ROWS, [], OPTIONS)
        losses = [fact.loss for fact in training.steps()]
    assert set(model.trainable()) == names
    assert losses[-1] < losses[0]
    after = matrices(model)
    assert all(np.abs(new - old).max() > 1e-4 for new, old in zip(after, before, strict=True))
    assert len(grids) == (len(after) if bits == 4 else 0)
    for rows, grid in zip(after, grids.values() if bits == 4 else [fit_grid(rows, 8) for rows in after], strict=True):
        np.testing.assert_allclose(grid.restore(grid.round(rows)), rows, atol=1e-6)


def test_a_static_student_is_not_rounded(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), ROWS)
    model.shrink(make_step("static=8").plan(model, None))
    with simulated(model.network, FP32) as grids:
        assert grids == {}


def test_the_gradient_passes_the_rounding(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), ROWS)
    layer = model.network.backbone.encoder.layer[0].output.dense  # type: ignore[union-attr, index]
    with simulated(model.network, Precision(weights=8)):
        (layer.weight * 3).sum().backward()
        original = layer.parametrizations.weight.original
        torch.testing.assert_close(original.grad, torch.full_like(original, 3.0))
        assert not torch.equal(layer.weight, original)


def test_what_is_kept_whole_stays(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), ROWS)
    layer = model.network.backbone.encoder.layer[1].output.dense  # type: ignore[union-attr, index]
    before = layer.weight.clone()
    with simulated(model.network, Precision(weights=4, keep=("layer.1.output.dense",))):
        pass
    torch.testing.assert_close(layer.weight, before, rtol=0, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_trained_so_a_model_answers_as_its_file(bits: int, tmp_path: Path) -> None:
    model = tiny_models.start(resolve_model(tiny_models.save_base("bert", tmp_path / "bert", hidden_size=64, intermediate_size=96)), ROWS)
    with simulated(model.network, Precision(weights=bits)) as grids:
        for _ in Training(model, ROWS, [], OPTIONS).steps():
            pass
    model.network.eval()
    graph = trace(model.network, model.encoder.inputs)
    mark_rounded(graph, grids)
    artifact = load(find_export(f"onnx:weights={bits},activations=32").write(model, tmp_path / "small", sample=ROWS, graph=graph))
    np.testing.assert_allclose(artifact.logits(ROWS), model.logits(ROWS), atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_training_begins_where_a_file_has_its_weights(family: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96} if family == "bert" else {"n_embd": 64, "n_inner": 96}
    model = tiny_models.start(resolve_model(tiny_models.save_base(family, tmp_path / "base", **sizes)), ROWS)
    model.network.eval()
    precision = Precision(weights=4, rounding="gptq")
    known = read_rounded(round_weights(trace(model.network, model.encoder.inputs), model.encoder, ROWS, precision))
    with simulated(model.network, precision, known) as grids:
        for name, grid in grids.items():
            layer = model.network.get_submodule(name.removesuffix(".weight"))
            rows = layer.weight if isinstance(layer, torch.nn.Linear) else layer.weight.T  # type: ignore[operator]
            np.testing.assert_allclose(rows.detach().numpy(), grid.restore(known[name].values), atol=1e-6)
    assert set(grids) <= set(known)
    assert len(grids) == len(matrices(model))
