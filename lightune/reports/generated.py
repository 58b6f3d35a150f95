"""What a page says about written answers: how they were asked for, how they changed while the model learned, and which are worst."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from lightune.reports.formats import count_text, excerpt, is_number, metric_text, score_text
from lightune.reports.records import Record

TEXT_LIMIT = 600  # characters of one text that the page shows
REFERENCES = 3  # right answers that are shown of a question
STAGES = 8  # different answers to one question that are shown
NO_ROOM = "the question left no room"
ENDS = {"stop": "by an end token", "length": "at the limit of tokens", "cancelled": "cancelled", "too_long": NO_ROOM}


def list_asking(record: Record) -> list[tuple[str, str]]:
    """How the answers that were scored came about, as (name, value); nothing where none were asked for."""
    facts, part = record.evaluation, record.part
    ledger = record.ledger.get(part) or {}
    judged = f"{count_text(ledger.get('supervised'))} learned tokens of {count_text(ledger.get('made'))} {part} rows" if ledger else ""
    if not facts.get("finishes"):
        return [("perplexity over", judged)] if judged else []
    asked = sum(facts["finishes"].values())
    rows = [
        ("questions answered", f"{count_text(facts.get('rows'))} of {count_text(facts.get('available'))} different ones"),
        ("answers ended", ", ".join(f"{count_text(count)} {ENDS.get(name, name)}" for name, count in facts["finishes"].items())),
        ("tokens of an answer", f"{facts['tokens'] / asked:.1f} on average" if is_number(facts.get("tokens")) and asked else ""),
        ("answers without text", count_text(facts["empty"]) if facts.get("empty") else ""),
        (NO_ROOM, f"{count_text(facts['too_long'])} times, counted as empty answers" if facts.get("too_long") else ""),
        ("tools not shown to the model", f"{count_text(facts['without_tools'])} questions" if facts.get("without_tools") else ""),
        ("perplexity over", judged),
    ]
    return [(name, value) for name, value in rows if value]


def list_samples(record: Record) -> list[dict[str, Any]]:
    """The same questions again and again as training went on: what was expected, and the answers with the steps that gave them."""
    steps: dict[tuple[str, str], list[tuple[Any, str]]] = {}
    for fact in record.samples:
        for row in fact.get("rows") or []:
            question = (str(row.get("question") or ""), str(row.get("reference") or ""))
            steps.setdefault(question, []).append((fact["step"], str(row.get("answer") or "")))
    return [
        {"texts": [_show(question)], "lines": [_line("expected", "was", reference), *_list_stages(answers)], "notes": []}
        for (question, reference), answers in steps.items()
    ]


def _list_stages(answers: Sequence[tuple[Any, str]]) -> list[dict[str, Any]]:
    """The answers by step, equal ones that follow each other as one; of many, STAGES that lie evenly with the first and the last."""
    stages = [(text, [step for step, _ in group]) for text, group in groupby(answers, key=lambda answer: answer[1])]
    last = len(stages) - 1
    chosen = sorted({round(place * last / (STAGES - 1)) for place in range(STAGES)})
    lines = []
    for before, place in zip([-1, *chosen], chosen, strict=False):
        text, steps = stages[place]
        name = f"step {count_text(steps[0])}" if len(steps) == 1 else f"steps {count_text(steps[0])} to {count_text(steps[-1])}"
        left = place - before - 1
        lines.append(_line(name, "got" if place == last else "", text) | {"before": count_text(left) if left else ""})
    return lines


def list_answers(record: Record) -> dict[str, Any]:
    """The answers that scored least, and some others taken evenly; empty where the model does not write."""
    if not record.generates:
        return {}
    worst, others = ([_tell_answer(record, row) for row in record.evaluation.get(name) or []] for name in ("worst", "samples"))
    return {"worst": worst, "others": others} if worst or others else {}


def _tell_answer(record: Record, row: dict[str, Any]) -> dict[str, Any]:
    references = [str(text) for text in row.get("target") or []]
    lines = [_line("expected" if not place else "or", "was", text) for place, text in enumerate(references[:REFERENCES])]
    if len(references) > REFERENCES:
        lines.append(_line("or", "", f"{len(references) - REFERENCES} more that are right as well"))
    scores = [f"{metric_text(name)} {score_text(row[name])}" for name in record.scores if is_number(row.get(name))]
    finish = str(row.get("finish") or "")
    notes = [f"ended {ENDS.get(finish, finish)}" if finish not in ("", "too_long") else ENDS.get(finish, ""), *scores]
    return {
        "texts": [_show(row.get("text") or "")],
        "lines": [*lines, _line("answered", "got", str(row.get("answer") or ""))],
        "notes": _filled([*notes, f"row {count_text(row.get('row'))}"]),
    }


def _filled(texts: Iterable[str]) -> list[str]:
    return [text for text in texts if text]


def _line(name: str, kind: str, text: str) -> dict[str, Any]:
    """A line of an exchange: who says it, how it is coloured, and the text."""
    return {"name": name, "kind": kind, "before": "", **_show(text)}


def _show(text: Any) -> dict[str, str]:
    shown, left = excerpt(text, TEXT_LIMIT)
    return {"text": shown, "cut": count_text(left) if left else ""}
