"""Conversation and Conversations: what is learned from by a model that generates text."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from lightune.data.examples import normalise
from lightune.runtime.generation import Message

SHAPES = ("prompt-completion", "messages", "sharegpt", "alpaca", "text")


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row of the user's data.

    messages: the turns in their order; empty where the row is plain text. tools: JSON schemas of what the assistant may call.
    row: the row as the user counts it, from 1. text: plain text for continued pretraining, else None.
    """

    messages: tuple[Message, ...] = ()
    tools: tuple[Any, ...] = ()
    row: int = 0
    text: str | None = None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the first answer."""
        first = next((place for place, message in enumerate(self.messages) if message.role == "assistant"), len(self.messages))
        return self.messages[:first]

    @property
    def answers(self) -> tuple[str, ...]:
        """What the assistant says, turn by turn."""
        return tuple(message.content for message in self.messages if message.role == "assistant")

    def fingerprint(self, *, whole: bool = False) -> bytes:
        """16 bytes that are the same for two rows whose normalised prompts (`whole`: all turns; plain text: the text) are the same."""
        turns = self.messages if whole else self.prompt
        parts = [self.text] if self.text is not None else [f"{message.role}\0{message.content}" for message in turns]
        return hashlib.blake2b("\0".join(map(normalise, parts)).encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True)
class Layout:
    """Which columns make a conversation.

    prompt: the columns whose texts, joined by a blank line, are the question; of the shapes messages, sharegpt and text the one column
    that holds everything. completion: the column of answers, or None. system: the column of system turns, or None. tools: likewise.
    """

    shape: str
    prompt: tuple[str, ...]
    completion: str | None = None
    system: str | None = None
    tools: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The layout, ready for JSON."""
        return {
            "shape": self.shape,
            "prompt": list(self.prompt),
            "completion": self.completion,
            "system": self.system,
            "tools": self.tools,
        }


class Conversations(Sequence[Conversation]):
    """Rows in order. shape: one of SHAPES. columns: see `Layout`. source: where they come from, for messages. facts: what reading found
    out about the whole source (rows, parts, left_out, ..., and under "told" the sentences that a user should see)."""

    def __init__(self, rows: Sequence[Conversation], columns: Layout, *, source: str = "rows", facts: dict[str, Any] | None = None) -> None:
        self._rows = rows
        self.columns, self.source = columns, source
        self.facts: dict[str, Any] = facts if facts is not None else {}

    @property
    def shape(self) -> str:
        return self.columns.shape

    @property
    def told(self) -> list[str]:
        return list(self.facts.get("told", ()))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Conversations: ...
    def __getitem__(self, index: int | slice) -> Conversation | Conversations:
        return self.take(range(len(self))[index]) if isinstance(index, slice) else self._rows[index]

    def __repr__(self) -> str:
        return f"Conversations({len(self)} rows of {self.source}, {self.shape})"

    def take(self, indices: Iterable[int]) -> Conversations:
        """Only the rows at these positions, in this order."""
        return Conversations([self._rows[index] for index in array("q", indices)], self.columns, source=self.source, facts=self.facts)


@dataclass(frozen=True)
class ConversationSplits:
    """The rows in parts (dev and test are None where none were asked for), and what to tell."""

    train: Conversations
    dev: Conversations | None
    test: Conversations | None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Conversations]:
        """The parts that are there, in order."""
        return {name: part for name, part in (("train", self.train), ("dev", self.dev), ("test", self.test)) if part is not None}
