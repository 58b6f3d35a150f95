"""Vocab: tokens that the data and their language do not need go, and positions beyond the longest text.

What stays is chosen by `vocabularies.choose`. Texts whose tokens all stay get exactly the answers that they got before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch import nn

from lightune.architectures import longest_input, word_embedding
from lightune.dimensions import Use, cut, describe
from lightune.errors import InputError
from lightune.networks import LanguageNetwork, Network
from lightune.options import check, option
from lightune.renumbering import cut_tokenizer
from lightune.runtime.chat import ChatFormat
from lightune.runtime.tokenization import Encoder
from lightune.steps import kept_count
from lightune.vocabularies import Vocabulary, choose


@dataclass(frozen=True)
class Vocab:
    """Fewer tokens and positions."""

    keep: float | None = option(None, "tokens that stay: a count, or a share below 1; all by default", above=0)
    positions: int | None = option(None, "tokens of the longest text that can be read; all that the model can by default", low=4)
    characters: str = option(
        "data",
        "single characters that stay where no bytes can spell them: first those that the data use, or all, so that no text is lost",
        choices=("data", "all"),
    )
    ids: tuple[Any, ...] = option((), "which tokens stay")

    def __post_init__(self) -> None:
        check(self)

    def plan(self, model: Any, importance: Any) -> Vocab:
        """Choose the tokens that stay, by how often the data use them; by their order where no importance is given.

        Raises:
            InputError: fewer tokens than must stay, more tokens or positions than there are, or the importance of another vocabulary.
        """
        backbone, encoder = model.network.backbone, model.encoder
        self._check_positions(encoder, longest_input(backbone.config))
        if self.ids:
            return self
        vocabulary = Vocabulary.of(encoder.tokenizer)
        whole = len(vocabulary.tokens)
        count = whole if self.keep is None else kept_count(self.keep, whole, "vocab:keep")
        named = (
            {number for _, _, number in _named_ids(backbone)} | {encoder.pad_id} | _spoken(encoder.tokenizer, getattr(model, "chat", None))
        )
        if self.characters == "all":
            named |= {number for forms in vocabulary.characters.values() for number in forms}
        table = word_embedding(backbone).weight.detach().float().cpu().numpy()
        ids = choose(vocabulary, count, token_counts(model, importance), table, named & vocabulary.tokens.keys())
        return dataclasses.replace(self, keep=len(ids), ids=ids)

    def apply(self, network: Network) -> Network:
        """Cut the token table, the language model's head, the position table, and the ids in the configuration.

        Raises:
            InputError: an id or a position that is not there.
        """
        backbone: Any = network.backbone
        places = {number: place for place, number in enumerate(self.ids)}
        found, table, limit = describe(backbone), word_embedding(backbone), longest_input(backbone.config)
        by_padding = limit != getattr(backbone.config, "max_position_embeddings", None)  # positions count from the padding id
        padding = getattr(backbone.config, "pad_token_id", None)
        own = [network.head] if isinstance(network, LanguageNetwork) else []
        heads = [part for part in network.modules() if _reads(part, table) or part in own]
        uses = [Use(part, name, 0) for part in heads for name in ("weight", "bias") if _has(part, name)]
        cut(dataclasses.replace(found.tokens, uses=(*found.tokens.uses, *uses)), self.ids)
        _renumber(backbone, places)
        if found.positions is not None and limit is not None:
            size = found.positions.size
            begin = padding - places[padding] if by_padding and padding is not None else 0
            cut(found.positions, range(begin, size - limit + (self.positions or limit)))
        elif self.positions is not None:
            _lower_limit(backbone, self.positions)
        return network

    def reencode(self, encoder: Encoder) -> Encoder:
        """The encoder with the same tokens, which cuts texts at the new length."""
        pad = self.ids.index(encoder.pad_id) if encoder.pad_id in self.ids else 0
        length = min(encoder.max_length, self.positions or encoder.max_length)
        return Encoder(cut_tokenizer(encoder.tokenizer, self.ids), length, pad, encoder.inputs)

    def narrow(self, importance: Any) -> Any:
        """The importance of what this explicit step leaves."""
        return dataclasses.replace(importance, tokens=importance.tokens[list(self.ids)])

    def _check_positions(self, encoder: Encoder, limit: int | None) -> None:
        if self.positions is None:
            return
        least = encoder.tokenizer.num_special_tokens_to_add(True) + 1
        if self.positions < least or (limit is not None and self.positions > limit):
            most = f" to {limit}, which is what the model can read" if limit is not None else ""
            raise InputError(f"vocab:positions is {self.positions}, expected {least} (this tokenizer adds {least - 1} tokens){most}.")


def token_counts(model: Any, importance: Any) -> np.ndarray | None:
    """How often the data use each token: int64 [rows of the token table]; None where no importance is given.

    Raises:
        InputError: the importance of another vocabulary.
    """
    if importance is None:
        return None
    counts, rows = np.asarray(importance.tokens), word_embedding(model.network.backbone).num_embeddings
    if len(counts) not in (rows, model.encoder.tokenizer.get_vocab_size()) or len(counts) > rows:
        raise InputError(f"The importance counts {len(counts)} tokens, but the model has {rows}. Measure it again on this model.")
    return np.pad(counts, (0, rows - len(counts)))


def _spoken(tokenizer: Tokenizer, chat: ChatFormat | None) -> set[int]:
    """The added tokens that a conversation is written with, and those that begin and end answers."""
    if chat is None:
        return set()
    written = {number for text, number in tokenizer.get_vocab().items() if text in (chat.bos, chat.eos, *chat.stop)}
    return written | {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.content in chat.template}


def _reads(part: nn.Module, table: nn.Embedding) -> bool:
    """Whether a matrix shares the token table, as a language model's head does."""
    return isinstance(part, nn.Linear) and part.weight is table.weight


def _has(part: nn.Module, name: str) -> bool:
    return getattr(part, name) is not None


def _configs(backbone: nn.Module) -> list[Any]:
    """Every configuration inside a backbone; an encoder-decoder's stacks have their own."""
    owners = [getattr(part, name, None) for part in backbone.modules() for name in ("config", "generation_config")]
    return list({id(owner): owner for owner in owners if owner is not None}.values())


def _named_ids(backbone: nn.Module) -> Iterator[tuple[Any, str, int]]:
    """Every token id that a configuration names: the configuration, the attribute, the id."""
    for config in _configs(backbone):
        for name, value in vars(config).items():
            if name.endswith("_token_id"):
                yield from ((config, name, number) for number in (value if isinstance(value, list) else [value]) if isinstance(number, int))


def _renumber(backbone: nn.Module, places: dict[int, int]) -> None:
    """The new ids in configurations and modules; an id that no token has becomes None."""
    for config, name in {(id(config), name): (config, name) for config, name, _ in _named_ids(backbone)}.values():
        value = getattr(config, name)
        setattr(config, name, [places[number] for number in value if number in places] if isinstance(value, list) else places.get(value))
    parts: Iterable[Any] = backbone.modules()
    for part in parts:
        if not isinstance(part, nn.Embedding) and isinstance(getattr(part, "padding_idx", None), int):
            part.padding_idx = places.get(part.padding_idx)


def _lower_limit(backbone: nn.Module, positions: int) -> None:
    """The longest input in the configuration of a model without a position table, unless its rotations are computed from it."""
    for config in _configs(backbone):
        if getattr(config, "max_position_embeddings", None) is None or not _rotates_plainly(config):
            continue
        if getattr(config, "max_relative_positions", 0) < 0:  # DeBERTa's buckets of distances follow the longest input
            config.max_relative_positions = config.max_position_embeddings
        config.max_position_embeddings = positions


def _rotates_plainly(config: Any) -> bool:
    given = getattr(config, "rope_parameters", None) or {}
    kinds: Sequence[Any] = [given, *(value for value in given.values() if isinstance(value, dict))]
    return all(kind.get("rope_type", "default") == "default" for kind in kinds)
