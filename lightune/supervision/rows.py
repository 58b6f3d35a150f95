"""`supervise`: conversations become rows of token ids, held to a length, and whatever happens to them is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers.decoders import DecodeStream

from lightune.data.dialogues import Conversation
from lightune.errors import InputError, unknown
from lightune.runtime.chat import ChatFormat
from lightune.runtime.tokenization import Encoder
from lightune.supervision.ledger import Ledger
from lightune.supervision.marking import Marked, Marker
from lightune.supervision.rendering import Rendered, Talk, talks
from lightune.supervision.shortening import Shortener

TOO_LONG = ("error", "cut-left", "cut-right", "split", "drop")
TOGETHER = 512  # conversations that are tokenized in one call
SHOWN = 10  # rows named in a message


@dataclass(frozen=True, slots=True, eq=False)
class Supervised:
    """One row as a model reads it.

    ids: int32 [s]. trained: bool [s], whether the token is a target that is learned; the first token, which nothing predicts, never is.
    row: the row of the data that it comes from.
    """

    ids: np.ndarray
    trained: np.ndarray
    row: int


def supervise(
    format: ChatFormat, encoder: Encoder, conversations: Sequence[Conversation], *, max_length: int, too_long: str = "error"
) -> tuple[list[Supervised], Ledger]:
    """Token ids of conversations, and which of them are learned: of turns the assistant's words and what the template ends them with, of
    plain text every token after the first, and eos at its end.

    max_length: most tokens of a row. too_long: what is done with longer ones.
        error: say which they are. drop: leave them out. cut-right: remove the end.
        cut-left: remove the first exchanges after the system turn, then the front of the last question; of its answer only what is left over.
        split: several rows. Whole exchanges, each row with the system turn; an exchange that is too long alone, or plain text, in stretches
        that share one token, so that no target is lost or learned twice.

    Raises:
        InputError: rows that are too long (error), a template that fails, or nothing to learn in any row.
    """
    if too_long not in TOO_LONG:
        raise unknown("policy for too-long", too_long, TOO_LONG)
    if max_length < 2:
        raise InputError(f"max-length is {max_length}, expected at least 2 tokens: the first one of a row is never learned.")
    marker, ledger = Marker(encoder.tokenizer), Ledger(rows=len(conversations))
    shortener = Shortener(format, marker, max_length)
    writes_bos = bool(format.bos) and encoder.tokenizer.encode("a").ids[:1] == [encoder.tokenizer.token_to_id(format.bos)]
    rows: list[Supervised] = []
    over: list[tuple[int, int]] = []
    for begin in range(0, len(conversations), TOGETHER):
        several = _rendered(format, conversations[begin : begin + TOGETHER], writes_bos)
        ledger.rewritten_rows += sum(len(found) > 1 for found in several)
        flat = [each for found in several for each in found]
        for (talk, rendered), row in zip(flat, marker.mark([rendered for _, rendered in flat]), strict=True):
            ledger.longest = max(ledger.longest, len(row.ids))
            if len(row.ids) <= max_length:
                made = [row]
            elif too_long == "error":
                over.append((talk.row, len(row.ids)))
                continue
            else:
                made = shortener.shorten(too_long, talk, rendered, row)
            rows += [Supervised(each.ids, each.trained, talk.row) for each in count(ledger, row, made, too_long)]
    if over:
        raise too_long_error(over, max_length, ledger.longest, TOO_LONG)
    check_learned(rows, ledger)
    return rows, ledger


def show(rows: Sequence[Supervised], encoder: Encoder, count: int) -> list[list[tuple[str, bool]]]:
    """For each of the first rows its tokens as text, and whether they are learned. A character of several tokens stands at its last one."""
    shown = []
    for row in rows[:count]:
        stream = DecodeStream(skip_special_tokens=False)
        texts = [stream.step(encoder.tokenizer, int(token)) or "" for token in row.ids]
        shown.append(list(zip(texts, row.trained.tolist(), strict=True)))
    return shown


def _rendered(format: ChatFormat, conversations: Sequence[Conversation], writes_bos: bool) -> list[list[tuple[Talk, Rendered]]]:
    """The rows of each conversation as text, or one error for all that the template refuses."""
    several, refused = [], []
    for conversation in conversations:
        try:
            several.append(talks(format, conversation, writes_bos))
        except InputError as problem:
            refused.append((conversation.row, problem))
    if refused:
        raise InputError(
            f"Rows {list_rows([row for row, _ in refused])} cannot be rendered. Row {refused[0][0]}: {refused[0][1]}"
        ) from refused[0][1]
    return several


def check_learned(rows: Sequence[Supervised], ledger: Ledger) -> None:
    """Raise InputError where no row has anything to learn."""
    if not rows:
        raise InputError(
            f"No token of the {ledger.rows:,} rows is learned. {' '.join(ledger.warnings)} "
            "Check which column holds the answers, raise max-length, or choose another too-long."
        )


def count(ledger: Ledger, row: Marked, made: Sequence[Marked], policy: str) -> list[Marked]:
    """Those of the rows made from `row` that have something to learn; the ledger notes all."""
    kept = [each for each in made if each.trained.any()]
    if not kept:
        name = "unsupervised_rows" if made else "dropped_rows"
        setattr(ledger, name, getattr(ledger, name) + 1)
        return []
    left_over = sum(len(each.ids) for each in made if not each.trained.any())
    lost = left_over if policy == "split" else len(row.ids) - len(kept[0].ids)
    if lost:
        ledger.cut_rows += 1
        ledger.cut_tokens += lost
        ledger.cut_supervised += int(row.trained.sum()) - sum(int(each.trained.sum()) for each in kept)
    ledger.split_rows += len(kept) > 1
    ledger.endless_rows += not kept[-1].ended
    ledger.made += len(kept)
    ledger.tokens += sum(len(each.ids) for each in kept)
    ledger.supervised += sum(int(each.trained.sum()) for each in kept)
    return kept


def list_rows(rows: Sequence[int]) -> str:
    """The numbers of the first rows."""
    return ", ".join(map(str, rows[:SHOWN])) + ", ..." * (len(rows) > SHOWN)


def too_long_error(over: Sequence[tuple[int, int]], max_length: int, longest: int, policies: Sequence[str]) -> InputError:
    """The error that names the rows, (number, tokens) each, that are longer than `max_length`."""
    shown = ", ".join(f"{row} ({length:,} tokens)" for row, length in over[:SHOWN]) + ", ..." * (len(over) > SHOWN)
    return InputError(
        f"{len(over):,} rows are longer than max-length {max_length:,}: rows {shown}. "
        f"Raise max-length to {longest:,}, or say what to do with them: too-long {', '.join(policies[1:])}."
    )
