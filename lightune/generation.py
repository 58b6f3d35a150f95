"""Generate text with a network in PyTorch: one contract with the exported file's, `runtime.generation.Generator`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from lightune.errors import InputError
from lightune.networks import TranslationNetwork
from lightune.runtime.batched import BatchedGenerator, State
from lightune.runtime.chat import ChatFormat
from lightune.runtime.prompting import Prompting
from lightune.runtime.token_table import make_table
from lightune.runtime.tokenization import Encoder

LOGITS = 2**24  # most logits of texts in memory at a time: 64 MB in fp32


class TorchGenerator(BatchedGenerator):
    """A network that generates.

    Args:
        network: `backbone`, a decoder of transformers (AutoModel), and `head`, a linear layer [d → v]; or a `TranslationNetwork`, which reads a
            prompt with its encoder. It is not changed.
        encoder: its tokenizer. chat: how a conversation is written and what ends an answer, None where it has no template.
        max_length: most tokens of prompt and answer together.
        precision: what it computes in; None leaves the network's own. Another one costs a second copy of the weights.
    """

    def __init__(
        self,
        network: Any,
        encoder: Encoder,
        chat: ChatFormat | None,
        *,
        name: str,
        max_length: int,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            name, Prompting(make_table(encoder.tokenizer, chat.stop if chat else ()), chat, max_length, getattr(network, "end", None))
        )
        self.network = _cast(network, precision)

    def close(self) -> None:
        self.network = None

    def _start(self, prompts: list[np.ndarray]) -> _State:
        if isinstance(self.network, TranslationNetwork):
            with torch.inference_mode(), _evaluating(self.network):
                return _read_sources(prompts, self.network, self._device)
        start = _read_on if remembers(self.network.backbone) else _read_again
        return start(prompts, self.network.backbone, self._device)

    def _next_logits(self, state: _State) -> np.ndarray:
        with torch.inference_mode(), _evaluating(self.network):  # never open while the caller has the turn
            return self._logits(state.read(self.network.backbone)).cpu().numpy()

    def _scores(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """`token_logprobs` of a batch. What fills short rows follows them, so a causal model never sees it."""
        lengths = [len(row) - 1 for row in rows]
        ids = torch.zeros(len(rows), max(lengths), dtype=torch.long)
        real = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
        following = torch.zeros_like(ids)
        for given, cut in ((ids, slice(None, -1)), (following, slice(1, None))):
            given[real] = torch.from_numpy(np.concatenate([row[cut] for row in rows]).astype(np.int64))
        with torch.inference_mode(), _evaluating(self.network):
            read, scored = self._read(ids, real)
            hidden, targets = read[scored.to(self._device)], following[scored].to(self._device)
            step = max(1, LOGITS // self.network.head.weight.shape[0])
            values = torch.cat(
                [
                    torch.log_softmax(self._logits(part), -1).gather(1, goal[:, None])[:, 0]
                    for part, goal in zip(hidden.split(step), targets.split(step), strict=True)
                ]
            )
        found = torch.full(real.shape, torch.nan)
        found[scored] = values.cpu()
        return [row[:length].numpy() for row, length in zip(found, lengths, strict=True)]

    def _read(self, ids: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden states [b, s, d] of token ids [b, s], and the places among the real ones from which a token is predicted, bool [b, s]."""
        if not isinstance(self.network, TranslationNetwork):
            return self.network.backbone(input_ids=ids.to(self._device), use_cache=False).last_hidden_state, real
        ids = ids.masked_fill(~real, self.network.padding)
        places = torch.arange(ids.shape[1]) >= self.network.sources(ids)[:, None] - 1
        if not (found := real & places & (ids == self.network.end).any(1, keepdim=True)).any(1).all():
            raise InputError(
                "A row is a source without a target. An encoder with a decoder tells how likely a target is, after the source's end token."
            )
        return self.network.read(ids.to(self._device)).last_hidden_state, found

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits float32 [n, v] of hidden states [n, d], with the soft cap that Gemma 2 has (2024, section 2)."""
        logits = self.network.head(hidden).float()
        cap = getattr(self.network.backbone.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits

    @property
    def _device(self) -> torch.device:
        return self.network.head.weight.device


class _State(State, Protocol):
    """What a batch has read, in torch."""

    def read(self, backbone: nn.Module) -> Tensor:
        """The hidden states [b, d] after the last tokens."""
        ...


@dataclass
class _Remembered:
    """A batch that keeps keys and values: `ids` [b, s] are read next at `positions` [b, s]; `mask` [b, t] is 0 at what fills a row, on its left."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    cache: DynamicCache

    def read(self, backbone: nn.Module) -> Tensor:
        outputs = backbone(
            input_ids=self.ids, attention_mask=self.mask, position_ids=self.positions, use_cache=True, **{name_cache(backbone): self.cache}
        )  # fmt: skip
        return outputs.last_hidden_state[:, -1]

    def go_on(self, tokens: list[int], rows: list[int]) -> None:
        if len(rows) < len(self.mask):
            chosen = torch.tensor(rows, device=self.mask.device)
            self.cache.batch_select_indices(chosen)
            self.mask, self.positions = self.mask[chosen], self.positions[chosen]
        self.ids = torch.tensor(tokens, device=self.mask.device)[:, None]
        self.positions = self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(rows), 1)], dim=1)


def _read_on(prompts: list[np.ndarray], backbone: Any, device: torch.device) -> _State:
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return _Remembered(ids.to(device), positions.to(device), mask.to(device), DynamicCache(config=backbone.config))


@dataclass
class _Reread:
    """A batch of token rows that are read from their beginning for every token."""

    rows: list[list[int]]
    device: torch.device

    def read(self, backbone: nn.Module) -> Tensor:
        lengths = torch.tensor([len(row) for row in self.rows])
        real = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.zeros(real.shape, dtype=torch.long)
        ids[real] = torch.tensor([token for row in self.rows for token in row])
        hidden = backbone(input_ids=ids.to(self.device), attention_mask=real.long().to(self.device), use_cache=False).last_hidden_state
        return hidden[torch.arange(len(self.rows)), lengths - 1]

    def go_on(self, tokens: list[int], rows: list[int]) -> None:
        self.rows = [[*self.rows[row], token] for row, token in zip(rows, tokens, strict=True)]


@dataclass
class _Answering:
    """Sources that were read: `hidden` [b, s, d] with their mask [b, s]; the decoder reads `ids` [b, 1] next and keeps keys and values."""

    hidden: Tensor
    mask: Tensor
    ids: Tensor
    scale: float
    cache: EncoderDecoderCache

    def read(self, backbone: nn.Module) -> Tensor:
        outputs = backbone(
            encoder_outputs=(self.hidden,), attention_mask=self.mask, decoder_input_ids=self.ids, use_cache=True,
            **{name_cache(backbone): self.cache},
        )  # fmt: skip
        return outputs.last_hidden_state[:, -1] * self.scale

    def go_on(self, tokens: list[int], rows: list[int]) -> None:
        if len(rows) < len(self.mask):
            chosen = torch.tensor(rows, device=self.mask.device)
            self.cache.batch_select_indices(chosen)
            self.hidden, self.mask = self.hidden[chosen], self.mask[chosen]
        self.ids = torch.tensor(tokens, device=self.mask.device)[:, None]


def _read_sources(prompts: list[np.ndarray], network: TranslationNetwork, device: torch.device) -> _State:
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(mask.shape, network.padding)
    ids[mask] = torch.from_numpy(np.concatenate(prompts).astype(np.int64))
    backbone: Any = network.backbone
    given = mask.long().to(device)
    hidden = backbone.encoder(input_ids=ids.to(device), attention_mask=given).last_hidden_state
    cache = EncoderDecoderCache(*(DynamicCache(config=backbone.decoder.config) for _ in range(2)))
    return _Answering(hidden, given, torch.full((len(prompts), 1), network.start, device=device), network.scale, cache)


def _read_again(prompts: list[np.ndarray], backbone: Any, device: torch.device) -> _State:
    return _Reread([prompt.tolist() for prompt in prompts], device)


def name_cache(backbone: nn.Module) -> str:
    """What a backbone calls its keys and values; the second is their name before transformers 5.24."""
    return "cache" if "cache" in inspect.signature(backbone.forward).parameters else "past_key_values"


def remembers(backbone: nn.Module) -> bool:
    """Whether a backbone can go on from what it has read, by the positions that it is told: not where a method puts vectors before every text,
    or edits its first token alone."""
    placed = "position_ids" in inspect.signature(backbone.forward).parameters
    return placed and not any(getattr(part, "first_only", False) for part in backbone.modules())


class _evaluating:
    """The network without dropout while it generates, and as it was afterwards."""

    def __init__(self, network: nn.Module) -> None:
        self._training = [module for module in network.modules() if module.training]

    def __enter__(self) -> None:
        for module in self._training:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module in self._training:
            module.training = True


def _cast(network: Any, precision: torch.dtype | None) -> Any:
    """The network in another precision: a copy whose parameters are cast; buffers, as the angles of positions, keep theirs."""
    if precision is None or network.head.weight.dtype == precision:
        return network
    network = copy.deepcopy(network)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(precision)
    return network
