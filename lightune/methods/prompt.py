"""Prompt tuning: trained vectors in the place of words before every text, nothing else (Lester et al. 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lightune import architectures
from lightune.errors import InputError
from lightune.methods.prompts import HEAD_SHARE, Prompted, Words, sample_words
from lightune.options import check, option


@dataclass(frozen=True)
class Prompt:
    """Trained vectors before every text."""

    tokens: int = option(20, "how many; as many as `text` has where one is given", low=1)
    text: str | None = option(None, "a text whose words the vectors start from; words drawn from the vocabulary by default")
    ids: tuple[int, ...] = option((), "the text's token ids, written down when the text is known")
    rate: ClassVar[float] = 3e-2

    def __post_init__(self) -> None:
        check(self)

    @property
    def taken(self) -> int:
        """Positions of the longest input that the vectors need."""
        return len(self.ids) or self.tokens

    @property
    def leaves(self) -> Any:
        """The vectors stay."""
        return self

    def plan(self, model: Any, examples: Sequence[Any]) -> Prompt:
        """The same with the text's ids, which only the model's tokenizer knows.

        Raises:
            InputError: the text has no tokens.
        """
        if self.text is None:
            return self
        ids = model.encoder.tokenizer.encode(self.text, add_special_tokens=False).ids
        if not ids:
            raise InputError(f"prompt:text is {self.text!r}, in which the base's tokenizer finds no tokens. Give words.")
        return dataclasses.replace(self, tokens=len(ids), ids=tuple(ids))

    def rate_multiple(self, name: str) -> float:
        """The factor of the learning rate for a trained parameter: what suits vectors before a text is far too much for the head."""
        return HEAD_SHARE if name.startswith("head.") else 1.0

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Put the vectors before the backbone.

        Raises:
            InputError: a text whose ids are not known yet.
        """
        if self.text is not None and not self.ids:
            raise InputError("prompt:text must be made token ids first: model.apply(method.plan(model, examples)), as fit does.")
        table = architectures.word_embedding(backbone).weight.detach()
        rows = table[torch.tensor(self.ids)].clone() if self.ids else sample_words(backbone, self.tokens)
        return Prompted(backbone, Words(rows))
