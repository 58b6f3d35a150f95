"""How many bits an exported model keeps of what it has learned. Needs neither torch nor numpy."""

from __future__ import annotations

from dataclasses import dataclass

from lightune.options import check, option

BITS = (32, 8, 4)
ROUNDINGS = ("auto", "nearest", "weighted", "gptq", "hqq")
RANGES = ("dynamic", "static")


@dataclass(frozen=True)
class Precision:
    """The bits of weight matrices, embedding tables and activations in an exported model.

    Quantized matrices are multiplied as int8 with activations that are quantized as they come, or by ranges seen on a sample; 4 bits are those in the file, which are
    unpacked once, when the model is opened, so that they cost no time. Biases, norms and the matrix that makes the logits stay fp32.
    """

    weights: int = option(32, "bits of every weight matrix: 32, 8 or 4", choices=BITS)
    tables: int = option(32, "bits of every embedding table: 32, 8 or 4", choices=BITS)
    activations: int = option(8, "bits of what a quantized matrix is multiplied with: 8 as they come, or 32 (weight-only)", choices=(32, 8))
    keep: tuple[str, ...] = option(
        (), "matrices and tables that stay floating point, by the end of their names, as in layer.0.output.dense"
    )
    eight: tuple[str, ...] = option((), "those that have 8 bits where the others have 4")
    rounding: str = option(
        "auto",
        "how weights find their values: the nearest, weighted by what they read, gptq (errors passed on), or hqq (needs no sample); auto takes gptq for 4 bits where there is a sample, else the nearest",
        choices=ROUNDINGS,
    )
    ranges: str = option(
        "dynamic", "where the ranges of 8-bit activations come from: every text anew, or once and for all a sample (static)", choices=RANGES
    )

    def __post_init__(self) -> None:
        for name in ("keep", "eight"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))
        check(self)

    @property
    def quantizes(self) -> bool:
        """Whether anything loses bits."""
        return min(self.weights, self.tables) < 32

    @property
    def multiplies_static(self) -> bool:
        """Whether matrices are multiplied as int8 with activations whose ranges are fixed."""
        return self.weights < 32 and self.activations == 8 and self.ranges == "static"

    @property
    def label(self) -> str:
        """A short name: fp32, int8, int4, or the bits of weights and tables, as in w8-t4, and what is out of the ordinary."""
        plain = {32: "fp32", 8: "int8", 4: "int4"}[self.weights] if self.weights == self.tables else f"w{self.weights}-t{self.tables}"
        weight_only = "-weight-only" if self.weights < 32 and self.activations == 32 else ""
        static = "-static" if self.multiplies_static else ""
        return f"{plain}{weight_only}{static}{'-mixed' if self.keep or self.eight else ''}"

    def keeps(self, name: str) -> bool:
        """Whether the parameter of that name is among those that stay floating point."""
        return _matches(name, self.keep)

    def bits(self, name: str, *, table: bool = False) -> int:
        """The bits of the matrix or table with that parameter name."""
        if self.keeps(name):
            return 32
        bits = self.tables if table else self.weights
        return max(bits, 8) if _matches(name, self.eight) else bits


def _matches(name: str, ends: tuple[str, ...]) -> bool:
    stem = name.removesuffix(".weight")
    return any(f".{stem}".endswith(f".{end.removesuffix('.weight')}") for end in ends)


FP32, INT8, INT4 = Precision(), Precision(weights=8, tables=8), Precision(weights=4, tables=4)
