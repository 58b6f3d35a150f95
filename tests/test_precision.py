import pytest

from lightune.errors import InputError
from lightune.options import build, parse_spec
from lightune.precision import FP32, INT4, INT8, Precision


@pytest.mark.parametrize(
    ("precision", "label"),
    [
        (FP32, "fp32"),
        (INT8, "int8"),
        (INT4, "int4"),
        (Precision(weights=8, tables=4), "w8-t4"),
        (Precision(weights=8, tables=8, activations=32), "int8-weight-only"),
        (Precision(weights=4, tables=4, keep=("head",)), "int4-mixed"),
    ],
)
def test_labels(precision: Precision, label: str) -> None:
    assert precision.label == label
    assert precision.quantizes == (label != "fp32")


def test_bits_go_by_the_end_of_a_name() -> None:
    _, values = parse_spec("onnx:weights=4,tables=8,keep=layer.0.output.dense,eight=query+embeddings.word.weight")
    precision = build(Precision, values, "test")
    assert precision.bits("backbone.layer.0.output.dense.weight") == 32
    assert precision.bits("backbone.layer.10.output.dense.weight") == 4
    assert precision.bits("backbone.layer.3.query.weight") == 8
    assert precision.bits("backbone.layer.3.subquery.weight") == 4
    assert precision.bits("backbone.embeddings.word.weight", table=True) == 8
    assert Precision(weights=8, tables=8, eight=("query",)).bits("query.weight") == 8
    assert Precision(tables=8, eight=("query",)).bits("query.weight") == 32


@pytest.mark.parametrize("values", [{"weights": 5}, {"tables": "8"}, {"activations": 4}, {"weight": 8}])
def test_wrong_options(values: dict[str, object]) -> None:
    with pytest.raises(InputError):
        build(Precision, values, "test")
