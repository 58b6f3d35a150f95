"""The tokens of a model that generates: the bytes each stands for, which ones end an answer, and how text becomes tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from lightune.runtime.tokenization import characters


@dataclass(frozen=True, eq=False)
class TokenTable:
    """pieces: the bytes of every token, empty for special ones. special: the special tokens. ends: those that end an answer.
    stop: texts that end an answer but are no token. encode: plain text to token ids, special tokens in it recognised, none added.
    """

    pieces: list[bytes]
    special: frozenset[int]
    ends: frozenset[int]
    stop: tuple[str, ...]
    encode: Callable[[str], list[int]]

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for ids that only the model has, whose matrix may be larger."""
        return self.pieces[token] if token < len(self.pieces) else b""


def make_table(tokenizer: Tokenizer, ends: Iterable[str]) -> TokenTable:
    """The table of a `tokenizers` tokenizer; `ends` are the texts that end an answer, tokens or not."""
    added = tokenizer.get_added_tokens_decoder()
    special = frozenset(number for number, token in added.items() if token.special)
    pieces = _pieces(tokenizer)
    for number, token in added.items():
        pieces[number] = b"" if token.special else token.content.encode()
    found = {text: tokenizer.token_to_id(text) for text in ends if text}

    def encode(text: str) -> list[int]:
        return tokenizer.encode(characters(text), add_special_tokens=False).ids

    stop = tuple(text for text, number in found.items() if number is None)
    return TokenTable(pieces, special, frozenset(number for number in found.values() if number is not None), stop, encode)


def _pieces(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of every token id, by the kind of decoder: GPT-2's bytes, SentencePiece's, or else what a token adds to a decoded text."""
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    size = max(tokens.values(), default=-1) + 1
    kinds = set(_types(json.loads(tokenizer.to_str())["decoder"]))
    if "ByteLevel" in kinds:
        table = _byte_letters()
        convert: Callable[[str, int], bytes] = lambda token, _: b"".join(table.get(letter, letter.encode()) for letter in token)
    elif kinds & {"ByteFallback", "Metaspace"}:
        convert = lambda token, _: _sentencepiece(token)
    else:
        anchor = next(iter(sorted(tokens.values())), 0)
        before = tokenizer.decode([anchor], skip_special_tokens=False)
        convert = lambda _, number: tokenizer.decode([anchor, number], skip_special_tokens=False)[len(before) :].encode()
    pieces = [b""] * size
    for token, number in tokens.items():
        pieces[number] = convert(token, number)
    return pieces


def _types(decoder: Any) -> Iterable[str]:
    """The types of a decoder and of those in it."""
    if isinstance(decoder, dict):
        yield decoder["type"]
        for part in decoder.get("decoders", ()):
            yield from _types(part)


def _sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()


def _byte_letters() -> dict[str, bytes]:
    """GPT-2's letter for each byte: printable Latin-1 stands for itself, the rest follows from U+0100 on (Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): bytes([byte]) for byte in printable} | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}
