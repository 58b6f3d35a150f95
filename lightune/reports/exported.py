"""What a page says about the exported files: size, latency, memory and score side by side, and how to use them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Any

from lightune.reports import charts
from lightune.reports.figures import Figure
from lightune.reports.formats import (
    HASH_DIGITS,
    LOWER_IS_BETTER,
    count_text,
    interval_text,
    is_number,
    metric_text,
    milliseconds_text,
    ratio_text,
    score_text,
    share_text,
    size_text,
    tiny_text,
)
from lightune.reports.records import Record, read_bounds


def find_smallest(record: Record) -> dict[str, Any]:
    """The artefact with the fewest bytes, or an empty value."""
    return min(record.artifacts, key=lambda artifact: artifact.get("bytes") or math.inf, default={})


def tabulate_artifacts(record: Record) -> dict[str, Any]:
    """The PyTorch model and every artefact as rows of one table, and their charts of size, latency and score."""
    reference = record.run.get("reference") or {}
    if not record.artifacts:
        return {}
    model = _describe_model(record)
    rows = [_tell_artifact(record, model, {})] if reference else []
    rows += [_tell_artifact(record, artifact, reference) for artifact in record.artifacts]
    figures = [figure for figure in (draw_trade_off(record), _draw_file_scores(record)) if figure]
    return {"rows": rows, "metric": metric_text(record.primary), "figures": figures, "shape": _measured_at(record)}


def _describe_model(record: Record) -> dict[str, Any]:
    """The PyTorch model as if it were an artefact."""
    return {"target": "PyTorch fp32", **(record.run.get("reference") or {}), "scores": record.run.get("scores")}


def _draw_file_scores(record: Record) -> Figure | None:
    files = (_describe_model(record), *record.artifacts)
    named = ((str(file["target"]), (file.get("scores") or {}).get(record.primary)) for file in files)
    rows = [(name, bounds) for name, score in named if (bounds := read_bounds(score))]
    if not rows:
        return None
    title = f"Test {metric_text(record.primary)} of each file"
    svg = charts.interval_chart(title, rows, "with its 95 % interval")
    return Figure(title, svg, note="Each interval is a bootstrap over the test rows.")


def _tell_artifact(record: Record, artifact: dict[str, Any], reference: dict[str, Any]) -> dict[str, str]:
    speed, parity = artifact.get("milliseconds") or {}, artifact.get("parity") or {}
    score = (artifact.get("scores") or {}).get(record.primary) or {}
    rate = artifact.get("examples_per_second") or {}
    was = (reference.get("milliseconds") or {}).get("p50")
    return {
        "target": str(artifact.get("target")),
        "sha256": str(artifact.get("sha256") or "")[:HASH_DIGITS],
        "bytes": size_text(artifact.get("bytes")),
        "smaller": ratio_text(reference.get("bytes"), artifact.get("bytes")),
        "p50": milliseconds_text(speed.get("p50")),
        "p95": milliseconds_text(speed.get("p95")),
        "faster": ratio_text(was, speed.get("p50")),
        "rate": f"{count_text(rate['value'])}/s" if is_number(rate.get("value")) else "",
        "memory": size_text(artifact["resident_bytes"]) if artifact.get("resident_bytes") else "",
        "score": score_text(score.get("value")),
        "interval": interval_text(score),
        "kept": share_text(artifact["kept"]) if is_number(artifact.get("kept")) else "",
        "agree": share_text(parity["agree"]) if is_number(parity.get("agree")) else "",
        "max_abs": tiny_text(parity["max_abs"]) if is_number(parity.get("max_abs")) else "",
    }


def _measured_at(record: Record) -> str:
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
    """Size, latency and score of the PyTorch model and of every artefact that has all three; None where fewer than two have them."""
    shown = (_describe_model(record), *record.artifacts)
    files = [(str(file["target"]), placed) for file in shown if (placed := place_file(file, record.primary))]
    names, places = [name for name, _ in files], [placed for _, placed in files]
    return draw_bubbles(places, names, names, range(len(files)), record.primary) if len(files) > 1 else None


def place_file(file: dict[str, Any], metric: str) -> tuple[float, float, float] | None:
    """(megabytes, median milliseconds, score) of an artefact, or None where one of them is missing."""
    score = ((file.get("scores") or {}).get(metric) or {}).get("value")
    size, latency = file.get("bytes"), (file.get("milliseconds") or {}).get("p50")
    if is_number(score) and is_number(size) and is_number(latency) and size > 0 and latency > 0:
        return size / 1e6, latency, score
    return None


def draw_bubbles(
    places: Sequence[tuple[float, float, float]], names: Sequence[str], tips: Sequence[str], colours: Sequence[int], metric: str
) -> Figure:
    """The chart of (megabytes, milliseconds, score), each with its name, its whole name on hover, and its colour."""
    scores = [-score if metric in LOWER_IS_BETTER else score for *_, score in places]
    span = max(scores) - min(scores)
    sizes = [(score - min(scores)) / span if span else 0.5 for score in scores]
    points = [
        charts.Point(size, latency, name, score_text(score), good, colour, tip)
        for (size, latency, score), name, good, colour, tip in zip(places, names, sizes, colours, tips, strict=True)
    ]
    note = "Lower left is smaller and faster. A larger bubble scores better; the number is its score."
    svg = charts.scatter_chart("Size, latency and score of each file", points, "MB", "ms, median")
    return Figure("Size, latency and score", svg, note=note)


def show_usage(record: Record) -> list[dict[str, str]]:
    """How to call each artefact from the shell and from Python, the smallest first. Pairs of texts are shown in Python only."""
    found = []
    pair = record.run.get("task") == "pair" or bool((record.data.get("columns") or {}).get("pair"))
    for artifact in sorted(record.artifacts, key=lambda artifact: artifact.get("bytes") or math.inf):
        path = f"{record.folder.name}/{artifact.get('path') or 'artifacts/' + str(artifact.get('target'))}"
        quoted = shlex.quote(path)
        first = "" if pair else f'lightune predict {quoted} "some text"\n'
        rows = '("first text", "second text")' if pair else '"some text", "another text"'
        found.append(
            {
                "target": str(artifact.get("target")),
                "shell": f"{first}lightune bench {quoted}\nlightune evaluate {quoted} more.csv",
                "python": f"from lightune.runtime import load\n\npredictor = load({path!r})\nprint(predictor.predict([{rows}]))",
            }
        )
    return found
