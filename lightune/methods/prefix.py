"""Prefix tuning: trained keys and values before those of the text in every attention (Li and Liang 2021, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightune import architectures
from lightune.architectures import Span
from lightune.errors import InputError
from lightune.methods.layers import Around, surround
from lightune.methods.prompts import Prompted, sample_words
from lightune.options import check, option


class Overwritten(Around):
    """base(x), x [b, s, n], of whose first p positions the entries from `start` on are the trained `entries` [p, k]."""

    def __init__(self, base: nn.Module, start: int, entries: Tensor) -> None:
        super().__init__(base)
        self.start = start
        self.entries = nn.Parameter(entries)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, n] → [b, s, m]."""
        given = self.base(x)
        (count, size), stop = self.entries.shape, self.start + self.entries.shape[1]
        own = self.entries.to(given.dtype).expand(given.shape[0], -1, -1)
        middle = torch.cat([own, given[:, count:, self.start : stop]], 1)
        if size == given.shape[-1]:
            return middle
        return torch.cat([given[..., : self.start], middle, given[..., stop:]], -1)


class Places(nn.Module):
    """Zeros [p, e] that hold the prefix's places in the sequence: nobody reads what is there but the keys and values."""

    zero: Tensor

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        self.count, self.size = count, size
        self.register_buffer("zero", torch.zeros(1), persistent=False)  # knows the device

    def forward(self) -> Tensor:
        """[p, e]."""
        return self.zero.expand(self.count, self.size)


@dataclass(frozen=True)
class Prefix:
    """Trained keys and values before those of every text, in every attention."""

    tokens: int = option(20, "how many of each", low=1)
    rate: ClassVar[float] = 1e-2

    def __post_init__(self) -> None:
        check(self)

    @property
    def taken(self) -> int:
        """Positions of the longest input that the prefix needs."""
        return self.tokens

    @property
    def leaves(self) -> Any:
        """Keys and values stay."""
        return self

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Hold places before the text and overwrite their keys and values, which works for every kind of attention and position.

        They start as those of words drawn from the vocabulary (section 7.4 there: activations of real words).

        Raises:
            InputError: a base whose keys and values cannot be told apart, or whose key matrix also reads a table of positions.
        """
        if any(getattr(part, "share_att_key", False) for part in backbone.modules()):
            raise InputError(f"{type(backbone).__name__} makes keys of relative positions with the same matrix. Use prompt or lora.")
        spans = [
            span for block in architectures.blocks(backbone) for pair in architectures.keys_and_values(backbone, block) for span in pair
        ]
        joined: dict[nn.Module, Span] = {}  # of a fused matrix the keys and values lie side by side
        for span in spans:
            start = min(span.start, joined[span.layer].start) if span.layer in joined else span.start
            joined[span.layer] = Span(span.layer, start, span.stop)
        words = sample_words(backbone, self.tokens)
        seen = read_outputs(backbone, words, list(joined))
        surround(
            backbone,
            {layer: Overwritten(layer, span.start, seen[layer][:, span.start : span.stop].clone()) for layer, span in joined.items()},
        )
        return Prompted(backbone, Places(*words.shape))


def read_outputs(backbone: nn.Module, words: Tensor, layers: list[nn.Module]) -> dict[nn.Module, Tensor]:
    """What every one of these layers gives, [p, m], while the backbone reads word vectors [p, e]; of a shared one the first time."""
    seen: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, given: Any, found: Tensor) -> None:
        seen.setdefault(layer, found[0].detach())

    hooks = [layer.register_forward_hook(note) for layer in layers]
    training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(inputs_embeds=words[None])
    finally:
        backbone.train(training)
        for hook in hooks:
            hook.remove()
    return seen
