"""Frozen layers: the token tables and the first blocks stay, the rest is trained (Lee et al. 2019, "What would Elsa do?")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from lightune import architectures
from lightune.errors import InputError
from lightune.options import check, option


@dataclass(frozen=True)
class Freeze:
    """The first `blocks` blocks and the embeddings stay frozen."""

    blocks: int | None = option(None, "blocks to freeze, counted from the input; half of them by default", low=0)
    rate: ClassVar[float] = 1e-4

    def __post_init__(self) -> None:
        check(self)

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Unfreeze all but the embeddings and the first blocks.

        Raises:
            InputError: the base has too few blocks, or shares one.
        """
        found = architectures.blocks(backbone)
        count = max(1, len(found) // 2) if self.blocks is None else self.blocks
        if count > len(found) or (count and len(found) == 1):
            cure = "its layers share one block; use head, bitfit or lora" if len(found) == 1 else f"give at most {len(found)}"
            raise InputError(f"freeze:blocks is {count}, but the base has {len(found)} block{'s' * (len(found) > 1)}: {cure}.")
        backbone.requires_grad_(True)
        for part in [*architectures.embeddings(backbone), *found[:count]]:
            part.requires_grad_(False)
        return backbone
