"""Some channels of what a layer reads are many times as large as all others, and cost these their precision when activations become int8.

Dividing such channels by a number, and multiplying the rows of the weight that read them, changes nothing but what is rounded (Xiao et al. 2023,
SmoothQuant, equation 3). Here only channels beyond a limit are divided, down to that limit, which is tried at several heights; and only where the
error of the product falls enough to pay for the division, an operator of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from lightune.exports.editing import Product, find_products
from lightune.exports.quantization import known_grid
from lightune.grids import find_step, fit_grid
from lightune.precision import Precision
from lightune.runtime.predictor import open_session
from lightune.runtime.tokenization import Encoder, texts_and_pairs

HEIGHTS = (2, 3, 4, 6, 8, 12, 16)  # the largest channel is this many times as large as the limit
PAYS = 0.5  # of the error must be left at most
TOKENS = 1024  # that are looked at, in all examples together


def find_smoothing(model: ir.Model, encoder: Encoder, examples: Sequence[object], precision: Precision) -> dict[str, np.ndarray]:
    """For the weights of an fp32 model that gain by it: float32 [k] by which to divide what they are multiplied with.

    Weights that lie on a grid of this precision already are left as they are; without examples, or where activations keep their bits, all are.
    """
    if not len(examples) or precision.activations == 32:
        return {}
    groups = _group(find_products(model.graph), precision)
    seen = capture_inputs(model, [x for parts in groups for x in parts.inputs], encoder, examples)
    found: dict[str, np.ndarray] = {}
    for group in groups:
        inputs = [rows for x in group.inputs for rows in seen[x]]
        divisor = _choose(inputs, np.concatenate([product.rows for product in group.products]), group.bits)
        if divisor is not None:
            found |= {product.name: divisor for product in group.products}
    return found


class _Group:
    """Weights that read the same values, in one place of the graph or in several."""

    def __init__(self, products: Sequence[Product], bits: int) -> None:
        self.bits = bits
        self.products = list({product.name: product for product in products}.values())
        self.inputs = list(dict.fromkeys(str(product.x.name) for product in products))


def _group(products: Sequence[Product], precision: Precision) -> list[_Group]:
    """Products by what they read; those of the same weights are one group, and a weight in two different groups is in none."""
    by_input: dict[ir.Value, list[Product]] = {}
    for product in products:
        bits = precision.bits(product.name)
        if bits < 32 and known_grid(product.weight, bits) is None:
            by_input.setdefault(product.x, []).append(product)
    by_names: dict[frozenset[str], list[Product]] = {}
    for parts in by_input.values():
        by_names.setdefault(frozenset(part.name for part in parts), []).extend(parts)
    names = [name for group in by_names for name in group]
    once = (parts for group, parts in by_names.items() if all(names.count(name) == 1 for name in group))
    return [_Group(parts, min(precision.bits(part.name) for part in parts)) for parts in once]


def capture_inputs(model: ir.Model, names: Sequence[str], encoder: Encoder, examples: Sequence[object]) -> Mapping[str, list[np.ndarray]]:
    """What values of an fp32 graph hold for the first examples: for each name float32 [tokens, k] of every example."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for seen in read_inputs(model, names, encoder, examples, TOKENS):
        for name, array in seen.items():
            found[name].append(array)
    return found


def read_inputs(
    model: ir.Model, names: Sequence[str], encoder: Encoder, examples: Sequence[object], tokens: int
) -> Iterator[dict[str, np.ndarray]]:
    """What values of an fp32 graph hold for each of the first examples, which run one by one: by name float32 [tokens, k].

    tokens: that are looked at, in all examples together; at least one example is.
    """
    if not names:
        return
    watched = model.clone()
    wanted = set(names)
    values = [value for node in watched.graph for value in node.outputs if value.name in wanted]
    for value in values:
        value.type = ir.TensorType(ir.DataType.FLOAT)
        if not value.is_graph_output():
            watched.graph.outputs.append(value)
    names = [str(value.name) for value in values]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(watched, path, external_data="weights")
        session = open_session(path, 1)
        encoded = encoder.encode(*texts_and_pairs(examples))
        count = max(1, int((np.cumsum(encoded.lengths) <= tokens).sum()))
        for place in range(count):
            arrays = session.run(names, encoder.pad(encoded, [place]))
            yield {name: array.reshape(-1, array.shape[-1]) for name, array in zip(names, arrays, strict=True)}


def _choose(inputs: Sequence[np.ndarray], rows: np.ndarray, bits: int) -> np.ndarray | None:
    """The divisor with the least error, or None where none pays; it is chosen with 8 bits, and must pay with those that the weights get."""
    channels = np.abs(np.concatenate(inputs)).max(axis=0)
    divisors = [np.maximum(1, channels * height / max(float(channels.max()), 1e-30)).astype(np.float32) for height in HEIGHTS]
    exact = np.concatenate(inputs) @ rows.T
    best = min(divisors, key=lambda divisor: _error(inputs, rows, exact, divisor, 8))
    plain = np.ones_like(best)
    return best if _error(inputs, rows, exact, best, bits) <= PAYS * _error(inputs, rows, exact, plain, bits) else None


def _error(inputs: Sequence[np.ndarray], rows: np.ndarray, exact: np.ndarray, divisor: np.ndarray, bits: int) -> float:
    """The squared error of the quantized product, each example with a range of its own."""
    scaled = rows * divisor
    grid = fit_grid(scaled, bits)
    rounded = np.concatenate([round_between(x, float(x.min()), float(x.max())) for x in (x / divisor for x in inputs)])
    return float(np.square(rounded @ grid.restore(grid.round(scaled)).T - exact).sum())


def round_between(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """What quantization to uint8 leaves of activations: one scale for all, from the least to the largest value and 0; what lies beyond is cut."""
    step, zero = find_step(low, high)
    return (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
