"""Which columns make a conversation: as the caller named them, else told by names and values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightune.data.columns import split_column
from lightune.data.dialogues import SHAPES, Layout
from lightune.data.tables import Record
from lightune.errors import InputError, nearest, unknown

PAIRS = (
    *(("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"), ("question", "answer")),
    *(("question", "response"), ("query", "response"), ("query", "answer"), ("instruction", "output"), ("instruction", "response")),
    *(("instruction", "completion"), ("nl", "bash"), ("mr", "ref"), ("meaning_representation", "human_reference")),
    *(("dialogue", "summary"), ("document", "summary"), ("article", "summary"), ("article", "highlights"), ("text", "summary")),
    *(("email_body", "subject_line"), ("source", "target"), ("src", "tgt"), ("text", "code"), ("input", "output"), ("input", "target")),
    *(("context", "response"), ("prompt", "canonical_solution"), ("problem", "solution"), ("question", "solution"), ("input", "response")),
)
CHAT_NAMES = ("messages", "conversations", "conversation", "chat", "dialog", "turns")
TEXT_NAMES = ("text", "content", "document", "article", "body", "passage", "文本", "内容")
MARKS = {"messages": {"role", "content"}, "sharegpt": {"from", "value"}}  # the keys of a turn, by which a shape is known


@dataclass(frozen=True)
class Wish:
    """What the caller asked for; see `read_conversations`."""

    shape: str | None = None
    prompt: str | Sequence[str] | None = None
    completion: str | None = None
    system: str | None = None
    tools: str | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt columns, as names separated by commas or a list of them."""
        parts = self.prompt.split(",") if isinstance(self.prompt, str) else self.prompt or ()
        return tuple(part.strip() for part in parts if part.strip())

    @property
    def named(self) -> tuple[str, ...]:
        """The columns that must be there."""
        return (*self.prompts, *filter(None, (self.completion, self.tools)))


@dataclass(frozen=True)
class Found:
    """The layout, the text of a system turn for every row, the column of parts, and what to tell."""

    layout: Layout
    system: str | None
    split: str | None
    told: tuple[str, ...]


def find_layout(names: Sequence[str], sample: Sequence[Record], wish: Wish) -> Found:
    """The layout of a table by what the caller named and, for the rest, by its names and first rows.

    Raises:
        InputError: an unknown shape, a named column that is not there (with the nearest that is), or nothing to be sure of.
    """
    if wish.shape is not None and wish.shape not in SHAPES:
        raise unknown("shape", wish.shape, SHAPES)
    _check(names, wish)
    lower = {name.lower(): name for name in names}
    shape, prompt, completion = _columns(names, sample, wish, lower)
    column = wish.system if wish.system in names else lower.get("system") if wish.system is None else None
    system = column if column not in (*prompt, completion) else None
    tools = wish.tools or (lower.get("tools") if shape in MARKS else None)
    layout = Layout(shape, prompt, completion, system if shape != "text" else None, tools)
    words = wish.system if system is None and shape != "text" else None
    split = split_column(names, sample, taken={*prompt, completion, layout.system, tools})
    return Found(layout, words, split, tuple(_sentences(layout, words, wish, [name for name in names if name != split])))


def parsed(value: Any) -> Any:
    """The value, or what it holds where it is JSON of a list written as text, as in a CSV cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _check(names: Sequence[str], wish: Wish) -> None:
    wrong = [f"There is no column {name!r}.{nearest(name, names)}" for name in wish.named if name not in names]
    if wrong:
        raise InputError(f"{' '.join(wrong)} The columns are: {_listed(names)}.")
    if wish.completion in wish.prompts:
        raise InputError(f"Column {wish.completion!r} is named both as prompt and as completion. Name a different column for each.")
    single = wish.shape in (*MARKS, "text")
    if single and (wish.completion or len(wish.prompts) > 1):
        raise InputError(f"The shape {wish.shape} has one column, and {_listed(wish.named)} are named. Name it alone: prompt='column'.")


def _columns(
    names: Sequence[str], sample: Sequence[Record], wish: Wish, lower: Mapping[str, str]
) -> tuple[str, tuple[str, ...], str | None]:
    """The shape, its prompt columns and its completion column."""
    kinds = {name: _kind(record.get(name) for record in sample) for name in names}
    if wish.shape in MARKS or (wish.shape is None and not wish.completion):
        if chat := _chat(wish, kinds, lower):
            return kinds[chat] or str(wish.shape), (chat,), None
        if wish.shape in MARKS:
            raise InputError(f"No column holds turns of {' and '.join(sorted(MARKS[wish.shape]))}. Name it: prompt='column'.")
    texts = {name for name in names if kinds[name] is None}
    if wish.shape != "text" and (pair := _pair(wish, texts, lower)):
        alpaca = wish.shape == "alpaca" or (not wish.named and pair[0][0].lower() == "instruction" and pair[1].lower() == "output")
        return "alpaca" if alpaca else "prompt-completion", *pair
    if wish.shape in (None, "text") and not wish.completion and (column := _text(wish, texts, names, lower)):
        return "text", (column,), None
    raise InputError(
        f"No columns look like a question and its answer; the columns are: {_listed(names) or 'none'}. "
        "Name them: prompt='column', completion='column'; "
        "or shape='text', prompt='column' for plain text."
    )


def _kind(values: Iterable[Any]) -> str | None:
    """'messages' or 'sharegpt' where the first value that is there is a list of such turns, else None."""
    first = next((found for value in values if (found := parsed(value)) not in (None, "", [])), None)
    if not isinstance(first, list) or not isinstance(first[0], Mapping):
        return None
    return next((shape for shape, marks in MARKS.items() if marks <= first[0].keys()), None)


def _chat(wish: Wish, kinds: Mapping[str, str | None], lower: Mapping[str, str]) -> str | None:
    """The column of turns, if there is one."""
    if wish.prompts:
        return wish.prompts[0] if wish.shape in MARKS or kinds[wish.prompts[0]] else None
    fitting = [name for name, kind in kinds.items() if kind and wish.shape in (None, kind)]
    named = [lower[name] for name in CHAT_NAMES if lower.get(name) in fitting]
    if len(fitting) > 1 and not named:
        raise InputError(f"The columns {_listed(fitting)} hold turns. Name the one to learn from: prompt='column'.")
    return next(iter(named or fitting), None)


def _pair(wish: Wish, texts: set[str], lower: Mapping[str, str]) -> tuple[tuple[str, ...], str] | None:
    """The prompt columns and the completion column, if both are named or known."""
    if wish.prompts and wish.completion:
        return wish.prompts, wish.completion
    known = [(lower[first], lower[second]) for first, second in PAIRS if {lower.get(first), lower.get(second)} <= texts]
    for first, second in known:
        if (wish.completion or second) == second and (not wish.prompts or wish.prompts[-1] == first or wish.prompts[0] == first):
            prompt = wish.prompts or (
                (first, lower["input"]) if first.lower() == "instruction" and lower.get("input") in texts else (first,)
            )
            return prompt, second
    if wish.prompts or wish.completion:
        return _rest(wish, texts)
    return None


def _rest(wish: Wish, texts: set[str]) -> tuple[tuple[str, ...], str] | None:
    """The named side with the only other column."""
    others = sorted(texts - set(wish.named))
    if len(others) == 1:
        return (wish.prompts, others[0]) if wish.prompts else ((others[0],), str(wish.completion))
    if wish.completion:
        raise InputError(
            f"The answers are {wish.completion!r}, and the questions could be {_listed(others) or 'nothing'}. Name them: prompt='column'."
        )
    return None


def _text(wish: Wish, texts: set[str], names: Sequence[str], lower: Mapping[str, str]) -> str | None:
    """The column of plain text: named, known by name, or the only one."""
    if wish.prompts:
        return wish.prompts[0] if wish.shape == "text" else None
    known = next((lower[name] for name in TEXT_NAMES if lower.get(name) in texts), None)
    return known or (names[0] if len(names) == 1 and texts and names[0].lower() not in CHAT_NAMES else None)


def _sentences(layout: Layout, words: str | None, wish: Wish, names: Sequence[str]) -> Iterable[str]:
    columns = " and ".join(map(repr, layout.prompt))
    guessed = "" if wish.shape or wish.named else f" (a guess from names and values; else: shape={'/'.join(SHAPES)})"
    if layout.completion:
        joined = ", joined by a blank line," if len(layout.prompt) > 1 else ""
        yield f"The shape is {layout.shape}: questions are {columns}{joined} and answers are {layout.completion!r}{guessed}."
    elif layout.shape == "text":
        yield f"The shape is text: {columns} is learned as it stands, without a chat template{guessed}."
    else:
        yield f"The shape is {layout.shape}: {columns} holds the turns of each conversation{guessed}."
    if layout.system:
        yield f"System turns are column {layout.system!r}."
    if words is not None:
        yield f"Every conversation without a system turn begins with this one: {words!r}."
    if layout.tools:
        yield f"Tools are column {layout.tools!r}."
    unused = [name for name in names if name not in (*layout.prompt, layout.completion, layout.system, layout.tools)]
    if unused:
        yield f"Not used: {_listed(unused)}."


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
