"""FFN: feed-forward neurons go, the same number from every block, those that the loss depends on least."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lightune.dimensions import cut_each, describe
from lightune.networks import Network
from lightune.options import check, option
from lightune.steps import kept_count, scores_for, strongest


@dataclass(frozen=True)
class FFN:
    """Fewer feed-forward neurons in every block; both halves of a gate together."""

    keep: float = option(0.5, "neurons of a block that stay: a count, or a share below 1", above=0)
    multiple: int = option(32, "the count is rounded up to a multiple of this, for which runtimes have kernels", low=1)
    neurons: tuple[Any, ...] = option((), "which neurons of each block stay")

    def __post_init__(self) -> None:
        check(self)

    def plan(self, model: Any, importance: Any) -> FFN:
        """Choose each block's neurons.

        Raises:
            InputError: no importance, one of another model, or a count that the model does not have.
        """
        if self.neurons:
            return self
        found = describe(model.network.backbone).ffn
        scores = scores_for("ffn", importance, "ffn", [dimension.size for dimension in found])
        count = kept_count(self.keep, found[0].size, "ffn:keep", self.multiple)
        return dataclasses.replace(self, neurons=tuple(strongest(part, count) for part in scores))

    def apply(self, network: Network) -> Network:
        """Cut the neurons.

        Raises:
            InputError: not one list for each block, or lists of different lengths, which no configuration could tell.
        """
        cut_each(describe(network.backbone).ffn, self.neurons, "ffn:neurons")
        return network

    def narrow(self, importance: Any) -> Any:
        """The importance of what this explicit step leaves."""
        kept = tuple(scores[list(chosen)] for scores, chosen in zip(importance.ffn, self.neurons, strict=True))
        return dataclasses.replace(importance, ffn=kept)
