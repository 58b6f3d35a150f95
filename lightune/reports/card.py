"""card.md: a model card as model hubs read it. It tells no row of the data, since a card is made to be published."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any

from lightune.catalogue import CATALOGUE
from lightune.errors import InputError
from lightune.reports.budget import show_budget, summarise_budget
from lightune.reports.exported import tabulate_files
from lightune.reports.files import write_text
from lightune.reports.formats import (
    HASH_DIGITS,
    answer_text,
    count_text,
    interval_text,
    is_number,
    metric_text,
    score_text,
    share_text,
)
from lightune.reports.generated import list_asking
from lightune.reports.material import list_losses
from lightune.reports.page import templates
from lightune.reports.quality import rank_confusions
from lightune.reports.records import Record, read_record
from lightune.reports.sections import TASKS, list_facts, summarise
from lightune.reports.usage import show_usage, tell_install

HUB_METRICS = {  # what hubs call a metric, where their name differs
    "macro_f1": "f1",
    "weighted_f1": "f1",
    "micro_f1": "f1",
    "macro_precision": "precision",
    "macro_recall": "recall",
    "auroc": "roc_auc",
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
PIPELINES = {"generate": "text-generation", "translate": "text2text-generation"}  # what hubs call a task; the others classify
WEAK_F1 = 0.7
WEAK_LABELS = 5
SMALL_TEST = 500


def write_card(run: Path) -> Path:
    """Write RUN/card.md and return its path.

    The licence, language and base are those that run.json tells (`license`, `language`, `base`); an untold licence is "unknown".
    InputError where the folder has no run.json or cannot be written.
    """
    record = read_record(Path(run))
    if not record.run:
        raise InputError(f"{str(run)!r} has no run.json, which a model card is made from. Finish the run, or continue it with --resume.")
    return write_text(templates().get_template("card.md").render(describe_card(record)), record.folder / "card.md")


def describe_card(record: Record) -> dict[str, Any]:
    """Everything that the card's template places."""
    task = record.run.get("task")
    return {
        "name": record.name,
        "summary": summarise(record),
        "license": str(record.run.get("license") or "unknown"),
        "language": record.run.get("language"),
        "base": record.run.get("base"),
        "pipeline": PIPELINES.get(task, "text-classification") if task in TASKS else None,
        "tags": list_tags(record),
        "metrics": list(dict.fromkeys(HUB_METRICS.get(name, name) for name in record.scores)),
        "results": [
            {"type": HUB_METRICS.get(name, name), "name": metric_text(name), "value": score.get("value")}
            for name, score in record.scores.items()
            if is_number(score.get("value"))
        ],
        "facts": [fact for fact in (*list_facts(record), ("licence of the base", find_licence(record))) if fact[0] != "created"],
        "intended": tell_intended(record),
        "chat_template": record.chat.get("template"),
        "parts": _parts(record),
        "scores": [(metric_text(name), score_text(score.get("value")), interval_text(score)) for name, score in record.scores.items()],
        "rows": count_text(record.evaluation.get("rows") or (record.run.get("examples") or {}).get("test")),
        "part": record.part,
        "asking": list_asking(record),
        "files": tabulate_files(record) if record.artifacts else {},
        "budget": show_budget(record),
        "usage": show_usage(record),
        "install": tell_install(record),
        "limits": list_limits(record),
    }


def find_licence(record: Record) -> str:
    """The licence of the base, where the base is one that Lightune knows by name."""
    known = CATALOGUE.get(str(record.run.get("base")))
    return known.licence if known else "not known"


def tell_intended(record: Record) -> str:
    """What a model that generates was taught, and so is for; nothing for others, whose labels tell it."""
    columns = record.data.get("columns") or {}
    if not record.generates:
        return ""
    asked, said = (answer_text(columns.get(name)) if columns.get(name) else "" for name in ("prompt", "completion"))
    if columns.get("shape") == "text":
        return "It continues texts like those that it learned from. It was not taught to hold a conversation."
    named = f" In the data the questions are {asked}, the answers {said}." if asked and said else ""
    return f"It answers as the answers that it learned from do.{named} Other questions, and long conversations, were not scored."


def list_tags(record: Record) -> list[str]:
    """Lightune, the task, the method and the formats of the artefacts."""
    targets = [str(artifact.get("target")).partition(":")[0].partition("-") for artifact in record.artifacts]
    found = ["lightune", record.run.get("task"), str(record.run.get("method") or "").partition(":")[0]]
    found += [part for head, _, tail in targets for part in (head, tail)]
    return list(dict.fromkeys(str(tag) for tag in found if tag))


def list_limits(record: Record) -> list[str]:
    """What a user of the model must know, each from a figure of the run."""
    run, found = record.run, []
    if run.get("learned") is False:
        found.append("The run did not learn: its answers mean little.")
    if run.get("met") is False:
        found.append(f"It does not hold the budget that it was made for: {summarise_budget(record)}.")
    if run.get("stopped") == "interrupted":
        found.append("Training was interrupted before its end.")
    found += [str(alarm) for alarm in run.get("alarms") or []]
    rows = record.evaluation.get("rows") or (run.get("examples") or {}).get("test")
    if is_number(rows) and rows < SMALL_TEST:
        found.append(f"The scores rest on {count_text(rows)} {record.part} rows only: read the intervals.")
    found += list_losses(record)
    if run.get("truncated_tokens") and not record.ledger:
        found.append(f"{count_text(run['truncated_tokens'])} tokens of the training texts lay beyond the length limit and were cut.")
    weak = [row for row in record.evaluation.get("labels") or [] if is_number(row.get("f1")) and row["f1"] < WEAK_F1]
    if weak:
        weak.sort(key=lambda row: row["f1"])
        told = ", ".join(f"{row['label']} ({score_text(row['f1'])})" for row in weak[:WEAK_LABELS])
        found.append(f"{count_text(len(weak))} labels have an F1 below {WEAK_F1}, the weakest: {told}.")
    found += _confused(record)
    error = (record.evaluation.get("calibration") or {}).get("ece")
    if is_number(error):
        found.append(f"Its probabilities are off by {share_text(error)} on average (expected calibration error on the test set).")
    for finding in record.data.get("findings") or []:
        if finding.get("level") in ("error", "warning"):
            found.append(f"Data, {finding['level']}: {finding.get('code')}, {count_text(finding.get('count'))} rows.")
    if record.generates:
        found.append("What it writes may be wrong, and reads as sure when it is.")
        found.append("It was scored on questions like those that it learned from; on other questions or languages expect less.")
    else:
        found.append("It was scored on data like its training data; on other texts, languages or label meanings expect less.")
    if not run.get("license"):
        found.append("The licences of the base model and of the data were not checked.")
    return found


def _confused(record: Record) -> list[str]:
    matrix = record.evaluation.get("confusion") or {}
    pairs = rank_confusions([str(label) for label in matrix.get("labels") or []], matrix.get("counts") or [])
    if not pairs:
        return []
    first = pairs[0]
    return [f"Its most frequent confusion: {first['expected']} answered as {first['answered']} ({first['share']} of those rows)."]


def _parts(record: Record) -> list[dict[str, str]]:
    return [
        {
            "name": str(name),
            "rows": count_text(part.get("rows")),
            "labels": count_text(len(part["labels"])) if part.get("labels") else "",
            "source": PurePath(str(part.get("source") or "")).name,
            "sha256": str(part.get("sha256") or "")[:HASH_DIGITS],
        }
        for name, part in (record.data.get("parts") or {}).items()
    ]
