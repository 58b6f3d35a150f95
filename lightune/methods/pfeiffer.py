"""Pfeiffer adapters: one bottleneck in every block, half of Houlsby's (Pfeiffer et al. 2021, section 3.2 and figure 3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightune import architectures
from lightune.methods.bottlenecks import Adapters, adapt, chosen_blocks


@dataclass(frozen=True)
class Pfeiffer(Adapters):
    """An adapter behind the output matrix of every block's feed-forward part, before its sum with the stream."""

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Put the adapters in.

        Raises:
            InputError: `drop_first` leaves no block, or the base is not built of known blocks.
        """
        layers = [architectures.feed_forward_ends(block)[1] for block in chosen_blocks(backbone, self.drop_first)]
        return adapt(backbone, layers, self.reduction, self.activation)
