"""Exported models that generate, by what lies in their folder; none of them needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightune.runtime import manifest
from lightune.runtime.generation import Generator


def load_written(path: Path, *, threads: int | None = None, **options: Any) -> Generator | None:
    """The generator of an exported folder or of a .gguf file; None where it is another task's, or transformers' to load.

    options: of a GGUF file, see `runtime.gguf.load_gguf`.

    Raises:
        InputError: a number is out of bounds. MissingExtra: its runtime is not installed. IntegrityError: it is damaged.
    """
    if path.suffix == ".gguf" or (path / "model.gguf").is_file():
        from lightune.runtime.gguf import load_gguf

        return load_gguf(path, threads=threads, **options)
    if (path / "model.onnx").is_file() and (path / "task.json").is_file():
        from lightune.runtime.onnx_generation import KINDS, load_onnx

        return load_onnx(path, threads=threads) if manifest.read_json(path / "task.json").get("kind") in KINDS else None
    return None
