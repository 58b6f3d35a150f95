"""Export targets of models that generate text. Needs neither torch nor numpy.

A target is named by a spec, as those of classifiers are: ``hf``, ``gguf``, ``gguf:type=q4_k_m``. It is one module with
`write(network, encoder, chat, folder, *, base, name, options, sample) -> Path` and one entry in GENERATIVE. What it writes must be whole or
absent (`staging.staged`), and carry a manifest and the task.json of `describe`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightune.errors import MissingExtra
from lightune.options import build, check, option

FORMAT = 1
TYPES = {  # of a GGUF file, with the largest change of the perplexity
    "f32": 0.005, "f16": 0.005, "q8_0": 0.005, "q6_k": 0.02, "q5_k_m": 0.02, "q4_k_m": 0.05, "q4_k_s": 0.05, "q4_0": 0.15,
}  # fmt: skip
BITS = {32: 0.005, 8: 0.05, 4: 0.15}  # of a graph, likewise; what comes in is rounded too, which T5 bears less well than decoders


@dataclass(frozen=True)
class Closeness:
    """How far an exported generator may be from its model.

    perplexity: the largest change on held-out rows, as a share. agree: the least share of equal greedy answers; one unequal answer is always
    allowed, since few prompts cannot show a share. None means any.
    """

    perplexity: float | None = None
    agree: float | None = None

    def widened(self, slack: float) -> Closeness:
        """So many times as far in perplexity."""
        return dataclasses.replace(self, perplexity=None if self.perplexity is None else slack * self.perplexity)


@dataclass(frozen=True)
class Quantization:
    """How a GGUF file holds its weights."""

    type: str = option("q8_0", "the mixture of types, as llama.cpp names it", choices=tuple(TYPES))
    imatrix: bool = option(True, "round by what the data put through each matrix, where there are rows and fewer than 8 bits")

    def __post_init__(self) -> None:
        check(self)

    @property
    def tolerance(self) -> Closeness:
        """How far the file may be from the model."""
        return Closeness(perplexity=TYPES[self.type])


@dataclass(frozen=True)
class Storage:
    """How a Hugging Face folder holds its weights."""

    type: str = option("f32", "the type of every tensor", choices=("f32", "bf16", "f16"))

    def __post_init__(self) -> None:
        check(self)

    @property
    def tolerance(self) -> Closeness:
        """How far the folder may be from the model: with all bits it computes the same."""
        return Closeness(perplexity=0.005, agree=0.99 if self.type == "f32" else None)


@dataclass(frozen=True)
class Graph:
    """How an ONNX graph holds its weights."""

    bits: int = option(
        8, "of weight matrices, in the file and as they are multiplied; tables and logits have 8 where these have 4", choices=tuple(BITS)
    )

    def __post_init__(self) -> None:
        check(self)

    @property
    def tolerance(self) -> Closeness:
        """How far the graph may be from the model: with all bits it computes the same."""
        return Closeness(perplexity=BITS[self.bits], agree=0.99 if self.bits == 32 else None)


@dataclass(frozen=True)
class GenerativeExport:
    """A target of models that generate: the module that writes it, the package's extra that this needs, how weights are held, and the tasks
    whose models it takes."""

    module: str
    help: str
    extra: str
    options: Any
    tasks: tuple[str, ...] = ("generate",)

    @property
    def tolerance(self) -> Closeness:
        """How far it may be from the model: the fewer bits, the farther."""
        return self.options.tolerance

    def configured(self, values: dict[str, Any], name: str) -> GenerativeExport:
        """The target with other options, by their names.

        Raises:
            InputError: an unknown option, or a value out of bounds.
        """
        return dataclasses.replace(self, options=build(type(self.options), values, f"the target {name}"))

    def write(self, model: Any, folder: str | Path, *, name: str | None = None, sample: Sequence[Any] = ()) -> Path:
        """Write a model (it has network, encoder, chat and base) into a folder, under a name or else that of its base.

        sample: rows of token ids, int [s] each, of what the model will read and write; by them weights are rounded where the options say so.

        Raises:
            InputError: the network cannot be exported, or the folder cannot be written. MissingExtra: the target's packages are missing.
        """
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise MissingExtra(f"exporting with {self.module.rpartition('.')[2]}", str(error.name), self.extra) from error
        base = model.base.name
        facts = {"base": base, "name": name or base, "options": self.options, "sample": sample}
        return module.write(model.network, model.encoder, model.chat, folder, **facts)


GENERATIVE: dict[str, GenerativeExport] = {
    "gguf": GenerativeExport(
        "lightune.exports.gguf", "GGUF for llama.cpp, 8 bits or as in gguf:type=q4_k_m,imatrix=true", "gguf", Quantization()
    ),
    "onnx": GenerativeExport(
        "lightune.exports.onnx_generation",
        "ONNX that remembers keys and values, 8 bits or as in onnx:bits=32 or onnx:bits=4",
        "train",
        Graph(),
        ("generate", "translate"),
    ),
    "hf": GenerativeExport(
        "lightune.exports.hf", "a folder that transformers loads, fp32 or as in hf:type=bf16", "train", Storage(), ("generate", "translate")
    ),
}


def describe(encoder: Any, chat: Any, *, base: str, name: str, quantization: str, kind: str = "generate", **facts: Any) -> dict[str, Any]:
    """What task.json says of a model that generates, ready for JSON."""
    return {
        "format": FORMAT, "kind": kind, "name": name, "base": base, "chat": chat.to_dict(), "max_length": encoder.max_length,
        "tokenizer": encoder.to_dict(), "quantization": quantization, **facts,
    }  # fmt: skip
