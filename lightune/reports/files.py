"""A file that a report writes appears whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from lightune.errors import InputError


def write_text(text: str, path: Path) -> Path:
    """Write a file whole or not at all. InputError with the cure where the place cannot be written."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        reason = error.strerror or str(error)
        raise InputError(
            f"{str(path)!r} cannot be written: {reason}. Make room or make the folder writable; a report can go elsewhere with --out."
        ) from error
    return path
