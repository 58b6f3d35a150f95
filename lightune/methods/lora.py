"""LoRA: a trained product of two thin matrices beside every frozen weight matrix (Hu et al. 2022, equation 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightune import architectures
from lightune.errors import InputError, nearest
from lightune.kernels import Dropout
from lightune.methods.layers import Around, surround
from lightune.options import check, option


class LowRank(Around):
    """base(x) + scale · up(down(drop(x))), x [..., n], down [r, n], up [m, r]; up starts at zero, so the model starts unchanged."""

    own_dropout = True  # the dropout inside the base is set apart from the method's

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base)
        columns, rows = architectures.features(base)
        self.scale = scale
        self.drop = Dropout(dropout)
        self.down = nn.Parameter(torch.empty(rank, columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] → [..., m]."""
        thin = nn.functional.linear(self.drop(x), self.down)
        return self.base(x) + nn.functional.linear(thin, self.up) * self.scale

    def fold(self) -> nn.Module:
        """The base layer with the product added to its weight."""
        weight: Any = self.base.weight
        change = (self.up.double() @ self.down.double() * self.scale).to(weight.dtype)
        with torch.no_grad():
            weight += change if isinstance(self.base, nn.Linear) else change.T
        return self.base


@dataclass(frozen=True)
class LoRA:
    """Low-rank changes of the weight matrices inside the blocks."""

    rank: int = option(8, "inner dimension of the change", low=1)
    alpha: float = option(16.0, "scale of the change: alpha / rank, or alpha / √rank with rslora", above=0)
    dropout: float = option(0.0, "dropout before the change", low=0.0, high=0.9)
    targets: tuple[str, ...] = option((), "ends of the names of the layers to change, as in query+value; all linear layers by default")
    rslora: bool = option(False, "rank-stabilised scale (Kalajdzievski 2023)")
    rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        if isinstance(self.targets, str):
            object.__setattr__(self, "targets", (self.targets,))
        check(self)

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Wrap every target layer in a LowRank.

        Raises:
            InputError: a target that no layer's name ends with, or a base that has LoRA already.
        """
        if any(isinstance(part, LowRank) for part in backbone.modules()):
            raise InputError("The model has LoRA layers already. Merge it before lora is applied once more.")
        scale = self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)
        found = {layer: name for block in architectures.blocks(backbone) for name, layer in architectures.linears(block)}
        missing = [target for target in self.targets if not any(matches(name, target) for name in found.values())]
        if missing:
            known = sorted({name.rsplit(".", 1)[-1] for name in found.values()})
            hint = nearest(missing[0], known)
            raise InputError(
                f"lora:targets {', '.join(missing)} match no layer of {type(backbone).__name__}. Known: {', '.join(known)}.{hint}"
            )
        chosen = [layer for layer, name in found.items() if not self.targets or any(matches(name, target) for target in self.targets)]
        new = {layer: LowRank(layer, self.rank, scale, self.dropout) for layer in chosen}
        surround(backbone, new)
        return backbone

    def merge(self, backbone: nn.Module) -> nn.Module:
        """Fold every product into its weight, exactly up to rounding."""
        architectures.exchange(backbone, {part: part.fold() for part in backbone.modules() if isinstance(part, LowRank)})
        return backbone


def matches(name: str, target: str) -> bool:
    """Whether the last parts of a dotted layer name are `target`."""
    return name == target or name.endswith(f".{target}")
