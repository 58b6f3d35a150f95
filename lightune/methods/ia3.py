"""IA³: keys, values and the inner activations of the feed-forward part are scaled by trained vectors (Liu et al. 2022, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightune import architectures
from lightune.methods.layers import Around, surround


class ScaledOutput(Around):
    """base(x), of which the entries `start` to `stop` are multiplied by `scale`, which starts at one."""

    def __init__(self, base: nn.Module, start: int, stop: int) -> None:
        super().__init__(base)
        self.start, self.stop = start, stop
        self.scale = nn.Parameter(torch.ones(stop - start))

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] → [..., m]."""
        given = self.base(x)
        parts = (given[..., : self.start], given[..., self.start : self.stop] * self.scale, given[..., self.stop :])
        return torch.cat([part for part in parts if part.shape[-1]], -1)

    def fold(self) -> nn.Module:
        """The base with the rows of its weight, and its bias, multiplied."""
        weight: Any = self.base.weight
        with torch.no_grad():
            rows = weight.T if isinstance(self.base, Conv1D) else weight
            rows[self.start : self.stop] *= self.scale[:, None]
            if self.bias is not None:
                self.bias[self.start : self.stop] *= self.scale
        return self.base


class ScaledInput(Around):
    """base(x · scale), where `scale` starts at one."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.scale = nn.Parameter(torch.ones(architectures.features(base)[0]))

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] → [..., m]."""
        return self.base(x * self.scale)

    def fold(self) -> nn.Module:
        """The base with the columns of its weight multiplied."""
        weight: Any = self.base.weight
        with torch.no_grad():
            weight *= self.scale[:, None] if isinstance(self.base, Conv1D) else self.scale
        return self.base


@dataclass(frozen=True)
class IA3:
    """One trained factor for each entry of keys, of values and of the activations inside the feed-forward part."""

    rate: ClassVar[float] = 3e-2

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Put the scales around the matrices.

        Raises:
            InputError: a base whose keys and values cannot be told apart.
        """
        new: dict[nn.Module, Around] = {}
        for block in architectures.blocks(backbone):
            for key, value in architectures.keys_and_values(backbone, block):
                if key.layer is value.layer:
                    new[key.layer] = ScaledOutput(key.layer, key.start, value.stop)
                else:
                    new |= {span.layer: ScaledOutput(span.layer, span.start, span.stop) for span in (key, value)}
            last = architectures.feed_forward_ends(block)[1]
            new[last] = ScaledInput(last)
        surround(backbone, new)
        return backbone

    def merge(self, backbone: nn.Module) -> nn.Module:
        """Multiply the weights by the scales, exactly up to rounding."""
        scaled = [part for part in backbone.modules() if isinstance(part, (ScaledOutput, ScaledInput))]
        architectures.exchange(backbone, {part: part.fold() for part in scaled})
        return backbone
