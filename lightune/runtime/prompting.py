"""Prompts to token ids, and the room that they leave for an answer: the same for every kind of generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightune.errors import InputError
from lightune.runtime.chat import ChatFormat, render
from lightune.runtime.generation import Prompt
from lightune.runtime.token_table import TokenTable


@dataclass(frozen=True, eq=False)
class Prompting:
    """table: the model's tokens. chat: how a conversation is written, None where the model has no template. max_length: tokens of prompt and answer.
    end: the token that ends every prompt, where the model reads it with an encoder."""

    table: TokenTable
    chat: ChatFormat | None
    max_length: int
    end: int | None = None

    def encode(self, text: str) -> np.ndarray:
        """Token ids int32 [s] of text as it stands."""
        return np.array(self.table.encode(text), dtype=np.int32)

    def encode_prompt(self, prompt: Prompt) -> np.ndarray:
        """Token ids int32 [s] of a prompt; a conversation goes through its template, with the opening of the answer.

        Raises:
            InputError: no token at all, or a conversation where there is no template.
        """
        if isinstance(prompt, str):
            text = prompt
        elif self.chat is None:
            raise InputError("This model has no chat template, expected a prompt of plain text. Give a chat template, or text.")
        else:
            text = render(self.chat, prompt, opening=True)
        ids = self.encode(text)
        if self.end is not None and (not len(ids) or ids[-1] != self.end):
            ids = np.append(ids, np.int32(self.end))
        if not len(ids):
            raise InputError("The prompt is empty, expected at least one token. Write something to be continued.")
        return ids

    def room(self, ids: np.ndarray) -> int:
        """How many tokens an answer to a prompt may have.

        Raises:
            InputError: none is left.
        """
        if len(ids) >= self.max_length:
            raise InputError(
                f"The prompt has {len(ids)} tokens, expected fewer than {self.max_length}, which prompt and answer share. "
                "Shorten it, or load the model with a greater length."
            )
        return self.max_length - len(ids)


class Prompted:
    """What every generator does with its prompts; see `runtime.generation.Generator` for the members."""

    def __init__(self, name: str, prompting: Prompting) -> None:
        self.name = name
        self.max_length = prompting.max_length
        self.prompting = prompting

    def count_tokens(self, prompt: Prompt) -> int:
        return len(self.encode_prompt(prompt))

    def encode(self, text: str) -> np.ndarray:
        return self.prompting.encode(text)

    def encode_prompt(self, prompt: Prompt) -> np.ndarray:
        return self.prompting.encode_prompt(prompt)
