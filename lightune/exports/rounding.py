"""To which of the values near it each weight is rounded, seen by more than the weight itself.

`weighted` chooses the grid of 4 bits so that columns which read large values err least (as AWQ protects salient channels, Lin et al. 2024,
section 3.1, and importance matrices do); 8 bits leave it no choice. `gptq` does so too and then rounds one column after another, each time moving
what was lost onto the columns that are still to come (Frantar et al. 2023, algorithm 1). `hqq` alone sees no inputs: its grid is the one that most
weights lie almost on (`grids.fit_half_quadratic`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lightune.errors import InputError
from lightune.exports.editing import Product, find_products
from lightune.exports.quantization import GRID, known_grid
from lightune.exports.smoothing import read_inputs
from lightune.grids import Grid, Rounded, fit_grid, fit_half_quadratic
from lightune.precision import Precision
from lightune.runtime.tokenization import Encoder

TOKENS = 8192  # that are looked at, in all examples together: fewer leave wide matrices columns of which nothing is known
TOGETHER = 1024  # tokens whose products are summed at once
BLOCK = 64  # columns whose errors are passed on to all others together
DAMPING = 0.01  # of the mean diagonal, added to it, so that columns which nothing was seen in stay solvable


def round_weights(
    model: ir.Model, encoder: Encoder, examples: Sequence[object], precision: Precision, smoothing: Mapping[str, np.ndarray] | None = None
) -> ir.Model:
    """A copy of an fp32 model whose matrices lie on the grids of a precision; `quantize` then changes them no more, and those that lay on one stay.

    Args:
        examples: rows, labelled or not, whose first tokens show what each matrix reads; `hqq` needs none.
        smoothing: by which `quantize` will multiply matrices, float32 [k] each: these lie on their grid once they are multiplied.

    Raises:
        InputError: no examples.
    """
    blind = precision.rounding == "hqq"
    if not len(examples) and not blind:
        raise InputError(
            f"rounding={precision.rounding} must see what the model reads. Give it a sample of texts, or use rounding=nearest."
        )
    rounded, smoothing = model.clone(), smoothing or {}
    products = [
        product
        for product in find_products(rounded.graph)
        if (bits := precision.bits(product.name)) < 32 and known_grid(product.weight, bits) is None
    ]
    seen = {} if blind else _sum_squares(model, products, encoder, examples)
    for name, product in {product.name: product for product in products}.items():
        divisor = smoothing.get(name, np.ones(1, np.float32))
        squares = None if blind else seen[name] / np.outer(divisor, divisor)
        grid, values = _round(product.rows * divisor, precision.bits(name), precision.rounding, squares)
        restored = grid.restore(values) / divisor
        array = np.ascontiguousarray(restored if product.transposed else restored.T)
        product.weight.const_value = ir.tensor(array, name=product.weight.name)
        product.weight.meta[GRID] = grid
    return rounded


def read_rounded(model: ir.Model) -> dict[str, Rounded]:
    """The matrices that lie on a grid, by the name of the weight."""
    products = [product for product in find_products(model.graph) if GRID in product.weight.meta]
    return {product.name: Rounded(grid, grid.round(product.rows)) for product in products for grid in [product.weight.meta[GRID]]}


def mark_rounded(model: ir.Model, grids: Mapping[str, Grid]) -> None:
    """Tell a model on which grids its matrices lie already, by the name of the weight; of equal ones a graph holds one."""
    for name in grids.keys() & model.graph.initializers.keys():
        model.graph.initializers[name].meta[GRID] = grids[name]


def _sum_squares(model: ir.Model, products: Sequence[Product], encoder: Encoder, examples: Sequence[object]) -> dict[str, np.ndarray]:
    """For each weight how its inputs go together, float64 [k, k]: their products, summed over tokens and the places where it is used."""
    names = list(dict.fromkeys(str(product.x.name) for product in products))
    waiting: dict[str, list[np.ndarray]] = {name: [] for name in names}
    sums: dict[str, np.ndarray] = {}

    def add() -> None:
        for name, parts in waiting.items():
            inputs = np.concatenate(parts)
            sums[name] = sums.get(name, 0.0) + (inputs.T @ inputs).astype(np.float64)
            parts.clear()

    for seen in read_inputs(model, names, encoder, examples, TOKENS):
        for name, inputs in seen.items():
            waiting[name].append(inputs)
        if sum(map(len, waiting[names[0]])) >= TOGETHER:
            add()
    if names and waiting[names[0]]:
        add()
    places = {(product.name, str(product.x.name)) for product in products}
    return {product.name: np.sum([sums[x] for name, x in places if name == product.name], axis=0) for product in products}


def _round(rows: np.ndarray, bits: int, rounding: str, squares: np.ndarray | None) -> tuple[Grid, np.ndarray]:
    """The grid for a matrix [n, k] and its values there, int8 [n, k]; squares [k, k] tell what it is multiplied with, where that counts."""
    if squares is None:
        grid = fit_half_quadratic(rows, bits)
        return grid, grid.round(rows)
    grid = fit_grid(rows, bits, weight=np.diag(squares).astype(np.float32))
    return grid, grid.round(rows) if rounding == "weighted" else pass_errors_on(rows, grid, squares)


def pass_errors_on(rows: np.ndarray, grid: Grid, squares: np.ndarray) -> np.ndarray:
    """Int8 [n, k]: values on the grid for weights float32 [n, k], of whose inputs x float64 [k, k] is the sum of x xᵀ.

    Columns that read the largest inputs are rounded first, and every column's error is passed on to those after it, in the measure in which the
    inputs of both go together: within a block at once, beyond it for the whole block together, which needs far less memory to be moved.
    """
    width = rows.shape[1]
    order = np.argsort(-np.diag(squares), kind="stable")
    damped = squares[np.ix_(order, order)] + DAMPING * max(float(np.trace(squares)) / width, 1e-12) * np.eye(width)
    passing = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper: row j says where the error of column j goes
    left, steps = rows.T[order].astype(np.float64), np.broadcast_to(grid.steps(width), rows.shape).T[order]
    values = np.zeros(left.shape, dtype=np.int8)
    for start in range(0, width, BLOCK):
        end = min(start + BLOCK, width)
        errors = np.zeros((end - start, len(rows)))
        for column in range(start, end):
            values[column] = np.clip(np.rint(left[column] / steps[column]), grid.low, grid.high)
            errors[column - start] = (left[column] - values[column] * steps[column]) / passing[column, column]
            left[column + 1 : end] -= np.outer(passing[column, column + 1 : end], errors[column - start])
        left[end:] -= passing[start:end, end:].T @ errors
    found = np.empty(rows.shape, dtype=np.int8)
    found[:, order] = values.T
    return found
