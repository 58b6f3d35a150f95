"""Hidden: dimensions of the residual stream go, from every matrix, table and norm of the model and from its head, and heads with them.

Norms see other statistics over fewer dimensions: the answers change more than by cutting neurons or heads, and training must follow.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lightune.dimensions import Dimensions, Use, cut, cut_each, describe
from lightune.networks import Network
from lightune.options import check, option
from lightune.steps import kept_count, scores_for, strongest
from lightune.steps.heads import narrow_heads, strongest_heads


@dataclass(frozen=True)
class Hidden:
    """Fewer dimensions of the residual stream."""

    keep: float = option(0.5, "dimensions that stay: a count, or a share below 1", above=0)
    multiple: int = option(1, "the count is rounded up to a multiple of this, and of a head's width so that hidden = heads · width", low=1)
    heads: bool = option(True, "cut heads by the same share, so that the shape stays one of the model's own configuration")
    dimensions: tuple[Any, ...] = option((), "which dimensions stay")
    kept_heads: tuple[Any, ...] = option((), "which heads of each attention stay, as in the step heads")

    def __post_init__(self) -> None:
        check(self)

    def plan(self, model: Any, importance: Any) -> Hidden:
        """Choose the dimensions, and each attention's heads.

        Raises:
            InputError: no importance, one of another model, or a count that the model does not have.
        """
        if self.dimensions and (self.kept_heads or not self.heads):
            return self
        found = describe(model.network.backbone)
        kept = self.dimensions
        if not kept:
            (scores,) = scores_for("hidden", importance, "hidden", [found.hidden.size])
            width = found.head_width * found.queries
            multiple = math.lcm(self.multiple, width) if self.heads else self.multiple
            kept = strongest(scores, kept_count(self.keep, found.hidden.size, "hidden:keep", multiple))
        heads = self.kept_heads
        if self.heads and not heads:
            heads = strongest_heads("hidden", found, importance, _heads_for(found, len(kept)))
        return dataclasses.replace(self, dimensions=kept, kept_heads=heads)

    def apply(self, network: Network) -> Network:
        """Cut the stream of the backbone, the head's input, and the heads.

        Raises:
            InputError: dimensions or heads that the model does not have.
        """
        found = describe(network.backbone)
        stream = dataclasses.replace(found.hidden, uses=(*found.hidden.uses, Use(network.head, "weight", 1)))
        if self.kept_heads:
            cut_each(found.heads, self.kept_heads, "hidden:kept-heads")
        cut(stream, self.dimensions)
        return network

    def narrow(self, importance: Any) -> Any:
        """The importance of what this explicit step leaves."""
        rest = dataclasses.replace(importance, hidden=importance.hidden[list(self.dimensions)])
        return narrow_heads(rest, self.kept_heads) if self.kept_heads else rest


def _heads_for(found: Dimensions, hidden: int) -> int:
    """How many units of heads belong to so many dimensions; where heads have gone before, no more go than the shape asks for."""
    units = found.heads[0].size
    if found.bound:
        return max(1, min(units, hidden // (found.head_width * found.queries)))
    return -(-units * hidden // found.hidden.size)
