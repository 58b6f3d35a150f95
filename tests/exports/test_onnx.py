import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_models
import torch

from lightune.errors import InputError, IntegrityError
from lightune.exports import EXPORTS, Tolerance, find_export, verify
from lightune.exports.onnx import trace, write
from lightune.models import Model
from lightune.precision import Precision
from lightune.runtime import load
from lightune.sources import resolve_model

ROWS = tiny_models.make_rows(40)
INT8, INT4 = Precision(weights=8, tables=8), Precision(weights=4, tables=4)
WIDE = {  # wide enough that quantizing pays
    "bert": {"hidden_size": 64, "intermediate_size": 96},
    "roberta": {"hidden_size": 64, "intermediate_size": 96},
    "distilbert": {"dim": 64, "hidden_dim": 96},
    "electra": {"hidden_size": 64, "intermediate_size": 96, "embedding_size": 32},
    "albert": {"hidden_size": 64, "intermediate_size": 96, "embedding_size": 32},
    "modernbert": {"hidden_size": 64, "intermediate_size": 96, "bos_token_id": 2, "eos_token_id": 3},
    "deberta-v2": {"hidden_size": 64, "intermediate_size": 96},
    "gpt2": {"n_embd": 64, "n_inner": 96, "bos_token_id": 3, "eos_token_id": 3},
    "llama": {"hidden_size": 64, "intermediate_size": 96},
}


def make_model(family: str, folder: Path) -> Model:
    base = tiny_models.save_base(family, folder, vocab_size=512, **WIDE[family])
    model = tiny_models.start(resolve_model(base), ROWS)
    model.network.eval()
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model("bert", tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture(scope="module")
def traced(model: Model) -> ir.Model:
    return trace(model.network, model.encoder.inputs)


def largest_difference(model: Model, graph: ir.Model, folder: Path) -> float:
    """Between the network and its fp32 graph, over batches and lengths that the trace has not seen."""
    path = write(graph, model.answers, model.encoder, folder, base="base", name="name")
    session, worst = load(path, threads=1).session, 0.0
    for batch, length in ((1, 1), (1, 2), (1, 9), (3, 38), (7, 13), (1, 38)):
        ids = torch.randint(5, 40, (batch, length), generator=torch.Generator().manual_seed(length))
        mask = torch.ones_like(ids)
        mask[0, max(1, length // 2) :] = 0
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
        given = {name: given[name] for name in model.encoder.inputs}
        with torch.inference_mode():
            expected = model.network(**given).numpy()
        (found,) = session.run(["logits"], {name: value.numpy() for name, value in given.items()})
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst


@pytest.mark.parametrize(
    "family", ["distilbert", *(pytest.param(name, marks=pytest.mark.slow) for name in WIDE if name not in ("bert", "distilbert"))]
)
def test_every_family_exports_and_quantizes(family: str, tmp_path: Path) -> None:
    model = make_model(family, tmp_path / "base")
    graph = trace(model.network, model.encoder.inputs)
    assert largest_difference(model, graph, tmp_path / "fp32") < 1e-4
    path = write(graph, model.answers, model.encoder, tmp_path / "int8", precision=INT8, base="base", name="name")
    parity = verify(model.logits(ROWS), path, ROWS, Tolerance(agree=0.9))
    assert 0 < parity.max_abs < 0.3
    operators = {node.op_type for node in onnx.load(path / "model.onnx").graph.node}
    assert {"DynamicQuantizeMatMul", "GatherBlockQuantized"} <= operators


def test_any_batch_and_any_length(model: Model, traced: ir.Model, tmp_path: Path) -> None:
    assert largest_difference(model, traced, tmp_path / "fp32") < 1e-4


def test_all_targets_hold_their_tolerance(model: Model, traced: ir.Model, tmp_path: Path) -> None:
    logits = model.logits(ROWS)
    for name, target in EXPORTS.items():
        path = write(traced, model.answers, model.encoder, tmp_path / name, base="base", name="name", precision=target.precision)
        parity = verify(logits, path, ROWS, target.tolerance)
        assert parity.rows == 40
    assert load(tmp_path / "onnx").predict(["good"])[0]["label"] == model.predict(["good"])[0]["label"]


def test_what_is_written(model: Model, traced: ir.Model, tmp_path: Path) -> None:
    sizes = {}
    for precision in (Precision(), INT8, INT4):
        path = write(
            traced, model.answers, model.encoder, tmp_path / precision.label, precision=precision, base="the base", name="the name"
        )
        assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "model.onnx", "task.json", "tokenizer.json"]
        facts = json.loads((path / "task.json").read_text(encoding="utf-8"))
        assert (facts["base"], facts["name"], facts["precision"], facts["format"]) == ("the base", "the name", precision.label, 1)
        sizes[precision.label] = (path / "model.onnx").stat().st_size
    assert sizes["int8"] < 0.4 * sizes["fp32"]
    assert sizes["int4"] < 0.8 * sizes["int8"]


def test_the_file_holds_no_traces_of_its_making(model: Model, traced: ir.Model, tmp_path: Path) -> None:
    path = write(traced, model.answers, model.encoder, tmp_path / "artifact", base="base", name="name")
    content = (path / "model.onnx").read_bytes()
    assert str(Path(tiny_models.__file__).parent).encode() not in content
    assert b"site-packages" not in content
    found = onnx.load_from_string(content)
    assert not {item.name for item in found.graph.value_info} & {name for node in found.graph.node for name in node.output}
    assert [dim.dim_param for item in found.graph.input for dim in item.type.tensor_type.shape.dim] == ["batch", "length"] * len(
        found.graph.input
    )


def test_a_target_writes_a_model(model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    attention = model.network.backbone.config._attn_implementation  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = find_export("onnx-int8").write(model, tmp_path / "artifact", name="mine")
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert (load(path).name, load(path).base) == ("mine", model.base.name)
    assert model.network.backbone.config._attn_implementation == attention  # type: ignore[union-attr]


def test_an_earlier_artefact_outlives_a_failure(model: Model, traced: ir.Model, tmp_path: Path) -> None:
    def again(network: Any, **options: Any) -> None:
        write(network, model.answers, model.encoder, tmp_path / "artifact", base="base", name="name", **options)

    again(traced)
    before = (tmp_path / "artifact" / "manifest.json").read_bytes()
    with pytest.raises(InputError, match=r"Unknown matrix 'layer\.9\.output'"):
        again(traced, precision=Precision(weights=8, keep=("layer.9.output",)))
    with pytest.raises(InputError, match="cannot be exported to ONNX"):
        again(Unexportable())
    assert (tmp_path / "artifact" / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


class Unexportable(torch.nn.Module):
    """Its graph depends on the values that it reads."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None) -> torch.Tensor:
        return input_ids.float() if input_ids.sum() > 3 else attention_mask.float()


def test_half_precision_is_written_in_full(model: Model, tmp_path: Path) -> None:
    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(64, 3, dtype=torch.bfloat16)

        def forward(
            self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
        ) -> torch.Tensor:
            return (self.table(input_ids) * attention_mask[..., None]).sum(1).float()

    half = Half().eval()
    graph = trace(half, ("input_ids", "attention_mask"))
    assert {value.dtype for value in graph.graph.initializers.values()} <= {ir.DataType.FLOAT, ir.DataType.INT64}
    assert half.table.weight.dtype == torch.bfloat16


def test_weights_beyond_a_protobuf_lie_beside_it(model: Model, traced: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightune.exports.onnx.MOST_BYTES", 0)
    path = write(traced, model.answers, model.encoder, tmp_path / "artifact", base="base", name="name")
    assert verify(model.logits(ROWS), path, ROWS, find_export("onnx").tolerance).agree == 1.0
    (path / "model.onnx.data").write_bytes((path / "model.onnx.data").read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match=r"model\.onnx\.data was altered"):
        load(path)


def test_a_disk_that_takes_no_more(model: Model, traced: ir.Model, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits of file sizes are POSIX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"artifact cannot be written \(File too large\)"):
            write(traced, model.answers, model.encoder, tmp_path / "artifact", base="base", name="name")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("bits", "rounding"), [(8, "nearest"), (4, "nearest"), (4, "hqq")])
def test_a_decoder_with_weights_alone_quantized_answers_as_its_model(bits: int, rounding: str, tmp_path: Path) -> None:
    decoder = make_model("llama", tmp_path / "base")
    precision = Precision(weights=bits, tables=bits, activations=32, rounding=rounding)
    graph = trace(decoder.network, decoder.encoder.inputs)
    path = write(graph, decoder.answers, decoder.encoder, tmp_path / "small", precision=precision, base="base", name="name")
    parity = verify(decoder.logits(ROWS), path, ROWS, Tolerance(agree=0.95 if bits == 8 else 0.8))
    assert parity.max_abs > 0
    plain = write(graph, decoder.answers, decoder.encoder, tmp_path / "plain", base="base", name="name")
    sizes = [(folder / "model.onnx").stat().st_size for folder in (path, plain)]
    assert sizes[0] < (0.5 if bits == 8 else 0.4) * sizes[1]
