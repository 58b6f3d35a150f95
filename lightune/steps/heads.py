"""Heads: attention heads go, the same number from every attention, those that the loss depends on least."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightune.dimensions import Dimensions, cut_each, describe
from lightune.networks import Network
from lightune.options import check, option
from lightune.steps import kept_count, scores_for, strongest


@dataclass(frozen=True)
class Heads:
    """Fewer attention heads. A configuration without a head width of its own (BERT's) cannot tell this shape: see `Hidden`."""

    keep: float = option(
        0.5, "query heads of an attention that stay: a count, or a share below 1; groups of grouped queries stay whole", above=0
    )
    heads: tuple[Any, ...] = option((), "which heads of each attention stay; with grouped queries, which key/value heads")

    def __post_init__(self) -> None:
        check(self)

    def plan(self, model: Any, importance: Any) -> Heads:
        """Choose each attention's heads.

        Raises:
            InputError: no importance, one of another model, or a count that the model does not have.
        """
        if self.heads:
            return self
        found = describe(model.network.backbone)
        count = kept_count(self.keep, found.heads[0].size * found.queries, "heads:keep", found.queries)
        return dataclasses.replace(self, heads=strongest_heads("heads", found, importance, count // found.queries))

    def apply(self, network: Network) -> Network:
        """Cut the heads.

        Raises:
            InputError: not one list for each attention, or lists of different lengths, which no configuration could tell.
        """
        cut_each(describe(network.backbone).heads, self.heads, "heads:heads")
        return network

    def narrow(self, importance: Any) -> Any:
        """The importance of what this explicit step leaves."""
        return narrow_heads(importance, self.heads)


def strongest_heads(step: str, found: Dimensions, importance: Any, count: int) -> tuple[tuple[int, ...], ...]:
    """The `count` most important units of every attention; a unit is worth the sum of its query heads.

    Raises:
        InputError: no importance, or one of another model.
    """
    scores = scores_for(step, importance, "heads", [dimension.size * found.queries for dimension in found.heads])
    return tuple(strongest(part.reshape(-1, found.queries).sum(1), count) for part in scores)


def narrow_heads(importance: Any, kept: Sequence[Sequence[int]]) -> Any:
    """The importance of a model of whose heads some units stay."""
    queries = importance.queries
    heads = tuple(part.reshape(-1, queries)[list(chosen)].ravel() for part, chosen in zip(importance.heads, kept, strict=True))
    return dataclasses.replace(importance, heads=heads, queries=queries if len(kept[0]) > 1 else 1)
