"""`read_conversations`: any source of rows becomes Conversations, its shape found and told; and their split into parts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightune.data import files, origins
from lightune.data.columns import part_name
from lightune.data.dialogues import SHAPES, Conversation, Conversations, ConversationSplits, Layout
from lightune.data.layouts import Wish, find_layout
from lightune.data.reading import SAMPLE, Request, format_sentence, lies_apart, limited, only, open_file, source_name
from lightune.data.splitting import allocate, check_shares
from lightune.data.tables import Record, Table, peek
from lightune.data.turns import Collector
from lightune.errors import InputError

__all__ = [
    "SHAPES",
    "Conversation",
    "ConversationSplits",
    "Conversations",
    "Layout",
    "read_conversation_parts",
    "read_conversations",
    "split_conversations",
]


def read_conversations(
    source: Any,
    *,
    shape: str | None = None,
    prompt: str | Sequence[str] | None = None,
    completion: str | None = None,
    system: str | None = None,
    tools: str | None = None,
    part: str | None = None,
    limit: int | None = None,
    delimiter: str | None = None,
    encoding: str | None = None,
) -> Conversations:
    """Read what a model that generates text learns from.

    source: as in `read`. In a text file, blocks between blank lines are rows; where it has no blank line, each line is one.
    shape: prompt-completion, messages, sharegpt, alpaca or text; found out by default.
    prompt: the column of questions; several, separated by commas, are joined by a blank line. Of the shapes messages, sharegpt and text:
        the column that holds everything. completion: the column of answers.
    system: a column of system turns, else the text of a system turn for every row that has none. tools: a column of JSON schemas.
    part, limit, delimiter, encoding: as in `read`.

    Rows without an answer, or with an empty one, are left out, counted and told.

    Raises:
        InputError: anything wrong with the source; the message names the rows and the cure. Among it: roles out of order, a turn that is no
            text, and a source of which no row has an answer.
        MissingExtra: the format needs a package that is not installed.
    """
    wanted = part_name(part) if part is not None else None
    if part is not None and wanted is None:
        raise InputError(f"part is {part!r}, expected train, dev (or validation) or test.")
    wish = Wish(shape, prompt, completion, system, tools)
    resolved, name = origins.resolve(source), source_name(source)
    if not lies_apart(resolved):
        conversations, places = _load(resolved, name, wish, delimiter, encoding)
        return limited(only(conversations, places, wanted) if wanted else conversations, limit)
    if wanted and wanted not in resolved:
        raise InputError(f"{name} has no part {part!r}; it has: {', '.join(resolved)}.")
    chosen = wanted or next(iter(resolved))
    conversations, _ = _load(resolved[chosen], f"{name} ({chosen})", wish, delimiter, encoding)
    if not wanted and len(resolved) > 1:
        conversations.facts["told"].append(f"{name} has the parts {', '.join(resolved)}; this is {chosen}.")
    return limited(conversations, limit)


def read_conversation_parts(
    source: Any, *, limit: int | None = None, delimiter: str | None = None, encoding: str | None = None, **wishes: Any
) -> dict[str, Conversations]:
    """Read every part that a source has: {"train": ..., "dev": ..., "test": ...}, or {"train": all of it} where it has no parts.

    wishes: shape, prompt, completion, system and tools, as in `read_conversations`. Parts that lie apart are all read by the columns of the
    first of them. `limit` counts in each part.
    """
    resolved, name = origins.resolve(source), source_name(source)
    wish = Wish(**wishes)
    if not lies_apart(resolved):
        whole, places = _load(resolved, name, wish, delimiter, encoding)
        found = {part: only(whole, places, part) for part in whole.facts["parts"]} or {"train": whole}
        return {part: limited(each, limit) for part, each in found.items()}
    parts: dict[str, Conversations] = {}
    for part, each in resolved.items():
        parts[part], _ = _load(each, f"{name} ({part})", wish, delimiter, encoding)
        used = parts[part].columns
        wish = Wish(used.shape, used.prompt, used.completion, wish.system or used.system, used.tools)
    return {part: limited(each, limit) for part, each in parts.items()}


def split_conversations(
    conversations: Conversations, *, dev: Conversations | float | None = 0.1, test: Conversations | float | None = 0.1, seed: int = 0
) -> ConversationSplits:
    """Divide conversations into train, dev and test.

    dev, test: a share of the rows, conversations that are given, or None (or 0) for no such part.
    Rows with the same prompt (plain text: the same text), but for case, blanks and how accents are written, stay on one side. The same seed
    gives the same parts. Rows that repeat another, and given parts whose prompts stand in train, are counted and told.

    Raises:
        InputError: shares that leave no train rows, or fewer different prompts than parts.
    """
    shares = {name: share for name, share in (("dev", dev), ("test", test)) if isinstance(share, (int, float)) and share}
    check_shares(shares)
    groups: dict[bytes, list[int]] = {}
    for index, conversation in enumerate(conversations):
        groups.setdefault(conversation.fingerprint(), []).append(index)
    if len(groups) <= len(shares):
        raise InputError(
            f"{conversations.source} has {len(groups)} different prompts, too few for {len(shares) + 1} parts. Give more rows, or dev and test."
        )
    chosen = allocate({"": list(groups.values())}, shares, random.Random(seed)) if shares else {}
    places = {name: sorted(index for group in taken for index in group) for name, taken in chosen.items()}
    held = set().union(*places.values())
    cut = {name: conversations.take(indices) for name, indices in places.items()}
    given = {name: part for name, part in (("dev", dev), ("test", test)) if isinstance(part, Conversations)}
    train = conversations.take([index for index in range(len(conversations)) if index not in held]) if held else conversations
    found = {"train": train, **cut, **given}
    facts = _split_facts(found, tuple(given), shares, seed, conversations, len(conversations) - len(groups))
    return ConversationSplits(train, found.get("dev"), found.get("test"), facts)


def _split_facts(
    found: dict[str, Conversations], given: Sequence[str], shares: dict[str, float], seed: int, whole: Conversations, repeated: int
) -> dict[str, Any]:
    rows = {name: len(part) for name, part in found.items()}
    duplicates = len(whole) - len({conversation.fingerprint(whole=True) for conversation in whole})
    known = {conversation.fingerprint() for conversation in found["train"]} if given else set()
    leaks = {name: sum(conversation.fingerprint() in known for conversation in found[name]) for name in given}
    told = ["Parts: " + ", ".join(f"{name} {count:,} rows" for name, count in rows.items()) + (f" (seed {seed})." if shares else ".")]
    if repeated and shares:
        told.append(f"{repeated:,} rows repeat another row's prompt and were kept on its side.")
    if duplicates:
        told.append(f"{duplicates:,} of {len(whole):,} rows repeat another row, answers included.")
    warnings = [f"{count:,} of {rows[name]:,} prompts of {name} also stand in train." for name, count in leaks.items() if count]
    return {
        **{"seed": seed, "shares": shares, "rows": rows, "repeated": repeated, "duplicates": duplicates, "leaked": leaks},
        **{"told": [*told, *warnings], "warnings": warnings},
    }


def _load(source: Any, name: str, wish: Wish, delimiter: str | None, encoding: str | None) -> tuple[Conversations, Sequence[str | None]]:
    """The conversations of one source, and the part of each of them."""
    table = _table(source, name, wish, delimiter, encoding)
    sample = peek(table, SAMPLE)
    if not sample:
        raise InputError(f"{table.source} has no rows. Give a source with at least one row.")
    try:
        found = find_layout(table.names, sample, wish)
    except InputError as problem:
        raise InputError(f"{table.source}: {problem}") from problem
    collector = Collector(table, found)
    pairs = list(collector.conversations())
    facts = {**table.facts, **collector.facts, "shape": found.layout.shape, "columns": found.layout.as_dict()}
    if not pairs:
        column = found.layout.completion or found.layout.prompt[0]
        what = "no row has any text" if found.layout.shape == "text" else "no row has an answer"
        raise InputError(f"{table.source}: {what} in {column!r} ({facts['rows']:,} rows). Name another column, or fill it.")
    facts["told"] = [format_sentence(table, facts["rows"]), *found.told, *collector.told]
    rows = [conversation for conversation, _ in pairs]
    return Conversations(rows, found.layout, source=table.source, facts=facts), [part for _, part in pairs]


def _table(source: Any, name: str, wish: Wish, delimiter: str | None, encoding: str | None) -> Table:
    if not isinstance(source, (str, Path)):
        return origins.table(source, name)
    path = Path(source).expanduser()
    table = open_file(path, Request(label=wish.named or None, labelled=False, delimiter=delimiter, encoding=encoding))
    table.facts["sha256"] = files.digest(path)
    if table.facts["format"] == "lines of text":
        table.records = _blocks(table, list(table.records))
    return table


def _blocks(table: Table, lines: list[tuple[int, Record]]) -> Iterator[tuple[int, Record]]:
    """Lines joined to the blocks that blank lines leave; each line for itself where there is no blank one."""
    if not lines or not table.facts["blank_lines"]:
        yield from lines
        return
    table.facts["format"] = "blocks of text between blank lines"
    first, block = lines[0][0], [lines[0][1]["text"]]
    for (before, _), (number, record) in itertools.pairwise(lines):
        if number != before + 1:
            yield first, {"text": "\n".join(block)}
            first, block = number, []
        block.append(record["text"])
    yield first, {"text": "\n".join(block)}
