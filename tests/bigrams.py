"""A real generator whose every probability is known: the next character depends on the last one alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightune.errors import InputError
from lightune.runtime.generation import Generated, GenerationOptions, Message, Piece, Prompt

END = "<s>"  # begins and ends texts
LETTERS = "\n :?!#.0123456789abcdefghijklmnopqrstuvwxyzABQ"


class BigramGenerator:
    """Greedy alone; `likely`: what follows each character with probability 0.6, the rest shared out at random by the seed."""

    def __init__(self, likely: dict[str, str] | None = None, *, seed: int = 0, max_length: int = 64) -> None:
        self.name, self.max_length = "bigrams", max_length
        self.tokens = [END, *LETTERS]
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        table = np.random.default_rng(seed).dirichlet(np.ones(len(self.tokens)), len(self.tokens))
        for before, after in (likely or {}).items():
            row = table[self.ids[before]] * 0.4 / (1 - table[self.ids[before], self.ids[after]])
            row[self.ids[after]] = 0.6
            table[self.ids[before]] = row
        self.table = table

    def encode(self, text: str) -> np.ndarray:
        parts = [part for piece in text.split(END) for part in (END, *piece)][1:]
        return np.array([self.ids[part] for part in parts], np.int32)

    def encode_prompt(self, prompt: Prompt) -> np.ndarray:
        if isinstance(prompt, str):
            return self.encode(prompt)
        return self.encode(END + "".join(f"{message.role}:{message.content}\n" for message in prompt) + "a:")

    def count_tokens(self, prompt: Prompt) -> int:
        return len(self.encode_prompt(prompt))

    def token_logprobs(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        assert all(len(row) <= self.max_length for row in rows)
        return [np.log(self.table[row[:-1], row[1:]]).astype(np.float32) for row in rows]

    def generate(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Generated]:
        return [self._write(self.encode_prompt(prompt), options) for prompt in prompts]

    def stream(self, prompt: Prompt, options: GenerationOptions) -> Iterator[Piece]:
        made = self.generate([prompt], options)[0]
        yield Piece(made.text, made.tokens, made.finish)

    def close(self) -> None:
        pass

    def _write(self, ids: np.ndarray, options: GenerationOptions) -> Generated:
        if len(ids) >= self.max_length:
            raise InputError(f"The prompt has {len(ids)} tokens, expected fewer than {self.max_length}.")
        text, last = "", int(ids[-1])
        for count in range(1, min(options.max_tokens, self.max_length - len(ids)) + 1):
            last = int(self.table[last].argmax())
            if self.tokens[last] == END:
                return Generated(text, len(ids), count, "stop")
            text += self.tokens[last]
            ends = [text.index(stop) for stop in options.stop if stop in text]
            if ends:
                return Generated(text[: min(ends)], len(ids), count, "stop")
        return Generated(text, len(ids), count, "length")


def ask(content: str) -> tuple[Message, ...]:
    return (Message("B", content),)
