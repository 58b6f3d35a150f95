"""The shape of a model, as far as its cost depends on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Shape:
    """How large a model is in each dimension, and how exact its weights are.

    What a candidate changes:
        layers: blocks that a text passes; 0 is a static student (`shrink.static`): token vectors, a window over them and a head.
        hidden, heads, ffn: entries of the residual stream, heads and feed-forward neurons of a block (their mean where blocks differ).
        pooled: how many of the layers, the uppermost, read pairs of tokens.
        vocabulary: rows of the token table. positions: rows of the position table, 0 where there is none.
        embedding: columns of the token table where a matrix widens them to `hidden`, else 0.
        weights, tables: bits of the blocks' matrices and of the embedding tables, 32 for floats.
    What the architecture says:
        head_width: entries of one head.
        attention, feed_forward: a block's weights as multiples of hidden · heads · head_width and of hidden · ffn: 4 and 2 for BERT,
            less than 4 with grouped queries, 3 with a gate.
        shared: all layers use one block. narrow: positions have the columns of the token table, not those of the stream (ALBERT, ELECTRA).
    """

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocabulary: int
    positions: int = 0
    embedding: int = 0
    weights: int = 32
    tables: int = 32
    head_width: int = 64
    attention: float = 4.0
    feed_forward: float = 2.0
    shared: bool = False
    narrow: bool = False
    pooled: int = 0

    @classmethod
    def of(cls, model: Any) -> Shape:
        """The shape of a model (it has a network) in fp32.

        Raises:
            InputError: a structure whose dimensions are not known.
        """
        from lightune import architectures, dimensions  # here, so that a device without torch can read a table

        backbone = model.network.backbone
        table, layers = architectures.word_embedding(backbone), getattr(backbone.config, "num_hidden_layers", 0)
        if not layers:
            return cls(0, table.embedding_dim, 0, 0, table.num_embeddings)
        found, blocks = dimensions.describe(backbone), architectures.blocks(backbone)
        hidden, count = found.hidden.size, len(blocks)
        heads, ffn = (float(np.mean([each.size for each in group])) for group in (found.heads, found.ffn))
        heads *= found.queries
        inside = _count_weights(layer for block in blocks for _, layer in architectures.linears(block))
        outside = _count_weights(layer for block in blocks for layer in architectures.feed_forward(block))
        positions: list[Any] = [use.module for use in found.positions.uses if use.axis == 0] if found.positions else []
        return cls(
            layers, hidden, round(heads), round(ffn), table.num_embeddings, positions=found.positions.size if found.positions else 0,
            embedding=table.embedding_dim if table.embedding_dim != hidden else 0, head_width=found.head_width,
            attention=(inside - outside) / (count * hidden * heads * found.head_width), feed_forward=outside / (count * hidden * ffn),
            shared=count < layers, narrow=any(each.embedding_dim < hidden for each in positions), pooled=architectures.pooled_layers(backbone),
        )  # fmt: skip

    @property
    def width(self) -> int:
        """Entries of all heads together."""
        return self.heads * self.head_width

    @property
    def full_layers(self) -> float:
        """Layers that would do as much work if each read every token."""
        return self.layers - self.pooled / 2

    @property
    def stored_blocks(self) -> int:
        """Blocks whose weights are kept in the file."""
        return min(1, self.layers) if self.shared else self.layers

    @property
    def block_weights(self) -> float:
        """Weights in the matrices of one block."""
        return self.hidden * (self.attention * self.width + self.feed_forward * self.ffn)

    @property
    def work(self) -> float:
        """Multiply-adds of a token in the matrices of all blocks."""
        return self.full_layers * self.block_weights

    @property
    def other_weights(self) -> float:
        """Weights in the matrices outside blocks: what widens the token table, or the window of a static student over three tokens."""
        return self.embedding * self.hidden if self.layers else 3.0 * self.hidden**2


def _count_weights(layers: Iterable[Any]) -> int:
    return sum(layer.weight.numel() for layer in layers)
