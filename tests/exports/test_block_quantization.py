"""Blocks of few bits: what lies in the file is what is multiplied, near the model, once for a table that makes the logits too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightune.exports.block_quantization import quantize_blocks, round_blocks

WORDS, WIDTH, INNER = 300, 96, 320


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


WEIGHTS = {
    "table": random(WORDS, WIDTH),
    "w": random(WIDTH, INNER),
    "bias": random(INNER),
    "v": random(INNER, WIDTH),
    "thin": random(WIDTH, 300),
}


def make_model(shared: bool = True) -> ir.Model:
    """Words, two products with a bias after the first, and logits by the table itself or by a matrix of their own."""
    head = [helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0])] if shared else []
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["x"]), helper.make_node("MatMul", ["x", "w"], ["wx"]),
        helper.make_node("Add", ["wx", "bias"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"]), *head,
        helper.make_node("MatMul", ["y", "turned" if shared else "thin"], ["logits"]),
    ]  # fmt: skip
    taken = helper.make_tensor_value_info("tokens", TensorProto.INT64, [None, None])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    used = [name for name in WEIGHTS if name != "thin" or not shared]
    constants = [numpy_helper.from_array(WEIGHTS[name], name) for name in used]
    graph = helper.make_graph(nodes, "test", [taken], [given], constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))


def run(model: ir.Model, tokens: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, {"tokens": tokens})[0]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("bits", "furthest"), [(8, 0.02), (4, 0.2)])
@pytest.mark.parametrize("shared", [True, False])
def test_products_and_lookups_are_near(bits: int, furthest: float, shared: bool) -> None:
    model, tokens = make_model(shared), np.arange(40).reshape(2, 20)
    small = quantize_blocks(model, bits)
    error = relative_error(run(small, tokens), run(model, tokens))
    assert 0 < error < furthest
    kinds = [node.op_type for node in small.graph if node.domain]
    assert kinds == ["GatherBlockQuantized", "MatMulNBits", "MatMulNBits", "MatMulNBits"]
    assert "MatMul" not in {node.op_type for node in small.graph}
    assert [node.op_type for node in model.graph].count("MatMul") == 3  # the model itself is as it was


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_that_makes_the_logits_is_there_once_in_8_bits(bits: int) -> None:
    held = {name: value.const_value for name, value in quantize_blocks(make_model(), bits).graph.initializers.items()}
    assert held["table_blocks"].shape == (WORDS, WIDTH)  # type: ignore[union-attr]
    assert held["w_turned_blocks"].shape == (INNER, WIDTH * bits // 8)  # type: ignore[union-attr]
    assert not set(WEIGHTS) - {"bias"} & set(held)


def test_rows_that_no_block_divides_stay_as_they_are() -> None:
    rows = {"a": random(40, 200), "b": random(200, 40)}
    nodes = [helper.make_node("MatMul", ["tokens", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["logits"])]
    taken, given = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 40]) for name in ("tokens", "logits"))
    graph = helper.make_graph(nodes, "test", [taken], [given], [numpy_helper.from_array(array, name) for name, array in rows.items()])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))
    x = random(3, 40)
    np.testing.assert_allclose(run(quantize_blocks(model, 8), x), run(model, x), atol=1e-4)


@pytest.mark.parametrize(("bits", "furthest"), [(8, 0.006), (4, 0.1)])
def test_values_stand_for_the_matrix(bits: int, furthest: float) -> None:
    matrix = random(64, 128)
    matrix[3, :32] = 0
    values, scales = round_blocks(matrix, bits, 32)
    restored = (values.astype(np.float32) - 2 ** (bits - 1)) * np.repeat(scales, 32, axis=1)
    assert (values.dtype, scales.shape) == (np.uint8, (64, 4))
    assert relative_error(restored, matrix) < furthest
    assert not restored[3, :32].any()
    if bits == 4:  # better than the largest value alone would do
        largest = np.take_along_axis(blocks := matrix.reshape(-1, 32), np.abs(blocks).argmax(1)[:, None], 1) / -8
        plain = np.clip(np.rint(blocks / np.where(largest == 0, 1, largest)), -8, 7) * largest
        assert relative_error(restored, matrix) < relative_error(plain.reshape(matrix.shape), matrix)
