"""What an exported file costs is told by the modules that its operators come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import tiny_models

from lightune import benchmarking, profiling
from lightune.exports import find_export
from lightune.exports.onnx import capture, save, tidy, trace
from lightune.models import Model
from lightune.profiling import Setting, measure_export
from lightune.sources import Source

TEXT = ("the food was lovely but the staff very slow", None)


@pytest.fixture(scope="module")
def model(tiny_source: Callable[[str], Source]) -> Model:
    made = tiny_models.start(tiny_source("bert"), tiny_models.make_rows(12))
    made.network.eval()
    return made


def test_every_operator_names_the_modules_around_it(model: Model) -> None:
    graph = capture(model.network, model.encoder.inputs)
    scopes = profiling.read_scopes(graph.graph)
    products = [node for node in graph.graph if node.op_type in ("MatMul", "Gemm", "MultiHeadAttention")]
    assert len(products) >= 2 * 7 + 1
    names = dict(model.network.named_modules())
    for node in products:
        assert scopes[str(node.outputs[0].name)][-2] in names  # the last is the operator's own name


def test_the_profile_names_what_onnxruntime_fused(model: Model, tmp_path: Path) -> None:
    graph = capture(model.network, model.encoder.inputs)
    scopes = profiling.read_scopes(graph.graph)
    save(tidy(graph), tmp_path / "model.onnx")
    feeds = Setting(TEXT).encode(model.encoder)
    times = profiling.profile(tmp_path / "model.onnx", feeds, scopes, tmp_path)
    fused = {str(node.name) for node in ir.load(tmp_path / "optimized.onnx").graph} - {str(node.name) for node in graph.graph}
    assert fused  # GELU with its bias, scaled products
    activations = [scope for scope in times if any("intermediate" in name for name in scope)]
    assert sum(times[scope] for scope in activations) > 0
    assert all(milliseconds >= 0 for milliseconds in times.values())


def test_times_that_warm_up_do_not_count() -> None:
    events = [{"cat": "Node", "name": "a_kernel_time", "dur": 9000}] * profiling.WARMUP
    events += [{"cat": "Node", "name": "a_kernel_time", "dur": dur} for dur in (100, 300, 200)]
    events += [{"cat": "Session", "name": "model_run", "dur": 5}, {"cat": "Node", "name": "b_fence_before", "dur": 5}]
    assert profiling._kernel_times(events) == {"a": 0.2}


@pytest.mark.parametrize("target", ["onnx", "onnx-int8"])
def test_an_export_costs_what_its_folder_does(model: Model, target: str, tmp_path: Path) -> None:
    size, milliseconds = measure_export(model, trace(model.network, model.encoder.inputs), target, Setting(TEXT))
    assert size == pytest.approx(benchmarking.folder_bytes(find_export(target).write(model, tmp_path / "artifact")), abs=16)
    assert 0 < milliseconds < 1000


@pytest.mark.parametrize("batch", [1, 4])
def test_a_setting_is_a_batch_of_one_text(model: Model, batch: int) -> None:
    setting = Setting(TEXT, batch, threads=2)
    feeds = setting.encode(model.encoder)
    assert {value.shape for value in feeds.values()} == {(batch, 11)}
    facts = setting.to_dict(model.encoder)
    assert (facts["length"], facts["batch"], facts["threads"]) == (11, batch, 2)
    assert facts["runtime"].startswith("onnxruntime ")
