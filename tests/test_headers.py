from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from lightune.errors import InputError
from lightune.headers import TENSOR_BLOCKS, check_safetensors, read_gguf_architecture


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def gguf_bytes(architecture: str | None = "llama", version: int = 3, tensor_type: int = 2, alignment: int = 32) -> bytes:
    """A GGUF file with one tensor of 64 values after keys of every kind; `general.architecture` comes last, which is allowed."""
    pairs = [
        text("general.alignment") + struct.pack("<II", 4, alignment),
        text("a.flag") + struct.pack("<IB", 7, 1),
        text("a.float") + struct.pack("<If", 6, 0.5),
        text("a.words") + struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two"),
        text("a.numbers") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3),
    ]
    if architecture is not None:
        pairs.append(text("general.architecture") + struct.pack("<I", 8) + text(architecture))
    head = b"GGUF" + struct.pack("<IQQ", version, 1, len(pairs)) + b"".join(pairs)
    head += text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 2, tensor_type, 0)
    head += b"\0" * (-len(head) % alignment)
    block, size = TENSOR_BLOCKS[tensor_type]
    return head + b"\1" * (64 // block * size)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("tensor_type", "alignment"), [(2, 32), (0, 64), (8, 8)])
def test_architecture_is_read_behind_other_keys(tmp_path: Path, tensor_type: int, alignment: int) -> None:
    path = write(tmp_path / "m.gguf", gguf_bytes("qwen3", tensor_type=tensor_type, alignment=alignment))
    assert read_gguf_architecture(path) == "qwen3"


def test_a_file_without_architecture_names_none(tmp_path: Path) -> None:
    assert read_gguf_architecture(write(tmp_path / "m.gguf", gguf_bytes(None))) == ""


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = gguf_bytes()
    for length in range(len(whole)):
        path = write(tmp_path / "m.gguf", whole[:length])
        with pytest.raises(InputError, match=r"truncated|not a GGUF file"):
            read_gguf_architecture(path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"PK\3\4" + b"\0" * 40, "expected b'GGUF'"),
        (b"", "expected b'GGUF'"),
        (gguf_bytes(version=1), "version 1, expected 2 or 3"),
        (b"GGUF" + struct.pack(">I", 3) + b"\0" * 40, "expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 99), "value type 99"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1) + b"\0" * 12, "value type 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 5, 2**62), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "truncated"),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_gguf_architecture(write(tmp_path / "m.gguf", content))


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    gguf = pytest.importorskip("gguf")
    known = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {kind: known[kind] for kind in TENSOR_BLOCKS} == TENSOR_BLOCKS


def safetensors_bytes(values: int = 4) -> bytes:
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * (4 * values)


def test_a_whole_safetensors_file_passes(tmp_path: Path) -> None:
    check_safetensors(write(tmp_path / "model.safetensors", safetensors_bytes()))


def test_safetensors_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    whole = safetensors_bytes()
    for content in (*(whole[:length] for length in range(len(whole))), whole + b"\0", b"PK\3\4" + b"\0" * 60, b"\0" * 64):
        path = write(tmp_path / "model.safetensors", content)
        with pytest.raises(InputError, match=r"whole|truncated|header cannot be read"):
            check_safetensors(path)
