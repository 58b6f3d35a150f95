"""A chart with its caption and legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its caption; `keys` are (colour number, text) of its legend. A `fixed` chart keeps its size and scrolls in its box."""

    title: str
    svg: str
    keys: Sequence[tuple[int, str]] = ()
    note: str = ""
    fixed: bool = False
