"""What a page says about one run: from a record to plain values, texts and figures that the templates only place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lightune.reports import charts
from lightune.reports.budget import kept_interval_text, show_budget, summarise_budget
from lightune.reports.exported import describe_shape, find_smallest, tabulate_artifacts
from lightune.reports.figures import Figure
from lightune.reports.formats import (
    HASH_DIGITS,
    LOWER_IS_BETTER,
    count_text,
    duration_text,
    factor_text,
    interval_text,
    is_number,
    metric_text,
    milliseconds_text,
    moment_text,
    pace_text,
    score_text,
    share_text,
    size_text,
)
from lightune.reports.front import show_front
from lightune.reports.generated import list_answers, list_asking, list_samples
from lightune.reports.material import list_findings, list_losses, show_data
from lightune.reports.quality import draw_agreement, list_worst, show_calibration, show_confusion, tabulate_labels
from lightune.reports.records import Record, drop_primary
from lightune.reports.usage import show_usage

TASKS = {
    "classify": "single-text classification",
    "pair": "text-pair classification",
    "multilabel": "multi-label classification",
    "regress": "regression",
    "generate": "text generation",
    "translate": "text for text",
}
METHODS = {
    "full": "full fine-tuning", "head": "a new head alone", "freeze": "its lower blocks frozen", "bitfit": "BitFit", "lora": "LoRA",
    "norms": "its norms trained", "ia3": "IA³", "houlsby": "Houlsby adapters", "pfeiffer": "Pfeiffer adapters",
    "parallel": "parallel adapters", "reft": "LoReFT", "prompt": "prompt tuning", "ptuning": "P-tuning", "prefix": "prefix tuning",
}  # fmt: skip
CURVE_POINTS = 300
LONG_OPTION = 40  # characters


def describe_run(record: Record) -> dict[str, Any]:
    """Every section of a run's page by name; a section whose files are missing is empty."""
    return {
        "name": record.name,
        "summary": summarise(record),
        "stats": list_stats(record),
        "alerts": list_alerts(record),
        "facts": list_facts(record),
        "budget": show_budget(record),
        "front": show_front(record),
        "scores": tabulate_scores(record),
        "curves": draw_curves(record),
        "samples": list_samples(record),
        "artifacts": tabulate_artifacts(record),
        "usage": show_usage(record),
        "labels": tabulate_labels(record),
        "confusion": show_confusion(record),
        "calibration": show_calibration(record),
        "agreement": draw_agreement(record),
        "worst": list_worst(record),
        "answers": list_answers(record),
        "data": show_data(record),
        "doctored": "findings" in record.data and not record.generates,
        "findings": list_findings(record),
        "environment": list_environment(record),
        "recipe": record.recipe,
    }


def summarise(record: Record) -> str:
    """The run in a sentence or two."""
    run, examples = record.run, record.run.get("examples") or {}
    if not run:
        return ""
    told = f"{run.get('base') or 'A model'} adapted to {TASKS.get(run.get('task', ''), run.get('task') or 'its task')}"
    if run.get("method"):
        told += f" with {_method(run['method'])}"
    if examples.get("train"):
        told += f" on {count_text(examples['train'])} examples"
    best = find_smallest(record)
    if not best:
        return told + "."
    return f"{told}, and exported as {best['target']}: {size_text(best.get('bytes'))}" + (
        f", keeping {share_text(best['kept'])} of its score." if is_number(best.get("kept")) else "."
    )


def _method(spelled: str) -> str:
    """'lora:rank=8' → 'LoRA (rank=8)'; an unknown method keeps its name."""
    name, _, options = spelled.partition(":")
    return METHODS.get(name, name) + (f" ({options})" if options else "")


def list_stats(record: Record) -> list[dict[str, str]]:
    """The figures at the top of the page: score, perplexity before and after, bytes, speed, seconds of training."""
    run, reference, best, found = record.run, record.run.get("reference") or {}, find_smallest(record), []
    score = record.scores.get(record.primary) or {}
    if score:
        rows = record.evaluation.get("rows") or (run.get("examples") or {}).get("test")
        note = f"{interval_text(score)}" + (f" · {count_text(rows)} {record.part} rows" if rows else "")
        found.append({"name": metric_text(record.primary), "value": score_text(score.get("value")), "note": note.removeprefix(" · ")})
    found += _tell_perplexity(record)
    if best.get("bytes"):
        note = f"{best['target']}" + _against(reference.get("bytes"), best["bytes"], "smaller")
        found.append({"name": "size", "value": size_text(best["bytes"]), "note": note})
    kept = (run.get("budget") or {}).get("kept") or {}
    speed = best.get("milliseconds") or {}
    if is_number(speed.get("p50")):
        note = describe_shape(speed) + _against((reference.get("milliseconds") or {}).get("p50"), speed["p50"], "faster")
        found.append({"name": "latency", "value": milliseconds_text(speed["p50"]), "note": note.removeprefix(" · ")})
    pace = best.get("tokens_per_second") or {}
    if pace:
        told = {name: pace_text(pace.get(name), "").rstrip() for name in ("generation", "prompt")}
        found.append({"name": "answer tokens/s", "value": told["generation"], "note": f"{best['target']} · reads {told['prompt']}"})
    if is_number(kept.get("value")):
        found.append({"name": "score kept", "value": share_text(kept["value"]), "note": kept_interval_text(kept)})
    if is_number(run.get("seconds")):
        parts = [pace_text(run["examples_per_second"], "examples/s") if is_number(run.get("examples_per_second")) else ""]
        parts += [str(run.get("precision") or ""), str(run.get("device") or "")]
        found.append({"name": "training", "value": duration_text(run["seconds"]), "note": " · ".join(part for part in parts if part)})
    return found


def _tell_perplexity(record: Record) -> list[dict[str, str]]:
    """The lowest perplexity on the dev set, and that of the base."""
    told = select_metric(record, "perplexity")
    before, after = [value for step, value in told if not step], [value for step, value in told if step]
    if not before or not after:
        return []
    return [{"name": "dev perplexity", "value": score_text(min(after)), "note": f"{score_text(before[0])} before training"}]


def _against(reference: Any, value: float, word: str) -> str:
    return f" · {factor_text(reference / value)} {word} than PyTorch" if is_number(reference) and value else ""


def list_alerts(record: Record) -> list[tuple[str, str]]:
    """What the reader must know before the figures, as (level, text)."""
    run, found = record.run, []
    if run.get("learned") is False:
        found.append(("error", "The run did not learn: its figures mean little."))
    if run.get("met") is False:
        found.append(("error", f"The budget is not held: {summarise_budget(record)}."))
    elif run.get("met"):
        found.append(("good", f"The budget is held: {summarise_budget(record)}."))
    if run.get("stopped") == "interrupted":
        found.append(("warning", "The run was interrupted before its end. Continue it with --resume."))
    found += [("warning", text) for text in run.get("alarms") or []]
    found += [("warning", text) for text in list_losses(record)]
    if run.get("truncated_tokens") and not record.ledger:
        found.append(("warning", f"{count_text(run['truncated_tokens'])} tokens lay beyond the length limit and were cut while training."))
    errors = sum(1 for finding in record.data.get("findings") or [] if finding.get("level") == "error")
    if errors:
        found.append(("error", f"The doctor found {errors} {'error' if errors == 1 else 'errors'} in the data."))
    return found


def list_facts(record: Record) -> list[tuple[str, str]]:
    """What was done, as (name, value)."""
    run = record.run
    if not run:
        return []
    sizes = ", ".join(f"{part} {count_text(number)}" for part, number in (run.get("examples") or {}).items())
    trainable, total = run.get("trainable_parameters"), run.get("total_parameters")
    share = f" of {count_text(total)} ({share_text(trainable / total)})" if is_number(trainable) and total else ""
    changes = " → ".join(_change(change) for change in run.get("changes") or [])
    rows = [
        ("task", TASKS.get(run.get("task", ""), run.get("task"))),
        ("base model", run.get("base")),
        ("method", run.get("method")),
        ("changes", changes if changes != run.get("method") else ""),
        ("examples", sizes),
        ("tokens learned from", _tokens_learned(record)),
        ("trained parameters", count_text(trainable) + share if is_number(trainable) else ""),
        ("training time", duration_text(run["seconds"]) if is_number(run.get("seconds")) else ""),
        ("throughput", f"{count_text(run['tokens_per_second'])} tokens/s" if is_number(run.get("tokens_per_second")) else ""),
        ("peak memory", size_text(run["peak_resident_bytes"]) if run.get("peak_resident_bytes") else ""),
        ("precision and device", " on ".join(str(run[name]) for name in ("precision", "device") if run.get(name))),
        ("ended", {"finished": "after all epochs", "early": "early, by patience"}.get(run.get("stopped", ""), run.get("stopped"))),
        ("tokens cut", _tokens_cut(record)),
        ("created", moment_text(run["created"]) if run.get("created") else ""),
        ("base sha256", str(run.get("base_sha256") or "")[:HASH_DIGITS]),
    ]
    return [(name, str(value)) for name, value in rows if value]


def _tokens_learned(record: Record) -> str:
    facts = record.ledger.get("train") or {}
    share = f" ({share_text(facts['supervised'] / facts['tokens'])})" if facts.get("tokens") else ""
    return f"{count_text(facts.get('supervised'))} of {count_text(facts.get('tokens'))}{share}" if facts else ""


def _tokens_cut(record: Record) -> str:
    if record.ledger:
        return ", ".join(f"{count_text(facts.get('cut_tokens'))} in {part}" for part, facts in record.ledger.items())
    counts = (("training", record.run.get("truncated_tokens")), ("scoring", record.evaluation.get("truncated_tokens")))
    return ", ".join(f"{count_text(count)} in {place}" for place, count in counts if is_number(count))


def _change(change: dict[str, Any]) -> str:
    if change.get("merged"):
        return f"merged {', '.join(map(str, change['merged']))}"
    options = ", ".join(f"{name}={_option(value)}" for name, value in (change.get("options") or {}).items() if value is not None)
    return f"{change.get('name')}({options})" if options else str(change.get("name"))


def _option(value: Any) -> str:
    """An option's value; a long list, such as the tokens that a step keeps, is told by its length."""
    return f"{count_text(len(value))} values" if isinstance(value, list) and len(str(value)) > LONG_OPTION else str(value)


def tabulate_scores(record: Record) -> dict[str, Any]:
    """One row per metric: the test score with its interval, also drawn, and the dev score. The primary metric comes first."""
    dev = drop_primary(record.run.get("dev_scores"))
    lows = [score["low"] for name, score in record.scores.items() if _is_share(name, score)]
    floor = min(math.floor(min(lows, default=0) * 10) / 10, 0.9)
    rows = []
    for name in dict.fromkeys([*record.scores, *dev]):
        test = record.scores.get(name) or {}
        rows.append(
            {
                "name": metric_text(name),
                "primary": name == record.primary,
                "value": score_text(test.get("value")),
                "interval": interval_text(test),
                "strip": _strip(name, test, floor),
                "dev": score_text((dev.get(name) or {}).get("value")),
                "dev_interval": interval_text(dev.get(name)),
            }
        )
    return {"rows": rows, "floor": f"{floor:g}", "part": record.part, "dev": bool(dev), "asking": list_asking(record)} if rows else {}


def _is_share(name: str, score: dict[str, Any]) -> bool:
    """Whether the score and its interval lie between 0 and 1, and 1 is best."""
    return name not in LOWER_IS_BETTER and all(is_number(score.get(key)) and 0 <= score[key] <= 1 for key in ("value", "low", "high"))


def _strip(name: str, score: dict[str, Any], floor: float) -> str:
    """The interval drawn from `floor` to 1, for scores that live there."""
    if not _is_share(name, score):
        return ""
    value, low, high = score["value"], score["low"], score["high"]
    return charts.interval_strip(f"{metric_text(name)} {value:.3f}, 95 % interval {low:.3f} to {high:.3f}", value, low, high, floor, 1)


def select_points(entries: Iterable[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """The points (step, key) of those entries that have both as finite numbers."""
    return [(entry["step"], entry[key]) for entry in entries if is_number(entry.get("step")) and is_number(entry.get(key))]


def select_metric(record: Record, metric: str, across: str = "step") -> list[tuple[float, float]]:
    """A metric on the dev set as training went on."""
    scores = ((check.get(across), (check.get("scores") or {}).get(metric)) for check in record.checks)
    return [(place, value) for place, value in scores if is_number(place) and is_number(value)]


def choose_metric(record: Record) -> str:
    """The metric that chose the best checkpoint, else the primary one, else what was measured beside the loss, which has a curve of its own."""
    measured = dict.fromkeys(name for check in record.checks for name in check.get("scores") or {})
    names = [*(check.get("metric") for check in record.checks), record.primary, *measured]
    return next((str(name) for name in names if name != "loss" and name in measured), record.primary)


def draw_curves(record: Record) -> list[Figure]:
    """Loss, dev score, learning rate and gradient norm over the steps."""
    found = [*_draw_loss(record), *_draw_metric(record)]
    for key, title in (("rate", "Learning rate"), ("gradient_norm", "Gradient norm")):
        points = charts.thin(select_points(record.steps, key), CURVE_POINTS)
        if points:
            found.append(Figure(title, charts.line_chart(title, [charts.Series(title, points, 2)], "step", "")))
    return found


def _draw_loss(record: Record) -> list[Figure]:
    raw = charts.thin(select_points(record.steps, "loss"), CURVE_POINTS)
    checks = select_points(record.checks, "loss")
    lines, keys = [], []
    if raw:
        lines += [charts.Series("step", raw, 0, pale=True), charts.Series("train", charts.smooth(raw, len(raw) // 25), 0)]
        keys.append((0, "train"))
    if checks:
        lines.append(charts.Series("dev", checks, 1, dots=True))
        keys.append((1, "dev"))
    return [Figure("Loss", charts.line_chart("Loss over training steps", lines, "step", ""), keys)] if lines else []


def _draw_metric(record: Record) -> list[Figure]:
    metric = choose_metric(record)
    points = select_metric(record, metric)
    if not points:
        return []
    best = next((check["step"] for check in reversed(record.checks) if check.get("best")), None)
    line = charts.Series(metric_text(metric), points, 1, dots=True, best=best)
    title = f"Dev {metric_text(metric)}"
    note = f"The ring marks step {count_text(best)}, whose weights were kept." if best is not None else ""
    return [Figure(title, charts.line_chart(f"{title} over training steps", [line], "step", ""), note=note)]


def list_environment(record: Record) -> list[tuple[str, str]]:
    """The machine and the packages, as (name, value)."""
    facts = record.environment
    packages = ", ".join(f"{name} {version}" for name, version in (facts.get("packages") or {}).items())
    memory = size_text(facts["memory_bytes"]) if facts.get("memory_bytes") else ""
    rows = [(name, facts.get(name)) for name in ("python", "platform", "cpu", "cores")]
    rows += [("memory", memory), ("seed", facts.get("seed")), ("lightune", record.run.get("lightune")), ("packages", packages)]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]
