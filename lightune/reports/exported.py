"""What a page says about the exported files: size, speed, memory and score side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightune.reports import charts
from lightune.reports.figures import Figure
from lightune.reports.formats import (
    HASH_DIGITS,
    LOWER_IS_BETTER,
    change_text,
    count_text,
    interval_text,
    is_number,
    metric_text,
    milliseconds_text,
    pace_text,
    ratio_text,
    score_text,
    share_text,
    size_text,
    tiny_text,
)
from lightune.reports.records import Record, read_bounds

GENERATING = ("size", "prompt", "answer", "memory", "perplexity change", "same answers")
MEASURED = (
    "Measured on the exported files, on this machine, one question at a time. The change of the perplexity is over all tokens of held-out rows, "
    "questions included, those under Scores over the learned ones alone; equal answers are greedy ones of at most 64 tokens."
)


def find_smallest(record: Record) -> dict[str, Any]:
    """The artefact with the fewest bytes, or an empty value."""
    return min(record.artifacts, key=lambda artifact: artifact.get("bytes") or math.inf, default={})


def tabulate_artifacts(record: Record) -> dict[str, Any]:
    """The PyTorch model and every artefact as rows of one table, and their charts of size, speed and score."""
    figures = [figure for figure in (draw_trade_off(record), _draw_file_scores(record)) if figure]
    return {**tabulate_files(record), "figures": figures, "shape": _measured_at(record)} if record.artifacts else {}


def tabulate_files(record: Record) -> dict[str, Any]:
    """The columns of the table, and its rows: the file, its sha256, and a (value, note) for each column."""
    reference = record.run.get("reference") or {}
    columns, tell = (GENERATING, _tell_generator) if record.generates else (_name_columns(record), _tell_predictor)
    files = [*([(_describe_model(record), {})] if reference else []), *((artifact, reference) for artifact in record.artifacts)]
    rows = [
        {"target": str(file.get("target")), "sha256": str(file.get("sha256") or "")[:HASH_DIGITS], "cells": tell(record, file, against)}
        for file, against in files
    ]
    return {"columns": columns, "rows": rows}


def _name_columns(record: Record) -> tuple[str, ...]:
    return ("size", "p50", "p95", "throughput", "memory", metric_text(record.primary) or "score", "kept", "same answers")


def _describe_model(record: Record) -> dict[str, Any]:
    """The PyTorch model as if it were an artefact."""
    return {"target": "PyTorch fp32", **(record.run.get("reference") or {}), "scores": record.run.get("scores")}


def _draw_file_scores(record: Record) -> Figure | None:
    files = (_describe_model(record), *record.artifacts)
    named = ((str(file["target"]), (file.get("scores") or {}).get(record.primary)) for file in files)
    rows = [(name, bounds) for name, score in named if (bounds := read_bounds(score))]
    if len(rows) < 2:
        return None
    title = f"Test {metric_text(record.primary)} of each file"
    svg = charts.interval_chart(title, rows, "with its 95 % interval")
    return Figure(title, svg, note="Each interval is a bootstrap over the test rows.")


def _tell_predictor(record: Record, artifact: dict[str, Any], reference: dict[str, Any]) -> list[tuple[str, str]]:
    speed, parity = artifact.get("milliseconds") or {}, artifact.get("parity") or {}
    score = (artifact.get("scores") or {}).get(record.primary) or {}
    rate = artifact.get("examples_per_second") or {}
    smaller = ratio_text(reference.get("bytes"), artifact.get("bytes"))
    faster = ratio_text((reference.get("milliseconds") or {}).get("p50"), speed.get("p50"))
    return [
        (size_text(artifact.get("bytes")), f"{smaller} smaller" if smaller else ""),
        (milliseconds_text(speed.get("p50")), f"{faster} faster" if faster else ""),
        (milliseconds_text(speed.get("p95")), ""),
        (f"{count_text(rate['value'])}/s" if is_number(rate.get("value")) else "", ""),
        (_memory(artifact), ""),
        (score_text(score.get("value")), interval_text(score)),
        (share_text(artifact["kept"]) if is_number(artifact.get("kept")) else "", ""),
        (_agree(parity), f"logits ± {tiny_text(parity['max_abs'])}" if is_number(parity.get("max_abs")) else ""),
    ]


def _tell_generator(record: Record, artifact: dict[str, Any], reference: dict[str, Any]) -> list[tuple[str, str]]:
    speed, parity = artifact.get("tokens_per_second") or {}, artifact.get("parity") or {}
    perplexities = (parity.get("model_perplexity"), parity.get("perplexity"))
    return [
        (size_text(artifact.get("bytes")), ""),
        (pace_text(speed.get("prompt")), ""),
        (pace_text(speed.get("generation")), ""),
        (_memory(artifact), ""),
        (change_text(parity.get("change")), " → ".join(score_text(value) for value in perplexities) if all(perplexities) else ""),
        (_agree(parity), f"of {count_text(parity['prompts'])}" if parity.get("prompts") else ""),
    ]


def _memory(artifact: dict[str, Any]) -> str:
    return size_text(artifact["resident_bytes"]) if artifact.get("resident_bytes") else ""


def _agree(parity: dict[str, Any]) -> str:
    return share_text(parity["agree"]) if is_number(parity.get("agree")) else ""


def _measured_at(record: Record) -> str:
    if record.generates:
        return MEASURED
    shapes = [describe_shape(artifact.get("milliseconds") or {}) for artifact in record.artifacts]
    batches = [(artifact.get("examples_per_second") or {}).get("batch") for artifact in record.artifacts]
    parts = [f"Latency at {shapes[0]}" if shapes[0] else "", f"throughput at batch {batches[0]}" if batches[0] else ""]
    told = "; ".join(part for part in parts if part)
    return f"{told[0].upper()}{told[1:]}. Measured on the exported files, on this machine." if told else ""


def describe_shape(speed: dict[str, Any]) -> str:
    """{'batch': 1, 'length': 13} → 'batch 1, 13 tokens'."""
    parts = [f"batch {speed['batch']}" if speed.get("batch") else "", f"{speed['length']} tokens" if speed.get("length") else ""]
    return ", ".join(part for part in parts if part)


def draw_trade_off(record: Record) -> Figure | None:
    """Size, speed and score of the PyTorch model and of every artefact that has all three; None where fewer than two have them."""
    shown = (_describe_model(record), *record.artifacts)
    files = [(str(file["target"]), placed) for file in shown if (placed := place_file(record, file))]
    names, places = [name for name, _ in files], [placed for _, placed in files]
    return draw_bubbles(places, names, names, range(len(files)), record) if len(files) > 1 else None


def place_file(record: Record, file: dict[str, Any]) -> tuple[float, float, float] | None:
    """(megabytes, median milliseconds, score) of an artefact, or None where one of them is missing. Of one that writes text these are the
    milliseconds of a token of an answer, and its perplexity."""
    if record.generates:
        pace, score = (file.get("tokens_per_second") or {}).get("generation"), (file.get("parity") or {}).get("perplexity")
        latency = 1000 / pace if is_number(pace) and pace > 0 else None
    else:
        latency = (file.get("milliseconds") or {}).get("p50")
        score = ((file.get("scores") or {}).get(record.primary) or {}).get("value")
    size = file.get("bytes")
    if is_number(score) and is_number(size) and is_number(latency) and size > 0 and latency > 0:
        return size / 1e6, latency, score
    return None


def draw_bubbles(
    places: Sequence[tuple[float, float, float]], names: Sequence[str], tips: Sequence[str], colours: Sequence[int], record: Record
) -> Figure:
    """The chart of (megabytes, milliseconds, score) as `place_file` gives them, each with its name, its whole name on hover, and its colour."""
    metric, pace = ("perplexity", "ms a token") if record.generates else (record.primary, "ms, median")
    scores = [-score if metric in LOWER_IS_BETTER else score for *_, score in places]
    span = max(scores) - min(scores)
    sizes = [(score - min(scores)) / span if span else 0.5 for score in scores]
    points = [
        charts.Point(size, latency, name, score_text(score), good, colour, tip)
        for (size, latency, score), name, good, colour, tip in zip(places, names, sizes, colours, tips, strict=True)
    ]
    named = "perplexity over all tokens, questions included" if record.generates else "score"
    note = f"Lower left is smaller and faster. A larger bubble scores better; the number is its {named}."
    svg = charts.scatter_chart("Size, speed and score of each file", points, "MB", pace)
    return Figure("Size, speed and score", svg, note=note)
