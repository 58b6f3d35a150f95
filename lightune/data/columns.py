"""Which column is what: as the caller named them, else guessed from names and values, and told in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lightune.data.examples import Columns
from lightune.errors import InputError, nearest, unknown

TASKS = ("classify", "pair", "multilabel", "regress")
TEXT_NAMES = (
    *("text", "sentence", "content", "message", "review", "comment", "body", "document", "tweet", "utterance", "question", "query"),
    *("title", "description", "input", "prompt", "文本", "内容", "评论", "句子", "标题"),
)
PAIR_NAMES = (
    *(("premise", "hypothesis"), ("question", "sentence"), ("query", "passage"), ("query", "document"), ("claim", "evidence")),
    *(("text", "text_pair"), ("text", "pair"), ("sentence", "pair"), ("first", "second"), ("left", "right"), ("anchor", "positive")),
)
TWIN_ENDINGS = (("1", "2"), ("a", "b"), ("A", "B"))
LABEL_NAMES = (
    *("label", "labels", "target", "targets", "class", "category", "intent", "sentiment", "score", "similarity", "rating", "stars"),
    *("gold_label", "gold", "y", "tag", "tags", "emotion", "topic", "type", "polarity", "标签", "类别", "情感", "意图"),
)
SPLIT_NAMES = ("split", "part", "partition", "subset", "set", "fold")
ID_NAMES = ("id", "idx", "index", "guid", "uuid", "key", "unnamed: 0")
MADE_UP = "column"  # and the place of the column, where the source gives it no name
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "validation", "valid", "val", "development", "eval"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
REGRESS_FROM = 11  # so many different numbers, not all whole, are a quantity and no set of classes


def part_name(value: Any) -> str | None:
    """'train', 'dev' or 'test' for any of the usual spellings, else None."""
    return PARTS.get(str(value).strip().lower())


@dataclass(frozen=True)
class Profile:
    """What a column's values look like, over the rows that were looked at."""

    name: str
    kind: str  # empty, flag (0 and 1), integer, number, text, list, object
    rows: int
    filled: int
    distinct: int
    length: float  # mean characters
    blanks: bool  # whether a blank stands inside any value
    ascii: bool

    def as_dict(self) -> dict[str, Any]:
        """The profile in short, ready for JSON."""
        marks = {"id": self.looks_like_id, "constant": self.constant}
        return {"kind": self.kind, "filled": self.filled, "distinct": self.distinct, "length": round(self.length, 1), **marks}

    @property
    def constant(self) -> bool:
        return self.rows > 1 and self.filled == self.rows and self.distinct == 1

    @property
    def looks_like_id(self) -> bool:
        """Nearly every value is new, and it is a number or a word without blanks, or the name says so."""
        if self.kind not in ("integer", "flag", "text"):
            return False
        named = self.name.lower() in ID_NAMES or self.name.lower().endswith(("_id", "-id"))
        if named and 2 * self.distinct > self.filled:
            return True
        wordlike = self.kind == "integer" or (self.ascii and not self.blanks and self.length <= 64)
        return wordlike and self.filled >= 20 and self.distinct >= 0.99 * self.filled

    @property
    def looks_like_label(self) -> bool:
        """Values that come again and again, or numbers; neither an id, nor a constant, nor prose."""
        if self.kind in ("empty", "object") or self.constant or self.looks_like_id:
            return False
        return self.kind in ("flag", "number", "list") or 2 * self.distinct <= max(self.filled, 4)


@dataclass(frozen=True)
class Choice:
    """The columns to read by; the column that says which part a row belongs to; how labels inside one text are separated; what to tell."""

    columns: Columns
    split: str | None
    separator: str | None
    profiles: tuple[Profile, ...]
    told: tuple[str, ...]

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """{column: its role (text, pair, target, split, unused), kind, filled, distinct, length, id, constant}, ready for JSON."""
        columns = self.columns
        roles: dict[str | None, str] = {
            columns.text: "text",
            columns.pair: "pair",
            self.split: "split",
            **dict.fromkeys(columns.target, "target"),
        }
        return {look.name: {"role": roles.get(look.name, "unused"), **look.as_dict()} for look in self.profiles}


def profile(name: str, values: Sequence[Any]) -> Profile:
    """Look at the values of one column."""
    filled = [value for value in values if value is not None and value != "" and value == value]  # NaN differs from itself
    if any(isinstance(value, (list, tuple, set)) for value in filled):
        kind, words = "list" if all(_is_list(value) for value in filled) else "object", [repr(value) for value in filled]
    elif any(isinstance(value, dict) for value in filled):
        kind, words = "object", [repr(value) for value in filled]
    else:
        words = [_plain(value) for value in filled]
        kind = _kind(words)
    return Profile(
        *(name, kind, len(values), len(filled), len(set(words)), sum(map(len, words)) / max(len(words), 1)),
        blanks=any(" " in word.strip() for word in words),
        ascii=all(word.isascii() for word in words),
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple, set)) and not any(isinstance(item, (dict, list)) for item in value)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _kind(words: list[str]) -> str:
    different = {word.lower() for word in set(words)}
    if not different:
        return "empty"
    if different <= FLAGS.keys():
        return "flag"
    try:
        numbers = [float(word) for word in different]
    except ValueError:
        return "text"
    if not all(math.isfinite(number) for number in numbers):
        return "text"
    if not all(number.is_integer() for number in numbers):
        return "number"
    mostly = len(different) <= 4 and sum(word in FLAGS for word in words) >= 0.95 * len(words)
    return "flag" if mostly else "integer"


def choose(
    names: Sequence[str],
    sample: Sequence[dict[str, Any]],
    *,
    task: str | None = None,
    text: str | None = None,
    pair: str | None = None,
    label: str | Sequence[str] | None = None,
    labelled: bool = True,
) -> Choice:
    """Choose the columns from what the caller named and, for the rest, from the names and from the first rows' values.

    Where `text` is named, a second text is used only where `pair` is named too or the task is 'pair'. With `labelled=False` a source
    without labels, even without the label columns that are named, is good: `target` is then empty.

    Raises:
        InputError: a named column that is not there (with the nearest that is), a task that does not fit, or no sure guess.
    """
    if task is not None and task not in TASKS:
        raise unknown("task", task, TASKS)
    labels = _label_list(label, names)
    hidden = bool(labels) and not labelled and set(labels).isdisjoint(names)
    labels = () if hidden else labels
    _check_named(names, {"text": text, "pair": pair}, labels)
    profiles = {name: profile(name, [record.get(name) for record in sample]) for name in names}
    split = split_column(profiles, sample, taken={text, pair, *labels})
    free = {name: look for name, look in profiles.items() if name not in {split, text, pair, *labels}}
    if text is None or (pair is None and task == "pair"):
        text, pair = _texts(free, text, pair, task, needs_label=labelled and not labels)
    free = {name: look for name, look in free.items() if name not in (text, pair)}
    target = () if hidden else labels or _target(free, task, labelled)
    chosen = _task(task, pair, [profiles[name] for name in target])
    columns = Columns(chosen, text, pair if chosen in ("pair", "regress") else None, target)
    separator = (
        _separator(sample, target[0]) if chosen == "multilabel" and len(target) == 1 and profiles[target[0]].kind != "list" else None
    )
    return Choice(columns, split, separator, tuple(profiles.values()), tuple(_sentences(columns, split, profiles, bool(labels))))


def _label_list(label: str | Sequence[str] | None, names: Sequence[str]) -> tuple[str, ...]:
    if label is None:
        return ()
    if isinstance(label, str):
        return (label,) if label in names else tuple(part.strip() for part in label.split(",") if part.strip())
    return tuple(label)


def _check_named(names: Sequence[str], named: dict[str, str | None], labels: tuple[str, ...]) -> None:
    asked = [*((kind, name) for kind, name in named.items() if name is not None), *(("label", name) for name in labels)]
    wrong = [f"There is no column {name!r} for the {kind}.{nearest(name, names)}" for kind, name in asked if name not in names]
    if wrong:
        raise InputError(f"{' '.join(wrong)} The columns are: {_listed(names)}.")
    twice = {name for _, name in asked if [other for _, other in asked].count(name) > 1}
    if twice:
        raise InputError(f"Column {_listed(sorted(twice))} is named twice. Name a different column for each of text, pair and label.")


def split_column(names: Iterable[str], sample: Sequence[dict[str, Any]], taken: set[str | None]) -> str | None:
    """The column whose name and values say which part a row belongs to, or None."""
    for name in names:
        if name.lower() in SPLIT_NAMES and name not in taken:
            values = {record.get(name) for record in sample if not isinstance(record.get(name), (list, dict, set))}
            if values and all(part_name(value) for value in values):
                return name
    return None


def _texts(free: dict[str, Profile], text: str | None, pair: str | None, task: str | None, needs_label: bool) -> tuple[str, str | None]:
    """The column of texts, and the column of second texts where there is one."""
    textual = {name: look for name, look in free.items() if look.kind == "text"}
    prose = {name: look for name, look in textual.items() if not look.looks_like_id}
    if task == "pair" or (text is None and pair is None and task in (None, "regress")):
        for twin in _twins([*prose, *filter(None, (text, pair))]):
            fits = (text or twin[0]) == twin[0] and (pair or twin[1]) == twin[1]
            if fits and (task == "pair" or not needs_label or _others(free, twin)):
                return twin
    text = text or _by_name(TEXT_NAMES, textual) or max(prose or textual, key=lambda name: textual[name].length, default=None)
    if text is None:
        raise InputError(f"No column holds texts; the columns are: {_listed(free)}. Name it: text='column'.")
    if task == "pair" and pair is None:
        raise InputError(f"The task pair needs a second column of texts beside {text!r}. Name it: pair='column'.")
    return text, pair


def _others(free: dict[str, Profile], used: Sequence[str]) -> bool:
    """Whether a column that could be the labels is left."""
    return any(look.kind not in ("empty", "object") and not look.looks_like_id for name, look in free.items() if name not in used)


def _twins(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that belong together: premise and hypothesis, sentence1 and sentence2, text_a and text_b.

    Names that were made up for a file without a header (column1, column2) say nothing.
    """
    names = [name for name in names if not name.removeprefix(MADE_UP).isdecimal()]
    lower = {name.lower(): name for name in names}
    known = [(lower[first], lower[second]) for first, second in PAIR_NAMES if first in lower and second in lower]
    spelled = [
        (name, other)
        for name in names
        for first, second in TWIN_ENDINGS
        if first in name and (other := second.join(name.rsplit(first, 1))) in names and (first == "1" or name.endswith(first))
    ]
    return spelled + known


def _by_name(known: Sequence[str], names: dict[str, Profile]) -> str | None:
    lower = {name.lower(): name for name in names}
    return next((lower[name] for name in known if name in lower), None)


def _target(free: dict[str, Profile], task: str | None, labelled: bool) -> tuple[str, ...]:
    """The label column or columns: by name, else a table of 0 and 1, else the one column whose values come again."""
    usable = {name: look for name, look in free.items() if look.kind not in ("object", "empty")}
    flags = tuple(name for name, look in usable.items() if look.kind == "flag")
    named = _by_name(LABEL_NAMES, usable)
    if named is not None:
        return (named,)
    alike = [name for name, look in usable.items() if look.looks_like_label and look.kind != "flag"]
    if task in (None, "multilabel") and len(flags) >= 2 and (len(flags) >= 5 or not alike or task == "multilabel"):
        return flags
    candidates = [*flags, *alike] if len(flags) < 5 else alike
    if not candidates:
        candidates = [name for name, look in usable.items() if look.rows < 50 and not look.looks_like_id and look.length <= 40]
    if len(candidates) == 1:
        return (candidates[0],)
    if not labelled:
        return ()
    found = f"{_listed(candidates)} could be the labels" if candidates else "No column looks like labels"
    objects = [name for name, look in free.items() if look.kind == "object"]
    nested = f" ({_listed(objects)} hold{'s' * (len(objects) == 1)} nested objects)" if objects else ""
    raise InputError(f"{found}; the columns besides the text are: {_listed(free) or 'none'}{nested}. Name it: label='column'.")


def _task(task: str | None, pair: str | None, target: Sequence[Profile]) -> str:
    """The task that the caller named, where the columns allow it, else the one that they speak for."""
    if task is not None:
        if len(target) > 1 and task != "multilabel":
            raise InputError(f"The task {task} has one label column, and {len(target)} are named. Name one, or task='multilabel'.")
        if task == "pair" and pair is None:
            raise InputError("The task pair needs two columns of texts. Name them: text='column', pair='column'.")
        return task
    if len(target) > 1 or (target and target[0].kind == "list"):
        return "multilabel"
    if target and target[0].kind == "number" and (target[0].distinct >= REGRESS_FROM or 2 * target[0].distinct > target[0].filled):
        return "regress"
    return "pair" if pair else "classify"


def _separator(sample: Sequence[dict[str, Any]], column: str) -> str | None:
    """What stands between the labels of one text: 'json' for a written list, one of | ; , or None where nothing does."""
    values = [str(value) for record in sample if (value := record.get(column)) not in (None, "")]
    if values and all(value.startswith("[") and value.endswith("]") for value in values):
        return "json"
    counts = {separator: sum(separator in value for value in values) for separator in "|;,"}
    best = max(counts, key=lambda separator: counts[separator])
    return best if counts[best] else None


def _sentences(columns: Columns, split: str | None, profiles: dict[str, Profile], named: bool) -> list[str]:
    """What was chosen, and what was left aside and why."""
    used = {columns.text, columns.pair, split, *columns.target}
    texts = f"Texts are {columns.text!r}" + (f" and {columns.pair!r}" if columns.pair else "")
    told = [f"{texts}; {_target_sentence(columns, profiles)}; the task is {columns.task}."]
    for name, look in profiles.items():
        if name not in used and (reason := _reason(look)):
            told.append(f"Column {name!r} {reason}.")
    target = profiles[columns.target[0]] if len(columns.target) == 1 else None
    if target and not named and columns.task in ("classify", "pair") and target.kind == "integer" and target.distinct > 20:
        told.append(
            f"{target.name!r} has {target.distinct} different whole numbers, taken as classes; if it is a quantity: task='regress'."
        )
    return told


def _target_sentence(columns: Columns, profiles: dict[str, Profile]) -> str:
    if not columns.target:
        return "there are no labels"
    if len(columns.target) > 1:
        return f"labels are the {len(columns.target)} columns of 0 and 1 from {columns.target[0]!r} to {columns.target[-1]!r}"
    look = profiles[columns.target[0]]
    what = "values" if columns.task == "regress" else "labels"
    return f"{what} are {look.name!r} ({look.distinct:,} different in the first {look.rows:,} rows)"


def _reason(look: Profile) -> str:
    """Why a column is left aside, for the user to object."""
    if look.kind == "empty":
        return "is empty and is not used"
    if look.looks_like_id:
        return "looks like an id and is not used"
    if look.constant:
        return "has the same value in every row and is not used"
    if look.looks_like_label and look.kind in ("text", "integer", "list") and look.distinct > 1:
        return f"also looks like labels ({look.distinct:,} different) and is not used; to learn it: label={look.name!r}"
    return "is not used"


def _listed(names: Any) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
