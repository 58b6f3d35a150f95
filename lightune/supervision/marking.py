"""Rendered text as token ids, each token marked as learned or not by the characters that it stands for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from lightune.supervision.rendering import Rendered

HALVES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, eq=False)
class Marked:
    """ids: int32 [s]. trained: bool [s]. ended: whether an end token follows the last answer."""

    ids: np.ndarray
    trained: np.ndarray
    ended: bool

    def part(self, begin: int, end: int) -> Marked:
        """The tokens from begin to end; the first of them, which nothing predicts any more, is not learned."""
        return marked(self.ids[begin:end], self.trained[begin:end], self.ended and end >= len(self.ids))


def marked(ids: np.ndarray, trained: np.ndarray, ended: bool) -> Marked:
    """The tokens with the first one, which nothing predicts, not learned."""
    trained = trained.copy()
    trained[:1] = False
    return Marked(ids.astype(np.int32), trained, ended)


def _characters(text: str) -> str:
    """The text with halves of characters (lone surrogates), which no tokenizer takes, as U+FFFD: as many characters as before."""
    return HALVES.sub("\ufffd", text)


class Marker:
    """Tokenizes as the model reads: special tokens in the text are recognised and none are added."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.post_processor = None  # all that it would do here is to trim blanks off the offsets
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._newline = self.ids("\n")
        self._bare = self.ids("\na") == self._newline + self.ids("a")  # nothing is put before a text, so that pieces are like the whole

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._tokenizer.encode(_characters(text), add_special_tokens=False).ids

    def mark(self, rendered: Sequence[Rendered]) -> list[Marked]:
        """The tokens of each text. Where a token would stand for both sides of an answer's edge, the sides are tokenized apart, as they
        are when the model is asked."""
        encodings = self._tokenizer.encode_batch([_characters(each.text) for each in rendered], add_special_tokens=False)
        return [self._marked(each, encoding) for each, encoding in zip(rendered, encodings, strict=True)]

    def _marked(self, rendered: Rendered, encoding: Encoding) -> Marked:
        begins, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        edges = sorted({edge for span in rendered.spans for edge in span})
        if any(((begins < edge) & (edge < ends)).any() for edge in edges):
            return self._in_pieces(rendered, edges)
        trained = np.zeros(len(begins), dtype=bool)
        for begin, end in rendered.spans:
            trained |= (ends > begin) & (begins < end)
        return marked(np.array(encoding.ids, dtype=np.int32), trained, rendered.ended)

    def _in_pieces(self, rendered: Rendered, edges: Sequence[int]) -> Marked:
        places = sorted({0, *edges, len(rendered.text)})
        ids: list[int] = []
        trained: list[bool] = []
        for begin, end in itertools.pairwise(places):
            piece = self._piece(rendered.text[begin:end], first=begin == 0)
            ids += piece
            trained += [any(low <= begin < high for low, high in rendered.spans)] * len(piece)
        return marked(np.array(ids, dtype=np.int32), np.array(trained, dtype=bool), rendered.ended)

    def _piece(self, text: str, first: bool) -> list[int]:
        """A piece as it is tokenized inside a text, without the blank that some tokenizers put before a text."""
        if first or self._bare:
            return self.ids(text)
        after = self.ids("\n" + text)
        return after[len(self._newline) :] if after[: len(self._newline)] == self._newline else self.ids(text)
