"""Few bits for graphs that generate: matrices and tables in blocks with a scale each, which are multiplied as they lie in the file.

Generating multiplies every weight with few vectors, so its time is that of reading the weights. onnxruntime's MatMulNBits reads them as they are
stored and rounds what comes in to 8 bits block by block, so that the large channels that language models have cost only their own block its precision
(as llama.cpp's Q8_0 and Q4_0 do). Nothing is restored when the file is opened: memory is that of the file.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lightune.exports.editing import Constants, Product, find_products, find_tables, read, replace

DOMAIN = "com.microsoft"
BLOCKS = {8: (64, 32, 16), 4: (32, 16)}  # values that may share a scale: more are faster, fewer are nearer; the first that divides a row
INT8_ACTIVATIONS = 4  # the operator's name for them
CHUNK = 2**20  # values that are rounded at a time
SHRINKINGS = np.linspace(0.75, 1.05, 13)  # of a block's largest value in 4 bits, one of which loses least


def quantize_blocks(model: ir.Model, bits: int) -> ir.Model:
    """A copy of an fp32 model whose large constant matrices have 8 or 4 bits, its tables and the matrix that makes the logits 8.

    Rows whose length is no multiple of 16 stay in fp32.
    """
    model = model.clone()
    graph = model.graph
    tables, products = find_tables(graph), find_products(graph, logits=True)
    fine = set(tables) | {product.name for product in products} - {product.name for product in find_products(graph)}
    store = _Store(graph)
    for product in products:
        if product.rows.shape[1] % BLOCKS[8][-1] == 0:
            _replace_product(store, product, 8 if product.name in fine else bits)
    for name, nodes in tables.items():
        if read(graph.initializers[name]).shape[1] % BLOCKS[8][-1] == 0:
            _replace_lookups(store, graph.initializers[name], nodes)
    store.insert()
    RemoveUnusedNodesPass()(model)
    graph.opset_imports[DOMAIN] = 1
    return model


class _Store(Constants):
    """Constants in blocks."""

    def rows(self, name: str, matrix: np.ndarray, bits: int) -> tuple[ir.Value, ir.Value, int]:
        """A matrix [n, k]: uint8 [n, k · bits / 8] with the first of two 4-bit values in the low half, float32 scales [n, blocks], and the block."""
        block = next(size for size in BLOCKS[bits] if matrix.shape[1] % size == 0)
        if f"{name}_blocks" not in self.graph.initializers:
            values, scales = round_blocks(matrix, bits, block)
            self.constant(f"{name}_blocks", values if bits == 8 else values[:, 0::2] | values[:, 1::2] << 4)
            self.constant(f"{name}_block_scales", scales.astype(np.float16))
        whole = self.fold("Cast", self.graph.initializers[f"{name}_block_scales"], name=f"{name}_scales", to=ir.DataType.FLOAT)
        return self.graph.initializers[f"{name}_blocks"], whole, block


def round_blocks(matrix: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of a matrix [n, k], uint8 [n, k] around 2^(bits - 1), and their scales, float32 [n, k / block]."""
    parts = [_round(part, bits) for part in np.array_split(matrix.reshape(-1, block), max(1, matrix.size // CHUNK))]
    values, scales = (np.concatenate(items) for items in zip(*parts, strict=True))
    return values.reshape(matrix.shape), scales.reshape(len(matrix), -1)


def _round(blocks: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Of blocks [m, b]: uint8 [m, b], and scales [m, 1]. With 4 bits the largest value gets -8, and the scale is that of the least squared error."""
    middle = 2 ** (bits - 1)
    if bits == 8:
        scales = np.abs(blocks).max(axis=1, keepdims=True) / (middle - 1)
    else:
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
        scales, least = np.zeros_like(largest), np.full_like(largest, np.inf)
        for shrinking in SHRINKINGS:
            tried = largest * shrinking / -middle
            lost = np.square(blocks - _nearest(blocks, tried, bits) * tried).sum(axis=1, keepdims=True)
            scales, least = np.where(lost < least, tried, scales), np.minimum(lost, least)
    scales = scales.astype(np.float16).astype(np.float32)  # as the file holds them
    return (_nearest(blocks, scales, bits) + middle).astype(np.uint8), scales


def _nearest(blocks: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """The whole numbers nearest to blocks in units of their scales."""
    middle = 2 ** (bits - 1)
    return np.clip(np.rint(blocks / np.where(scales == 0, 1, scales)), -middle, middle - 1)


def _replace_product(store: _Store, product: Product, bits: int) -> None:
    matrix = product.rows
    values, scales, block = store.rows(product.name if product.transposed else f"{product.name}_turned", matrix, bits)
    shape = store.constant(f"{product.name}_shape", np.array([len(matrix), matrix.shape[1] // block, block * bits // 8]))
    cut = store.fold("Reshape", values, shape, name=f"{values.name}_cut")
    sizes = {"K": matrix.shape[1], "N": len(matrix), "bits": bits, "block_size": block, "accuracy_level": INT8_ACTIVATIONS}
    inputs = [product.x, cut, scales, None, None, product.bias]
    replace(store.graph, product.first, product.output, "MatMulNBits", inputs, DOMAIN, **sizes)


def _replace_lookups(store: _Store, table: ir.Value, nodes: list[ir.Node]) -> None:
    values, scales, block = store.rows(str(table.name), read(table), 8)
    how = {"bits": 8, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    for node in nodes:
        replace(store.graph, node, node.outputs[0], "GatherBlockQuantized", [values, node.inputs[1], scales], DOMAIN, **how)
        store.graph.remove(node, safe=True)
