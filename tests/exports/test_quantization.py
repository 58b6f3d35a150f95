from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lightune.errors import InputError
from lightune.exports import quantization
from lightune.exports.editing import find_products, find_tables
from lightune.exports.quantization import GRID, quantize
from lightune.grids import Grid, fit_grid
from lightune.precision import INT4, INT8, Precision

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


LAYERS = [*linear("x", "w", "b", "h"), *linear("h", "head", "head_bias", "logits")]


@pytest.mark.parametrize("width", [64, 132, 192, 320])
def test_four_bits_run_as_eight(width: int, tmp_path: Path) -> None:
    weight = random(WIDTH, width)
    model = make_model(LAYERS, {"w": weight, "b": random(width), "head": random(width, LABELS), "head_bias": random(LABELS)})
    small = quantize(model, INT4)
    x = random(2, 5, WIDTH)
    grid = fit_grid(weight.T, 4)
    rounded = make_model(LAYERS, {**constants(model), "w": np.ascontiguousarray(grid.restore(grid.round(weight.T)).T)})
    assert relative_error(run(small, x), run(rounded, x)) < 0.01  # the activations' own rounding
    assert opened_operators(small, tmp_path) == ["DynamicQuantizeMatMul", "MatMul", "Add"]
    assert weight_bytes(small, "w") < 0.56 * weight.size + 4 * width + 4 * WIDTH


@pytest.mark.parametrize("bits", [8, 4])
def test_weight_only(bits: int, tmp_path: Path) -> None:
    weight = random(WIDTH, 96)
    model = make_model(LAYERS, {"w": weight, "b": random(96), "head": random(96, LABELS), "head_bias": random(LABELS)})
    small = quantize(model, Precision(weights=bits, tables=bits, activations=32))
    grid = fit_grid(weight.T, bits)
    rounded = make_model(LAYERS, {**constants(model), "w": np.ascontiguousarray(grid.restore(grid.round(weight.T)).T)})
    x = random(2, 5, WIDTH)
    assert relative_error(run(small, x), run(rounded, x)) < 1e-5
    assert opened_operators(small, tmp_path) == ["MatMul", "Add", "MatMul", "Add"]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("width", [20, 33, 132, 192, 320, 384])
def test_rows_of_a_table_are_those_of_its_grid(width: int, bits: int, tmp_path: Path) -> None:
    table = random(300, width)
    nodes = [helper.make_node("Gather", ["table", "x"], ["h"]), helper.make_node("Identity", ["h"], ["logits"])]
    model = make_model(nodes, {"table": table}, TensorProto.INT64, 2)
    small = quantize(model, Precision(tables=bits))
    grid, places = fit_grid(table, bits, table=True), np.array([[0, 299, 5], [7, 7, 1]])
    assert np.allclose(run(small, places), grid.restore(grid.round(table))[places], rtol=1e-6, atol=1e-7)
    assert opened_operators(small, tmp_path) == ["GatherBlockQuantized"]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_that_also_makes_the_logits_is_stored_once(bits: int, tmp_path: Path) -> None:
    table = random(300, WIDTH)
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["h"]),
        helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["logits"]),
    ]
    model = make_model(nodes, {"table": table}, TensorProto.INT64, 2)
    small = quantize(model, Precision(weights=bits, tables=bits))
    grid = fit_grid(table, bits, table=True)
    rounded = grid.restore(grid.round(table))
    places = np.array([[1, 2, 3]])
    assert relative_error(run(small, places), rounded[places] @ rounded.T) < 1e-5
    assert "table" not in small.graph.initializers
    assert weight_bytes(small, "") < table.size * (1.1 if bits == 8 else 0.65)


def test_a_table_of_which_the_beginning_is_cut(tmp_path: Path) -> None:
    table = random(300, WIDTH)
    nodes = [
        helper.make_node("Shape", ["x"], ["length"], start=1, end=2),
        helper.make_node("Unsqueeze", ["table", "zero"], ["whole"]),
        helper.make_node("Slice", ["whole", "zero", "length", "one"], ["logits"]),
    ]
    weights = {"table": table, "zero": np.array([0]), "one": np.array([1])}
    model = make_model(nodes, weights, TensorProto.INT64, 2)
    grid = fit_grid(table, 4, table=True)
    found = run(quantize(model, INT4), np.zeros((1, 9), np.int64))
    assert np.allclose(found, grid.restore(grid.round(table))[None, :9], atol=1e-6)
    assert "table" not in quantize(model, INT4).graph.initializers


def test_what_is_kept_and_what_has_eight_bits() -> None:
    nodes = [
        *linear("x", "a.w", "b", "h"),
        *linear("h", "c.w", "b", "i"),
        *linear("i", "d.w", "b", "j"),
        *linear("j", "head", "head_bias", "logits"),
    ]
    weights = {name: random(WIDTH, WIDTH) + number for number, name in enumerate(("a.w", "c.w", "d.w"))}
    model = make_model(nodes, {**weights, "b": random(WIDTH), **HEAD})
    small = quantize(model, Precision(weights=4, keep=("c.w",), eight=("d.w",)))
    kinds = {name: value.dtype for name, value in small.graph.initializers.items()}
    assert kinds["c.w_half"] == ir.DataType.FLOAT16
    assert kinds["d.w_int8"] == ir.DataType.INT8
    assert kinds["a.w_int4"] == ir.DataType.INT4
    x = random(2, 5, WIDTH)
    kept = quantize(model, Precision(weights=4, keep=("a.w", "c.w", "d.w")))
    assert relative_error(run(kept, x), run(model, x)) < 1e-3
    assert quantize(model, Precision(keep=("c.w",))).graph.initializers["c.w"].dtype == ir.DataType.FLOAT
    with pytest.raises(InputError, match=r"Unknown matrix 'e\.w'.*Did you mean"):
        quantize(model, Precision(weights=8, keep=("e.w",)))


def test_values_beyond_sixteen_bits_are_kept_in_full() -> None:
    weight = random(WIDTH, WIDTH)
    weight[0, 0] = 1e6
    model = make_model(LAYERS, {"w": weight, "b": random(WIDTH), **HEAD})
    assert "w" in quantize(model, Precision(weights=8, keep=("w",))).graph.initializers


@pytest.mark.parametrize("bits", [8, 4])
def test_a_grid_that_the_weights_lie_on_is_used(bits: int) -> None:
    weight = random(WIDTH, 96)
    best = fit_grid(weight.T, bits)
    coarse = Grid(best.low, best.high, best.scales * 1.25, best.factors)
    weight = np.ascontiguousarray(coarse.restore(coarse.round(weight.T)).T)
    model = make_model(LAYERS, {"w": weight, "b": random(96), "head": random(96, LABELS), "head_bias": random(LABELS)})
    model.graph.initializers["w"].meta[GRID] = coarse
    precision = Precision(weights=bits, activations=32)
    x = random(2, 5, WIDTH)
    assert relative_error(run(quantize(model, precision), x), run(model, x)) < 1e-5


def test_products_and_tables_by_name() -> None:
    nodes = [helper.make_node("Gather", ["table", "x"], ["e"]), *linear("e", "w", "b", "h"), *linear("h", "head", "head_bias", "logits")]
    graph = make_model(
        nodes, {"table": random(300, WIDTH), "w": random(WIDTH, WIDTH), "b": random(WIDTH), **HEAD}, TensorProto.INT64, 2
    ).graph
    assert list(find_tables(graph)) == ["table"]
    (product,) = find_products(graph)
    assert (product.name, product.rows.shape) == ("w", (WIDTH, WIDTH))
    assert product.bias is graph.initializers["b"]


@pytest.mark.parametrize("precision", [INT8, INT4], ids=["int8", "int4"])
def test_fused_attention_gives_the_same(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("query", "key", "value")
    nodes = [node for name in names for node in linear("x", name, f"{name}_bias", f"{name}_out")]
    nodes += [
        helper.make_node("Cast", ["x"], ["unused"], to=TensorProto.FLOAT16),
        helper.make_node("ReduceSum", ["x", "last"], ["sums"], keepdims=0),
        helper.make_node("Greater", ["sums", "limit"], ["seen"]),
        helper.make_node("Cast", ["seen"], ["mask"], to=TensorProto.INT32),
        helper.make_node(
            "MultiHeadAttention",
            [*(f"{name}_out" for name in names), "", "mask"],
            ["mixed"],
            domain="com.microsoft",
            num_heads=5,
            scale=0.25,
        ),
        *linear("mixed", "head", "head_bias", "logits"),
    ]
    weights = {name: random(WIDTH, WIDTH) / 8 * (place + 1) for place, name in enumerate(names)}
    biases = {f"{name}_bias": random(WIDTH) + place for place, name in enumerate(names)}
    more = {"last": np.array([-1]), "limit": np.array(-10, np.float32)}
    model = make_model(nodes, {**weights, **biases, **more, **HEAD})
    model.graph.opset_imports["com.microsoft"] = 1
    fused = quantize(model, precision)
    assert "QAttention" in operators(fused)
    assert "MultiHeadAttention" not in operators(fused)
    monkeypatch.setattr(quantization, "_fuse_attention", lambda store, products: list(products))
    apart = quantize(model, precision)
    assert operators(apart).count("DynamicQuantizeMatMul") == 3
    x = random(3, 7, WIDTH)
    assert relative_error(run(fused, x), run(apart, x)) < 1e-4
    assert relative_error(run(fused, x), run(model, x)) < (0.05 if precision is INT8 else 0.3)


def constants(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]


def weight_bytes(model: ir.Model, start: str) -> int:
    return sum(value.const_value.nbytes for name, value in model.graph.initializers.items() if name.startswith((start, "blocks_of")))  # type: ignore[union-attr]


def opened_operators(model: ir.Model, folder: Path) -> list[str]:
    """What is left to do when onnxruntime has opened the model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "opened.onnx")
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return [node.op_type for node in ir.load(folder / "opened.onnx").graph]
