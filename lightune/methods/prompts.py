"""What the prompt methods share: a backbone that reads trained vectors before every text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from lightune import architectures

HEAD_SHARE = 0.1  # of a prompt's rate, at which the head learns


class Prompted(nn.Module):
    """A backbone that reads what `prompt()` gives, float [p, e], before every text, and tells the vectors of the text's own tokens alone."""

    def __init__(self, base: nn.Module, prompt: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.prompt = prompt

    @property
    def config(self) -> Any:
        """The base's configuration."""
        return self.base.config

    def get_input_embeddings(self) -> nn.Module:
        """The base's token table."""
        return self.base.get_input_embeddings()  # type: ignore[operator]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, **options: Any
    ) -> BaseModelOutput:
        """Vectors [b, s, d] of int64 [b, s] ids; a mask that is None means that no row is padded."""
        words = self.get_input_embeddings()(input_ids)
        own = self.prompt().to(words.dtype).expand(words.shape[0], -1, -1)
        count = own.shape[1]
        given = {"attention_mask": _before(attention_mask, count, 1), "token_type_ids": _before(token_type_ids, count, 0)}
        given = {name: value for name, value in given.items() if value is not None}
        found = self.base(inputs_embeds=torch.cat([own, words], 1), **given, **options)
        states = found.get("hidden_states")
        return BaseModelOutput(
            last_hidden_state=found.last_hidden_state[:, count:],
            hidden_states=None if states is None else tuple(state[:, count:] for state in states),  # type: ignore[arg-type]
        )


class Words(nn.Module):
    """Trained vectors [p, e] in the place of words."""

    def __init__(self, embedding: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Parameter(embedding)

    def forward(self) -> Tensor:
        """[p, e]."""
        return self.embedding


def sample_words(backbone: nn.Module, count: int) -> Tensor:
    """Rows [count, e] of the base's token table, drawn by torch's generator (Lester et al. 2021, section 3.2: sampled vocabulary)."""
    table = architectures.word_embedding(backbone).weight.detach()
    return table[torch.randint(len(table), (count,))].clone()


def _before(values: Tensor | None, count: int, fill: int) -> Tensor | None:
    """`count` columns of `fill` before int64 [b, s] values."""
    return None if values is None else torch.cat([values.new_full((values.shape[0], count), fill), values], 1)
