"""What the adapter methods share: their options, the bottleneck, and where it is put."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightune import architectures
from lightune.errors import InputError
from lightune.methods.layers import Around, surround
from lightune.options import check, option

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "relu": nn.functional.relu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True)
class Adapters:
    """The options of every adapter method."""

    reduction: int = option(16, "inner size of an adapter: what its matrix gives, divided by this", low=1)
    activation: str = option("gelu", "between the two matrices of an adapter", choices=tuple(ACTIVATIONS))
    drop_first: int = option(0, "no adapters in this many first blocks (AdapterDrop, Rücklé et al. 2021)", low=0)
    rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        check(self)

    @property
    def leaves(self) -> Any:
        """Adapters are not linear: they stay."""
        return self


class Bottleneck(nn.Module):
    """up · activation(down · x), [..., n] → [..., m], through an inner size; `up` starts at zero, so that it starts by adding nothing."""

    def __init__(self, takes: int, gives: int, reduction: int, activation: str) -> None:
        super().__init__()
        inner = max(1, gives // reduction)
        self.activation = activation
        self.down, self.up = nn.Linear(takes, inner), nn.Linear(inner, gives)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for item in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(item)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] → [..., m]."""
        return self.up(ACTIVATIONS[self.activation](self.down(x)))


class Adapted(Around):
    """A weight matrix whose output h goes through an adapter: h + bottleneck(h)."""

    def __init__(self, base: nn.Module, reduction: int, activation: str) -> None:
        super().__init__(base)
        width = architectures.features(base)[1]
        self.adapter = Bottleneck(width, width, reduction, activation)

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] → [..., m]."""
        hidden = self.base(x)
        return hidden + self.adapter(hidden)


def chosen_blocks(backbone: nn.Module, drop_first: int) -> list[nn.Module]:
    """The blocks after the first `drop_first`.

    Raises:
        InputError: nothing is left.
    """
    found = architectures.blocks(backbone)
    if drop_first >= len(found):
        raise InputError(f"drop-first is {drop_first}, but the base has {len(found)} block{'s' * (len(found) > 1)}: give less.")
    return found[drop_first:]


def adapt(backbone: nn.Module, layers: Sequence[nn.Module], reduction: int, activation: str) -> nn.Module:
    """Put an adapter behind every one of these matrices."""
    surround(backbone, {layer: Adapted(layer, reduction, activation) for layer in layers})
    return backbone
