"""Rounding that looks at what a matrix reads loses less of its product than rounding that does not."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from lightune.data import Example
from lightune.errors import InputError
from lightune.exports import find_export
from lightune.exports.editing import find_products
from lightune.exports.onnx import quantize_seen, trace
from lightune.exports.quantization import GRID
from lightune.exports.rounding import _sum_squares, pass_errors_on, round_weights
from lightune.exports.smoothing import capture_inputs
from lightune.grids import Grid, fit_grid, fit_half_quadratic
from lightune.models import Model
from lightune.precision import INT4, INT8, Precision
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

    values = pass_errors_on(rows, grid, inputs.T @ inputs)
    assert values.min() >= grid.low
    assert values.max() <= grid.high
    assert error(values) < 0.25 * error(grid.round(rows))


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    rows = np.random.default_rng(1).normal(size=(8, 32)).astype(np.float32)
    grid = fit_grid(rows, 8)
    np.testing.assert_array_equal(pass_errors_on(rows, grid, np.eye(32) * 25), grid.round(rows))


@pytest.mark.parametrize("rounding", ["weighted", "gptq", "hqq"])
def test_a_models_matrices_lie_on_their_grids(model: Model, rounding: str) -> None:
    graph = trace(model.network, model.encoder.inputs)
    precision = Precision(weights=4, rounding=rounding)
    products = find_products(graph.graph)
    width = products[0].rows.shape[1]
    divisor = np.linspace(1, 3, width).astype(np.float32)
    smoothing = {product.name: divisor for product in products if product.rows.shape[1] == width}
    found = round_weights(graph, model.encoder, ROWS, precision, smoothing)
    for product in find_products(found.graph):
        grid, rows = product.weight.meta[GRID], product.rows * smoothing.get(product.name, np.float32(1))
        np.testing.assert_allclose(grid.restore(grid.round(rows)), rows, atol=1e-6)
    assert all(GRID not in product.weight.meta for product in find_products(graph.graph))  # the model itself is as it was


def test_a_shared_weight_is_rounded_by_what_it_reads_in_every_layer(tmp_path: Path) -> None:
    shared = tiny_models.start(
        resolve_model(tiny_models.save_base("albert", tmp_path / "albert", hidden_size=64, intermediate_size=96)), ROWS
    )
    graph = trace(shared.network.eval(), shared.encoder.inputs)
    products = find_products(graph.graph)
    name = next(product.name for product in products if product.name.endswith("ffn.weight"))
    places = [str(product.x.name) for product in products if product.name == name]
    seen = capture_inputs(graph, places, shared.encoder, ROWS)
    expected = sum(inputs.T @ inputs for place in places for inputs in seen[place])
    assert len(places) > 1
    np.testing.assert_allclose(_sum_squares(graph, products, shared.encoder, ROWS)[name], expected, rtol=1e-3)


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


def test_four_bits_pass_errors_on_by_themselves_where_there_is_a_sample(model: Model) -> None:
    graph = trace(model.network, model.encoder.inputs)

    def rows(precision: Precision, sample: Sequence[Example]) -> list[np.ndarray]:
        values = quantize_seen(graph, model.encoder, sample, precision).graph.initializers.values()
        return [value.const_value.numpy() for value in values if value.const_value is not None and "_int" in str(value.name)]

    def equal(precision: Precision, rounding: str, sample: Sequence[Example]) -> bool:
        theirs = rows(dataclasses.replace(precision, rounding=rounding), sample)
        return all(np.array_equal(one, other) for one, other in zip(rows(precision, sample), theirs, strict=True))

    assert equal(INT4, "gptq", ROWS)
    assert not equal(INT4, "nearest", ROWS)
    assert equal(INT4, "nearest", [])
    assert equal(INT8, "nearest", ROWS)


def test_rounding_needs_a_sample(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rounding=gptq must see what the model reads"):
        find_export("onnx:weights=4,rounding=gptq").write(model, tmp_path / "none")
