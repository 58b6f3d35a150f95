"""Which tokens of a vocabulary stay when it is cut: enough to read every text, what the data use, and what more such data would use.

A text stays readable because what a dropped token spelled can always be spelled by smaller ones:

    byte-level BPE, byte fallback   all 256 byte tokens stay, so that nothing is lost, whatever the text
    WordPiece, Unigram, plain BPE   single characters stay, in every form that a word can hold (a WordPiece has ``c`` and ``##c``)
    WordLevel                       has nothing smaller than a word: a dropped word becomes the unknown token

A text whose tokens all stay is cut into the same tokens as before. For WordPiece that is so because the longest match is still there
(Wu et al. 2016, section 4.1), for Unigram because the likeliest path is still there (Kudo 2018, equation 1), and for BPE because every
merge on the way to a kept token stays with it (Sennrich et al. 2016, algorithm 1).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers

from lightune.errors import InputError

SPACE = "▁"
KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")
ASCII = tuple(map(chr, range(33, 127)))  # texts of every language hold some
WHOLE_WORD = 4  # what a lost character costs against a lost token: the word around it becomes unknown, not just longer
RIDGE = 0.1  # of the mean variance, added to every direction of the table


@dataclass(frozen=True)
class Vocabulary:
    """What the tokens of a tokenizer are.

    tokens: text by id, added tokens included.
    special: ids that the tokenizer adds, falls back on, or marks as special.
    facts: the tokenizer's own JSON.
    """

    tokens: dict[int, str]
    special: frozenset[int]
    facts: dict[str, Any]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """The vocabulary of a tokenizer.

        Raises:
            InputError: its model is none of WordPiece, BPE, Unigram and WordLevel.
        """
        facts = json.loads(tokenizer.to_str())
        kind = facts["model"]["type"]
        if kind not in KINDS:
            raise InputError(f"The tokenizer's model is {kind!r}, expected {', '.join(KINDS)}. Leave its vocabulary as it is.")
        ids = tokenizer.get_vocab(with_added_tokens=True)
        special = {item["id"] for item in facts["added_tokens"] if item["special"]} | set(_added_by(facts["post_processor"]))
        unknown = facts["model"].get("unk_id") if kind == "Unigram" else ids.get(facts["model"].get("unk_token") or "")
        special |= {unknown} - {None}
        return cls({number: token for token, number in ids.items()}, frozenset(special), facts)

    @property
    def model(self) -> dict[str, Any]:
        """The JSON of the tokenizer's model."""
        return self.facts["model"]

    @cached_property
    def essential(self) -> frozenset[int]:
        """Ids without which the tokenizer would not work as before: special tokens, bytes, and what sets a Unigram's unknown score."""
        found = {*self.special, *self.bytes}
        if self.model.get("byte_fallback"):  # decoders turn this token into a space, but not the bytes that spell it
            found |= {number for number, token in self.tokens.items() if token == SPACE}
        if self.model["type"] == "Unigram":  # an unknown character costs a fixed sum more than the unlikeliest token
            found.add(min(range(len(self.model["vocab"])), key=lambda number: self.model["vocab"][number][1]))
        return frozenset(found)

    @cached_property
    def bytes(self) -> frozenset[int]:
        """Ids of the tokens that stand for one byte each; none where the tokenizer does not fall back on bytes."""
        names: set[str] = set()
        if any(step["type"] == "ByteLevel" for step in _steps(self.facts["pre_tokenizer"], self.facts["normalizer"])):
            names = set(pre_tokenizers.ByteLevel.alphabet())
        elif self.model.get("byte_fallback"):
            names = {f"<0x{value:02X}>" for value in range(256)}
        found = frozenset(number for number, token in self.tokens.items() if token in names)
        return found if len(found) == 256 else frozenset()

    @cached_property
    def characters(self) -> dict[str, tuple[int, ...]]:
        """The ids that spell one character, by character: all of its forms that can occur. Empty where bytes spell everything."""
        found: dict[str, tuple[int, ...]] = {}
        if self.model["type"] == "WordLevel" or self.bytes:
            return found
        for number, token in sorted(self.tokens.items()):
            text = self.body(token)
            if len(text) == 1 and number not in self.special and number not in self.unreachable:
                found[text] = (*found.get(text, ()), number)
        return found

    @cached_property
    def unreachable(self) -> frozenset[int]:
        """Ids of a WordPiece that no text leads to, such as ``[unused7]``, or ``##中`` where every ideograph is a word of its own."""
        if self.model["type"] != "WordPiece":
            return frozenset()
        normalize, split = _stages(self.facts)
        prefix = self.model["continuing_subword_prefix"]

        def is_word(text: str) -> bool:
            return [piece for piece, _ in split(normalize(text))] == [text]

        def occurs(token: str) -> bool:
            text = token.removeprefix(prefix)
            return any(is_word(f"{before}{text}") for before in (text[0], "a")) if token.startswith(prefix) and text else is_word(token)

        return frozenset(number for number, token in self.tokens.items() if number not in self.special and not occurs(token))

    def body(self, token: str) -> str:
        """The characters that a token spells, without the mark of its place in a word."""
        token = token.removeprefix(self.model.get("continuing_subword_prefix") or "")
        return token.removesuffix(self.model.get("end_of_word_suffix") or "")

    def parts(self, number: int) -> tuple[int, ...]:
        """A token and those that must stay with it: all forms of a character, and in BPE all that its merges pass through."""
        token = self.tokens[number]
        if number in self.special:
            return (number,)
        merged = self._merges.path(token) if self.model["type"] == "BPE" else ()
        return (number, *merged, *self.characters.get(self.body(token), ()))

    @cached_property
    def _merges(self) -> Merges:
        return Merges(self.model)


class Merges:
    """The merges of a BPE model: which tokens lie on the way from characters to a token."""

    def __init__(self, model: dict[str, Any]) -> None:
        self.vocabulary: dict[str, int] = model["vocab"]
        self.prefix: str = model.get("continuing_subword_prefix") or ""
        self.suffix: str = model.get("end_of_word_suffix") or ""
        pairs = (tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
        self.ranks: dict[tuple[str, ...], int] = {pair: rank for rank, pair in enumerate(pairs)}

    def joined(self, left: str, right: str) -> str:
        """The token that a merge makes."""
        return left + right.removeprefix(self.prefix)

    def path(self, token: str) -> list[int]:
        """Ids of the characters of a token and of everything that is merged on the way to it."""
        text = token.removeprefix(self.prefix).removesuffix(self.suffix)
        first = self.prefix if token.startswith(self.prefix) else ""
        symbols = [(self.prefix if place else first) + character for place, character in enumerate(text)]
        if symbols and token.endswith(self.suffix):
            symbols[-1] += self.suffix
        found = {*symbols}
        while len(symbols) > 1:
            rank, place = min((self.ranks.get(pair, len(self.ranks)), place) for place, pair in enumerate(pairwise(symbols)))
            if rank == len(self.ranks):
                break
            symbols[place : place + 2] = [self.joined(*symbols[place : place + 2])]
            found.add(symbols[place])
        return [self.vocabulary[symbol] for symbol in found if symbol in self.vocabulary]


def choose(
    vocabulary: Vocabulary, keep: int, counts: np.ndarray | None = None, table: np.ndarray | None = None, always: Iterable[int] = ()
) -> tuple[int, ...]:
    """The ids of the tokens that stay, in their old order.

    First what the vocabulary cannot do without, then tokens and characters by how often the data use them, then the rest by how likely
    more such data are to use it.

    Args:
        keep: how many.
        counts: int64 [V], how often every token occurs in the data; None leaves the choice to the vocabulary's order, which is by
            frequency in most.
        table: float [V, d], the vectors of the tokens, from which it is told what the data are likely to use; None leaves it to the
            vocabulary's order.
        always: more ids that must stay, such as those that the model's configuration names.

    Raises:
        InputError: fewer than must stay, or more than there are.
    """
    chosen = {*vocabulary.essential, *always}
    if not len(chosen) <= keep <= len(vocabulary.tokens):
        raise InputError(
            f"The vocabulary would keep {keep} tokens, expected {len(chosen)} to {len(vocabulary.tokens)}: it has {len(vocabulary.tokens)}, "
            f"and needs {len(chosen)} of them as special tokens and to spell every text."
        )
    for group in _ranked(vocabulary, counts, table):
        new = set(group) - chosen
        if len(chosen) + len(new) <= keep:
            chosen |= new
        if len(chosen) == keep:
            break
    return tuple(sorted(chosen))


def _ranked(vocabulary: Vocabulary, counts: np.ndarray | None, table: np.ndarray | None) -> Iterator[tuple[int, ...]]:
    """Groups of ids that stay together, the most needed first; every id comes at last."""
    often = {number: int(counts[number]) if counts is not None and number < len(counts) else 0 for number in sorted(vocabulary.tokens)}
    order = [number for number, count in often.items() if count or number not in vocabulary.unreachable]
    seen = np.array([often[number] > 0 for number in order])
    chances = likelihood(table[order], seen) if table is not None else np.zeros(len(order))
    likely = dict(zip(order, chances.tolist(), strict=True))
    ranked: list[tuple[float, float, Callable[[], tuple[int, ...]]]] = [
        (often[number], likely[number], partial(vocabulary.parts, number)) for number in order
    ]
    for character, count in _count_characters(vocabulary, often).items():
        ranked.append((WHOLE_WORD * count, np.inf, partial(vocabulary.characters.__getitem__, character)))
    ranked.sort(key=lambda item: (-item[0], -item[1]))
    yield from (make() for _, _, make in ranked)
    yield from ((number,) for number in often)


def _count_characters(vocabulary: Vocabulary, often: dict[int, int]) -> dict[str, int]:
    """How often the data use each character that has a token of its own; those of ASCII at least once."""
    if not vocabulary.characters:
        return {}
    used = Counter[str](ASCII)
    for number in often.keys() - vocabulary.special:
        for character in vocabulary.body(vocabulary.tokens[number]) if often[number] else ():
            used[character] += often[number]
    return {character: count for character, count in used.items() if character in vocabulary.characters}


def likelihood(table: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """How much every token looks like those that occur: float64 [n].

    Fisher's linear discriminant (1936) between the vectors [n, d] of the tokens that occur and of those that do not. A table has learned
    which words go together and which are rare; so a few hundred texts tell which of the words that they lack the next texts will hold.
    """
    if seen.all() or not seen.any():
        return np.zeros(len(seen))
    centred = table - table.mean(axis=0)
    spread = (centred.T @ centred / len(centred)).astype(np.float64)
    spread += np.eye(len(spread)) * max(RIDGE * np.trace(spread) / len(spread), np.finfo(np.float64).tiny)
    return centred @ np.linalg.solve(spread, centred.T @ (seen - seen.mean()) / len(centred))


def _steps(*stages: Any) -> Iterator[dict[str, Any]]:
    """Every step of normalizers and pre-tokenizers, those inside a sequence too."""
    for stage in stages:
        if stage is not None:
            yield stage
            yield from _steps(*stage.get("pretokenizers", ()), *stage.get("normalizers", ()))


def _added_by(processor: Any) -> Iterator[int]:
    """The ids that a post-processor adds."""
    if processor is None:
        return
    for inner in processor.get("processors", ()):
        yield from _added_by(inner)
    for end in ("cls", "sep"):
        if end in processor:
            yield processor[end][1]
    for item in processor.get("special_tokens", {}).values():
        yield from item["ids"]


def _stages(facts: dict[str, Any]) -> tuple[Any, Any]:
    """What normalizes a text and what splits it into words."""
    tokenizer = Tokenizer.from_str(json.dumps(facts))
    normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer else str
    split = tokenizer.pre_tokenizer.pre_tokenize_str if tokenizer.pre_tokenizer else lambda text: [(text, None)]
    return normalize, split
