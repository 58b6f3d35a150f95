"""What a weights file says of itself, read with the standard library: enough to refuse a wrong or a truncated file early.

A GGUF file is: magic, version, counts, key-value pairs, tensor descriptions, padding, tensor data.
A safetensors file is: the length of a JSON header, that header, tensor data. Nothing here is ever unpickled.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path

from lightune.errors import InputError

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
# Tensor type → (values in a block, bytes of a block), as ggml fixes them; the size of a type that is not here is not checked.
TENSOR_BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 30: (1, 2)},
    **{2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 20: (32, 18), 39: (32, 17)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 34: (256, 54), 35: (256, 66)},
    **{16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 21: (256, 110), 22: (256, 82), 23: (256, 136), 29: (256, 56)},
}


@dataclass(frozen=True)
class GGUFFacts:
    """architecture: `general.architecture`. split: `tokenizer.ggml.pre`, how texts are split into words, "" where the file says nothing."""

    architecture: str
    split: str


def read_gguf_architecture(path: Path) -> str:
    """The architecture that `read_gguf` finds."""
    return read_gguf(path).architecture


def read_gguf(path: Path) -> GGUFFacts:
    """What a GGUF file says of itself, after the whole header was read and every tensor was found to lie inside the file.

    Raises:
        InputError: the file is no GGUF file, is of a version that nobody writes any more, or is truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(24)
        if start[:4] != b"GGUF":
            raise InputError(f"{path} is not a GGUF file: it starts with {start[:4]!r}, expected b'GGUF'. Download or convert it again.")
        if len(start) < 24:
            raise _truncated(path, size, "more")
        version = int.from_bytes(start[4:8], "little")
        if version not in (2, 3):
            raise InputError(
                f"{path} is a GGUF file of version {version}, expected 2 or 3 (little-endian). Convert it again with llama.cpp."
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                facts, end = _Cursor(data, path).read()
            except EOFError:
                raise _truncated(path, size, "more") from None
    if end > size:
        raise _truncated(path, size, f"{end:,} bytes")
    return facts


def check_safetensors(path: Path) -> None:
    """Read the header of a safetensors file and compare the length that it describes with the file's.

    Raises:
        InputError: the file is no safetensors file, or is truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= size - 8:
            raise InputError(
                f"{path} is not a whole safetensors file: {size:,} bytes, of which a header of {length:,}. Copy or download it again."
            )
        try:
            header = json.loads(file.read(length))
            end = max((tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"), default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise InputError(f"{path} is not a safetensors file: its header cannot be read ({error}). Copy or download it again.") from None
    if 8 + length + end != size:
        raise InputError(
            f"{path} is truncated or damaged: {size:,} bytes, its header describes {8 + length + end:,}. Copy or download it again."
        )


def _truncated(path: Path, size: int, described: str) -> InputError:
    return InputError(f"{path} is a truncated GGUF file: it has {size:,} bytes, its header describes {described}. Download it again.")


class _Cursor:
    """A position in a GGUF file; reading past its end is an EOFError."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 8

    def read(self) -> tuple[GGUFFacts, int]:
        """The facts, and where the last tensor ends in bytes from the file's start."""
        tensors, pairs = self.number(8), self.number(8)
        texts, alignment = {b"general.architecture": "", b"tokenizer.ggml.pre": ""}, 32
        for _ in range(pairs):
            key, kind = self.text(), self.number(4)
            if key in texts and kind == _STRING:
                texts[key] = self.text().decode("utf-8", "replace")
            elif key == b"general.alignment" and kind == 4:
                alignment = self.number(4) or 32
            else:
                self.skip(kind)
        ends = [self.tensor_end() for _ in range(tensors)]
        return GGUFFacts(*texts.values()), -(-self.at // alignment) * alignment + max(ends, default=0)

    def tensor_end(self) -> int:
        self.text()
        values = 1
        for _ in range(self.number(4)):
            values *= self.number(8)
        block, block_bytes = TENSOR_BLOCKS.get(self.number(4), (1, 0))
        return self.number(8) + -(-values // block) * block_bytes

    def take(self, count: int) -> bytes:
        self.at += count
        if self.at > len(self.data):
            raise EOFError
        return self.data[self.at - count : self.at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "little")

    def text(self) -> bytes:
        return self.take(self.number(8))

    def skip(self, kind: int) -> None:
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY:
            self.skip_array(self.number(4), self.number(8))
        else:
            self.take(self.scalar_bytes(kind))

    def skip_array(self, kind: int, count: int) -> None:
        if kind == _STRING:
            for _ in range(count):
                self.text()
        else:
            self.at += count * self.scalar_bytes(kind)  # the next `take` notices a count that is too large

    def scalar_bytes(self, kind: int) -> int:
        if kind not in _SCALAR_BYTES:
            raise InputError(
                f"{self.path} is a damaged GGUF file: value type {kind} at byte {self.at:,}, expected 0 to 12. Download it again."
            )
        return _SCALAR_BYTES[kind]
