"""A small generator without a network: it says the last message again, word by word, each after a pause."""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lightune.errors import InputError
from lightune.runtime.drafts import collect
from lightune.runtime.generation import Generated, GenerationOptions, Piece, Prompt
from lightune.runtime.stopping import Stopper


class Parrot:
    """A `runtime.generation.Generator` whose tokens are words with the blanks after them.

    It says the words of the last message in their order, or in one drawn by the seed where the temperature is above 0; from "forever" on it
    says them again and again; at "choke" it fails. running, most: streams that are open, and the most that were at a time.
    """

    def __init__(self, name: str = "parrot", *, pause: float = 0.0, max_length: int = 512) -> None:
        self.name, self.pause, self.max_length = name, pause, max_length
        self.running = self.most = self.spoken = 0
        self.closed = False
        self._lock = threading.Lock()

    def encode(self, text: str) -> np.ndarray:
        return np.arange(len(_words(text)), dtype=np.int32)

    def encode_prompt(self, prompt: Prompt) -> np.ndarray:
        return self.encode(_text(prompt))

    def count_tokens(self, prompt: Prompt) -> int:
        if not _text(prompt):
            raise InputError("The prompt is empty, expected at least one token.")
        return len(_words(_text(prompt)))

    def stream(self, prompt: Prompt, options: GenerationOptions) -> Iterator[Piece]:
        if self.count_tokens(prompt) >= self.max_length:
            raise InputError(f"The prompt has {self.count_tokens(prompt)} tokens, expected fewer than {self.max_length}.")
        if options.json_schema is not None and "impossible" in options.json_schema:
            raise InputError("The JSON schema cannot be met.")
        return self._pieces(prompt if isinstance(prompt, str) else prompt[-1].content, options)

    def generate(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Generated]:
        return [collect(self.count_tokens(prompt), self.stream(prompt, options)) for prompt in prompts]

    def token_logprobs(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.zeros(max(0, len(row) - 1), dtype=np.float32) for row in rows]

    def close(self) -> None:
        self.closed = True

    def _pieces(self, text: str, options: GenerationOptions) -> Iterator[Piece]:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            yield from self._say(_spoken(text, options), options)
        finally:
            with self._lock:
                self.running -= 1

    def _say(self, words: Iterator[str], options: GenerationOptions) -> Iterator[Piece]:
        stopper = Stopper(options.stop)
        for count, word in enumerate(words, 1):
            time.sleep(self.pause)
            self.spoken += 1
            if word.startswith("choke"):
                raise RuntimeError("the parrot choked")
            said = stopper.push(word.encode())
            if stopper.stopped or count == options.max_tokens:
                yield Piece(said if stopper.stopped else said + stopper.push(b"", last=True), 1, "stop" if stopper.stopped else "length")
                return
            yield Piece(said, 1)
        yield Piece(stopper.push(b"", last=True), 0, "stop")


def _spoken(text: str, options: GenerationOptions) -> Iterator[str]:
    words = ["{}"] if options.json_schema else [*options.choices[:1]] or _words(text)
    if options.temperature:
        random.Random(options.seed).shuffle(words)
    yield from words
    while "forever" in text:
        yield from words


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*|\s+", text)


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else " ".join(message.content for message in prompt)


class Coder(Parrot):
    """Knows programs by words of the question: the first where the temperature is 0, else one after another, again and again."""

    def __init__(self, known: Mapping[str, Sequence[str]]) -> None:
        super().__init__("coder", max_length=4096)
        self.known = known

    def generate(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Generated]:
        counts: Counter[str] = Counter()
        made = []
        for prompt in prompts:
            programs = next(programs for word, programs in self.known.items() if word in _text(prompt))
            program = programs[counts[_text(prompt)] % len(programs) if options.temperature else 0]
            counts[_text(prompt)] += 1
            made.append(Generated(program, self.count_tokens(prompt), len(_words(program)), "stop"))
        return made
