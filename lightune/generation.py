"""Generate text with a network in PyTorch: one contract with the exported file's, `runtime.generation.Generator`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from lightune.errors import InputError
from lightune.networks import TranslationNetwork
from lightune.runtime.chat import ChatFormat
from lightune.runtime.drafts import Draft, collect
from lightune.runtime.generation import Generated, GenerationOptions, Piece, Prompt
from lightune.runtime.prompting import Prompting
from lightune.runtime.sampling import seeds
from lightune.runtime.token_table import make_table
from lightune.runtime.tokenization import Encoder, batches

ROWS, TOKENS = 32, 8192  # a batch's most answers, and most tokens of its prompts once padded
LOGITS = 2**24  # most logits of texts in memory at a time: 64 MB in fp32


class TorchGenerator:
    """A network that generates; see `runtime.generation.Generator` for its members.

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
        self.name = name
        self.max_length = max_length
        self.network = _cast(network, precision)
        self.prompting = Prompting(
            make_table(encoder.tokenizer, chat.stop if chat else ()), chat, max_length, getattr(network, "end", None)
        )

    def count_tokens(self, prompt: Prompt) -> int:
        return len(self.encode_prompt(prompt))

    def encode(self, text: str) -> np.ndarray:
        return self.prompting.encode(text)

    def encode_prompt(self, prompt: Prompt) -> np.ndarray:
        return self.prompting.encode_prompt(prompt)

    def stream(self, prompt: Prompt, options: GenerationOptions) -> Iterator[Piece]:
        return (piece for _, piece in self._run(self._drafts([prompt], options)))

    def generate(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Generated]:
        drafts = self._drafts(prompts, options)
        pieces: list[list[Piece]] = [[] for _ in drafts]
        for places in batches([len(draft.prompt) for draft in drafts], ROWS, TOKENS):
            for row, piece in self._run([drafts[place] for place in places]):
                pieces[places[row]].append(piece)
        return [collect(len(draft.prompt), parts) for draft, parts in zip(drafts, pieces, strict=True)]

    def token_logprobs(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        if longest := max((len(row) for row in rows if len(row) > self.max_length), default=0):
            raise InputError(f"A row has {longest} tokens, expected at most {self.max_length}. Cut it, or give the model a greater length.")
        found = [np.empty(0, dtype=np.float32)] * len(rows)
        inside = [place for place, row in enumerate(rows) if len(row) > 1]
        for places in batches([len(rows[place]) for place in inside], ROWS, TOKENS):
            chosen = [inside[place] for place in places]
            for place, values in zip(chosen, self._scores([rows[place] for place in chosen]), strict=True):
                found[place] = values
        return found

    def close(self) -> None:
        self.network = None

    def _drafts(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Draft]:
        rows = [self.encode_prompt(prompt) for prompt in prompts]
        table, room = self.prompting.table, self.prompting.room
        alone = self.prompting.end is not None
        return [Draft(ids, options, table, room(ids), seed, alone=alone) for ids, seed in zip(rows, seeds(options.seed, rows), strict=True)]

    def _run(self, drafts: list[Draft]) -> Iterator[tuple[int, Piece]]:
        """Every row's pieces as they come, with the row's number; rows that have ended leave the batch."""
        state, rows = self._start([draft.prompt for draft in drafts]), list(range(len(drafts)))
        while rows:
            with torch.inference_mode(), _evaluating(self.network):  # never open while the caller has the turn
                logits = self._logits(state.read(self.network.backbone)).cpu().numpy()
            pieces = [drafts[row].add(values) for row, values in zip(rows, logits, strict=True)]
            yield from zip(rows, pieces, strict=True)
            staying = [place for place, piece in enumerate(pieces) if piece.finish is None]
            rows = [rows[place] for place in staying]
            if rows:
                state.go_on([drafts[row].tokens[-1] for row in rows], staying)

    def _start(self, prompts: list[np.ndarray]) -> _State:
        """A batch of prompts, nothing read of it yet."""
        if isinstance(self.network, TranslationNetwork):
            with torch.inference_mode(), _evaluating(self.network):
                return _read_sources(prompts, self.network, self._device)
        start = _read_on if remembers(self.network.backbone) else _read_again
        return start(prompts, self.network.backbone, self._device)

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


class _State(Protocol):
    """What a batch has read."""

    def read(self, backbone: nn.Module) -> Tensor:
        """The hidden states [b, d] after the last tokens."""
        ...

    def go_on(self, tokens: list[int], rows: list[int]) -> None:
        """Keep these rows, and read their next tokens."""
        ...


@dataclass
class _Remembered:
    """A batch that keeps keys and values: `ids` [b, s] are read next at `positions` [b, s]; `mask` [b, t] is 0 at what fills a row, on its left."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    cache: DynamicCache

    def read(self, backbone: nn.Module) -> Tensor:
        known = inspect.signature(backbone.forward).parameters
        cache = {"cache" if "cache" in known else "past_key_values": self.cache}  # the second is its name before transformers 5.24
        outputs = backbone(input_ids=self.ids, attention_mask=self.mask, position_ids=self.positions, use_cache=True, **cache)
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
        known = inspect.signature(backbone.forward).parameters
        cache = {"cache" if "cache" in known else "past_key_values": self.cache}
        outputs = backbone(
            encoder_outputs=(self.hidden,), attention_mask=self.mask, decoder_input_ids=self.ids, use_cache=True, **cache
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
