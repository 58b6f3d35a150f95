import pytest

from lightune.errors import InputError
from lightune.exports import EXPORTS, find_export, folder_name
from lightune.precision import INT4, INT8, Precision


def test_a_name_or_a_name_with_options() -> None:
    assert find_export("onnx-int8") is EXPORTS["onnx-int8"]
    assert find_export("onnx-int4").precision == INT4
    assert find_export("onnx:weights=8,tables=8").precision == INT8
    mixed = find_export("onnx-int4:keep=layer.0.output.dense+layer.1.output.dense,tables=8").precision
    assert mixed == Precision(weights=4, tables=8, keep=("layer.0.output.dense", "layer.1.output.dense"))
    assert find_export("onnx:weights=8,keep=query").precision.keep == ("query",)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("onx", "Unknown export target 'onx'.*Did you mean 'onnx'"),
        ("onnx:weights=3", "weights is 3, expected one of 32, 8, 4"),
        ("onnx:weight=8", "unknown option 'weight'.*Did you mean 'weights'"),
        ("onnx:8", "is not KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_told(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_export(spec)


def test_fewer_bits_may_differ_more() -> None:
    shares = [find_export(spec).tolerance.agree for spec in ("onnx", "onnx-int8", "onnx:weights=8,tables=4", "onnx-int4")]
    assert shares == sorted(shares, reverse=True)
    assert find_export("onnx:keep=query").tolerance.difference is not None


def test_folders() -> None:
    assert folder_name("onnx-int8") == "onnx-int8"
    assert folder_name("onnx:weights=8,tables=4") == "onnx-weights-8-tables-4"
    long = [folder_name(f"onnx:weights=8,keep={'+'.join(f'layer.{number}.output.dense' for number in range(last))}") for last in (8, 9)]
    assert long[0] != long[1]
    assert all(len(name) <= 60 and name.replace("-", "").replace(".", "").isalnum() for name in long)
