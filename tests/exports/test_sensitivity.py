import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny_models
import torch

from lightune import exporting
from lightune.errors import CheckFailed, InputError
from lightune.exports.onnx import trace
from lightune.exports.sensitivity import back_off, measure_damage, measure_sensitivity
from lightune.models import Model
from lightune.precision import INT4, INT8
from lightune.runtime.answers import Answers
from lightune.sources import resolve_model

ROWS = tiny_models.make_rows(30)
WORST = "backbone.encoder.layer.1.output.dense.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A network in which one matrix loses far more than the others: in each row one weight drowns the rest, and nothing comes through it."""
    folder = tmp_path_factory.mktemp("bases") / "bert"
    made = tiny_models.start(
        resolve_model(tiny_models.save_base("bert", folder, hidden_size=64, intermediate_size=96, vocab_size=128)), ROWS
    )
    layer = made.network.backbone.encoder.layer[1]  # type: ignore[union-attr, index]
    with torch.no_grad():
        layer.intermediate.dense.weight[7] = 0
        layer.intermediate.dense.bias[7] = 0
        layer.output.dense.weight[:, 7] = 60
    made.network.eval()
    return made


@pytest.fixture(scope="module")
def graph(model: Model) -> ir.Model:
    return trace(model.network, model.encoder.inputs)


def test_the_worst_matrix_comes_first(model: Model, graph: ir.Model) -> None:
    found = measure_sensitivity(graph, model.answers, model.encoder, ROWS, INT8)
    assert next(iter(found)) == WORST
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert len(found) == 13
    assert "backbone.embeddings.word_embeddings.weight" in found


def test_bits_are_given_back_where_they_help(model: Model, graph: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    given = (graph, model.answers, model.encoder, ROWS)
    assert back_off(*given, INT8, agree=0.0) == INT8
    assert back_off(*given, INT8, agree=1.1, most=1) == dataclasses.replace(INT8, keep=(WORST,))
    four = back_off(*given, INT4, agree=1.1, most=3)
    assert len(four.eight) == 3
    assert WORST in four.eight
    assert four.keep == ()


def test_an_export_that_would_not_answer_as_its_model_keeps_more_bits_where_they_matter(tmp_path: Path) -> None:
    base = tiny_models.save_base("bert", tmp_path / "bert", hidden_size=64, intermediate_size=96, vocab_size=128)
    broken = tiny_models.start(resolve_model(base), ROWS)
    layers = broken.network.backbone.encoder.layer  # type: ignore[union-attr]
    with torch.no_grad():
        for layer in layers:  # type: ignore[union-attr]
            layer.intermediate.dense.weight[7] = 0
            layer.intermediate.dense.bias[7] = 0
            layer.output.dense.weight *= 10
            layer.output.dense.weight[:, 7] = 6000
    broken.network.eval()
    with pytest.raises(CheckFailed):
        exporting.export(broken, "onnx-int8", tmp_path / "plain", dev=ROWS, test=(), spares=False)
    told: list[str] = []
    entry = exporting.export(broken, "onnx-int8", tmp_path / "spared", dev=ROWS, test=(), tell=told.append)
    assert entry["target"] == "onnx-int8"
    assert entry["parity"]["agree"] >= 0.95
    assert {f"backbone.encoder.layer.{number}.output.dense.weight" for number in (0, 1)} <= set(entry["spared"])
    assert len(entry["spared"]) <= exporting.SPARED
    assert any("more bits for" in text for text in told)
    assert json.loads((tmp_path / "spared" / "task.json").read_text())["precision"] == "int8-mixed"


def test_damage_of_every_kind_of_answer() -> None:
    ours = np.array([[2.0, -1.0], [0.5, 0.0]])
    for kind, labels in (("classify", ("a", "b")), ("multilabel", ("a", "b")), ("regress", ())):
        answers, columns = Answers(kind, labels), 1 if kind == "regress" else 2
        near, far = ours[:, :columns] + [[0.1], [0.0]] * np.array([[1, -1][:columns]]), -ours[:, :columns]
        assert measure_damage(answers, ours[:, :columns], ours[:, :columns]) == pytest.approx(0, abs=1e-9)
        assert 0 < measure_damage(answers, ours[:, :columns], near) < measure_damage(answers, ours[:, :columns], far)


def test_no_examples(model: Model, graph: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        measure_sensitivity(graph, model.answers, model.encoder, [], INT8)
