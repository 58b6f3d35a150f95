"""Bytes of tokens to text that is never taken back: whole characters, up to the first stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Stopper:
    """Turns the bytes of an answer's tokens into text as they come.

    It holds back what may still change: a character whose bytes have not all come, and the beginning of a stop text.
    Of several stop texts the one that is complete first counts, so how the bytes are cut changes nothing.

    stopped: whether a stop text has come; nothing is emitted after it.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stop = tuple(filter(None, stop))
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, data: bytes, *, last: bool = False) -> str:
        """The text that is certain now. `last`: nothing follows, so what was held back comes too (half a character as U+FFFD)."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(data, last)
        found = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            keep = min(found)[1]
        else:
            keep = len(self._held) if last else len(self._held) - self._possible()
        text, self._held = self._held[:keep], self._held[keep:]
        return text

    def _possible(self) -> int:
        """How many of the held characters may be the beginning of a stop text."""
        longest = min(max(map(len, self._stop), default=1) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if any(stop.startswith(self._held[-size:]) for stop in self._stop)), 0)
