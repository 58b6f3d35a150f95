"""P-tuning: the vectors before every text come from a small trained network over trained vectors (Liu et al. 2021, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightune.methods.prompt import Prompt
from lightune.methods.prompts import HEAD_SHARE, Prompted, Words, sample_words
from lightune.options import check, option


class Encoder(nn.Module):
    """words + network(words): trained vectors [p, e], which look at one another through the network."""

    def __init__(self, words: Tensor, width: int, kind: str) -> None:
        super().__init__()
        size = words.shape[1]
        self.embedding = nn.Parameter(words)
        self.mixer = nn.LSTM(size, width, num_layers=2, bidirectional=True) if kind == "lstm" else None
        self.inner = nn.Linear(size if self.mixer is None else 2 * width, width)
        self.outer = nn.Linear(width, size)
        nn.init.zeros_(self.outer.weight)  # the prompt starts as words of the vocabulary
        nn.init.zeros_(self.outer.bias)

    def forward(self) -> Tensor:
        """[p, e]."""
        mixed = self.embedding if self.mixer is None else self.mixer(self.embedding[:, None])[0][:, 0]
        return self.embedding + self.outer(torch.relu(self.inner(mixed)))


@dataclass(frozen=True)
class PTuning:
    """Vectors before every text that a small network makes; only what it gives is kept when the model is merged or exported."""

    tokens: int = option(20, "how many vectors", low=1)
    encoder: str = option("mlp", "what makes them", choices=("mlp", "lstm"))
    width: int = option(128, "inner size of what makes them", low=1)
    rate: ClassVar[float] = 3e-3

    def __post_init__(self) -> None:
        check(self)

    @property
    def taken(self) -> int:
        """Positions of the longest input that the vectors need."""
        return self.tokens

    @property
    def leaves(self) -> Any:
        """The vectors stay, as those of prompt tuning."""
        return Prompt(self.tokens)

    def rate_multiple(self, name: str) -> float:
        """The factor of the learning rate for a trained parameter: what suits the network and the head is far too little for the vectors."""
        return 1 / HEAD_SHARE if name.endswith(".prompt.embedding") else 1.0

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Put the vectors before the backbone."""
        return Prompted(backbone, Encoder(sample_words(backbone, self.tokens), self.width, self.encoder))

    def merge(self, backbone: nn.Module) -> nn.Module:
        """Put what the network gives in its place."""
        for part in backbone.modules():
            if isinstance(part, Prompted) and isinstance(part.prompt, Encoder):
                with torch.no_grad():
                    part.prompt = Words(part.prompt())
        return backbone
