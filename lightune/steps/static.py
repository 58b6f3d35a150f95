"""Static: the far end. No blocks are left: a token's vector no longer depends on its text, and neighbours are looked at in a small window.

What is kept of the base are its token vectors, cut to their principal components (Mikolov et al. 2013; as model2vec does with what a
sentence encoder gives for each token alone). Neurons look at every three neighbouring tokens, and of each neuron the highest answer in
the text counts (Kim 2014, equations 2 to 4). It must be trained on what the model before answers (Tang et al. 2019); untrained it
knows nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from lightune import architectures
from lightune.errors import InputError
from lightune.networks import LanguageNetwork, Network
from lightune.options import check, option
from lightune.runtime.tokenization import Encoder
from lightune.steps import kept_count

INPUTS = ("input_ids", "attention_mask")
COMPARING = ("pair", "regress")  # tasks whose examples may be two texts


@dataclass(frozen=True)
class Static:
    """Token vectors and a small window over them in the place of the whole base."""

    keep: float = option(128, "dimensions of a token's vector, and neurons of the window: a count, or a share below 1", above=0)
    separator: int | None = option(None, "id of the token that ends the first of two texts; chosen by the task's kind", low=0)
    rate: ClassVar[float] = 3e-3

    def __post_init__(self) -> None:
        check(self)

    def plan(self, model: Any, importance: Any) -> Static:
        """Choose the count, and whether two texts are compared; importance is not asked.

        Raises:
            InputError: more dimensions than the base has, two texts that nothing separates, or a model that generates.
        """
        if isinstance(model.network, LanguageNetwork):
            raise InputError(
                "static leaves nothing that could write text. Use depth, ffn, heads, hidden or vocab for a model that generates."
            )
        count = kept_count(self.keep, model.network.backbone.config.hidden_size, "static:keep")
        separator = self.separator
        if separator is None and model.answers.kind in COMPARING:
            separator = find_separator(model.encoder.tokenizer)
            if separator is None and model.answers.kind == "pair":
                raise InputError("static cannot compare two texts that the tokenizer does not separate. Choose another base, or cut depth.")
        return dataclasses.replace(self, keep=count, separator=separator)

    def apply(self, network: Network) -> Network:
        """Replace the backbone and the head; the window and the head are always drawn the same."""
        table = architectures.word_embedding(network.backbone).weight.detach()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            backbone = StaticEncoder(len(table), int(self.keep), self.separator).to(table.device)
            head = nn.Linear(backbone.config.hidden_size, network.head.out_features).to(table.device)
        with torch.no_grad():
            backbone.table.weight.copy_(principal_components(table, int(self.keep)))
        network.backbone, network.head = backbone, head
        network.pooling, network.inputs = "cls", INPUTS
        return network

    def reencode(self, encoder: Encoder) -> Encoder:
        """The same tokens, without types: the separator tells the texts apart."""
        return Encoder(encoder.tokenizer, encoder.max_length, encoder.pad_id, INPUTS)


@dataclass
class StaticConfig:
    """What others ask a backbone's configuration for: width of its answer and rows of its token table."""

    hidden_size: int
    vocab_size: int
    model_type: str = "static"


class StaticEncoder(nn.Module):
    """Token ids to one vector for each text.

    Args:
        tokens: rows of the table. width: its columns w, and the neurons of the window.
        separator: id of the token behind the first of two texts u and v, which are then compared: u, v, |u - v| and u · v stand side by
            side (Conneau et al. 2017, section 3.1); None where there is one text.
    """

    def __init__(self, tokens: int, width: int, separator: int | None = None) -> None:
        super().__init__()
        self.config = StaticConfig(width if separator is None else 4 * width, tokens)
        self.separator = separator
        self.table = nn.Embedding(tokens, width)
        self.window = nn.Linear(3 * width, width)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token table."""
        return self.table

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BaseModelOutput:
        """`last_hidden_state` [b, 1, d] from int64 [b, s] ids: one vector for the whole text, in the place of its first token."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inside = mask[:, :, None].to(self.table.weight.dtype)
        vectors = functional.pad(self.table(input_ids) * inside, (0, 0, 1, 1))
        around = torch.cat([vectors[:, :-2], vectors[:, 1:-1], vectors[:, 2:]], dim=-1)
        seen = torch.relu(self.window(around)) * inside  # no answer is below 0, so padding never is the highest
        if self.separator is None:
            return BaseModelOutput(last_hidden_state=seen.amax(1, keepdim=True))
        later = ((input_ids == self.separator).cumsum(1) > 0)[:, :, None].to(seen.dtype)
        first, second = (seen * (1 - later)).amax(1, keepdim=True), (seen * later).amax(1, keepdim=True)
        return BaseModelOutput(last_hidden_state=torch.cat([first, second, (first - second).abs(), first * second], dim=-1))


def principal_components(table: Tensor, width: int) -> Tensor:
    """The rows of a table [V, d] in the directions in which they differ most, [V, width], with a mean squared length of 1.

    Columns beyond d are 0.
    """
    rows = table.double() - table.double().mean(0)
    directions = torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)[:, :width]
    found = rows @ directions
    found = found / found.square().sum(1).mean().sqrt().clamp(min=1e-12)
    return functional.pad(found, (0, width - found.shape[1])).to(table.dtype)


def find_separator(tokenizer: Tokenizer) -> int | None:
    """The id that a tokenizer puts behind the first of two texts, and nowhere before; None where it puts none."""
    both = tokenizer.encode("a", "a")
    begin = next(place for place, text in enumerate(both.sequence_ids) if text == 1)
    ends = [place for place, text in enumerate(both.sequence_ids) if text == 0]
    between = both.ids[ends[-1] + 1 : begin]
    return between[0] if between and between[0] not in both.ids[: ends[-1] + 1] else None
