"""Where in the rendered text an answer stands: exactly what the model must write when it is asked.

An answer begins where the rendering of all turns before it, opened for an answer, ends, and it ends where the rendering of the turns up to
it ends. A template that writes earlier turns differently once later ones follow (reasoning that is removed, a system turn that moves) gives
one row for each answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightune.data.dialogues import Conversation
from lightune.runtime.chat import SENTINEL, ChatFormat, render
from lightune.runtime.generation import Message


@dataclass(frozen=True)
class Talk:
    """What becomes one row: turns, of which with `last_only` the last answer alone is learned; or plain text and no turns."""

    row: int
    messages: tuple[Message, ...] = ()
    tools: tuple[Any, ...] = ()
    last_only: bool = False
    text: str | None = None


@dataclass(frozen=True)
class Rendered:
    """A text; the places [begin, end) of its characters that are learned; whether an end token follows the last of them."""

    text: str
    spans: tuple[tuple[int, int], ...]
    ended: bool


def talks(format: ChatFormat, conversation: Conversation, writes_bos: bool) -> list[tuple[Talk, Rendered]]:
    """A conversation as one row, or as a row for each answer where the template changes earlier turns.

    writes_bos: whether plain texts of this tokenizer begin with bos.
    """
    if conversation.text is not None:
        talk = Talk(conversation.row, text=conversation.text)
        return [(talk, _plain(format, conversation.text, writes_bos))]
    talk = Talk(conversation.row, conversation.messages, conversation.tools)
    if rendered := _together(format, talk):
        return [(talk, rendered)]
    ends = [place + 1 for place, message in enumerate(talk.messages) if message.role == "assistant"]
    alone = [replace(talk, messages=talk.messages[:end], last_only=True) for end in ends]
    return [(each, render_talk(format, each)) for each in alone]


def render_talk(format: ChatFormat, talk: Talk) -> Rendered:
    """The text of a row with turns; where the template changes earlier turns, only its last answer is learned."""
    if not talk.last_only and (rendered := _together(format, talk)):
        return rendered
    last = max((place for place, message in enumerate(talk.messages) if message.role == "assistant"), default=-1)
    if last < 0:
        return Rendered(render(format, talk.messages, tools=talk.tools, opening=False), (), False)
    whole = render(format, talk.messages[: last + 1], tools=talk.tools, opening=False)
    span = (_begin(format, talk, last, whole), len(whole))
    return Rendered(whole, (span,), _ended(format, whole, span))


def question_begin(format: ChatFormat, talk: Talk, text: str) -> int:
    """How many characters of the text come before the words of the first question: the system turn and the head of the user's."""
    first = next((place for place, message in enumerate(talk.messages) if message.role == "user"), None)
    if first is None:
        return 0
    blank = render(format, _with(talk.messages, first, SENTINEL), tools=talk.tools, opening=False)
    return _shared(text, blank)


def _plain(format: ChatFormat, text: str, writes_bos: bool) -> Rendered:
    begin = format.bos if writes_bos and not text.startswith(format.bos) else ""
    whole = f"{begin}{text}{format.eos}"
    return Rendered(whole, ((len(begin), len(whole)),), bool(format.eos))


def _together(format: ChatFormat, talk: Talk) -> Rendered | None:
    """The row with every answer learned, or None where the template changes earlier turns."""
    whole = render(format, talk.messages, tools=talk.tools, opening=False)
    spans = []
    for place, message in enumerate(talk.messages):
        if message.role != "assistant":
            continue
        last = place == len(talk.messages) - 1
        done = whole if last else render(format, talk.messages[: place + 1], tools=talk.tools, opening=False)
        if not whole.startswith(done):
            return None
        spans.append((_begin(format, talk, place, done), len(done)))
    return Rendered(whole, tuple(spans), bool(spans) and _ended(format, whole, spans[-1]))


def _begin(format: ChatFormat, talk: Talk, place: int, done: str) -> int:
    """Where the answer at this place begins in the rendering of the turns up to it.

    Where the opening is more than a finished turn writes (it starts a reasoning, say), the answer begins where the two part.
    """
    prompt = render(format, talk.messages[:place], tools=talk.tools, opening=True)
    if done.startswith(prompt):
        return len(prompt)
    blank = render(format, _with(talk.messages[: place + 1], place, SENTINEL), tools=talk.tools, opening=False)
    return _shared(prompt, blank, done)


def _with(messages: Sequence[Message], place: int, content: str) -> tuple[Message, ...]:
    """The turns with another content at this place."""
    return (*messages[:place], replace(messages[place], content=content), *messages[place + 1 :])


def _shared(*texts: str) -> int:
    """How many characters at their beginning the texts share."""
    together = zip(*texts, strict=False)
    return next((place for place, letters in enumerate(together) if len(set(letters)) > 1), min(map(len, texts)))


def _ended(format: ChatFormat, text: str, span: tuple[int, int]) -> bool:
    return any(stop in text[span[0] : span[1]] for stop in format.stop)
