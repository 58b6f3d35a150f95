"""Fewer operators for the same numbers: in models of one or two layers, what an operator costs to start counts as much as what it computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def simplify(graph: ir.Graph) -> None:
    """Take detours out of an exported graph, in place; what is unused afterwards is left to be swept away."""
    for node in tuple(graph):
        if node.op_type == "Reshape":
            _skip_reshapes(node)
        elif node.op_type == "Gather":
            _slice_positions(graph, node)
        elif node.op_type == "Cast":
            _skip_bool(node)


def _skip_reshapes(node: ir.Node) -> None:
    """Reshapes one after another that end in the shape with which they began."""
    end, value = node.outputs[0], node.inputs[0]
    while value is not None and end.shape is not None and all(size is not None for size in end.shape):
        if value.shape == end.shape:
            end.replace_all_uses_with(value)
            return
        maker = value.producer()
        value = maker.inputs[0] if maker is not None and maker.op_type == "Reshape" else None


def _slice_positions(graph: ir.Graph, node: ir.Node) -> None:
    """Rows looked up at 0, 1, 2 … as many as the text is long: the beginning of the table."""
    table, ids = node.inputs[:2]
    cut = ids.producer() if ids is not None else None
    counted = cut.inputs[0] if cut is not None and cut.op_type == "Slice" else None
    if cut is None or counted is None or counted.const_value is None or table is None or not table.is_initializer():
        return
    numbers = counted.const_value.numpy()
    if node.attributes.get_int("axis", 0) == 0 and numbers.ndim == 2 and np.array_equal(numbers, np.arange(numbers.size)[None]):
        axis = ir.node("Constant", [], {"value": ir.tensor(np.array([0]))})
        whole = ir.node("Unsqueeze", [table, axis.outputs[0]])
        rows = ir.node("Slice", [whole.outputs[0], *cut.inputs[1:]], outputs=[ir.Value(name=f"{node.outputs[0].name}_rows")])
        graph.insert_before(node, [axis, whole, rows])
        node.outputs[0].replace_all_uses_with(rows.outputs[0])


def _skip_bool(node: ir.Node) -> None:
    """A cast of zeros and ones, as the inputs hold them, by way of truth values."""
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    given = maker.inputs[0] if maker is not None and maker.op_type == "Cast" else None
    if maker is not None and given is not None and given.is_graph_input() and maker.attributes.get_int("to") == ir.DataType.BOOL:
        node.replace_input_with(0, given)
