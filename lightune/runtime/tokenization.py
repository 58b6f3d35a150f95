"""Texts to arrays of token ids: what is cut is counted. Needs numpy and tokenizers alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from lightune.errors import InputError, IntegrityError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class Encoded:
    """Texts as token ids, special tokens included, cut to the encoder's length, not padded.

    ids: int32 [s] for each text, s ≥ 1. types: int8 [s] for each text (0 the first text, 1 its pair), None where the model takes none.
    lengths: int64 [n], tokens of each text before any cut. truncated_tokens: how many of them were cut away.
    """

    ids: list[np.ndarray]
    types: list[np.ndarray] | None
    lengths: np.ndarray
    truncated_tokens: int

    def __len__(self) -> int:
        return len(self.ids)


class Encoder:
    """A tokenizer with the length, padding and inputs that one model expects.

    Args:
        tokenizer: its own padding and truncation are turned off.
        max_length: most tokens of one example, special tokens included; longer ones lose their end, pairs the end of the longer text.
        pad_id: the token that fills short rows.
        inputs: which of input_ids, attention_mask and token_type_ids the model takes.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, pad_id: int = 0, inputs: Sequence[str] = INPUTS[:2]) -> None:
        special = tokenizer.num_special_tokens_to_add(True)
        if max_length <= special:
            raise InputError(f"max-length is {max_length}, expected more than {special}: this tokenizer adds {special} special tokens.")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.pad_id = pad_id
        self.inputs = tuple(inputs)

    @classmethod
    def from_file(cls, path: str | Path, max_length: int, pad_id: int = 0, inputs: Sequence[str] = INPUTS[:2]) -> Encoder:
        """The encoder of a `tokenizer.json` file.

        Raises:
            IntegrityError: the file is missing or is no tokenizer.
        """
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise IntegrityError(f"{path} is no readable tokenizer ({error}). Export the model again.") from error
        return cls(tokenizer, max_length, pad_id, inputs)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as compact JSON; `from_file` with `to_dict` reads it back."""
        facts = json.loads(self.tokenizer.to_str())
        merges = facts["model"].get("merges")
        if merges and not any(" " in part or part.startswith("#version") for pair in merges for part in pair):  # either would be misread
            facts["model"]["merges"] = [" ".join(pair) for pair in merges]  # the shorter of the two forms that tokenizers reads
        Path(path).write_text(json.dumps(facts, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """What `from_file` takes beside the path, ready for JSON."""
        return {"max_length": self.max_length, "pad_id": self.pad_id, "inputs": list(self.inputs)}

    def encode(self, texts: Sequence[str], pairs: Sequence[str | None] | None = None) -> Encoded:
        """Token ids of texts, or of texts with their pairs (None where a text has none).

        A text without any token becomes one padding token, so that a model always has something to read. A lone surrogate, which is no
        character, is read as U+FFFD.

        Raises:
            InputError: something that is no text, with its place.
        """
        rows = list(zip(texts, pairs if pairs is not None else [None] * len(texts), strict=True))
        try:
            encodings = self._tokenize(rows)
        except TypeError:
            rows = [_repaired(row, place) for place, row in enumerate(rows)]
            encodings = self._tokenize(rows)
        lengths = [len(encoding) for encoding in encodings]  # plain numbers: for a single text each call of numpy would be felt
        truncated = 0
        for place, length in enumerate(lengths):
            if length > self.max_length:
                encodings[place] = self._cut(*rows[place])
                truncated += length - len(encodings[place])
        ids = [np.array(encoding.ids or [self.pad_id], dtype=np.int32) for encoding in encodings]
        types = None
        if "token_type_ids" in self.inputs:
            types = [np.array(encoding.type_ids or [0], dtype=np.int8) for encoding in encodings]
        return Encoded(ids, types, np.array(lengths, dtype=np.int64), truncated)

    def pad(self, encoded: Encoded, rows: Sequence[int] | np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The model's inputs for the given rows (all by default): int64 [b, s] each, s the longest of them, filled on the right."""
        chosen = range(len(encoded)) if rows is None else rows
        if len(chosen) == 1:
            return self._lone(encoded, int(chosen[0]))
        ids = [encoded.ids[row] for row in chosen]
        longest = max(map(len, ids), default=0)
        batch = {"input_ids": np.full((len(ids), longest), self.pad_id, dtype=np.int64)}
        batch |= {name: np.zeros((len(ids), longest), dtype=np.int64) for name in INPUTS[1:] if name in self.inputs}
        for place, row in enumerate(chosen):
            length = len(ids[place])
            batch["input_ids"][place, :length] = ids[place]
            if "attention_mask" in batch:
                batch["attention_mask"][place, :length] = 1
            if "token_type_ids" in batch and encoded.types is not None:
                batch["token_type_ids"][place, :length] = encoded.types[row]
        return batch

    def _lone(self, encoded: Encoded, row: int) -> dict[str, np.ndarray]:
        """`pad` for one row, which needs no padding."""
        ids = encoded.ids[row]
        batch = {"input_ids": ids.astype(np.int64)[None]}
        if "attention_mask" in self.inputs:
            batch["attention_mask"] = np.ones((1, len(ids)), dtype=np.int64)
        if "token_type_ids" in self.inputs:
            types = encoded.types[row] if encoded.types is not None else np.zeros(len(ids))
            batch["token_type_ids"] = types.astype(np.int64)[None]
        return batch

    def _tokenize(self, rows: list[tuple[str, str | None]]) -> list[Encoding]:
        return self.tokenizer.encode_batch_fast([text if pair is None else (text, pair) for text, pair in rows])

    def _cut(self, text: str, pair: str | None) -> Encoding:
        """One example that is too long, cut at its end; of a pair the longer text is cut first.

        The special tokens go on afterwards, so they survive; the tokenizer's own settings stay as they are, so threads can share it.
        """
        room = self.max_length - self.tokenizer.num_special_tokens_to_add(pair is not None)
        first = self.tokenizer.encode(text, add_special_tokens=False)
        if pair is None:
            first.truncate(room)
            return self.tokenizer.post_process(first)
        second = self.tokenizer.encode(pair, add_special_tokens=False)
        short = min(len(first), len(second), room // 2)
        first_is_short = len(first) <= len(second)
        first.truncate(short if first_is_short else room - short)
        second.truncate(room - short if first_is_short else short)
        return self.tokenizer.post_process(first, second)


def texts_and_pairs(examples: Iterable[Any]) -> tuple[list[str], list[str | None] | None]:
    """The texts of examples, and their pairs or None where no example has one.

    An example is a text, a (text, pair) tuple or list, or anything with `.text` and perhaps `.pair`.

    Raises:
        InputError: a single text in place of a list of them, or something that is no example.
    """
    if isinstance(examples, str):
        raise InputError(f"Got the text {examples[:40]!r}, expected a list of texts. Write [text].")
    rows = [_text_and_pair(example, place) for place, example in enumerate(examples)]
    pairs = [pair for _, pair in rows]
    return [text for text, _ in rows], pairs if any(pair is not None for pair in pairs) else None


def batches(lengths: np.ndarray | Sequence[int], rows: int = 32, tokens: int = 8192) -> list[np.ndarray]:
    """Places of examples that run together: of similar length, the longest first.

    A batch has at most `rows` examples and at most `tokens` tokens once padded, but always one example.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    groups, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        stop = start + max(1, min(rows, tokens // longest))
        groups.append(order[start:stop])
        start = stop
    return groups


def _text_and_pair(example: Any, place: int) -> tuple[str, str | None]:
    if isinstance(example, str):
        return example, None
    if isinstance(example, tuple | list) and len(example) == 2:
        return example[0], example[1]
    if hasattr(example, "text"):
        return example.text, getattr(example, "pair", None)
    raise InputError(f"Example {place} is {example!r}, expected a text, a (text, pair) tuple, or an object with .text and .pair.")


def _repaired(row: tuple[Any, Any], place: int) -> tuple[str, str | None]:
    """The row with lone surrogates replaced, or an error that names what is no text."""
    text, pair = row
    for value in (text,) if pair is None else (text, pair):
        if not isinstance(value, str):
            raise InputError(f"Example {place} is {value!r} of type {type(value).__name__}, expected text. Turn it into a string first.")
    return characters(text), None if pair is None else characters(pair)


def characters(text: str) -> str:
    """The text with lone surrogates, which are no characters, replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
