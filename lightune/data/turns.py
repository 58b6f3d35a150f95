"""A record becomes a Conversation. What is changed on the way is counted; what cannot be used is named by row."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from lightune.data.columns import part_name
from lightune.data.dialogues import Conversation
from lightune.data.layouts import MARKS, Found, parsed
from lightune.data.tables import SHOWN, Complaints, Record, Table
from lightune.runtime.generation import Message

ROLES = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("developer",), "developer"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "function"), "tool"),
}
CURE = "Correct these rows, or leave them out."


class Unusable(ValueError):
    """A row that is no conversation. Its message says what is wrong with it."""


class Collector:
    """Turns the records of one source into (conversation, part), and counts what it meets. `facts` is complete when all have been read."""

    def __init__(self, table: Table, found: Found) -> None:
        self._table, self._layout, self._found = table, found.layout, found
        self._counts: Counter[str] = Counter()
        self._parts: Counter[str] = Counter()
        self._left_out: list[int] = []
        self._complaints = Complaints(table.source)

    def conversations(self) -> Iterator[tuple[Conversation, str | None]]:
        """Every record that has something to learn, with the part that its split column gives it.

        Raises:
            InputError: after the last record, for all rows that cannot be used.
        """
        split = self._found.split
        for row, record in self._table.records:
            self._counts["rows"] += 1
            try:
                made = self._conversation(record, row)
            except Unusable as problem:
                self._complaints.add(str(problem), f"row {row}", CURE)
                continue
            if made is None:
                self._left_out.append(row)
                continue
            part = part_name(record.get(split)) if split else None
            if part:
                self._parts[part] += 1
            elif split:
                self._complaints.add(f"column {split!r} is none of train, dev, test", f"row {row}", "Write one of them.")
            yield made, part
        self._complaints.check()

    @property
    def facts(self) -> dict[str, Any]:
        """How many rows were read, how many had nothing to learn and were left out, and how many are in each part."""
        parts = {part: self._parts[part] for part in ("train", "dev", "test") if self._parts[part]}
        return {"rows": self._counts["rows"], "left_out": len(self._left_out), "parts": parts}

    @property
    def told(self) -> list[str]:
        """A sentence for everything that the rows made necessary."""
        told, counts, parts = [], self._counts, self.facts["parts"]
        if parts:
            told.append(f"Column {self._found.split!r} gives the parts: " + ", ".join(f"{part} {parts[part]:,}" for part in parts) + ".")
        if self._left_out:
            rows = ", ".join(map(str, self._left_out[:SHOWN])) + ", ..." * (len(self._left_out) > SHOWN)
            what = "are empty" if self._layout.shape == "text" else "have an empty answer or none"
            told.append(f"{len(self._left_out):,} of {counts['rows']:,} rows {what} and were left out: rows {rows}.")
        told += [sentence.format(f"{counts[name]:,}") for name, sentence in SENTENCES.items() if counts[name]]
        return told

    def _conversation(self, record: Record, row: int) -> Conversation | None:
        """The conversation of a record, None where it holds nothing to learn."""
        layout = self._layout
        if layout.shape == "text":
            text = self._text(record.get(layout.prompt[0]), layout.prompt[0])
            return Conversation(row=row, text=text) if text.strip() else None
        turns = self._listed(record) if layout.shape in MARKS else self._asked(record)
        messages = (*self._system(record, turns), *turns)
        _check_order(messages)
        answers = [message for message in turns if message.role == "assistant"]
        if not answers or any(not message.content.strip() and not message.extra for message in answers):
            return None
        self._counts["empty prompts"] += any(message.role == "user" and not message.content.strip() for message in turns)
        self._counts["open ends"] += messages[-1].role != "assistant"
        return Conversation(messages, self._tools(record), row)

    def _asked(self, record: Record) -> tuple[Message, ...]:
        """Question and answer from their columns."""
        layout = self._layout
        parts = [self._text(record.get(column), column) for column in layout.prompt]
        answer = self._text(record.get(str(layout.completion)), str(layout.completion))
        return Message("user", "\n\n".join(part for part in parts if part.strip())), Message("assistant", answer)

    def _listed(self, record: Record) -> tuple[Message, ...]:
        """The turns of a list of them."""
        column = self._layout.prompt[0]
        turns = parsed(record.get(column))
        if turns is None or turns == "":
            return ()
        if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
            raise Unusable(f"column {column!r} is no list of turns")
        return tuple(self._message(turn) for turn in turns)

    def _message(self, turn: Mapping[str, Any]) -> Message:
        who, what = ("from", "value") if self._layout.shape == "sharegpt" else ("role", "content")
        role = ROLES.get(str(turn.get(who)).strip().lower())
        if role is None:
            known = ", ".join(dict.fromkeys(ROLES.values()))
            raise Unusable(f"a turn has the unknown {who} {turn.get(who)!r} (known: {known})")
        extra = {str(key): value for key, value in turn.items() if key not in (who, what) and value is not None}
        return Message(role, self._text(_joined(turn.get(what)), what), extra)

    def _system(self, record: Record, turns: tuple[Message, ...]) -> tuple[Message, ...]:
        """The system turn of a record that has none among its turns."""
        if turns and turns[0].role in ("system", "developer"):
            return ()
        column = self._layout.system
        words = self._text(record.get(column), column) if column else self._found.system or ""
        return (Message("system", words),) if words.strip() else ()

    def _tools(self, record: Record) -> tuple[Any, ...]:
        column = self._layout.tools
        tools = parsed(record.get(column)) if column else None
        if tools in (None, ""):
            return ()
        if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
            raise Unusable(f"column {column!r} is no list of tools, each an object")
        return tuple(tools)

    def _text(self, value: Any, column: str) -> str:
        """The value as text without halves of characters; '' where there is none."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, (list, tuple, dict, set, bytes)):
            raise Unusable(f"{column!r} is {type(value).__name__}, expected a text")
        if not isinstance(value, str):
            self._counts["numbers"] += 1
            value = str(value)
        try:
            value.encode()
        except UnicodeEncodeError:
            self._counts["surrogates"] += 1
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return value


SENTENCES = {
    "empty prompts": "{} rows have an empty question; they are learned all the same.",
    "open ends": "{} conversations end without an answer to their last turn; from that turn nothing is learned.",
    "numbers": "{} texts are numbers in the source and were taken as they are written.",
    "surrogates": "{} texts held half a character (a lone surrogate), which was replaced by U+FFFD.",
}


def _joined(content: Any) -> Any:
    """The text of a content that is a list of parts, where every part is text; else the content as it is."""
    if isinstance(content, list) and content and all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    return content


def _check_order(messages: tuple[Message, ...]) -> None:
    """Raise Unusable unless a system turn may come first, then questions and answers in turn, tools between calls and answers."""
    before = None
    for place, message in enumerate(messages):
        role = message.role
        if role in ("system", "developer"):
            if place:
                raise Unusable("a system turn is not the first turn")
            continue
        if role == "user" and before not in (None, "assistant"):
            raise Unusable("a user's turn follows another" if before == "user" else "a user's turn follows a tool's")
        if role == "assistant" and before in (None, "assistant"):
            raise Unusable("the assistant speaks first" if before is None else "an assistant's turn follows another")
        if role == "tool" and before not in ("assistant", "tool"):
            raise Unusable("a tool's turn does not follow the assistant's")
        before = role
