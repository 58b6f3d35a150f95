"""What is done with a row that is too long: each policy takes it and gives the rows that are left of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lightune.runtime.chat import ChatFormat, render
from lightune.runtime.generation import Message
from lightune.supervision.marking import Marked, Marker, marked
from lightune.supervision.rendering import Rendered, Talk, question_begin, render_talk


@dataclass(frozen=True)
class Shortener:
    """Holds rows to `max_length` tokens."""

    format: ChatFormat
    marker: Marker
    max_length: int

    def shorten(self, policy: str, talk: Talk, rendered: Rendered, row: Marked) -> list[Marked]:
        """The rows that `policy` (see `supervise`) leaves of one that is too long; none where it is dropped."""
        if policy == "drop":
            return []
        if policy == "cut-right":
            return [row.part(0, self.max_length)]
        return self._split(talk, row) if policy == "split" else [self._cut_left(talk, rendered, row)]

    def _cut_left(self, talk: Talk, rendered: Rendered, row: Marked) -> Marked:
        """Whole exchanges go first; where the last one alone is too long, the front of its question goes."""
        head, exchanges = _exchanges(talk.messages)
        if len(exchanges) > 1:
            kept = _most(len(exchanges) - 1, lambda count: self._fits(_joined(talk, head, exchanges[-count:])))
            talk = _joined(talk, head, exchanges[-max(1, kept) :])
            rendered, row = self._made(talk)
        return row if len(row.ids) <= self.max_length else self._cut_question(talk, rendered, row)

    def _cut_question(self, talk: Talk, rendered: Rendered, row: Marked) -> Marked:
        """The row without the front of its question; the system turn stays where the answers stay whole beside it."""
        excess = len(row.ids) - self.max_length
        before = self.marker.ids(rendered.text[: question_begin(self.format, talk, rendered.text)])
        same = next((place for place, token in enumerate(before) if place >= len(row.ids) or token != row.ids[place]), len(before))
        answers = len(row.ids) - int(row.trained.argmax()) if row.trained.any() else 0
        if same + answers > self.max_length or same >= self.max_length:
            return row.part(excess, len(row.ids))
        kept = np.r_[0:same, same + excess : len(row.ids)]
        return marked(row.ids[kept], row.trained[kept], row.ended)

    def _split(self, talk: Talk, row: Marked) -> list[Marked]:
        """Runs of whole exchanges, as many together as fit, each after the system turn; one that is too long alone in stretches."""
        head, exchanges = _exchanges(talk.messages)
        if talk.last_only or len(exchanges) < 2:
            return self._stretches(row)
        rows: list[Marked] = []
        while exchanges:
            fitting = _most(len(exchanges), lambda count: self._fits(_joined(talk, head, exchanges[:count])))  # noqa: B023  (called at once)
            together, exchanges = exchanges[: max(1, fitting)], exchanges[max(1, fitting) :]
            _, made = self._made(_joined(talk, head, together))
            rows += self._stretches(made)
        return rows

    def _stretches(self, row: Marked) -> list[Marked]:
        """The row in stretches that share one token, which is learned in the first of the two: so no target is lost or learned twice."""
        step = self.max_length - 1
        return [row.part(begin, begin + self.max_length) for begin in range(0, max(1, len(row.ids) - 1), step)]

    def _fits(self, talk: Talk) -> bool:
        return len(self.marker.ids(render(self.format, talk.messages, tools=talk.tools, opening=False))) <= self.max_length

    def _made(self, talk: Talk) -> tuple[Rendered, Marked]:
        rendered = render_talk(self.format, talk)
        return rendered, self.marker.mark([rendered])[0]


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that fits, where what fits a number fits every smaller one; 0 where not even 1 does."""
    good, bad = 0, 1
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, limit + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _exchanges(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """The turns before the first question, and the exchanges: each a question with all that follows until the next."""
    begins = [place for place, message in enumerate(messages) if message.role == "user"] or [len(messages)]
    ends = [*begins[1:], len(messages)]
    return messages[: begins[0]], [messages[begin:end] for begin, end in zip(begins, ends, strict=True)]


def _joined(talk: Talk, head: tuple[Message, ...], exchanges: list[tuple[Message, ...]]) -> Talk:
    return replace(talk, messages=(*head, *(message for exchange in exchanges for message in exchange)))
