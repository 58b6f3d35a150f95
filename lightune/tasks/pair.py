"""One label of several for two texts together: paraphrase, entailment, relevance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lightune.tasks.classify import Classify


@dataclass(frozen=True)
class Pair(Classify):
    """Classification of a text and its pair, which the encoder joins; all else is Classify's."""

    kind: ClassVar[str] = "pair"
