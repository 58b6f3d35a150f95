"""Parallel adapters: a scaled bottleneck beside every feed-forward part (He et al. 2022, table 1: h ← h + s · f(x W_down) W_up)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from lightune import architectures
from lightune.methods.bottlenecks import ACTIVATIONS, Adapters, Bottleneck, chosen_blocks
from lightune.methods.layers import Around, surround
from lightune.options import option


class Passage:
    """Hands the adapter's answer from the first matrix to the last. An object of its own, for torch.export copies a module's plain lists."""

    def __init__(self) -> None:
        self.waiting: list[Tensor] = []


class Reader(Around):
    """The first matrix of a feed-forward part: what it reads goes through the adapter too, whose answer waits for the last matrix."""

    def __init__(self, base: nn.Module, adapter: Bottleneck, passage: Passage) -> None:
        super().__init__(base)
        self.adapter = adapter
        self.passage = passage

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] → [..., m]."""
        self.passage.waiting.append(self.adapter(x))
        return self.base(x)


class Writer(Around):
    """The last matrix of a feed-forward part, to whose output the adapter's is added."""

    def __init__(self, base: nn.Module, scale: float, passage: Passage) -> None:
        super().__init__(base)
        self.scale = scale
        self.passage = passage

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] → [..., m]."""
        return self.base(x) + self.scale * self.passage.waiting.pop()


@dataclass(frozen=True)
class Parallel(Adapters):
    """An adapter beside every feed-forward part: it reads the same input, and its scaled output is added."""

    activation: str = option("relu", "between the two matrices of an adapter", choices=tuple(ACTIVATIONS))
    scale: float = option(4.0, "factor of what an adapter adds", above=0)
    rate: ClassVar[float] = 3e-3

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Put the adapters in.

        Raises:
            InputError: `drop_first` leaves no block, or the base is not built of known blocks.
        """
        new: dict[nn.Module, Around] = {}
        for block in chosen_blocks(backbone, self.drop_first):
            first, last = architectures.feed_forward_ends(block)
            adapter = Bottleneck(architectures.features(first)[0], architectures.features(last)[1], self.reduction, self.activation)
            passage = Passage()
            new |= {first: Reader(first, adapter, passage), last: Writer(last, self.scale, passage)}
        surround(backbone, new)
        return backbone
