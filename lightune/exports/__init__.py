"""Export targets: each writes a folder, which is then run and compared with the model.

A target is one file with `write(network, answers, encoder, folder, *, base, name, **options) -> Path` and one entry in EXPORTS. What it
writes must be whole or absent (`staging.staged`), carry a manifest, and open with `lightune.runtime.load`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightune.errors import MissingExtra, unknown
from lightune.exports.parity import Parity, Tolerance, verify

__all__ = ["EXPORTS", "Export", "Parity", "Tolerance", "find_export", "verify"]


@dataclass(frozen=True)
class Export:
    """An export target: the module that writes it, with which options, and how far its answers may be from the model's."""

    module: str
    help: str
    tolerance: Tolerance
    options: Mapping[str, Any] = field(default_factory=dict)

    def write(self, model: Any, folder: str | Path, *, name: str | None = None) -> Path:
        """Write a model (it has network, answers, encoder and base) into a folder, under a name or else that of its base.

        Raises:
            InputError: the network cannot be exported, or the folder cannot be written. MissingExtra: the target's packages are missing.
        """
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise MissingExtra(f"exporting with {self.module.rpartition('.')[2]}", str(error.name), "train") from error
        base = model.base.name
        return module.write(model.network, model.answers, model.encoder, folder, base=base, name=name or base, **self.options)


EXPORTS: dict[str, Export] = {
    "onnx": Export("lightune.exports.onnx", "ONNX in fp32", Tolerance(difference=1e-3, agree=0.995), {"precision": "fp32"}),
    "onnx-int8": Export("lightune.exports.onnx", "ONNX with int8 weights and tables", Tolerance(agree=0.95), {"precision": "int8"}),
}


def find_export(name: str) -> Export:
    """The export target of that name.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    if name not in EXPORTS:
        raise unknown("export target", name, EXPORTS)
    return EXPORTS[name]
