"""The grids on which quantized weights lie, as an exported model holds them. Needs numpy alone.

    weight = value · factor · scale

A matrix has a row for each output, a table one for each token. With 8 bits, a row of a matrix has one scale and 127 levels short of one bit
(-64 to 64), because CPUs without VNNI add two products of 8 × 8 bits in 16 and would overflow with more; a row of a table has one for each 128
values, and 255 levels. With 4 bits, a row has one scale, and each 16 of its values have a whole factor from -8 to 7 beside their 16 levels from
-8 to 7: their product again stays within -64 and 64, so that a matrix of 4 bits is unpacked to one of 8 without loss.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

WEIGHT_LEVELS = 64
TABLE_LEVELS = 127
TABLE_BLOCK = 128
FACTOR_BLOCK = 16
CHUNK = 2**16  # values that are fitted at a time
NORM, SPLIT, GROWTH, TURNS = 0.7, 10.0, 1.01, 20  # of half-quadratic fitting, as its authors set them


@dataclass(frozen=True)
class Grid:
    """Where the values of one matrix [rows, width] may lie.

    low, high: the least and the largest value.
    scales: float32 [rows, blocks], each for an equal run of a row's columns (TABLE_BLOCK of them where there are several).
    factors: int8 [rows, width / FACTOR_BLOCK, rounded up], none of them 0; None with 8 bits.
    """

    low: int
    high: int
    scales: np.ndarray
    factors: np.ndarray | None = None

    @property
    def bits(self) -> int:
        """8, or 4 where there are factors."""
        return 8 if self.factors is None else 4

    def steps(self, width: int) -> np.ndarray:
        """Float32 [rows, width]: the distance between neighbours at each place; negative where the factor is."""
        return self._spread(width) * self._scale(width)

    def round(self, matrix: np.ndarray) -> np.ndarray:
        """Int8 [rows, width]: the values nearest to a matrix."""
        return np.clip(np.rint(matrix / self.steps(matrix.shape[1])), self.low, self.high).astype(np.int8)

    def restore(self, values: np.ndarray) -> np.ndarray:
        """Float32 [rows, width]: the weights that int8 values stand for."""
        width = values.shape[1]
        return (values * self._spread(width)).astype(np.float32) * self._scale(width)

    def _spread(self, width: int) -> np.ndarray:
        """The factor at each place, [rows, width] or a single 1."""
        return np.ones((1, 1), np.int8) if self.factors is None else np.repeat(self.factors, FACTOR_BLOCK, axis=1)[:, :width]

    def _scale(self, width: int) -> np.ndarray:
        """The scale at each place, [rows, width] or [rows, 1]."""
        return self.scales if self.scales.shape[1] == 1 else np.repeat(self.scales, TABLE_BLOCK, axis=1)[:, :width]


@dataclass(frozen=True)
class Rounded:
    """A matrix on its grid: int8 values [rows, width]."""

    grid: Grid
    values: np.ndarray


def fit_grid(matrix: np.ndarray, bits: int, *, table: bool = False, weight: np.ndarray | None = None) -> Grid:
    """The grid of 8 or 4 bits for a matrix or a table [rows, width], as an export chooses it.

    weight: float [width], how much an error in each column counts, where 4 bits leave a choice; all the same by default.
    """
    if bits == 4:
        return _fit_factors(matrix, np.ones(matrix.shape[1], np.float32) if weight is None else weight)
    block, levels = (TABLE_BLOCK, TABLE_LEVELS) if table else (matrix.shape[1], WEIGHT_LEVELS)
    tops = [np.abs(matrix[:, start : start + block]).max(axis=1) for start in range(0, matrix.shape[1], block)]
    return Grid(-levels, levels, _nonzero(np.stack(tops, axis=1) / levels).astype(np.float32))


def find_step(low: float, high: float) -> tuple[float, int]:
    """The distance between the 256 levels of activations in a range that is widened to hold 0, and the level that stands for 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255 or 1.0
    return step, round(-low / step)


def fit_half_quadratic(matrix: np.ndarray, bits: int) -> Grid:
    """The grid of 8 or 4 bits for a matrix [rows, width] that most weights lie almost on, though a few then lie far from it.

    In turns, what is far is set aside and every row's scale is fitted to the rest: half-quadratic splitting of a norm below 1 (Badri and Shaji
    2023, HQQ), there of zero points, which these grids do not have. Errors are counted in steps, so that it does the same at every scale.
    """
    grid, width = fit_grid(matrix, bits), matrix.shape[1]
    best, least = grid, _lost(matrix, grid)
    for turn in range(TURNS):
        steps = np.abs(grid.steps(width))
        near = grid.restore(grid.round(matrix))
        away = (matrix - near) / steps
        size = np.abs(away)
        far = np.sign(away) * (size - size.clip(1e-6) ** (NORM - 1) / (SPLIT * GROWTH**turn)).clip(0)
        units = near / grid.scales
        fitted = (units * (matrix - far * steps)).sum(1, keepdims=True) / np.square(units).sum(1, keepdims=True).clip(1e-12)
        grid = dataclasses.replace(grid, scales=np.where(fitted > 0, fitted, grid.scales).astype(np.float32))
        if (lost := _lost(matrix, grid)) < least:
            best, least = grid, lost
    return best


def _lost(matrix: np.ndarray, grid: Grid) -> float:
    return float((np.abs(matrix - grid.restore(grid.round(matrix))) ** NORM).sum())


def _fit_factors(matrix: np.ndarray, weight: np.ndarray) -> Grid:
    """Each block's factor is the one with the least squared error, of those near the smallest that reaches its largest value."""
    scales = _nonzero(np.abs(matrix).max(axis=1, keepdims=True) / WEIGHT_LEVELS).astype(np.float32)
    rows = max(1, CHUNK // matrix.shape[1])
    parts = [_best_factors(matrix[at : at + rows], scales[at : at + rows], weight) for at in range(0, len(matrix), rows)]
    return Grid(-8, 7, scales, np.concatenate(parts))


def _best_factors(matrix: np.ndarray, scales: np.ndarray, weight: np.ndarray) -> np.ndarray:
    units, weights = _blocks(matrix / scales), _blocks(np.broadcast_to(weight, (1, len(weight))))
    reach = np.ceil(np.abs(units).max(axis=2, keepdims=True) / 8).clip(1, 8)
    best, least = np.ones_like(reach), np.full_like(reach, np.inf)
    for factor in (sign * (reach - less).clip(1) for less in (0, 1, 2) for sign in (-1, 1)):
        factor = factor.clip(-8, 7)
        error = np.square(np.clip(np.rint(units / factor), -8, 7) * factor - units)
        loss = (error * weights).sum(axis=2, keepdims=True)
        best, least = np.where(loss < least, factor, best), np.minimum(loss, least)
    return best[:, :, 0].astype(np.int8)


def _blocks(matrix: np.ndarray) -> np.ndarray:
    """[rows, width] as [rows, blocks, FACTOR_BLOCK], filled with zeros."""
    missing = -matrix.shape[1] % FACTOR_BLOCK
    return np.pad(matrix, ((0, 0), (0, missing))).reshape(len(matrix), -1, FACTOR_BLOCK)


def _nonzero(scales: np.ndarray) -> np.ndarray:
    return np.where(scales == 0, 1, scales)
