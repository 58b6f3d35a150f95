from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from lightune.exports import find_export
from lightune.exports.editing import find_products
from lightune.exports.onnx import trace
from lightune.exports.quantization import GRID, quantize
from lightune.exports.smoothing import capture_inputs, find_smoothing
from lightune.grids import fit_grid
from lightune.models import Model
from lightune.precision import INT8, Precision
from lightune.runtime import load
from lightune.sources import resolve_model

ROWS = tiny_models.make_rows(30)
SECOND = "backbone.encoder.layer.1.intermediate.dense.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A network in which one channel of a norm is forty times as large as the others, and hardly read."""
    folder = tmp_path_factory.mktemp("bases") / "bert"
    made = tiny_models.start(resolve_model(tiny_models.save_base("bert", folder, hidden_size=64, intermediate_size=96)), ROWS)
    layer = made.network.backbone.encoder.layer[1]  # type: ignore[union-attr, index]
    with torch.no_grad():
        layer.attention.output.LayerNorm.weight[5] *= 40
        layer.intermediate.dense.weight[:, 5] *= 0.02
    made.network.eval()
    return made


def test_the_inputs_of_a_graph(model: Model) -> None:
    graph = trace(model.network, model.encoder.inputs)
    name = str(next(product.x.name for product in find_products(graph.graph) if product.name == SECOND))
    seen: list[torch.Tensor] = []
    hook = model.network.backbone.encoder.layer[1].intermediate.dense.register_forward_hook(lambda _, given, __: seen.append(given[0][0]))  # type: ignore[union-attr, index]
    for row in ROWS[:3]:
        model.logits([row])
    hook.remove()
    found = capture_inputs(graph, [name], model.encoder, ROWS[:3])[name]
    assert all(np.allclose(ours.numpy(), theirs, atol=1e-4) for ours, theirs in zip(seen, found, strict=True))


def test_a_large_channel_is_divided_and_costs_less(model: Model) -> None:
    graph = trace(model.network, model.encoder.inputs)
    found = find_smoothing(graph, model.encoder, ROWS, INT8)
    assert SECOND in found
    assert found[SECOND].argmax() == 5
    assert np.all(found[SECOND] >= 1)
    small = quantize(graph, INT8, found)
    assert [node.op_type for node in small.graph].count("Mul") == [node.op_type for node in graph.graph].count("Mul") + len(
        {id(found[name]) for name in found}
    )


def test_only_what_pays_and_is_quantized_is_divided(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(model.network, model.encoder.inputs)
    assert SECOND not in find_smoothing(graph, model.encoder, ROWS, Precision(weights=8, keep=(SECOND,)))
    array = graph.graph.initializers[SECOND].const_value.numpy()  # type: ignore[union-attr]
    graph.graph.initializers[SECOND].meta[GRID] = fit_grid(array.T, 8)
    assert SECOND not in find_smoothing(graph, model.encoder, ROWS, INT8)
    monkeypatch.setattr("lightune.exports.smoothing.PAYS", 0.0)
    assert find_smoothing(graph, model.encoder, ROWS, INT8) == {}


def test_a_sample_brings_an_export_nearer(model: Model, tmp_path: Path) -> None:
    target, logits = find_export("onnx-int8"), model.logits(ROWS)
    plain = load(target.write(model, tmp_path / "plain")).logits(ROWS) - logits
    smooth = load(target.write(model, tmp_path / "smooth", sample=ROWS)).logits(ROWS) - logits
    assert np.square(smooth).mean() < 0.5 * np.square(plain).mean()


def test_layers_that_share_weights_share_their_divisor(tmp_path: Path) -> None:
    base = tiny_models.save_base("albert", tmp_path / "albert", hidden_size=64, intermediate_size=96)
    shared = tiny_models.start(resolve_model(base), ROWS)
    layer = shared.network.backbone.encoder.albert_layer_groups[0].albert_layers[0]  # type: ignore[union-attr, index]
    with torch.no_grad():
        layer.attention.LayerNorm.weight[5] *= 40
        layer.ffn.weight[:, 5] *= 0.02
    shared.network.eval()
    graph = trace(shared.network, shared.encoder.inputs)
    found = find_smoothing(graph, shared.encoder, ROWS, INT8)
    assert any(name.endswith("ffn.weight") for name in found)
    assert [node.op_type for node in quantize(graph, INT8, found).graph].count("DynamicQuantizeMatMul") >= 4
