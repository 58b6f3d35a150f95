"""Text for a text, by an encoder and a decoder: a translation, a summary, a title."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lightune.runtime.answers import Answers


@dataclass(frozen=True)
class Translate:
    """Cross entropy over the tokens of the targets. Its rows are sources with their targets: see `supervision` and `language`."""

    answers: Answers
    kind: ClassVar[str] = "translate"
    primary: ClassVar[str] = "loss"
