"""Int8 and int4 for CPUs: weights by row with activations quantized as they come, embedding tables by block.

The file holds values, scales and, with 4 bits, factors of the grids in `lightune.grids`. What has 4 bits is unpacked by nodes whose inputs are
constant: onnxruntime computes them once, when it opens the file, so that a matrix of 4 bits runs as one of 8 and takes its memory.
What is small stays in fp32, and so does the layer that makes the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lightune.errors import unknown
from lightune.exports.editing import Constants, Product, find_products, find_tables, read, replace, sizes
from lightune.grids import FACTOR_BLOCK, TABLE_BLOCK, Grid, find_step, fit_grid
from lightune.precision import INT8, Precision

DOMAIN = "com.microsoft"
OPSET = 21  # the first with casts from int4
GRID = "grid"  # under this key a value's meta holds the Grid that its weights were rounded to before the export, if they were
FLOAT = {"to": ir.DataType.FLOAT}
LOWEST = 56  # the least product of an int4 value and an int4 factor is -8 · 7


def quantize(
    model: ir.Model,
    precision: Precision = INT8,
    smoothing: Mapping[str, np.ndarray] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> ir.Model:
    """A copy of an fp32 model whose large constant matrices and embedding tables have fewer bits; it runs in onnxruntime.

    smoothing: for products of these weights, float32 [k] by which what comes in is divided and the weight multiplied (`find_smoothing`).
    ranges: for products by the name of what comes out, the range of what comes in (`find_ranges`); the others look at every text.

    Raises:
        InputError: `precision` names something that is neither a large matrix nor a table.
    """
    model = model.clone()
    graph = model.graph
    tables, products = find_tables(graph), find_products(graph)
    _check_names(precision, [*tables, *(product.name for product in products)])
    store = _Store(graph, precision, smoothing or {}, ranges or {})
    wanted = [product for product in products if product.name not in tables and precision.bits(product.name) < 32]
    for product in _fuse_attention(store, wanted) if precision.activations == 8 else wanted:
        _replace_product(store, product)
    for name, nodes in tables.items():
        if precision.bits(name, table=True) < 32:
            _replace_table(store, graph.initializers[name], nodes)
    for name in dict.fromkeys([*tables, *(product.name for product in products)]):
        if precision.quantizes and precision.keeps(name):
            _halve(store, graph.initializers[name])
    store.insert()
    RemoveUnusedNodesPass()(model)
    graph.opset_imports[DOMAIN] = 1
    graph.opset_imports[""] = OPSET
    return model


def known_grid(value: ir.Value, bits: int) -> Grid | None:
    """The grid of so many bits that a value's weights lie on already, if they do."""
    known: Grid | None = value.meta.get(GRID)
    return known if known is not None and known.bits == bits else None


class _Store(Constants):
    """Constants on the grids of a precision."""

    def __init__(
        self, graph: ir.Graph, precision: Precision, smoothing: Mapping[str, np.ndarray], ranges: Mapping[str, tuple[float, float]]
    ) -> None:
        super().__init__(graph)
        self.precision = precision
        self.smoothing = smoothing
        self.ranges = ranges

    def columns(self, products: Sequence[Product]) -> tuple[ir.Value, ir.Value]:
        """The weights of products beside one another: int8 [k, n] and float32 scales [n]."""
        name = "+".join(product.name for product in products)
        if f"{name}_scales" not in self.graph.initializers:
            rows = [product.rows * self.smoothing.get(product.name, np.float32(1)) for product in products]
            grids = [self._grid(product.weight, row, False) for product, row in zip(products, rows, strict=True)]
            self.constant(f"{name}_scales", np.concatenate([grid.scales[:, 0] for grid in grids]))
            values = np.concatenate([grid.round(row) for grid, row in zip(grids, rows, strict=True)])
            if grids[0].bits == 8:
                self.constant(f"{name}_int8", values.T)
            else:
                factors = np.concatenate([grid.factors for grid in grids if grid.factors is not None])
                self.fold("Transpose", self._unpack(name, values, factors), name=f"{name}_int8", perm=[1, 0])
        found = self.folded.get(f"{name}_int8") or self.graph.initializers[f"{name}_int8"]
        return found, self.graph.initializers[f"{name}_scales"]

    def table(self, table: ir.Value, array: np.ndarray) -> tuple[ir.Value, ir.Value, int]:
        """The values of a table [rows, d], uint8, float32 scales [rows, blocks], and the value that stands for 0."""
        name = str(table.name)
        grid = self._grid(table, array, True)
        values, scales = grid.round(array), self.constant(f"{name}_scales", grid.scales)
        if grid.factors is None:
            return self.constant(f"{name}_uint8", (values.astype(np.int16) + 128).astype(np.uint8)), scales, 128
        rows = self._unpack(name, values, grid.factors)
        lifted = self.fold("Add", rows, self.constant("least", np.array(LOWEST, np.int8)), name=f"{name}_lifted")
        return self.fold("Cast", lifted, name=f"{name}_uint8", to=ir.DataType.UINT8), scales, LOWEST

    def restore(self, name: str, width: int, values: ir.Value, scales: ir.Value, zero: int) -> ir.Value:
        """A quantized table as float32 [rows, d], d being its width."""
        if scales.shape is not None and scales.shape[1] != 1:
            scales = self.fold("Gather", scales, self._places(width, TABLE_BLOCK), name=f"{name}_wide", axis=1)
        middle = self.constant(f"zero_{zero}", np.array(zero, np.float32))
        signed = self.fold("Sub", self.fold("Cast", values, name=f"{name}_whole", **FLOAT), middle, name=f"{name}_signed")
        return self.fold("Mul", signed, scales, name=f"{name}_restored")

    def _unpack(self, name: str, values: np.ndarray, factors: np.ndarray) -> ir.Value:
        """Int4 values [n, k] times their int4 factors: int8 [n, k]."""
        kinds = {"to": ir.DataType.INT8}
        places = self._places(values.shape[1], FACTOR_BLOCK)
        small = self.fold("Cast", self.constant(f"{name}_factors", factors.astype(ml_dtypes.int4)), name=f"{name}_small", **kinds)
        spread = self.fold("Gather", small, places, name=f"{name}_spread", axis=1)
        whole = self.fold("Cast", self.constant(f"{name}_int4", values.astype(ml_dtypes.int4)), name=f"{name}_values", **kinds)
        return self.fold("Mul", whole, spread, name=f"{name}_rows")

    def _grid(self, value: ir.Value, rows: np.ndarray, table: bool) -> Grid:
        """The grid that the weights lie on already, else the best for them."""
        bits = self.precision.bits(str(value.name), table=table)
        return known_grid(value, bits) or fit_grid(rows, bits, table=table)

    def _places(self, width: int, block: int) -> ir.Value:
        """For each column its block."""
        return self.constant(f"blocks_of_{block}_in_{width}", np.arange(width, dtype=np.int32) // block)


def _replace_product(store: _Store, product: Product) -> None:
    values, scales = store.columns([product])
    if store.precision.activations == 8 and product.output.name in store.ranges:
        x, scale, zero = _quantized(store, product)
        inputs = [x, values, scale, scales, zero, None, product.bias]
        replace(store.graph, product.first, product.output, "MatMulIntegerToFloat", inputs, DOMAIN)
        return
    if store.precision.activations == 8:
        inputs = [_smoothed(store, product), values, scales, None, product.bias]
        replace(store.graph, product.first, product.output, "DynamicQuantizeMatMul", inputs, DOMAIN)
        return
    whole = store.fold("Cast", values, name=f"{product.name}_float", **FLOAT)
    restored = store.fold("Mul", whole, scales, name=f"{product.name}_restored")
    made = replace(store.graph, product.first, product.output, "MatMul", [product.x, restored])
    if product.bias is not None:
        replace(store.graph, product.first, made, "Add", [made, product.bias])


def _fuse_attention(store: _Store, products: Sequence[Product]) -> list[Product]:
    """Make attention and the three products before it one QAttention where they fit, and give the products that are left."""
    left = {product.output: product for product in products}
    for node in tuple(store.graph):
        parts = [left[value] for value in node.inputs[:3] if value in left] if node.op_type == "MultiHeadAttention" else []
        if len(parts) == 3 and _is_self_attention(node, parts) and len({store.precision.bits(part.name) for part in parts}) == 1:
            _replace_attention(store, node, parts)
            for part in parts:
                del left[part.output]
    return list(left.values())


def _is_self_attention(node: ir.Node, parts: Sequence[Product]) -> bool:
    """Whether query, key and value are of one width, are made from one value for this node alone, and are scaled as QAttention does."""
    widths = {len(part.rows) for part in parts}
    size = widths.pop() // node.attributes.get_int("num_heads", 1)
    usual = abs(node.attributes.get_float("scale", size**-0.5) * size**0.5 - 1) < 1e-5
    alone = all(len(tuple(part.output.uses())) == 1 for part in parts) and len({part.name for part in parts}) == 3
    return not widths and usual and alone and len({part.x for part in parts}) == 1 and not any(node.inputs[3:4])


def _replace_attention(store: _Store, node: ir.Node, parts: Sequence[Product]) -> None:
    values, scales = store.columns(parts)
    biases = [np.zeros(len(part.rows), np.float32) if part.bias is None else read(part.bias) for part in parts]
    bias = store.constant(f"{scales.name}_bias", np.concatenate(biases))
    mask = node.inputs[4] if len(node.inputs) > 4 else None
    x, scale, zero = _quantized(store, parts[0])
    inputs = [x, values, bias, scale, scales, mask, zero]
    replace(store.graph, node, node.outputs[0], "QAttention", inputs, DOMAIN, num_heads=node.attributes.get_int("num_heads", 1))


def _smoothed(store: _Store, product: Product) -> ir.Value:
    """What comes into a product, divided by its smoothing if it has any."""
    divisor = store.smoothing.get(product.name)
    if divisor is None:
        return product.x
    factor = store.constant(f"{product.name}_smoothing", (1 / divisor).astype(np.float32))
    smooth = ir.Value(name=f"{product.output.name}_smooth")
    store.graph.insert_before(product.first, ir.node("Mul", [product.x, factor], outputs=[smooth]))
    return smooth


def _quantized(store: _Store, product: Product) -> tuple[ir.Value, ir.Value, ir.Value]:
    """What comes into a product as uint8, its scale, and the value that stands for 0: in its fixed range where it has one."""
    name, x = product.output.name, _smoothed(store, product)
    limits = store.ranges.get(str(name))
    if limits is None:
        outputs = [ir.Value(name=f"{name}_{what}") for what in ("uint8", "scale", "zero")]
        store.graph.insert_before(product.first, ir.node("DynamicQuantizeLinear", [x], outputs=outputs))
        return outputs[0], outputs[1], outputs[2]
    step, zero = find_step(*limits)
    constants = store.constant(f"{name}_scale", np.array(step, np.float32)), store.constant(f"{name}_zero", np.array(zero, np.uint8))
    made = ir.Value(name=f"{name}_uint8")
    store.graph.insert_before(product.first, ir.node("QuantizeLinear", [x, *constants], outputs=[made]))
    return made, *constants


def _replace_table(store: _Store, table: ir.Value, nodes: Sequence[ir.Node]) -> None:
    """Look rows up in the quantized table; a product that shares the table gets it restored."""
    values, scales, zero = store.table(table, read(table))
    rows, blocks = sizes(scales)
    inputs: list[ir.Value | None] = [values, None, scales]
    if zero != 128:  # what uint8 has by default
        count = store.constant(f"{table.name}_count", np.array([rows, blocks]))
        inputs.append(
            store.fold("Expand", store.constant(f"zero_{zero}_uint8", np.array(zero, np.uint8)), count, name=f"{table.name}_zeros")
        )
    attributes = {
        "bits": 8,
        "block_size": TABLE_BLOCK if blocks != 1 else _power_above(sizes(table)[1]),
        "gather_axis": 0,
        "quantize_axis": 1,
    }
    for node in nodes:
        given = [node.inputs[1] if value is None else value for value in inputs]
        replace(store.graph, node, node.outputs[0], "GatherBlockQuantized", given, DOMAIN, **attributes)
        store.graph.remove(node, safe=True)
    if any(True for _ in table.uses()):
        table.replace_all_uses_with(store.restore(str(table.name), sizes(table)[1], values, scales, zero))


def _halve(store: _Store, value: ir.Value) -> None:
    """Keep a matrix in 16 bits in the file, if they hold its values; it is cast when the file is opened."""
    array = read(value)
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if np.isfinite(half).all():
        uses = tuple(value.uses())
        whole = store.fold("Cast", store.constant(f"{value.name}_half", half), name=f"{value.name}_whole", **FLOAT)
        for node, place in uses:
            node.replace_input_with(place, whole)


def _check_names(precision: Precision, names: Sequence[str]) -> None:
    for end in (*precision.keep, *precision.eight):
        if not any(Precision(keep=(end,)).keeps(name) for name in names):
            raise unknown("matrix", end, sorted(set(names)))


def _power_above(width: int) -> int:
    """The smallest power of two that is not less: a block of the operator that holds a whole row."""
    return 1 << max(4, (width - 1).bit_length())
