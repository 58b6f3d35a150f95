"""Int8 for CPUs: weights by column with activations quantized as they come, embedding tables by block.

A weight keeps 7 bits, because CPUs without VNNI add two products of 8 × 8 bits in 16 and would overflow with more; CPUs with VNNI
are as fast either way. An embedding table keeps 8 bits with one scale for each block of a row: one scale for a whole table would let
its largest value drown all others. What is small, and the layer that makes the logits, stays in fp32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

DOMAIN = "com.microsoft"
LEAST = 4096  # fewer values than this are not worth an operator of their own
WEIGHT_LEVELS = 64
TABLE_LEVELS = 127
BLOCK = 128
MATRIX = {"Gather": 0, "MatMul": 1, "Gemm": 1}  # the input that holds the matrix
PASSING = ("Add", "Cast", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice", "Squeeze")


def quantize(model: ir.Model) -> ir.Model:
    """A copy of an fp32 model whose large constant matrices and embedding tables are int8; it runs in onnxruntime."""
    model = model.clone()
    graph = model.graph
    last = _last_products(graph)
    for node in tuple(graph):
        matrix = _matrix(node)
        if matrix is None or node in last:
            continue
        if node.op_type == "Gather":
            _replace_table(graph, node, matrix)
        else:
            _replace_product(graph, node, matrix)
    RemoveUnusedNodesPass()(model)
    graph.opset_imports[DOMAIN] = 1
    return model


def quantize_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Int8 values [rows, columns] and float32 scales [columns] with weight ≈ values * scales."""
    scales = np.abs(weight).max(axis=0) / WEIGHT_LEVELS
    scales[scales == 0] = 1
    return np.rint(weight / scales).astype(np.int8), scales.astype(np.float32)


def quantize_blocks(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Uint8 values [rows, d] and float32 scales [rows, blocks] with table ≈ (values - 128) * scale of its block."""
    width = table.shape[1]
    starts = range(0, width, BLOCK)
    scales = np.stack([np.abs(table[:, start : start + BLOCK]).max(axis=1) for start in starts], axis=1) / TABLE_LEVELS
    scales[scales == 0] = 1
    spread = np.repeat(scales, BLOCK, axis=1)[:, :width]
    return (np.rint(table / spread) + 128).astype(np.uint8), scales.astype(np.float32)


def _replace_table(graph: ir.Graph, node: ir.Node, table: ir.Value) -> None:
    values, scales = _constants(graph, table, "blocks", lambda: quantize_blocks(_array(table)))
    attributes = {"bits": 8, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    _replace(graph, node, node, "GatherBlockQuantized", [values, node.inputs[1], scales], attributes)


def _replace_product(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    """Gemm, or MatMul together with the Add of a bias where one follows."""
    transposed = weight is not node.inputs[1] or node.attributes.get_int("transB", 0) == 1
    how = "rows" if transposed else "columns"
    values, scales = _constants(graph, weight, how, lambda: quantize_columns(_array(weight).T if transposed else _array(weight)))
    if node.op_type == "Gemm":
        last, bias = node, node.inputs[2] if len(node.inputs) > 2 else None
    else:
        last, bias = _following_bias(node, scales)
    _replace(graph, node, last, "DynamicQuantizeMatMul", [node.inputs[0], values, scales, None, bias], {})


def _following_bias(node: ir.Node, like: ir.Value) -> tuple[ir.Node, ir.Value | None]:
    """The Add of a constant vector that alone uses a product, and that vector; or the product itself and nothing."""
    uses = tuple(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not node.outputs[0].is_graph_output():
        bias = uses[0].node.inputs[1 - uses[0].idx]
        if bias is not None and bias.is_initializer() and bias.shape == like.shape:
            return uses[0].node, bias
    return node, None


def _constants(graph: ir.Graph, value: ir.Value, how: str, make: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[ir.Value, ir.Value]:
    names = (f"{value.name}_{how}_int8", f"{value.name}_{how}_scales")
    if names[0] not in graph.initializers:
        for name, array in zip(names, make(), strict=True):
            tensor = ir.tensor(np.ascontiguousarray(array), name=name)
            graph.register_initializer(
                ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
            )
    return graph.initializers[names[0]], graph.initializers[names[1]]


def _replace(
    graph: ir.Graph, first: ir.Node, last: ir.Node, operator: str, inputs: list[ir.Value | None], attributes: dict[str, int]
) -> None:
    """One new node in the place of the nodes from `first` to `last`, which the caller sweeps away as unused."""
    (output,) = last.outputs
    new = ir.Value(name=f"{output.name}_int8", shape=output.shape, type=output.type)
    while inputs[-1] is None:
        inputs = inputs[:-1]
    graph.insert_before(first, ir.node(operator, inputs, attributes, domain=DOMAIN, outputs=[new], name=first.name))
    output.replace_all_uses_with(new)


def _last_products(graph: ir.Graph) -> set[ir.Node]:
    """The products that make the logits: what stands between them and the output only adds a bias or picks rows."""
    found: set[ir.Node] = set()
    values: list[ir.Value | None] = [*graph.outputs]
    while values:
        value = values.pop()
        node = value.producer() if value is not None else None
        if node is not None and node.op_type in ("MatMul", "Gemm"):
            found.add(node)
        elif node is not None and node.op_type in PASSING:
            values.extend(node.inputs)
    return found


def _matrix(node: ir.Node) -> ir.Value | None:
    """The constant fp32 matrix of a node that can be quantized, if the node has one and it is large enough to be worth it."""
    if node.op_type not in MATRIX or any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return None
    if node.attributes.get_int("axis", 0) or node.attributes.get_int("transA", 0):
        return None
    value = node.inputs[MATRIX[node.op_type]]
    turned = value.producer() if value is not None and node.op_type == "MatMul" else None
    if turned is not None and turned.op_type == "Transpose":  # so the exporter leaves a weight that several layers share
        value = turned.inputs[0]
    constant = value.const_value if value is not None and value.is_initializer() else None
    fits = constant is not None and constant.dtype == ir.DataType.FLOAT and len(constant.shape) == 2 and constant.size >= LEAST
    return value if fits else None


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None  # `_matrix` has looked
    return value.const_value.numpy()
