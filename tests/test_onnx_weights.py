from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from safetensors.numpy import load_file

from lightune.onnx_weights import convert_t5

TABLE = np.array([[3, 200], [128, 0], [255, 7]], dtype=np.uint8)
MATRIX = np.array([[-128, 5, 0], [127, -3, 9]], dtype=np.int8)  # [in, out]


def write_graph(path: Path, prefix: str, table: str) -> None:
    """A quantized graph as ONNX Runtime names its parts: a table, a norm and one matrix inside a block."""
    stored = [
        numpy_helper.from_array(TABLE, f"{table}_quantized"),
        numpy_helper.from_array(np.array(0.5, dtype=np.float32), f"{table}_scale"),
        numpy_helper.from_array(np.array(128, dtype=np.uint8), f"{table}_zero_point"),
        numpy_helper.from_array(np.array([1.5, 2.5], dtype=np.float32), f"{prefix}.block.0.layer.0.layer_norm.weight"),
        numpy_helper.from_array(MATRIX, "onnx::MatMul_7_quantized"),
        numpy_helper.from_array(np.array(0.25, dtype=np.float32), "onnx::MatMul_7_scale"),
        numpy_helper.from_array(np.array(-1, dtype=np.int8), "onnx::MatMul_7_zero_point"),
    ]
    layer = f"/{prefix.replace('.', '/')}/block.0/layer.0/SelfAttention/q/MatMul_quant"
    product = helper.make_node("MatMulInteger", ["x", "onnx::MatMul_7_quantized"], ["y"], name=layer)
    given, made = (helper.make_tensor_value_info(name, kind, [1, 2]) for name, kind in (("x", TensorProto.UINT8), ("y", TensorProto.INT32)))
    save(helper.make_model(helper.make_graph([product], "part", [given], [made], stored)), path)


def test_int8_matrices_become_fp32_weights_under_their_own_names(tmp_path: Path) -> None:
    write_graph(tmp_path / "encoder.onnx", "enc", "enc.embed_tokens.weight")
    write_graph(tmp_path / "decoder.onnx", "m.decoder", "m.shared.weight")
    convert_t5(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert set(found) == {"shared.weight"} | {
        f"{stack}.block.0.layer.0.{part}.weight" for stack in ("encoder", "decoder") for part in ("layer_norm", "SelfAttention.q")
    }
    np.testing.assert_array_equal(found["shared.weight"], (TABLE.astype(np.float32) - 128) / 2)
    np.testing.assert_array_equal(found["encoder.block.0.layer.0.SelfAttention.q.weight"], ((MATRIX.astype(np.float32) + 1) / 4).T)
    np.testing.assert_array_equal(found["decoder.block.0.layer.0.layer_norm.weight"], [1.5, 2.5])
