"""What generates text and how it is asked: one contract for a model in PyTorch and for an exported file. Needs numpy alone.

A generator is anything with the members of `Generator`: the model of a run (`generation.TorchGenerator`) or a GGUF file
(`runtime.gguf.GGUFGenerator`). Chat, the server and the evaluation ask nothing else of it, so that they are written once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from lightune.options import check, option

FINISHES = ("stop", "length", "cancelled")  # an end token or a stop text; max_tokens or the context's end; the caller


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    role: system, user, assistant, tool, or what else the template knows. extra: everything else that the user's message had, as it was
    (tool_calls, name, tool_call_id); the template sees it.
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The form that chat templates and OpenAI's interface use."""
        return {"role": self.role, "content": self.content, **self.extra}


Prompt = str | Sequence[Message]  # plain text that is continued as it stands, or a conversation that goes through the chat template


@dataclass(frozen=True)
class GenerationOptions:
    """How text is generated. The defaults are greedy: the same prompt gives the same answer."""

    max_tokens: int = option(256, "most tokens of an answer", low=1)
    temperature: float = option(0.0, "0 takes the likeliest token; above, tokens are drawn, the flatter the higher", low=0.0, high=5.0)
    top_k: int = option(0, "draw among so many likeliest tokens; 0 is all", low=0)
    top_p: float = option(1.0, "draw among the likeliest tokens that together have this probability", above=0.0, high=1.0)
    min_p: float = option(0.0, "draw among tokens at least this share as likely as the likeliest", low=0.0, high=1.0)
    repetition_penalty: float = option(1.0, "above 1 makes tokens that have occurred less likely (Keskar et al. 2019)", above=0.0)
    stop: tuple[str, ...] = option((), "texts at which an answer ends; they are not part of it")
    seed: int | None = option(None, "seed of the draws; a new one each time by default", low=0)
    choices: tuple[str, ...] = option((), "the answer is one of these texts")
    json_schema: str | None = option(None, "the answer is JSON that fits this JSON schema")

    def __post_init__(self) -> None:
        for name in ("stop", "choices"):
            if isinstance(value := getattr(self, name), (str, list)):
                object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        check(self)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer as it comes: new text (whole characters only, perhaps none) and, in the last piece, why it ended."""

    text: str
    tokens: int
    finish: str | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer: its text without the end token, how many tokens the prompt and the answer had, and why it ended (see FINISHES)."""

    text: str
    prompt_tokens: int
    tokens: int
    finish: str


class Generator(Protocol):
    """What chat, the server and the evaluation need.

    name: what it calls itself. max_length: most tokens of prompt and answer together.
    A prompt that leaves no room for an answer is an InputError that gives both numbers; nothing is cut silently.
    """

    name: str
    max_length: int

    def count_tokens(self, prompt: Prompt) -> int:
        """How many tokens a prompt has, the template's own included."""
        ...

    def stream(self, prompt: Prompt, options: GenerationOptions) -> Iterator[Piece]:
        """The answer to one prompt as it comes; closing the iterator stops the work."""
        ...

    def generate(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Generated]:
        """The answers to several prompts, in their order, computed together where that is faster."""
        ...

    def token_logprobs(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """For each row of token ids [s] the natural-log probability of every token after the first, given those before it: float32 [s - 1].

        A row of an encoder with a decoder is a source with its end token and a target; nothing predicts the source's tokens: they are NaN.
        """
        ...

    def encode(self, text: str) -> np.ndarray:
        """Token ids int32 [s] of plain text as it stands, without template or added tokens; special tokens in it are recognised."""
        ...

    def encode_prompt(self, prompt: Prompt) -> np.ndarray:
        """Token ids int32 [s] of a prompt: a conversation after its template with the opening of the answer, plain text as `encode`."""
        ...

    def close(self) -> None:
        """Give back memory and threads."""
        ...
