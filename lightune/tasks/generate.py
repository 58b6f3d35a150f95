"""Text that goes on from text: an answer to a question, a summary, a command, code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lightune.runtime.answers import Answers


@dataclass(frozen=True)
class Generate:
    """Cross entropy over the tokens of the answers. Its rows are conversations: see `supervision` and `language`."""

    answers: Answers
    kind: ClassVar[str] = "generate"
    primary: ClassVar[str] = "loss"
