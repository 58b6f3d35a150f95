"""Pfeiffer adapters: one bottleneck in every block, half of Houlsby's (Pfeiffer et al. 2021, section 3.2 and figure 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from lightune import architectures
from lightune.methods.bottlenecks import ACTIVATIONS, DROP_FIRST, REDUCTION, adapt, chosen_blocks
from lightune.options import check, option


@dataclass(frozen=True)
class Pfeiffer:
    """An adapter behind the output matrix of every block's feed-forward part, before its sum with the stream."""

    reduction: int = option(16, REDUCTION, low=1)
    activation: str = option("gelu", "between the two matrices of an adapter", choices=tuple(ACTIVATIONS))
    drop_first: int = option(0, DROP_FIRST, low=0)
    rate: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        check(self)

    @property
    def leaves(self) -> Any:
        """Adapters are not linear: they stay."""
        return self

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Put the adapters in.

        Raises:
            InputError: `drop_first` leaves no block, or the base is not built of known blocks.
        """
        layers = [architectures.feed_forward_ends(block)[1] for block in chosen_blocks(backbone, self.drop_first)]
        return adapt(backbone, layers, self.reduction, self.activation)
