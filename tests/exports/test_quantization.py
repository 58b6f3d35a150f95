from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightune.exports.quantization import quantize

WIDTH, LABELS = 80, 3


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def make_model(nodes: list[Any], weights: dict[str, np.ndarray], kind: int = TensorProto.FLOAT, rank: int = 3) -> ir.Model:
    taken = helper.make_tensor_value_info("x", kind, [None] * (rank - 1) + ([WIDTH] if kind == TensorProto.FLOAT else [None]))
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "test", [taken], [given], constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"x": x})[0]


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def linear(x: str, weight: str, bias: str, y: str) -> list[Any]:
    return [helper.make_node("MatMul", [x, weight], [f"{y}_product"]), helper.make_node("Add", [bias, f"{y}_product"], [y])]


HEAD = {"head": random(WIDTH, LABELS), "head_bias": random(LABELS)}


def test_a_product_and_its_bias_become_one_and_the_head_stays() -> None:
    nodes = [*linear("x", "w", "b", "h"), *linear("h", "head", "head_bias", "logits")]
    model = make_model(nodes, {"w": random(WIDTH, WIDTH), "b": random(WIDTH), **HEAD})
    small = quantize(model)
    assert operators(small) == ["DynamicQuantizeMatMul", "MatMul", "Add"]
    x = random(2, 5, WIDTH)
    assert relative_error(run(small, x), run(model, x)) < 0.02
    assert operators(model) == ["MatMul", "Add", "MatMul", "Add"]  # the model itself is as it was


def test_a_large_head_stays_too() -> None:
    model = make_model(linear("x", "w", "b", "logits"), {"w": random(WIDTH, WIDTH), "b": random(WIDTH)})
    assert operators(quantize(model)) == ["MatMul", "Add"]


def test_a_residual_is_no_bias() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "x"], ["h"]),
        *linear("h", "head", "head_bias", "logits"),
    ]
    model = make_model(nodes, {"w": random(WIDTH, WIDTH), **HEAD})
    small = quantize(model)
    assert operators(small) == ["DynamicQuantizeMatMul", "Add", "MatMul", "Add"]
    x = random(2, 5, WIDTH)
    assert relative_error(run(small, x), run(model, x)) < 0.02


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=transposed),
        helper.make_node("Relu", ["h"], ["r"]),
        *linear("r", "head", "head_bias", "logits"),
    ]
    weight = random(WIDTH, 96)
    weights = {
        "w": np.ascontiguousarray(weight.T) if transposed else weight,
        "b": random(96),
        "head": random(96, LABELS),
        "head_bias": random(LABELS),
    }
    model = make_model(nodes, weights, rank=2)
    small = quantize(model)
    assert operators(small) == ["DynamicQuantizeMatMul", "Relu", "MatMul", "Add"]
    x = random(7, WIDTH)
    assert relative_error(run(small, x), run(model, x)) < 0.02


@pytest.mark.parametrize("attributes", [{"alpha": 2.0}, {"beta": 0.5}])
def test_a_scaled_gemm_is_left(attributes: dict[str, float]) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], **attributes),
        helper.make_node("Relu", ["h"], ["r"]),
        *linear("r", "head", "head_bias", "logits"),
    ]
    model = make_model(nodes, {"w": random(WIDTH, WIDTH), "b": random(WIDTH), **HEAD}, rank=2)
    assert operators(quantize(model))[0] == "Gemm"


def test_a_shared_weight_is_stored_once() -> None:
    nodes = [*linear("x", "w", "b", "h"), *linear("h", "w", "b", "i"), *linear("i", "head", "head_bias", "logits")]
    small = quantize(make_model(nodes, {"w": random(WIDTH, WIDTH), "b": random(WIDTH), **HEAD}))
    assert operators(small) == ["DynamicQuantizeMatMul", "DynamicQuantizeMatMul", "MatMul", "Add"]
    assert sum(value.const_value.nbytes for value in small.graph.initializers.values()) < WIDTH * WIDTH * 1.5  # type: ignore[union-attr]


def test_a_shared_weight_that_is_transposed_by_a_node() -> None:
    turn = helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0])
    nodes = [turn, *linear("x", "t", "b", "h"), *linear("h", "t", "b", "i"), *linear("i", "head", "head_bias", "logits")]
    model = make_model(nodes, {"w": random(WIDTH, WIDTH), "b": random(WIDTH), **HEAD})
    small = quantize(model)
    assert operators(small) == ["DynamicQuantizeMatMul", "DynamicQuantizeMatMul", "MatMul", "Add"]
    assert "w" not in small.graph.initializers
    x = random(2, 5, WIDTH)
    assert relative_error(run(small, x), run(model, x)) < 0.03


def test_what_is_small_stays() -> None:
    nodes = [*linear("x", "w", "b", "h"), *linear("h", "head", "head_bias", "logits")]
    small = quantize(make_model(nodes, {"w": random(WIDTH, 20), "b": random(20), "head": random(20, 3), "head_bias": random(3)}))
    assert operators(small) == ["MatMul", "Add", "MatMul", "Add"]


@pytest.mark.parametrize("width", [20, 32, 128, 312, 384])
def test_a_table_by_blocks(width: int) -> None:
    table = random(300, width)
    table[7] *= 1000  # a row of large values must not cost the others their precision
    nodes = [helper.make_node("Gather", ["table", "x"], ["h"]), *linear("h", "head", "head_bias", "logits")]
    model = make_model(
        nodes, {"table": table, "head": np.eye(width, dtype=np.float32), "head_bias": np.zeros(width, np.float32)}, TensorProto.INT64, 2
    )
    small = quantize(model)
    assert operators(small) == ["GatherBlockQuantized", "MatMul", "Add"]
    rows = np.array([[row for row in range(300) if row != 7]])
    assert relative_error(run(small, rows), run(model, rows)) < 0.008
    assert relative_error(run(small, np.array([[7]])), run(model, np.array([[7]]))) < 0.008
