"""Answers in the form that OpenAI's clients expect, whole or in chunks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompts and of the answers."""

    prompt: int
    answer: int

    def to_dict(self) -> dict[str, int]:
        """OpenAI's names of them."""
        return {"prompt_tokens": self.prompt, "completion_tokens": self.answer, "total_tokens": self.prompt + self.answer}


@dataclass(frozen=True)
class ChatReply:
    """The answers to one chat request: `chat.completion`, or chunks of it."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[tuple[str, str]], usage: Usage) -> dict[str, Any]:
        """All answers, each a text and why it ended."""
        choices = [
            {"index": index, "message": {"role": "assistant", "content": text, "refusal": None}, "logprobs": None, "finish_reason": finish}
            for index, (text, finish) in enumerate(answers)
        ]
        return self._object("chat.completion", choices) | {"usage": usage.to_dict()}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The chunk before an answer's first text, None where there is none."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def text(self, index: int, text: str) -> dict[str, Any]:
        """A chunk with text."""
        return self._chunk(index, {"content": text}, None)

    def closing(self, index: int, finish: str) -> dict[str, Any]:
        """The chunk after an answer's last text."""
        return self._chunk(index, {}, finish)

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The chunk that tells the tokens."""
        return self._object("chat.completion.chunk", []) | {"usage": usage.to_dict()}

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return self._object("chat.completion.chunk", [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}])

    def _object(self, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


@dataclass(frozen=True)
class CompletionReply:
    """The answers to one completion request: `text_completion`, whole or in chunks; see `ChatReply`."""

    model: str
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, answers: Sequence[tuple[str, str]], usage: Usage) -> dict[str, Any]:
        return self._object([self._choice(index, text, finish) for index, (text, finish) in enumerate(answers)]) | {
            "usage": usage.to_dict()
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def text(self, index: int, text: str) -> dict[str, Any]:
        return self._object([self._choice(index, text, None)])

    def closing(self, index: int, finish: str) -> dict[str, Any]:
        return self._object([self._choice(index, "", finish)])

    def usage(self, usage: Usage) -> dict[str, Any]:
        return self._object([]) | {"usage": usage.to_dict()}

    def _choice(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}

    def _object(self, choices: list[Any]) -> dict[str, Any]:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model, "choices": choices}


Reply = ChatReply | CompletionReply


def event(value: Any) -> bytes:
    """A server-sent event of a JSON value, or of a word."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()
