"""Generators that compute a batch of answers step by step: what they have in common, whatever computes the logits. Needs numpy alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from lightune.errors import InputError
from lightune.runtime.drafts import Draft, collect
from lightune.runtime.generation import Generated, GenerationOptions, Piece, Prompt
from lightune.runtime.prompting import Prompted
from lightune.runtime.sampling import seeds
from lightune.runtime.tokenization import batches

ROWS, TOKENS = 32, 8192  # a batch's most answers, and most tokens of its prompts once padded


class State(Protocol):
    """What a batch has read."""

    def go_on(self, tokens: list[int], rows: list[int]) -> None:
        """Keep these rows, and read their next tokens."""
        ...


class BatchedGenerator(Prompted, ABC):
    """A generator; see `runtime.generation.Generator` for its members. Its own kinds say how a batch is begun, read and scored."""

    scored_tokens = TOKENS  # most tokens of a batch whose log-probabilities are computed, once padded

    @abstractmethod
    def _start(self, prompts: list[np.ndarray]) -> Any:
        """The `State` of a batch of prompts, int [s] each, nothing read of it yet."""

    @abstractmethod
    def _next_logits(self, state: Any) -> np.ndarray:
        """Read what a batch has to read next: logits float32 [b, v] of the tokens after it."""

    @abstractmethod
    def _scores(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """`token_logprobs` of a batch of rows with two tokens or more."""

    @abstractmethod
    def close(self) -> None:
        """Give back memory and threads."""

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
        for places in batches([len(rows[place]) for place in inside], ROWS, self.scored_tokens):
            chosen = [inside[place] for place in places]
            for place, values in zip(chosen, self._scores([rows[place] for place in chosen]), strict=True):
                found[place] = values
        return found

    def _drafts(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Draft]:
        rows = [self.encode_prompt(prompt) for prompt in prompts]
        table, room = self.prompting.table, self.prompting.room
        alone = self.prompting.end is not None
        return [Draft(ids, options, table, room(ids), seed, alone=alone) for ids, seed in zip(rows, seeds(options.seed, rows), strict=True)]

    def _run(self, drafts: list[Draft]) -> Iterator[tuple[int, Piece]]:
        """Every row's pieces as they come, with the row's number; rows that have ended leave the batch."""
        state, rows = self._start([draft.prompt for draft in drafts]), list(range(len(drafts)))
        while rows:
            logits = self._next_logits(state)
            pieces = [drafts[row].add(values) for row, values in zip(rows, logits, strict=True)]
            yield from zip(rows, pieces, strict=True)
            staying = [place for place, piece in enumerate(pieces) if piece.finish is None]
            rows = [rows[place] for place in staying]
            if rows:
                state.go_on([drafts[row].tokens[-1] for row in rows], staying)
