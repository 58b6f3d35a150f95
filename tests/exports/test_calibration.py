"""Ranges that were seen on a sample: products then round what comes in without looking at it first."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_models

from lightune.errors import InputError
from lightune.exports import find_export
from lightune.exports.calibration import SHARES, _choose, find_ranges
from lightune.exports.editing import find_products
from lightune.exports.onnx import trace
from lightune.exports.quantization import quantize
from lightune.exports.smoothing import round_between
from lightune.models import Model
from lightune.precision import INT8, Precision
from lightune.runtime import load
from lightune.sources import resolve_model

ROWS = tiny_models.make_rows(30)
STATIC = Precision(weights=8, tables=8, ranges="static")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("bases") / "bert"
    made = tiny_models.start(resolve_model(tiny_models.save_base("bert", folder, hidden_size=64, intermediate_size=96)), ROWS)
    made.network.eval()
    return made


@pytest.fixture(scope="module")
def graph(model: Model) -> ir.Model:
    return trace(model.network, model.encoder.inputs)


def test_a_rare_value_far_out_is_cut_where_that_leaves_the_product_nearer() -> None:
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(16, 32)).astype(np.float32)
    even = draw.uniform(-1, 1, size=(1000, 32)).astype(np.float32)
    assert _choose(even, rows) == (even.min(), even.max())
    rare = even.copy()
    rare[0, 0] = 2.2
    low, high = _choose(rare, rows)
    assert low > -1.0 or high < rare.max()

    def error(low: float, high: float) -> float:
        return float(np.square((round_between(rare, low, high) - rare) @ rows.T).sum())

    assert error(low, high) == min(error(share * float(rare.min()), share * float(rare.max())) for share in SHARES)


def test_products_that_read_the_same_share_their_range(model: Model, graph: ir.Model) -> None:
    found = find_ranges(graph, model.encoder, ROWS, INT8, {})
    products = find_products(graph.graph)
    assert set(found) == {str(product.output.name) for product in products}
    for one in products:
        assert len({found[str(other.output.name)] for other in products if other.x is one.x}) == 1
    with pytest.raises(InputError, match="ranges=static must see"):
        find_ranges(graph, model.encoder, [], INT8, {})


def test_a_static_file_answers_as_its_model_and_looks_at_no_range(model: Model, tmp_path: Path) -> None:
    path = find_export("onnx-int8:ranges=static").write(model, tmp_path / "static", sample=ROWS)
    operators = [node.op_type for node in onnx.load(path / "model.onnx").graph.node]
    assert not {"DynamicQuantizeMatMul", "DynamicQuantizeLinear"} & set(operators)
    assert {"QuantizeLinear", "MatMulIntegerToFloat", "QAttention"} <= set(operators)
    ours, rows = model.logits(ROWS), tiny_models.make_rows(30, seed=5)
    static = np.square(load(path).logits(ROWS) - ours).mean()
    assert static < 0.02 * ours.var()
    assert np.square(load(path).logits(rows) - model.logits(rows)).mean() < 0.02 * ours.var()  # rows that were not seen


def test_what_has_no_range_looks_at_every_text(model: Model, graph: ir.Model) -> None:
    found = find_ranges(graph, model.encoder, ROWS, STATIC, {})
    name = next(str(product.output.name) for product in find_products(graph.graph) if "intermediate" in product.name)
    operators = [node.op_type for node in quantize(graph, STATIC, None, {name: found[name]}).graph]
    assert operators.count("MatMulIntegerToFloat") == 1
    assert "DynamicQuantizeMatMul" in operators


def test_it_is_told_in_the_name() -> None:
    assert STATIC.label == "int8-static"
    assert Precision(weights=8, activations=32, ranges="static", tables=8).label == "int8-weight-only"
