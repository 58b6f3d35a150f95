"""Rounding that looks at what a matrix reads loses less of its product than rounding that does not."""

from pathlib import Path

import numpy as np
import pytest
import tiny_models

from lightune.errors import InputError
from lightune.exports import find_export
from lightune.exports.editing import find_products
from lightune.exports.onnx import trace
from lightune.exports.quantization import GRID
from lightune.exports.rounding import pass_errors_on, round_weights
from lightune.grids import Grid, fit_grid, fit_half_quadratic
from lightune.models import Model
from lightune.precision import Precision
from lightune.runtime import load
from lightune.sources import resolve_model

ROWS = tiny_models.make_rows(30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("bases") / "bert"
    made = tiny_models.start(resolve_model(tiny_models.save_base("bert", folder, hidden_size=64, intermediate_size=96)), ROWS)
    made.network.eval()
    return made


@pytest.mark.parametrize("bits", [8, 4])
def test_errors_that_are_passed_on_leave_the_product_nearer(bits: int) -> None:
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(200, 8)) @ draw.normal(size=(8, 48)) + 0.05 * draw.normal(size=(200, 48))  # columns go together
    rows = draw.normal(size=(32, 48)).astype(np.float32)
    grid = fit_grid(rows, bits)

    def error(values: np.ndarray) -> float:
        return float(np.square(inputs @ (grid.restore(values) - rows).T).sum())

    values = pass_errors_on(rows, grid, inputs)
    assert values.min() >= grid.low
    assert values.max() <= grid.high
    assert error(values) < 0.25 * error(grid.round(rows))


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    rows = np.random.default_rng(1).normal(size=(8, 32)).astype(np.float32)
    grid = fit_grid(rows, 8)
    np.testing.assert_array_equal(pass_errors_on(rows, grid, np.eye(32) * 5), grid.round(rows))


@pytest.mark.parametrize("rounding", ["weighted", "gptq"])
def test_a_models_matrices_lie_on_their_grids(model: Model, rounding: str) -> None:
    graph = trace(model.network, model.encoder.inputs)
    precision = Precision(weights=4, rounding=rounding)
    spared = find_products(graph.graph)[0].name
    found = round_weights(graph, model.encoder, ROWS, precision, spared=(spared,))
    for product in find_products(found.graph):
        grid = product.weight.meta.get(GRID)
        assert (grid is None) == (product.name == spared)
        if grid is not None:
            np.testing.assert_allclose(grid.restore(grid.round(product.rows)), product.rows, atol=1e-7)
    assert all(GRID not in product.weight.meta for product in find_products(graph.graph))  # the model itself is as it was


def test_an_artefact_with_passed_errors_answers_nearer(model: Model, tmp_path: Path) -> None:
    ours = model.logits(ROWS)

    def error(rounding: str) -> float:
        target = find_export(f"onnx:weights=4,activations=32,rounding={rounding}")
        return float(np.square(load(target.write(model, tmp_path / rounding, sample=ROWS)).logits(ROWS) - ours).mean())

    assert error("gptq") < error("nearest")


def test_half_quadratic_grids_leave_most_weights_nearer_and_need_no_sample(model: Model, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(256, 384)).astype(np.float32)

    def error(grid: Grid, norm: float = 0.7) -> float:
        return float((np.abs(weights - grid.restore(grid.round(weights))) ** norm).sum())

    for bits in (8, 4):
        found = fit_half_quadratic(weights, bits)
        assert found.bits == bits
        assert error(found) < 0.996 * error(fit_grid(weights, bits))
        assert error(found, 2) < 1.01 * error(fit_grid(weights, bits), 2)
    target = find_export("onnx:weights=4,rounding=hqq")
    exported = load(target.write(model, tmp_path / "hqq")).logits(ROWS)
    assert (exported.argmax(1) == model.logits(ROWS).argmax(1)).mean() > 0.8


def test_rounding_needs_a_sample(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rounding=gptq must see what the model reads"):
        find_export("onnx:weights=4,rounding=gptq").write(model, tmp_path / "none")
