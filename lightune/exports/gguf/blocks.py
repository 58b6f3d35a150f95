"""Arrays to the blocks of integers and scales that GGUF files hold: ggml's own functions, from the library inside xllamacpp."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from lightune.errors import InputError
from lightune.runtime.llama import library


def pack(values: np.ndarray, kind: str, importance: np.ndarray | None = None) -> np.ndarray:
    """Float32 [r, c] in a type of GGUF: float arrays of the same shape for f32 and f16, else bytes uint8 [r, b].

    importance: float32 [c], how much an error in each column counts (the mean square of what the column is multiplied with); None counts
    all alike, or by the weights themselves, as the type does. Types with eight bits ignore it.

    Raises:
        InputError: a weight that is no finite number, or too large for f16. MissingExtra: xllamacpp is not installed.
    """
    if not np.isfinite(values).all():
        raise InputError("A weight is no finite number. Train again with a lower rate, or look at the weights.")
    if kind == "f32":
        return np.ascontiguousarray(values, dtype=np.float32)
    if kind == "f16":
        return _halved(values)
    return _quantized(np.ascontiguousarray(values, dtype=np.float32), kind, importance)


def _halved(values: np.ndarray) -> np.ndarray:
    if (largest := float(np.abs(values).max(initial=0.0))) > np.finfo(np.float16).max:
        raise InputError(f"A weight is {largest:.3g}, which f16 cannot hold (at most 65504). Export with type=q8_0.")
    return np.ascontiguousarray(values, dtype=np.float16)


def _quantized(values: np.ndarray, kind: str, importance: np.ndarray | None) -> np.ndarray:
    functions, number = ggml(), _type_number(kind)
    rows, columns = values.shape
    packed = np.empty((rows, functions.ggml_row_size(number, columns)), dtype=np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    written = functions.ggml_quantize_chunk(
        number, values.ctypes.data, packed.ctypes.data, 0, rows, columns, None if weights is None else weights.ctypes.data
    )
    assert written == packed.nbytes, f"ggml wrote {written} bytes of {packed.nbytes}"
    return packed


def _type_number(kind: str) -> int:
    import gguf

    return int(next(item for item in gguf.GGMLQuantizationType if item.name.lower() == kind))


@cache
def ggml() -> Any:
    """ggml's functions in llama.cpp's library.

    Raises:
        MissingExtra: it is not installed.
    """
    found = library()
    found.ggml_row_size.restype, found.ggml_row_size.argtypes = ctypes.c_size_t, (ctypes.c_int, ctypes.c_int64)
    sizes, arrays = (ctypes.c_int64,) * 3, (ctypes.c_void_p,) * 2
    found.ggml_quantize_chunk.restype, found.ggml_quantize_chunk.argtypes = (
        ctypes.c_size_t,
        (ctypes.c_int, *arrays, *sizes, ctypes.c_void_p),
    )
    return found
