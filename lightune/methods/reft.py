"""LoReFT: hidden states are edited in a low-rank subspace, h + Rᵀ(W h + b − R h) (Wu et al. 2024, equation 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightune import architectures
from lightune.errors import InputError
from lightune.options import check, option


class Edit(nn.Module):
    """h + Rᵀ(W h + b − R h), h [..., d]; R [r, d] has orthonormal rows. W starts as R and b at zero, so nothing is edited at first."""

    def __init__(self, size: int, rank: int, first_only: bool) -> None:
        super().__init__()
        self.first_only = first_only
        self.subspace = nn.Parameter(torch.randn(rank, size))
        self.weight = nn.Parameter(orthonormal(self.subspace.detach()))
        self.bias = nn.Parameter(torch.zeros(rank))

    def forward(self, hidden: Tensor) -> Tensor:
        """[b, s, d] → [b, s, d]."""
        if self.first_only:
            return torch.cat([self.edit(hidden[:, :1]), hidden[:, 1:]], 1)
        return self.edit(hidden)

    def edit(self, hidden: Tensor) -> Tensor:
        """[..., d] → [..., d]."""
        rotation = orthonormal(self.subspace)
        return hidden + nn.functional.linear(hidden, self.weight - rotation, self.bias) @ rotation


def orthonormal(rows: Tensor) -> Tensor:
    """Rows [r, d] made orthonormal, one after another (Gram–Schmidt): plain products, which every runtime has."""
    found: list[Tensor] = []
    for row in rows.unbind():
        for other in found:
            row = row - (row @ other) * other
        found.append(row / row.norm())
    return torch.stack(found)


def edit_output(block: nn.Module, given: Any, found: Any) -> Any:
    """A forward hook of a block that has an `edit`: edits the hidden states that it gives."""
    edit: Any = block.edit
    return (edit(found[0]), *found[1:]) if isinstance(found, tuple) else edit(found)


@dataclass(frozen=True)
class ReFT:
    """The output of chosen blocks is edited in a trained subspace."""

    rank: int = option(4, "dimensions of the subspace", low=1, high=64)
    layers: tuple[int, ...] = option((), "numbers of the blocks, from 0, as in 0+3; all by default")
    positions: str = option("all", "which tokens are edited", choices=("all", "first"))
    rate: ClassVar[float] = 2e-3

    def __post_init__(self) -> None:
        if isinstance(self.layers, int):
            object.__setattr__(self, "layers", (self.layers,))
        check(self)

    @property
    def leaves(self) -> Any:
        """Edits lie between the blocks: no weight takes them in."""
        return self

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Give the chosen blocks an edit each.

        Raises:
            InputError: a block that is not there.
        """
        blocks = architectures.blocks(backbone)
        chosen = self.layers or tuple(range(len(blocks)))
        wrong = [number for number in chosen if not isinstance(number, int) or not 0 <= number < len(blocks)]
        if wrong:
            raise InputError(
                f"reft:layers is {wrong[0]!r}, but the base has {len(blocks)} blocks: give numbers from 0 to {len(blocks) - 1}."
            )
        for number in chosen:
            blocks[number].edit = Edit(backbone.config.hidden_size, self.rank, self.positions == "first")  # type: ignore[union-attr, arg-type]
            blocks[number].register_forward_hook(edit_output)
        return backbone
