import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lightune.grids import FACTOR_BLOCK, TABLE_BLOCK, fit_grid

matrices = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False)
)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@given(matrices, st.booleans())
def test_eight_bits_are_right_to_half_a_step(matrix: np.ndarray, table: bool) -> None:
    grid = fit_grid(matrix, 8, table=table)
    values = grid.round(matrix)
    assert np.abs(values.astype(int)).max() <= (127 if table else 64)
    assert np.all(np.abs(grid.restore(values) - matrix) <= np.abs(grid.steps(matrix.shape[1])) * 0.501)


@given(matrices)
def test_four_bits_unpack_to_eight(matrix: np.ndarray) -> None:
    grid = fit_grid(matrix, 4)
    values = grid.round(matrix)
    assert grid.factors is not None
    assert np.all(grid.factors != 0)
    assert grid.factors.shape == (len(matrix), -(-matrix.shape[1] // FACTOR_BLOCK))
    assert min(values.min(), grid.factors.min()) >= -8
    assert max(values.max(), grid.factors.max()) <= 7
    whole = values.astype(int) * np.repeat(grid.factors, FACTOR_BLOCK, axis=1)[:, : matrix.shape[1]]
    assert whole.min() >= -56
    assert whole.max() <= 64
    assert np.allclose(grid.restore(values), whole * grid.scales)


@given(matrices, st.sampled_from([4, 8]))
def test_what_lies_on_a_grid_stays_there(matrix: np.ndarray, bits: int) -> None:
    grid = fit_grid(matrix, bits)
    values = grid.round(matrix)
    assert np.array_equal(grid.round(grid.restore(values)), values)


@pytest.mark.parametrize("width", [20, 33, 132, 192, 320, 384])
def test_four_bits_beat_one_scale_for_32_values(width: int) -> None:
    matrix = normal(50, width)
    grid = fit_grid(matrix, 4, table=True)
    blocks = np.pad(matrix, ((0, 0), (0, -width % 32))).reshape(50, -1, 32)
    steps = np.abs(blocks).max(axis=2, keepdims=True) / 7
    plain = (np.rint(blocks / steps) * steps).reshape(50, -1)[:, :width]
    assert relative_error(grid.restore(grid.round(matrix)), matrix) < min(0.085, 0.95 * relative_error(plain, matrix))


def test_a_large_row_or_block_leaves_the_others_alone() -> None:
    table = normal(30, 2 * TABLE_BLOCK)
    exact = fit_grid(table, 8, table=True).restore(fit_grid(table, 8, table=True).round(table))
    table[7, :TABLE_BLOCK] *= 1000
    grid = fit_grid(table, 8, table=True)
    found = grid.restore(grid.round(table))
    assert np.array_equal(np.delete(found, 7, axis=0), np.delete(exact, 7, axis=0))
    assert np.array_equal(found[7, TABLE_BLOCK:], exact[7, TABLE_BLOCK:])


def test_weights_of_columns_move_the_error() -> None:
    matrix = normal(40, 64)
    weight = np.where(np.arange(64) % 4 == 0, 100.0, 1.0).astype(np.float32)
    even, tilted = fit_grid(matrix, 4), fit_grid(matrix, 4, weight=weight)

    def error(grid: object) -> float:
        return float((np.square(grid.restore(grid.round(matrix)) - matrix) * weight).sum())  # type: ignore[attr-defined]

    assert error(tilted) < 0.9 * error(even)


def test_many_rows_are_fitted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = normal(100, 48)
    whole = fit_grid(matrix, 4)
    monkeypatch.setattr("lightune.grids.CHUNK", 100)
    parts = fit_grid(matrix, 4)
    assert whole.factors is not None
    assert np.array_equal(whole.factors, parts.factors)
