"""The weights of a T5 out of ONNX files whose matrices are int8: the form of safetensors that transformers reads.

ONNX Runtime's dynamic quantization keeps a matrix as NAME_quantized with NAME_scale and NAME_zero_point (its value is (q - zero) · scale), and the
product that reads it still bears the path of the layer that it was exported from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

PRODUCT = "/MatMul_quant"


def convert_t5(folder: Path) -> None:
    """encoder.onnx and decoder.onnx of a quantized T5, whose sha256 was checked, become model.safetensors in fp32."""
    import onnx
    from safetensors.numpy import save

    found: dict[str, Any] = {}
    for name in ("encoder.onnx", "decoder.onnx"):
        found |= _read(onnx.load(folder / name).graph)
    found.pop("encoder.embed_tokens.weight")  # the same table as the decoder's, which is named shared
    (folder / "model.safetensors").write_bytes(save(found, {"format": "pt"}))
    for name in ("encoder.onnx", "decoder.onnx"):
        (folder / name).unlink()


def _read(graph: Any) -> dict[str, Any]:
    """Every weight of a graph, float32, by its name in transformers."""
    import numpy as np
    from onnx import numpy_helper

    stored = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    layers = {
        node.input[1].removesuffix("_quantized"): node.name.removesuffix(PRODUCT).strip("/").replace("/", ".") + ".weight"
        for node in graph.node
        if node.name.endswith(PRODUCT)
    }
    found = {}
    for name, value in stored.items():
        if name.endswith("_quantized"):
            base = name.removesuffix("_quantized")
            value = (value.astype(np.float32) - stored[f"{base}_zero_point"]) * stored[f"{base}_scale"]
            found[_name(layers.get(base, base))] = np.ascontiguousarray(value.T if base in layers else value)
        elif not name.endswith(("_scale", "_zero_point")):
            found[_name(name)] = value
    return found


def _name(name: str) -> str:
    """A weight's name in transformers: ``m.decoder.block.0`` → ``decoder.block.0``, ``enc.block.0`` → ``encoder.block.0``."""
    return name.removeprefix("m.").replace("enc.", "encoder.", 1) if name.startswith(("m.", "enc.")) else name
