"""Houlsby adapters: two bottlenecks in every block (Houlsby et al. 2019, figure 2)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lightune import architectures
from lightune.methods.bottlenecks import Adapters, adapt, chosen_blocks


@dataclass(frozen=True)
class Houlsby(Adapters):
    """Adapters behind the output matrices of attention and of the feed-forward part, before their sums with the stream."""

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Put the adapters in.

        Raises:
            InputError: `drop_first` leaves no block, or the base is not built of known blocks.
        """
        layers = []
        for block in chosen_blocks(backbone, self.drop_first):
            layers += [matrices[-1] for matrices in architectures.attentions(block).values()]
            layers.append(architectures.feed_forward_ends(block)[1])
        return adapt(backbone, layers, self.reduction, self.activation)
