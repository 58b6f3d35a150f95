"""Export targets: each writes a folder, which is then run and compared with the model.

A target is named by a spec: ``onnx``, or with options, as in ``onnx:weights=8,tables=4``; ``onnx-int8`` and ``onnx-int4`` are short for
specs of their own. A target is one file with `write(network, answers, encoder, folder, *, base, name, precision, sample) -> Path` and one
entry in EXPORTS. What it writes must be whole or absent (`staging.staged`), carry a manifest, and open with `lightune.runtime.load`.
Models that generate text have targets of their own, in `exports.generative`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightune.errors import InputError, MissingExtra, unknown
from lightune.exports.generative import GENERATIVE, Closeness, GenerativeExport
from lightune.exports.parity import Parity, Tolerance, verify
from lightune.options import as_dict, build, parse_spec
from lightune.precision import FP32, INT4, INT8, Precision

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "EXPORTS", "GENERATIVE", "Closeness", "Export", "GenerativeExport", "Parity", "Precision", "Tolerance", "find_export", "find_generative",
    "folder_name", "verify",
]  # fmt: skip

TOLERANCES = {32: Tolerance(difference=1e-3, agree=0.995), 8: Tolerance(agree=0.95), 4: Tolerance(agree=0.9)}
LONGEST_NAME = 60  # characters of a folder's name


@dataclass(frozen=True)
class Export:
    """An export target: the module that writes it, and with which precision."""

    module: str
    help: str
    precision: Precision = FP32

    @property
    def tolerance(self) -> Tolerance:
        """How far its answers may be from the model's: the fewer bits, the farther."""
        return TOLERANCES[min(self.precision.weights, self.precision.tables)]

    def write(
        self, model: Any, folder: str | Path, *, name: str | None = None, sample: Sequence[Any] = (), graph: ir.Model | None = None
    ) -> Path:
        """Write a model (it has network, answers, encoder and base) into a folder, under a name or else that of its base.

        sample: a few examples of what the model will read, from which the ranges of its activations are seen; none leaves them as they are.
        graph: the network's, from `exports.onnx.trace`, where it is there already.

        Raises:
            InputError: the network cannot be exported, or the folder cannot be written. MissingExtra: the target's packages are missing.
        """
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise MissingExtra(f"exporting with {self.module.rpartition('.')[2]}", str(error.name), "train") from error
        base = model.base.name
        facts = {"base": base, "name": name or base, "precision": self.precision, "sample": sample}
        return module.write(model.network if graph is None else graph, model.answers, model.encoder, folder, **facts)


ONNX = "lightune.exports.onnx"
EXPORTS: dict[str, Export] = {
    "onnx": Export(ONNX, "ONNX in fp32, or with options as in onnx:weights=8,tables=4"),
    "onnx-int8": Export(ONNX, "ONNX with int8 weights and tables", INT8),
    "onnx-int4": Export(ONNX, "ONNX with int4 weights and tables, as fast as int8", INT4),
}


def find_export(spec: str) -> Export:
    """The export target of a spec, for models that classify or score: a name, or a name with options of its precision.

    Raises:
        InputError: an unknown target or option, or a value out of bounds; the message names the nearest.
    """
    name, values = parse_spec(spec)
    _check_known(name, EXPORTS, GENERATIVE, "generate text")
    target = EXPORTS[name]
    if not values:
        return target
    return dataclasses.replace(target, precision=build(Precision, as_dict(target.precision) | values, f"the target {name}"))


def find_generative(spec: str, task: str = "generate") -> GenerativeExport:
    """The export target of a spec, for models that generate text: a name, or a name with options.

    Raises:
        InputError: an unknown target or option, one that does not suit the task, or a value out of bounds; the message names the nearest.
    """
    name, values = parse_spec(spec)
    _check_known(name, GENERATIVE, EXPORTS, "classify or score")
    if task not in GENERATIVE[name].tasks:
        suited = ", ".join(other for other, target in GENERATIVE.items() if task in target.tasks)
        raise InputError(f"{name!r} is no export target of {task}, whose models are an encoder and a decoder. Choose {suited}.")
    return GENERATIVE[name].configured(values, name)


def _check_known(name: str, table: Mapping[str, Any], others: Mapping[str, Any], whose: str) -> None:
    if name in table:
        return
    if name in others:
        raise InputError(f"{name!r} is an export target of models that {whose}, which this one does not. Choose one of {', '.join(table)}.")
    raise unknown("export target", name, table)


def folder_name(spec: str) -> str:
    """The name of the folder for what a target's spec gives: ``onnx:weights=8,tables=4`` → ``onnx-weights-8-tables-4``."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", spec).strip("-.")
    if len(plain) <= LONGEST_NAME:
        return plain
    return f"{plain[: LONGEST_NAME - 9]}-{hashlib.sha256(spec.encode()).hexdigest()[:8]}"
