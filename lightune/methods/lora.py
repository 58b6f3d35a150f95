"""LoRA: a trained product of two thin matrices beside every frozen weight matrix (Hu et al. 2022, equation 3), and what grew from it.

DoRA (Liu et al. 2024), PiSSA (Meng et al. 2024), LoRA+ (Hayou et al. 2024), rank-stabilised LoRA (Kalajdzievski 2023), ranks by importance
(as AdaLoRA, Zhang et al. 2023) and a quantized base (QLoRA, Dettmers et al. 2023).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from lightune import architectures
from lightune.errors import InputError, nearest
from lightune.methods.allocation import share_ranks, singular_values
from lightune.methods.layers import Around, surround
from lightune.methods.lowrank import STARTS, Decomposed, LowRank
from lightune.methods.quantized import Quantized
from lightune.options import check, option

BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class LoRA:
    """Low-rank changes of the weight matrices inside the blocks."""

    rank: int = option(8, "inner dimension of the change", low=1)
    alpha: float = option(16.0, "scale of the change: alpha / rank, or alpha / √rank with rslora", above=0)
    dropout: float = option(0.0, "dropout before the change", low=0.0, high=0.9)
    targets: tuple[str, ...] = option((), "ends of the names of the layers to change, as in query+value; all linear layers by default")
    rslora: bool = option(False, "rank-stabilised scale (Kalajdzievski 2023)")
    dora: bool = option(False, "train the norms of the weights' rows apart from their directions (Liu et al. 2024)")
    init: str = option("default", "how the change starts; pissa starts from the weight's own largest part", choices=tuple(STARTS))
    up_rate: float = option(1.0, "the rate of the second matrix as a multiple of the first's (LoRA+, Hayou et al. 2024: 16)", above=0)
    allocate: bool = option(False, "share the same sum of ranks among the layers by their gradients on the training data")
    ranks: tuple[int, ...] = option((), "the rank of every changed layer, lowest block first; written down by allocate")
    base: str = option("fp32", "how the frozen matrices are kept while training: int8 by row, int4 (NF4) by 64", choices=("fp32", *BITS))
    rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        if isinstance(self.targets, str):
            object.__setattr__(self, "targets", (self.targets,))
        if isinstance(self.ranks, int):
            object.__setattr__(self, "ranks", (self.ranks,))
        check(self)

    @property
    def edits_base(self) -> bool:
        """Whether the frozen weights are no longer the base's, so that a saved model must hold them."""
        return self.init == "pissa"

    def rate_multiple(self, name: str) -> float:
        """The factor of the learning rate for a trained parameter."""
        return self.up_rate if name.endswith(".up") else 1.0

    def plan(self, model: Any, examples: Sequence[Any]) -> LoRA:
        """The same with every layer's rank spelled out, where they are to be shared."""
        if not self.allocate or self.ranks:
            return self
        layers = self.choose(model.network.backbone)
        values = singular_values(model, examples, layers)
        return dataclasses.replace(self, ranks=share_ranks(values, self.rank))

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Wrap every target layer in a LowRank.

        Raises:
            InputError: a target that no layer's name ends with, ranks that do not fit, or a base that has LoRA already.
        """
        if any(isinstance(part, LowRank) for part in backbone.modules()):
            raise InputError("The model has LoRA layers already. Merge it before lora is applied once more.")
        layers = self.choose(backbone)
        if self.allocate and not self.ranks:
            raise InputError("lora:allocate must see the data first: model.apply(method.plan(model, examples)), as fit does.")
        if self.ranks and len(self.ranks) != len(layers):
            raise InputError(f"lora:ranks has {len(self.ranks)} numbers for {len(layers)} layers. Give one for each.")
        surround(
            backbone, {layer: self.wrap(layer, rank) for layer, rank in zip(layers, self.ranks or [self.rank] * len(layers), strict=True)}
        )
        return backbone

    def wrap(self, layer: nn.Module, rank: int) -> Around:
        """One layer with its change of a rank."""
        kind = Decomposed if self.dora else LowRank
        scale = self.alpha / (math.sqrt(rank) if self.rslora else rank)
        made = kind(layer, rank, scale, self.dropout)
        STARTS[self.init](made)
        if self.base in BITS:
            made.base = Quantized(layer, BITS[self.base])  # type: ignore[arg-type]
        if isinstance(made, Decomposed):
            made.reset_magnitude()
        return made

    def choose(self, backbone: nn.Module) -> list[nn.Module]:
        """The layers to change, lowest block first."""
        found = {layer: name for block in architectures.blocks(backbone) for name, layer in architectures.linears(block)}
        missing = [target for target in self.targets if not any(matches(name, target) for name in found.values())]
        if missing:
            known = sorted({name.rsplit(".", 1)[-1] for name in found.values()})
            hint = nearest(missing[0], known)
            raise InputError(
                f"lora:targets {', '.join(missing)} match no layer of {type(backbone).__name__}. Known: {', '.join(known)}.{hint}"
            )
        return [layer for layer, name in found.items() if not self.targets or any(matches(name, target) for target in self.targets)]

    def merge(self, backbone: nn.Module) -> nn.Module:
        """Fold every product into its weight, exactly up to rounding."""
        architectures.exchange(backbone, {part: part.fold() for part in backbone.modules() if isinstance(part, LowRank)})
        return backbone


def matches(name: str, target: str) -> bool:
    """Whether the last parts of a dotted layer name are `target`."""
    return name == target or name.endswith(f".{target}")
