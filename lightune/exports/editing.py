"""What quantization does with graphs: finds products and tables, adds constants, puts one node in the place of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

LEAST = 4096  # fewer values than this are not worth an operator of their own
MATRIX = {"Gather": 0, "Unsqueeze": 0, "MatMul": 1, "Gemm": 1}  # the input that holds the matrix
PASSING = ("Add", "Cast", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Slice", "Squeeze")


@dataclass(frozen=True)
class Product:
    """A product of a graph with a large constant matrix.

    first, last: its nodes; the last one adds the bias where there is one.
    weight: the initializer, [n, k] where `transposed`, else [k, n]. bias: a constant [n] or None.
    """

    first: ir.Node
    last: ir.Node
    weight: ir.Value
    transposed: bool
    bias: ir.Value | None

    @property
    def name(self) -> str:
        """The name of the weight."""
        return str(self.weight.name)

    @property
    def x(self) -> ir.Value:
        """What comes in, [..., k]; another value once what made it was replaced."""
        value = self.first.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """What comes out, [..., n]."""
        return self.last.outputs[0]

    @property
    def rows(self) -> np.ndarray:
        """The weight as float32 [n, k], a row for each output."""
        return read(self.weight) if self.transposed else read(self.weight).T


def find_products(graph: ir.Graph, *, logits: bool = False) -> list[Product]:
    """Every product that can be quantized, in the graph's order. logits: those that make them too, the largest of a model with one for each word."""
    last, found = set() if logits else _last_products(graph), []
    for node in graph:
        weight = _matrix(node)
        if weight is not None and node.op_type in ("MatMul", "Gemm") and node not in last:
            transposed = weight is not node.inputs[1] or node.attributes.get_int("transB", 0) == 1
            end, bias = _bias(node, weight.shape[0 if transposed else 1])  # type: ignore[index]
            found.append(Product(node, end, weight, transposed, bias))
    return found


def find_tables(graph: ir.Graph) -> dict[str, list[ir.Node]]:
    """Every embedding table that can be quantized, by the name of its weight: the nodes that look rows up, none where its beginning is cut."""
    found: dict[str, list[ir.Node]] = {}
    for node in graph:
        table = _matrix(node)
        if table is not None and node.op_type in ("Gather", "Unsqueeze"):
            found.setdefault(str(table.name), []).extend([node] * (node.op_type == "Gather"))
    return found


class Constants:
    """What an edited graph needs beside its nodes: constants, and nodes between constants, which onnxruntime computes when it loads them.

    Everything goes by its name, so that what is used twice is there once.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.folded: dict[str, ir.Value] = {}

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """An initializer."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(np.ascontiguousarray(array), name=name)
            value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def fold(self, operator: str, *inputs: ir.Value, name: str, **attributes: Any) -> ir.Value:
        """What an operator makes of constants."""
        if name not in self.folded:
            self.folded[name] = ir.node(operator, inputs, attributes, outputs=[ir.Value(name=name)], name=name).outputs[0]
        return self.folded[name]

    def insert(self) -> None:
        """Put the nodes between constants before all others."""
        nodes = [node for value in self.folded.values() if (node := value.producer()) is not None]
        if nodes:
            self.graph.insert_before(self.graph[0], nodes)


def replace(
    graph: ir.Graph,
    before: ir.Node,
    output: ir.Value,
    operator: str,
    inputs: Sequence[ir.Value | None],
    domain: str = "",
    **attributes: Any,
) -> ir.Value:
    """Give the uses of `output` to a new node's; what they no longer need is swept away at the end."""
    made = ir.Value(name=f"{output.name}_{operator}", shape=output.shape, type=output.type)
    given = [*inputs]
    while given[-1] is None:
        given.pop()
    if output.is_graph_output():  # whoever runs the graph asks for it by its name
        made.name, output.name = output.name, made.name
    output.replace_all_uses_with(made, replace_graph_outputs=True)  # before the new node, which may itself read `output`
    graph.insert_before(before, ir.node(operator, given, attributes, domain=domain, outputs=[made], name=made.name))
    return made


def sizes(value: ir.Value) -> tuple[int, ...]:
    """The shape of a constant."""
    return tuple(int(str(size)) for size in value.shape or ())


def read(value: ir.Value) -> np.ndarray:
    """The values of a constant."""
    assert value.const_value is not None  # it is an initializer
    return value.const_value.numpy()


def _bias(node: ir.Node, width: object) -> tuple[ir.Node, ir.Value | None]:
    """The last node of a product, and its bias: Gemm's own, or a constant vector that is added to a MatMul which nothing else uses."""
    if node.op_type == "Gemm":
        return node, node.inputs[2] if len(node.inputs) > 2 else None
    uses = tuple(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not node.outputs[0].is_graph_output():
        bias = uses[0].node.inputs[1 - uses[0].idx]
        if bias is not None and bias.is_initializer() and bias.shape is not None and tuple(bias.shape) == (width,):
            return uses[0].node, bias
    return node, None


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
