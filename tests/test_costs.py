from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from tiny_models import FAMILIES, make_rows

from lightune import architectures, benchmarking, exports, models, predictors, probes, sources
from lightune.cli import main
from lightune.costs import CostTable, Probe, Shape, measure_probes, measuring
from lightune.costs.tables import fit_coefficients, storage, work
from lightune.errors import InputError, IntegrityError
from lightune.precision import Precision
from lightune.runtime import load

BASE = Shape(6, 384, 12, 1536, 30522, 512, weights=8, tables=8, head_width=32)
SIZES = {"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 512, "max_position_embeddings": 160}
INT8 = Precision(weights=8, tables=8)


def make_table(law: Callable[[Shape], float] = lambda shape: 0.1 + 0.02 * shape.layers, **changes: Any) -> CostTable:
    """A table whose probes cost what `law` says."""
    shapes = [
        dataclasses.replace(BASE, layers=layers, hidden=32 * heads, heads=heads, ffn=ffn, vocabulary=512 * (1 + number % 3), positions=64 * (1 + number % 2))
        for number, (layers, heads, ffn) in enumerate(
            [(6, 12, 1536), (2, 12, 1536), (2, 12, 384), (1, 12, 768), (2, 6, 1536), (3, 6, 384), (1, 6, 768), (4, 3, 768), (1, 3, 1536), (1, 3, 192), (0, 2, 0)]
        )
    ]  # fmt: skip
    seen = tuple(Probe(shape, round(1000 * law(shape)), law(shape), 2 * law(shape)) for shape in shapes)
    ends = (dataclasses.replace(seen[0], resident=90_000_000), dataclasses.replace(seen[-1], resident=80_000_000))
    facts = {"machine": {}, "threads": 1, "batch": 1, "length": 10, "tokenizer": ((0, 1000), (1000, 21_000)), "rest": 800, "spread": 0.01}
    return CostTable(**{**facts, "probes": (ends[0], *seen[1:-1], ends[1]), **changes})


def test_coefficients_are_found_again_and_never_negative() -> None:
    rows = np.random.default_rng(0).uniform(1, 9, size=(20, 4))
    assert fit_coefficients(rows, rows @ [3.0, 0.0, 0.5, 2.0]) == pytest.approx([3.0, 0.0, 0.5, 2.0], abs=1e-6)
    found = fit_coefficients(rows, rows @ [3.0, -0.1, 0.5, 2.0])
    assert found.min() >= 0
    assert found[1] == 0


def test_a_table_tells_what_unseen_shapes_cost() -> None:
    def law(shape: Shape) -> float:
        return 0.05 + shape.layers * (0.02 + 1e-5 * shape.ffn + 3e-7 * shape.block_weights)

    table = make_table(law)
    for shape in (dataclasses.replace(BASE, layers=5, ffn=480), dataclasses.replace(BASE, layers=3, hidden=256, heads=8, vocabulary=8000)):
        assert table.milliseconds(shape) == pytest.approx(law(shape), rel=1e-3)
        assert table.milliseconds(shape, 95) == pytest.approx(2 * law(shape), rel=1e-3)
    assert table.error < 1e-3


def test_bytes_are_those_of_the_whole_folder() -> None:
    def law(shape: Shape) -> float:
        return 20 + shape.stored_blocks * shape.block_weights / 1000 + shape.vocabulary * shape.hidden * 1.03125 / 1000

    shape = dataclasses.replace(BASE, layers=2, vocabulary=500)
    table = make_table(law)
    assert table.count_bytes(shape) == pytest.approx(1000 * law(shape) + 11_000 + 800, rel=1e-3)
    assert table.count_bytes(shape, tokenizer=5000) == pytest.approx(1000 * law(shape) + 5000 + 800, rel=1e-3)
    whole, half = table.resident_bytes(shape), table.resident_bytes(dataclasses.replace(shape, layers=1))
    assert 80_000_000 < half < whole < 90_000_000


def test_four_bits_run_and_lie_in_memory_as_eight() -> None:
    table = make_table()
    four = dataclasses.replace(BASE, weights=4)
    assert table.milliseconds(four) == table.milliseconds(BASE)
    small = tuple(
        dataclasses.replace(
            probe, shape=dataclasses.replace(probe.shape, weights=4), bytes=probe.bytes // 2, p50=None, p95=None, resident=None
        )
        for probe in table.probes
    )
    both = dataclasses.replace(table, probes=(*table.probes, *small))
    assert both.count_bytes(four) < both.count_bytes(BASE)
    assert both.resident_bytes(four) == pytest.approx(both.resident_bytes(BASE), rel=0.01)


def test_a_shared_block_is_stored_once_and_run_often() -> None:
    apart, shared = (dataclasses.replace(BASE, layers=4, shared=each) for each in (False, True))
    assert (work(apart) == work(shared)).all()
    assert (storage(shared) == storage(dataclasses.replace(BASE, layers=1)))[[4, 5, 6]].all()


def test_a_factorized_table_is_a_matrix_too() -> None:
    whole, factorized = (dataclasses.replace(BASE, embedding=columns) for columns in (0, 64))
    assert (storage(factorized) - storage(whole))[6] == (work(factorized) - work(whole))[6] == 64 * 384
    assert storage(factorized)[7] == 30522 * 64
    assert storage(factorized)[9] == 512 * 384  # positions keep the stream's columns
    assert storage(dataclasses.replace(factorized, narrow=True))[9] == 512 * 64


def test_a_table_survives_json() -> None:
    table = make_table()
    assert CostTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table


@pytest.mark.parametrize("values", [{}, {"format": 1}, {"format": 1, "probes": [{"bytes": 3}]}, {"format": 2}])
def test_what_is_no_table_is_told(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="cost table"):
        CostTable.from_dict(values)


def test_what_was_not_measured_is_told() -> None:
    with pytest.raises(InputError, match="no times of 32-bit weights"):
        make_table().milliseconds(dataclasses.replace(BASE, weights=32))
    with pytest.raises(InputError, match="99th percentile"):
        make_table().milliseconds(BASE, 99)
    with pytest.raises(InputError, match="8-bit weights with 4-bit tables"):
        make_table().count_bytes(dataclasses.replace(BASE, tables=4))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shape_says_what_a_model_is_made_of(family: str, tiny_source: Callable[[str], sources.Source]) -> None:
    model = tiny_models.start(tiny_source(family), make_rows(20))
    shape, backbone = Shape.of(model), model.network.backbone
    assert (shape.layers, shape.hidden, shape.heads, shape.ffn, shape.vocabulary, shape.head_width) == (2, 32, 4, 48, 64, 8)
    assert (shape.embedding, shape.shared) == (16 * (family in ("electra", "albert")), family == "albert")
    assert shape.narrow == (family in ("electra", "albert"))
    assert shape.positions == {"llama": 0, "modernbert": 0}.get(family, 40)
    matrices = sum(layer.weight.numel() for _, layer in architectures.linears(backbone))
    assert shape.stored_blocks * shape.block_weights + shape.embedding * shape.hidden == pytest.approx(matrices)


@pytest.mark.parametrize("family", FAMILIES)
def test_probes_have_the_shape_that_was_asked(family: str, tiny_source: Callable[[str], sources.Source]) -> None:
    model = tiny_models.start(tiny_source(family), make_rows(20))
    asked = [(0, 1, 1, (2, 32, 4, 48)), (3, 1 / 2, 1 / 2, (3, 16, 2, 24)), (1, 1 / 4, 1 / 8, (1, 16 if family == "llama" else 8, 2 if family == "llama" else 1, 8))]  # fmt: skip
    for number, (layers, stream, ffn, expected) in enumerate(asked):
        network = probes.make_network(model, layers, stream, ffn, 0, number)
        shape = Shape.of(SimpleNamespace(network=network))
        assert (shape.layers, shape.hidden, shape.heads, shape.ffn) == expected
        assert shape.vocabulary == probes.TOKENS[number % 2]
        ids = torch.full((2, 24), shape.vocabulary - 1)
        with torch.inference_mode():
            assert network(**{name: ids if name == "input_ids" else ids.clamp(max=1) for name in network.inputs}).isfinite().all()
    vectors = [tuple(item.tolist()) for item in network.parameters() if item.ndim == 1]
    assert len(vectors) == len(set(vectors))  # equal ones would be stored once, as those of a trained model are not


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> models.Model:
    """Large enough that every matrix is worth quantizing, as in a real model."""
    folder = tiny_models.save_base("bert", tmp_path_factory.mktemp("base") / "bert", **SIZES)
    return tiny_models.start(sources.resolve_model(folder), make_rows(40), max_length=64)


@pytest.fixture(scope="module")
def written(model: models.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return probes.write_probes(model, tmp_path_factory.mktemp("probes") / "bert", make_rows(100), precisions=[INT8])


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """No measurement longer than it must be."""
    monkeypatch.setattr(measuring, "SECONDS", 0.0)
    monkeypatch.setattr(measuring, "LEAST_ROUNDS", 2)


@pytest.fixture(scope="module")
def table(written: Path) -> CostTable:
    return measure_probes(written)


def test_predicted_bytes_are_those_of_an_export(model: models.Model, table: CostTable, tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 192, "intermediate_size": 256}
    backbone = models.bare_backbone(model.base.config | sizes | {"vocab_size": 6000, "max_position_embeddings": 64})
    network = probes.Network(backbone, model.answers.outputs, "mean", model.encoder.inputs).eval()
    with torch.no_grad():
        for item in network.parameters():
            item += 0.02 * torch.randn_like(item)
    made = SimpleNamespace(network=network, answers=model.answers, encoder=model.encoder, base=model.base)
    folder = exports.find_export("onnx-int8").write(made, tmp_path / "artifact")
    shape = dataclasses.replace(Shape.of(made), weights=8, tables=8)
    tokenizer = (folder / "tokenizer.json").stat().st_size
    assert table.count_bytes(shape, tokenizer) == pytest.approx(benchmarking.folder_bytes(folder), rel=0.02)
    load(folder)


def test_a_measured_table(table: CostTable, written: Path) -> None:
    assert (table.threads, table.batch, len(table.probes)) == (1, 1, len(probes.DESIGN) + 1)
    assert 3 <= table.length <= 14
    assert all(probe.p50 is not None and 0 < probe.p50 <= (probe.p95 or 0) for probe in table.probes)
    assert table.milliseconds(table.probes[0].shape) > table.milliseconds(table.probes[-1].shape) > 0
    assert 20_000_000 < table.resident_bytes(table.probes[0].shape) < 400_000_000
    assert table.tokenizer_bytes(10**6) == (written / "tokenizer.json").stat().st_size


def test_probes_are_timed_without_torch(written: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'onnx', 'onnx_ir')))\n"
        "from lightune.costs import measuring\nfrom lightune.cli import main\nmeasuring.SECONDS, measuring.LEAST_ROUNDS = 0, 1\n"
        "sys.exit(main(['bench', sys.argv[1], '--table', '--batch', '2', '--length', '20']))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(written)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = CostTable.from_dict(json.loads(done.stdout))
    assert (found.batch, found.length) == (2, 20)


def test_a_busy_machine_is_told(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(1, 10**6))
    monkeypatch.setattr(benchmarking, "latency", lambda *_, **__: benchmarking.Latency(next(times), 1.0, 1, 5))
    monkeypatch.setattr(benchmarking, "resident_bytes", lambda *_, **__: 1)
    said: list[str] = []
    assert measure_probes(written, tell=said.append).spread > measuring.CALM
    assert any("busy" in sentence for sentence in said)


def test_texts_are_stretched_to_a_length(written: Path) -> None:
    facts = measuring.read_probes(written)
    encoder = measuring.open_probe(written / "0-int8.onnx").encoder
    for length in (5, 33, 64):
        text, pair = measuring.stretch_text(encoder, facts["texts"], length, facts["answers"])
        assert pair is None
        assert encoder.encode([text]).lengths[0] == length
    for length in (2, 65):
        with pytest.raises(InputError, match="expected 3 to 64"):
            measuring.stretch_text(encoder, facts["texts"], length, facts["answers"])


def test_short_and_long_texts_are_chosen(model: models.Model) -> None:
    rows = make_rows(500)
    chosen = probes.choose_texts(model.encoder, rows)
    lengths = [len(text.split()) for text, _ in chosen]
    every = [len(row.text.split()) for row in rows]
    assert len(chosen) == 32
    assert (min(lengths), max(lengths)) == (min(every), max(every))
    assert abs(np.median(lengths) - np.median(every)) <= 1
    assert lengths != sorted(lengths)
    with pytest.raises(InputError, match="no examples"):
        probes.choose_texts(model.encoder, [])


def test_damaged_probes_are_told(written: Path, tmp_path: Path) -> None:
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "0-int8.onnx").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"0-int8\.onnx"):
        measure_probes(tmp_path)


def test_tables_are_kept_unless_the_machine_was_busy(
    model: models.Model, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTUNE_CACHE", str(tmp_path))
    made, spreads = [], iter([0.5, 0.01])

    def write(_model: Any, folder: Path, *_: Any, **__: Any) -> None:
        made.append("probes")
        folder.mkdir(parents=True)
        for path in written.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    def measure(*_: Any, **__: Any) -> CostTable:
        made.append("table")
        return make_table(spread=next(spreads))

    monkeypatch.setattr(probes, "write_probes", write)
    monkeypatch.setattr(probes, "measure_probes", measure)
    first, second, third = (probes.measure_table(model, make_rows(20)) for _ in range(3))
    assert made == ["probes", "table", "table"]
    assert (first.spread, second.spread, third) == (0.5, 0.01, second)


def test_probes_of_a_saved_model_are_written(model: models.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    model.save(tmp_path / "run" / "model")
    made: list[tuple[Any, ...]] = []

    def write(found: models.Model, folder: str, examples: list[Any], **_: Any) -> Path:
        made.append((found.base.sha256, folder, examples[0].text))
        return Path(folder)

    monkeypatch.setattr(probes, "write_probes", write)
    assert main(["bench", str(tmp_path / "run"), "--probes", "there", "--words", "3"]) == 0
    assert capsys.readouterr().out == "there\n"
    assert made == [(model.base.sha256, "there", "How can I")]


def test_a_table_is_of_one_architecture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 targets, expected one"):
        predictors.measure_costs(["a", "b"], None, words=3, tell=print)
    with pytest.raises(InputError, match="no saved model"):
        predictors.write_probes([str(tmp_path)], None, str(tmp_path / "p"), words=3, tell=print)
