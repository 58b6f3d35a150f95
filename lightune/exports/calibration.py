"""Where the activations that a matrix is multiplied with lie, seen once on sample rows: a file with fixed ranges need not look at every text.

What lies beyond a range is cut off, and the narrower the range, the finer what lies within is rounded. Of several shares of what was seen the one
is taken that leaves the product nearest to the exact one (as Nagel et al. 2021, section 3.1, choose ranges by the error of the output).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lightune.errors import InputError
from lightune.exports.editing import Product, find_products
from lightune.exports.smoothing import capture_inputs, round_between
from lightune.precision import Precision
from lightune.runtime.tokenization import Encoder

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # of the range that was seen


def find_ranges(
    model: ir.Model, encoder: Encoder, examples: Sequence[object], precision: Precision, smoothing: Mapping[str, np.ndarray]
) -> dict[str, tuple[float, float]]:
    """For every product of an fp32 model that a precision quantizes, by the name of what comes out: the range of what comes in, smoothed.

    Products that read the same values have the same range.

    Raises:
        InputError: no examples.
    """
    if not len(examples):
        raise InputError("ranges=static must see what the model reads. Give it a sample of texts, or use ranges=dynamic.")
    groups: dict[tuple[str, int], list[Product]] = {}
    for product in find_products(model.graph):
        if precision.bits(product.name) < 32:
            groups.setdefault((str(product.x.name), id(smoothing.get(product.name))), []).append(product)
    seen = capture_inputs(model, [name for name, _ in groups], encoder, examples)
    found: dict[str, tuple[float, float]] = {}
    for (name, _), products in groups.items():
        divisor = smoothing.get(products[0].name, np.float32(1))
        limits = _choose(np.concatenate(seen[name]) / divisor, np.concatenate([product.rows * divisor for product in products]))
        found |= {str(product.output.name): limits for product in products}
    return found


def _choose(inputs: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """The range for inputs [t, k] that are multiplied with rows [n, k]."""
    low, high = min(float(inputs.min()), 0.0), max(float(inputs.max()), 0.0)

    def lost(share: float) -> float:
        return float(np.square((round_between(inputs, low * share, high * share) - inputs) @ rows.T).sum())

    best = min(SHARES, key=lost)
    return low * best, high * best
