"""To which of the values near it each weight is rounded, seen by more than the weight itself.

`weighted` chooses the grid of 4 bits so that columns which read large values err least (as AWQ protects salient channels, Lin et al. 2024,
section 3.1, and importance matrices do); 8 bits leave it no choice. `gptq` does so too and then rounds one column after another, each time moving
what was lost onto the columns that are still to come (Frantar et al. 2023, algorithm 1). `hqq` alone sees no inputs: its grid is the one that most
weights lie almost on (`grids.fit_half_quadratic`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir

from lightune.errors import InputError
from lightune.exports.editing import Product, find_products
from lightune.exports.quantization import GRID
from lightune.exports.smoothing import capture_inputs
from lightune.grids import Grid, fit_grid, fit_half_quadratic
from lightune.precision import Precision
from lightune.runtime.tokenization import Encoder

DAMPING = 0.01  # of the mean diagonal, added to it, so that columns which nothing was seen in stay solvable


def round_weights(
    model: ir.Model, encoder: Encoder, examples: Sequence[object], precision: Precision, spared: Collection[str] = ()
) -> ir.Model:
    """A copy of an fp32 model whose matrices lie on the grids of a precision; `quantize` then changes them no more.

    Args:
        examples: rows, labelled or not, whose first thousand tokens show what each matrix reads; `hqq` needs none.
        spared: names of matrices that are left as they are.

    Raises:
        InputError: no examples.
    """
    blind = precision.rounding == "hqq"
    if not len(examples) and not blind:
        raise InputError(
            f"rounding={precision.rounding} must see what the model reads. Give it a sample of texts, or use rounding=nearest."
        )
    rounded = model.clone()
    chosen = {item.name: item for item in find_products(rounded.graph) if precision.bits(item.name) < 32 and item.name not in spared}
    seen = {} if blind else capture_inputs(model, [str(product.x.name) for product in chosen.values()], encoder, examples)
    for name, product in chosen.items():
        inputs = None if blind else np.concatenate(seen[str(product.x.name)]).astype(np.float64)
        _put(product, *_round(product.rows, precision.bits(name), precision.rounding, inputs))
    return rounded


def _round(rows: np.ndarray, bits: int, rounding: str, inputs: np.ndarray | None) -> tuple[Grid, np.ndarray]:
    """The grid for a matrix [n, k] and its values there, int8 [n, k]; inputs [t, k] are what it is multiplied with, where that counts."""
    if inputs is None:
        grid = fit_half_quadratic(rows, bits)
        return grid, grid.round(rows)
    grid = fit_grid(rows, bits, weight=np.square(inputs).mean(axis=0).astype(np.float32))
    return grid, grid.round(rows) if rounding == "weighted" else pass_errors_on(rows, grid, inputs)


def pass_errors_on(rows: np.ndarray, grid: Grid, inputs: np.ndarray) -> np.ndarray:
    """Int8 [n, k]: values on the grid for weights float32 [n, k] that are multiplied with inputs float64 [t, k].

    Every column's error is passed on to the columns after it, in the measure in which the inputs of both go together.
    """
    width = rows.shape[1]
    squares = inputs.T @ inputs
    squares[np.diag_indices(width)] += DAMPING * max(float(np.trace(squares)) / width, 1e-12)
    passing = np.linalg.cholesky(np.linalg.inv(squares)).T  # upper: row j says where the error of column j goes
    left, steps = rows.astype(np.float64), grid.steps(width)
    values = np.zeros(rows.shape, dtype=np.int8)
    for column in range(width):
        step = steps[:, column] if steps.shape[1] > 1 else steps[:, 0]
        values[:, column] = np.clip(np.rint(left[:, column] / step), grid.low, grid.high)
        error = (left[:, column] - values[:, column] * step) / passing[column, column]
        left[:, column + 1 :] -= error[:, None] * passing[column, column + 1 :]
    return values


def _put(product: Product, grid: Grid, values: np.ndarray) -> None:
    """Give a product's weight the values that stand on the grid, and tell which grid it is."""
    restored = grid.restore(values)
    array = np.ascontiguousarray(restored if product.transposed else restored.T)
    product.weight.const_value = ir.tensor(array, name=product.weight.name)
    product.weight.meta[GRID] = grid
