"""`supervise_targets`: conversations become rows for an encoder with a decoder: a source with its end token, then the target with its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lightune.data.dialogues import Conversation
from lightune.errors import InputError
from lightune.runtime.chat import ChatFormat
from lightune.runtime.prompting import Prompting
from lightune.runtime.token_table import make_table
from lightune.runtime.tokenization import Encoder
from lightune.supervision.ledger import Ledger
from lightune.supervision.marking import Marked
from lightune.supervision.rows import Supervised, check_learned, count, list_rows, too_long_error

POLICIES = ("error", "cut-left", "cut-right", "drop")


def supervise_targets(
    format: ChatFormat, encoder: Encoder, conversations: Sequence[Conversation], *, max_length: int, too_long: str = "error"
) -> tuple[list[Supervised], Ledger]:
    """Token ids of sources and targets; of the target every token is learned, its end token too. Every answer of a conversation is a target,
    and what stands before it the source, as it is when the model is asked.

    max_length: most tokens of source and target together. too_long: what is done with longer rows.
        error: say which they are. drop: leave them out. cut-left, cut-right: remove the front or the end of the source; a target that is too
        long alone loses its end.

    Raises:
        InputError: rows that are too long (error), plain text, an end token inside a text, or nothing to learn in any row.
    """
    if too_long not in POLICIES:
        raise InputError(f"too-long is {too_long!r}, which sources and targets cannot be. Choose one of {', '.join(POLICIES)}.")
    if max_length < 3:
        raise InputError(f"max-length is {max_length}, expected at least 3 tokens: source and target have an end token each.")
    (end,) = (encoder.tokenizer.token_to_id(text) for text in format.stop)
    prompting = Prompting(make_table(encoder.tokenizer, format.stop), format, max_length, end)
    ledger = Ledger(rows=len(conversations))
    rows: list[Supervised] = []
    over: list[tuple[int, int]] = []
    _check_texts(conversations, format.eos)
    for conversation in conversations:
        for source, target in _pairs(prompting, conversation):
            length = len(source) + len(target)
            ledger.longest = max(ledger.longest, length)
            if length > max_length and too_long == "error":
                over.append((conversation.row, length))
                continue
            kept = [] if length > max_length and too_long == "drop" else [_cut(source, target, max_length, too_long)]
            rows += [
                Supervised(each.ids, each.trained, conversation.row) for each in count(ledger, _joined(source, target), kept, too_long)
            ]
    if over:
        raise too_long_error(over, max_length, ledger.longest, POLICIES)
    check_learned(rows, ledger)
    return rows, ledger


def _pairs(prompting: Prompting, conversation: Conversation) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Source and target of every answer, int32 each, their end tokens among them."""
    for place, turn in enumerate(conversation.messages):
        if turn.role == "assistant":
            source = prompting.encode_prompt(conversation.messages[:place])
            yield source, np.append(prompting.encode(turn.content), source[-1:])


def _cut(source: np.ndarray, target: np.ndarray, max_length: int, policy: str) -> Marked:
    """The row of a source and a target that fits. The source keeps its end token."""
    target = target[: max_length - 1]
    room = max_length - len(target) - 1
    text = source[:-1]
    kept = text[max(len(text) - room, 0) :] if policy == "cut-left" else text[:room]
    return _joined(np.append(kept, source[-1:]), target)


def _joined(source: np.ndarray, target: np.ndarray) -> Marked:
    trained = np.arange(len(source) + len(target)) >= len(source)
    return Marked(np.concatenate([source, target]).astype(np.int32), trained, bool(target[-1] == source[-1]))


def _check_texts(conversations: Sequence[Conversation], end: str) -> None:
    """Raise InputError for rows that are no source with a target, or whose texts hold the end token, by which both are told apart."""
    plain = [row.row for row in conversations if not row.messages]
    ending = [row.row for row in conversations if any(end in turn.content for turn in row.messages)]
    problems = []
    if plain:
        problems.append(f"Rows {list_rows(plain)} are plain text. Name the columns of sources and targets: prompt and completion.")
    if ending:
        problems.append(f"Rows {list_rows(ending)} hold the text {end!r}, which ends a source or a target. Take it out, or leave them out.")
    if problems:
        raise InputError(" ".join(problems))
