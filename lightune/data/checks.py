"""The doctor's checks: each looks at the surveyed parts and yields what it finds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightune.data.surveying import Survey

SHOWN, KEPT = 20, 10_000  # row numbers named in a message, and kept in a finding
RARE = 10  # a label with fewer train rows is rare
SKEW, MAJORITY = 10.0, 0.8  # labels are unbalanced from this ratio of commonest to rarest, or from this share of the commonest
LIMITS = (64, 128, 256, 512)  # lengths in tokens whose cost is told
EVALUATED = ("dev", "test")

Surveys = dict[str, Survey]
Check = Callable[[Surveys], Iterator["Finding"]]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or worth knowing.

    level: 'error' (training makes no sense), 'warning' or 'note'. code: a short stable name of the kind. count: the rows concerned, or the
    labels where the message counts labels. rows: their row numbers, at most 10,000. part: the part they are in. cure: what to do.
    """

    level: str
    code: str
    message: str
    count: int = 0
    rows: tuple[int, ...] = ()
    part: str = "train"
    cure: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The finding, ready for JSON."""
        return {**dataclasses.asdict(self), "rows": list(self.rows)}


def _at_rows(level: str, code: str, message: str, rows: Iterable[int], part: str, cure: str) -> Finding:
    """A finding about rows; the first of them are named in its message."""
    rows = list(rows)
    shown = ", ".join(map(str, rows[:SHOWN])) + (", ..." if len(rows) > SHOWN else "")
    return Finding(level, code, f"{message}: row{'s' * (len(rows) != 1)} {shown}.", len(rows), tuple(rows[:KEPT]), part, cure)


def _rows(seen: Survey, marks: Iterable[bool]) -> list[int]:
    return [row for row, mark in zip(seen.rows, marks, strict=True) if mark]


def _counted(labels: Iterable[str], counts: Mapping[str, int]) -> str:
    labels = list(labels)
    shown = ", ".join(f"{label!r} ({counts[label]:,})" for label in labels[:SHOWN])
    return shown + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")


def _train(surveys: Surveys, *tasks: str) -> Survey | None:
    """The train part, where it has rows and the task is one of these."""
    seen = surveys.get("train")
    return seen if seen is not None and seen.rows and seen.examples.columns.task in tasks else None


# --------------------------------------------------------------------------------------------------------------------------------- rows


def empty_texts(surveys: Surveys) -> Iterator[Finding]:
    """Parts without rows, and rows without text."""
    for part, seen in surveys.items():
        if not seen.rows and part != "unlabelled":
            yield Finding(
                "error", "no-rows", f"The part {part} has no rows.", part=part, cure="Give more rows, or another share to split by."
            )
        elif rows := _rows(seen, seen.empty):
            message = f"{len(rows):,} {part} rows have an empty text"
            yield _at_rows("warning", "empty-text", message, rows, part, "Remove these rows, or fill them in.")


def unlabelled(surveys: Surveys) -> Iterator[Finding]:
    """Rows without a label."""
    for part, seen in surveys.items():
        if rows := _rows(seen, (target is None for target in seen.targets)):
            message = f"{len(rows):,} of {len(seen.rows):,} {part} rows have no label"
            yield _at_rows(
                "note", "unlabelled", message, rows, part, "They are neither learnt from nor scored. Label them, or leave them out."
            )


def duplicates(surveys: Surveys) -> Iterator[Finding]:
    """Rows whose text an earlier row of the same part has."""
    for part, seen in surveys.items():
        known: set[bytes] = set()
        words: set[int] = set()
        rows, same = [], 0
        for row, key, exact, empty in zip(seen.rows, seen.keys, seen.exact, seen.empty, strict=True):
            if not empty and key in known:
                rows.append(row)
                same += exact in words
            known.add(key)
            words.add(exact)
        if rows:
            message = f"{len(rows):,} of {len(seen.rows):,} {part} rows repeat an earlier row's text ({same:,} of them word for word)"
            yield _at_rows("warning", "duplicate", message, rows, part, "Remove them, unless how often a text comes is part of the task.")


def _targets_by_key(seen: Survey) -> dict[bytes, set[Any]]:
    """The targets with which each text stands; empty texts are left out."""
    targets: dict[bytes, set[Any]] = {}
    for key, target, empty in zip(seen.keys, seen.targets, seen.empty, strict=True):
        if not empty:
            targets.setdefault(key, set()).add(target)
    return targets


def conflicts(surveys: Surveys) -> Iterator[Finding]:
    """The same text with different targets in one part."""
    for part, seen in surveys.items():
        regress = seen.examples.columns.task == "regress"
        several = {key for key, targets in _targets_by_key(seen).items() if len(targets - {None}) > 1}
        if rows := _rows(seen, (key in several for key in seen.keys)):
            message = f"{len(several):,} {part} texts stand with different {'values' if regress else 'labels'}, in {len(rows):,} rows"
            yield _at_rows("note" if regress else "warning", "conflict", message, rows, part, "Decide for one, or remove these rows.")


def leaks(surveys: Surveys) -> Iterator[Finding]:
    """Rows of dev and test that also stand in train, and rows of test that also stand in dev but not in train."""
    for part, earlier in (("dev", ("train",)), ("test", ("train", "dev"))):
        told: set[bytes] = set()
        for before in earlier:
            if part in surveys and before in surveys:
                yield from _leaks_from(surveys[before], surveys[part], told)


def _leaks_from(before: Survey, seen: Survey, told: set[bytes]) -> Iterator[Finding]:
    """`told` are the texts already reported against another part; the ones found here are added."""
    words, targets = set(before.exact), _targets_by_key(before)
    columns = zip(seen.rows, seen.keys, seen.exact, seen.targets, strict=True)
    leaked = [(row, key, exact in words, target) for row, key, exact, target in columns if key in targets and key not in told]
    told.update(key for _, key, _, _ in leaked)
    cure = f"Remove them from {before.part}, or split all rows anew (the same text then stays on one side): scores on them are too good."
    for code, same, how in (("leak", True, "word for word"), ("near-leak", False, "but for case, blanks or how accents are written")):
        found = [(row, target in targets[key]) for row, key, exact, target in leaked if exact == same]
        if found:
            other = sum(not agrees for _, agrees in found)
            message = f"{len(found):,} of {len(seen.rows):,} {seen.part} texts also stand in {before.part}, {how}"
            message += f" ({other:,} of them with another label)" if other else ""
            yield _at_rows("warning", code, message, (row for row, _ in found), seen.part, cure)


# ------------------------------------------------------------------------------------------------------------------------------- labels


def one_label(surveys: Surveys) -> Iterator[Finding]:
    """Nothing to learn: every train row has the same target, or none."""
    if seen := _train(surveys, "classify", "pair", "regress"):
        different = {target for target in seen.targets if target is not None}
        if len(different) < 2:
            message = f"There is nothing to learn: the only target of {len(seen.rows):,} train rows is {next(iter(different), None)!r}."
            cure = "Give rows with at least two different ones, or name another column: label='column'."
            yield Finding("error", "one-label", message, len(seen.rows), cure=cure)
    if (seen := _train(surveys, "multilabel")) and not seen.labels:
        cure = "Name the columns that hold the labels: label='a,b,c'."
        yield Finding("error", "one-label", "There is nothing to learn: no train row has any label.", len(seen.rows), cure=cure)


def unknown_labels(surveys: Surveys) -> Iterator[Finding]:
    """Labels of dev or test that train does not know. A 0/1 table's columns are known even where train never has a 1."""
    if not (train := _train(surveys, "classify", "pair", "multilabel")):
        return
    known = {*train.examples.labels, *train.labels}
    for seen in (surveys[part] for part in EVALUATED if part in surveys):
        strange = {label: count for label, count in seen.labels.items() if label not in known}
        if strange:
            rows = _rows(
                seen, (bool(target & strange.keys()) if isinstance(target, frozenset) else target in strange for target in seen.targets)
            )
            message = (
                f"{len(strange):,} labels of {seen.part} are not in train, so that no model can give them ({_counted(strange, strange)})"
            )
            cure = "Correct these labels, add train rows that have them, or remove the rows."
            yield _at_rows("error", "unknown-label", message, rows, seen.part, cure)


def _has_any(target: Any, labels: Mapping[str, int]) -> bool:
    return not target.isdisjoint(labels) if isinstance(target, frozenset) else target in labels


def absent_labels(surveys: Surveys) -> Iterator[Finding]:
    """Labels of train that dev or test lacks: how well they are learnt cannot be told there."""
    if not (train := _train(surveys, "classify", "pair", "multilabel")):
        return
    for seen in (surveys[part] for part in EVALUATED if part in surveys and surveys[part].rows):
        absent = sorted(train.labels.keys() - seen.labels.keys(), key=lambda label: (-train.labels[label], label))
        if absent:
            message = (
                f"{len(absent):,} labels of train (with their train rows) do not occur in {seen.part}: {_counted(absent, train.labels)}."
            )
            cure = f"Scores in {seen.part} say nothing of them: add {seen.part} rows, or merge labels."
            yield Finding("warning", "absent-label", message, len(absent), part=seen.part, cure=cure)


def constant_labels(surveys: Surveys) -> Iterator[Finding]:
    """Labels of a multilabel table that no train row has, or every one."""
    if not (train := _train(surveys, "multilabel")):
        return
    elsewhere = sum((surveys[part].labels for part in EVALUATED if part in surveys), Counter())
    never = [label for label in train.examples.labels if label not in train.labels]
    if never:
        message = f"{len(never):,} labels are given in no train row (in brackets: rows of dev and test): {_counted(never, elsewhere)}."
        cure = "They cannot be learnt: leave these columns out, split anew, or add rows."
        yield Finding("warning", "never-given", message, len(never), cure=cure)
    total = sum(target is not None for target in train.targets)
    always = [label for label, count in train.labels.items() if count == total]
    if always:
        message = f"{len(always):,} labels are given in every train row: {_counted(always, train.labels)}."
        yield Finding("warning", "always-given", message, len(always), cure="There is nothing to learn of them: leave these columns out.")


def rare_labels(surveys: Surveys) -> Iterator[Finding]:
    """Labels with few train rows."""
    if train := _train(surveys, "classify", "pair", "multilabel"):
        rare = sorted((label for label, count in train.labels.items() if count < RARE), key=lambda label: (train.labels[label], label))
        if rare:
            message = f"{len(rare):,} labels have fewer than {RARE} train rows: {_counted(rare, train.labels)}."
            cure = "Add rows, or merge labels: their scores will be low and unsure."
            yield Finding("warning", "rare-label", message, len(rare), cure=cure)


def imbalance(surveys: Surveys) -> Iterator[Finding]:
    """One label with far more rows than another."""
    if not (train := _train(surveys, "classify", "pair")) or len(train.labels) < 2:
        return
    (most, many), *_, (least, few) = train.labels.most_common()
    share = many / train.labels.total()
    if many >= SKEW * few or share >= MAJORITY:
        message = f"Labels are unbalanced: {most!r} has {many:,} train rows ({share:.0%}), {least!r} {few:,}, {many / few:.0f} times fewer."
        cure = "Judge by macro F1 and not by accuracy, or weigh the classes."
        yield Finding("warning", "imbalance", message, len(train.labels), cure=cure)


# ------------------------------------------------------------------------------------------------------------- texts, lengths and columns


def scripts(surveys: Surveys) -> Iterator[Finding]:
    """Texts in another script than most, and letters of one script that pass for another's."""
    for part, seen in surveys.items():
        counts = Counter(script for script in seen.scripts if script)
        if len(counts) > 1:
            main = counts.most_common(1)[0][0]
            others = _rows(seen, (script not in (None, main) for script in seen.scripts))
            listed = ", ".join(f"{script} {count:,}" for script, count in counts.most_common())
            level = "warning" if len(others) >= 0.01 * len(seen.rows) else "note"
            cure = "See that the base model knows each of them."
            yield _at_rows(level, "mixed-scripts", f"The {part} texts are in several scripts ({listed})", others, part, cure)
        if seen.disguised:
            message = f"{len(seen.disguised):,} {part} texts have Cyrillic letters inside Latin words"
            cure = "Correct them, unless such disguise is what the model must find."
            yield _at_rows("warning", "look-alikes", message, seen.disguised, part, cure)


def cut_tokens(seen: Survey, tokens: np.ndarray, max_length: int) -> Iterator[Finding]:
    """What `max_length` would cut off the texts of a part, and what other limits would. `tokens` are the uncut lengths [n]."""
    long = tokens > max_length
    if not long.any():
        return
    cut, total = int((tokens[long] - max_length).sum()), int(tokens.sum())
    limits = ", ".join(f"at {limit}: {tokens_cut(tokens, limit):,}" for limit in LIMITS if limit != max_length)
    message = (
        f"{int(long.sum()):,} of {len(tokens):,} {seen.part} texts are longer than {max_length} tokens, "
        f"and {cut:,} tokens ({cut / total:.1%}) would be cut ({limits})"
    )
    cure = "Raise the length limit, if the base model allows it; it costs time."
    yield _at_rows("warning" if cut > 0.01 * total else "note", "cut", message, _rows(seen, long.tolist()), seen.part, cure)


def tokens_cut(tokens: np.ndarray, limit: int) -> int:
    """How many tokens a length limit would cut off texts of these lengths [n]."""
    return int(np.maximum(tokens - limit, 0).sum())


def odd_columns(surveys: Surveys) -> Iterator[Finding]:
    """Columns that look like something else than what they are used for."""
    if not (train := surveys.get("train")):
        return
    for name, look in train.examples.facts.get("columns", {}).items():
        if look["role"] == "text" and look["id"]:
            message = f"The texts in {name!r} look like ids: single words, nearly each of them new."
            yield Finding("warning", "id-column", message, cure="Name the column that holds the texts: text='column'.")
        elif look["role"] == "unused" and (look["id"] or look["constant"]):
            code, what = ("id-column", "an id") if look["id"] else ("constant-column", "a constant")
            yield Finding("note", code, f"Column {name!r} looks like {what} and is not used.", cure="Nothing needs to be done.")
    labels = train.labels
    if train.examples.columns.task in ("classify", "pair") and len(labels) > 20 and 2 * len(labels) > labels.total():
        message = f"The labels look like ids or free text: {len(labels):,} different ones in {labels.total():,} train rows."
        cure = "Name another label column: label='column'; for a quantity say task='regress'."
        yield Finding("warning", "many-labels", message, len(labels), cure=cure)


CHECKS: tuple[Check, ...] = (
    *(empty_texts, unlabelled, one_label, unknown_labels, leaks, conflicts, duplicates),
    *(absent_labels, constant_labels, rare_labels, imbalance, scripts, odd_columns),
)
