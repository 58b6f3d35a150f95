"""Texts that are quoted whole in another: phrases of a sentence, chunks that overlap, copies with more around them.

On two sides of a split they flatter what was learned by heart, as equal texts do, so they are found and kept together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

LEAST = 4  # words of a text that can be quoted
COMMON = 20  # texts with the same run of words; beyond, it is a turn of phrase
LARGEST = 0.01  # share of all texts that may be kin of each other, so that parts can still be cut
FEWEST, MOST = 200, 200_000  # texts among which kin are looked for

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")  # a character where words are not set apart


def can_seek(count: int) -> bool:
    """Whether there are enough texts for kin to matter, and not too many to look through."""
    return FEWEST <= count <= MOST


def find_kin(texts: Sequence[str]) -> list[list[int]]:
    """Positions of texts in groups of kin, each text in exactly one; all alone where there are too few texts, or too many."""
    parents, sizes = list(range(len(texts))), [1] * len(texts)

    def find(place: int) -> int:
        while parents[place] != place:
            parents[place] = place = parents[parents[place]]
        return place

    most = max(COMMON, int(LARGEST * len(texts)))
    for quoted, other in _quotations(texts) if can_seek(len(texts)) else ():
        first, second = sorted((find(quoted), find(other)))
        if first != second and sizes[first] + sizes[second] <= most:
            parents[second] = first
            sizes[first] += sizes[second]
    groups: dict[int, list[int]] = {}
    for place in range(len(texts)):
        groups.setdefault(find(place), []).append(place)
    return list(groups.values())


def _quotations(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of positions: a text, and one that holds all its words in their order."""
    words = [WORD.findall(text.casefold()) for text in texts]
    joined = [f" {' '.join(found)} " for found in words]
    runs = [np.array([hash(tuple(found[at : at + LEAST])) for at in range(len(found) - LEAST + 1)], dtype=np.int64) for found in words]
    owners = np.repeat(np.arange(len(texts)), [len(found) for found in runs])
    every = np.concatenate(runs)
    order = np.argsort(every, kind="stable")
    every, owners = every[order], owners[order]
    for place, found in enumerate(runs):
        if len(found):
            low, high = (np.searchsorted(every, found, side) for side in ("left", "right"))
            rarest = int(np.argmin(high - low))
            others = owners[low[rarest] : high[rarest]]
            if len(others) <= COMMON:
                yield from ((place, int(other)) for other in others if other != place and joined[place] in joined[other])
