"""The front of a search for a smaller model: everything that was tried by bytes, milliseconds and score, as table, plots and CSV."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightune.errors import InputError
from lightune.reports import charts
from lightune.reports.budget import LIMITS, list_limits
from lightune.reports.figures import Figure
from lightune.reports.files import write_text
from lightune.reports.formats import (
    LOWER_IS_BETTER,
    count_text,
    duration_text,
    is_number,
    metric_text,
    milliseconds_text,
    ratio_text,
    score_text,
    share_text,
    short_text,
    size_text,
)
from lightune.reports.records import Record, read_record

NAME_LIMIT = 120  # characters of a point's name or of its steps
Point = dict[str, Any]
Measure = Callable[[Point], Any]
SHAPE: dict[str, str] = {  # how a number of a shape is told
    "layers": "{:,} layers",
    "hidden": "hidden {:,}",
    "heads": "{:,} heads",
    "ffn": "feed-forward {:,}",
    "vocabulary": "{:,} tokens",
    "positions": "{:,} positions",
    "weights": "{}-bit weights",
    "tables": "{}-bit tables",
}
AXES: dict[str, tuple[str, str, Measure]] = {  # by limit: the chart's title, its axis, and the value
    "max_mb": ("Score against size", "MB", lambda point: point["bytes"] / 1e6 if is_number(point.get("bytes")) else None),
    "max_ms": ("Score against latency", "ms a text", lambda point: point.get("milliseconds")),
}


def show_front(record: Record) -> dict[str, Any]:
    """Everything that a search tried: the points of the front and those that another point dominates, the plots and the cost."""
    points = list_points(record)
    if not points:
        return {}
    reference = record.front.get("reference") or {}
    rows = [_tell_point(record, point) for point in points]
    return {
        "metric": metric_text(choose_metric(record)),
        "reference": _tell_point(record, {**reference, "name": "reference"}) if reference else {},
        "rows": [row for row in rows if row["on_front"]],
        "dominated": [row for row in rows if not row["on_front"]],
        "figures": [figure for name in AXES if (figure := _draw_plane(record, name))],
        "cost": _tell_cost(record, points),
    }


def list_points(record: Record) -> list[Point]:
    """Every point of front.json, the smallest first."""
    points = [point for point in record.front.get("points") or [] if isinstance(point, dict)]
    return sorted(points, key=lambda point: point["bytes"] if is_number(point.get("bytes")) else float("inf"))


def choose_metric(record: Record) -> str:
    """The metric whose score on the development rows the search compares."""
    return str(record.front.get("metric") or record.primary)


def is_chosen(record: Record, point: Point) -> bool:
    """Whether this is the point that became the artefact."""
    return point.get("id") is not None and point.get("id") == record.front.get("chosen")


def _tell_point(record: Record, point: Point) -> dict[str, Any]:
    reference = record.front.get("reference") or {}
    missed = [_limit_name(name) for name, held in judge_point(record, point).items() if held is False]
    steps = " → ".join(map(str, point.get("steps") or []))
    return {
        "id": "" if point.get("id") is None else str(point["id"]),
        "name": short_text(point.get("name") or _tell_shape(point.get("shape") or {}) or "as it is", NAME_LIMIT),
        "detail": short_text(steps, NAME_LIMIT),
        "bytes": size_text(point.get("bytes")),
        "smaller": ratio_text(reference.get("bytes"), point.get("bytes")),
        "latency": milliseconds_text(point.get("milliseconds")),
        "faster": ratio_text(reference.get("milliseconds"), point.get("milliseconds")),
        "score": score_text(point.get("score")),
        "test": score_text(point.get("test")),
        "kept": share_text(point.get("kept")),
        "missed": ", ".join(missed),
        "chosen": is_chosen(record, point),
        "on_front": bool(point.get("on_front")),
        "take": f"lightune shrink {shlex.quote(record.folder.name)} --take {point['id']}" if point.get("id") is not None else "",
    }


def judge_point(record: Record, point: Point) -> dict[str, bool]:
    """Which limits a point holds by name; the share of the score on the development rows where the point itself does not say."""
    holds, kept, least = dict(point.get("holds") or {}), point.get("kept"), list_limits(record).get("keep")
    if "keep" not in holds and least is not None and is_number(kept):
        holds["keep"] = kept >= least
    return holds


def _limit_name(name: str) -> str:
    """The limit that a point's `holds` names in short: 'mb' → 'size'."""
    limit = LIMITS.get(name) or LIMITS.get(f"max_{name}")
    return limit.name if limit else name


def _tell_shape(shape: dict[str, Any]) -> str:
    return " · ".join(form.format(shape[name]) for name, form in SHAPE.items() if isinstance(shape.get(name), int) and shape[name])


def _tell_cost(record: Record, points: list[Point]) -> str:
    """What the search cost and what it found, in one sentence."""
    seconds = [point["seconds"] for point in points if is_number(point.get("seconds"))]
    front = sum(1 for point in points if point.get("on_front"))
    told = f"{_several(len(points), 'model')} tried" + (f" in {duration_text(sum(seconds))}" if seconds else "")
    told += f", {count_text(front)} of them on the front: no other is smaller, faster and better at once"
    if not list_limits(record):
        return f"{told}."
    holding = sum(1 for point in points if (holds := judge_point(record, point)) and all(holds.values()))
    return f"{told}. {_several(holding, 'model') if holding else 'None'} held every limit."


def _several(count: int, word: str) -> str:
    return f"{count_text(count)} {word}{'s' if count != 1 else ''}"


def _draw_plane(record: Record, limit: str) -> Figure | None:
    """The score of every point against its bytes or its milliseconds, with the limits as lines."""
    title, unit, measure = AXES[limit]
    candidates = place_points(record, measure)
    if not candidates:
        return None
    metric, limits = choose_metric(record), list_limits(record)
    reference, lower = record.front.get("reference") or {}, metric in LOWER_IS_BETTER
    least = limits["keep"] * reference["score"] if "keep" in limits and is_number(reference.get("score")) and not lower else None
    keys = [(0, "tried")]
    if (place := _place({**reference, "name": "reference"}, measure, "reference", 1)) is not None:
        candidates, keys = [*candidates, place], [*keys, (1, "reference")]
    svg = charts.front_chart(title, candidates, unit, f"dev {metric_text(metric)}", most=limits.get(limit), least=least, lower=lower)
    return Figure(title, svg, keys, _explain(candidates, limits.get(limit) is not None or least is not None))


def _explain(candidates: Sequence[charts.Candidate], limited: bool) -> str:
    told = ["The line is the best score at that cost or less."]
    if any(candidate.faint for candidate in candidates):
        told.append("Pale: another one is better in everything.")
    if any(candidate.chosen for candidate in candidates):
        told.append("Ringed: chosen.")
    return " ".join([*told, "Dashed: limits."] if limited else told)


def place_points(record: Record, measure: Measure, colour: int = 0, run: str = "") -> list[charts.Candidate]:
    """The points that have a score and the measure, as a chart places them; named by their ids, or on hover alone where `run` is told."""
    found = []
    for point in list_points(record):
        label = "" if run or point.get("id") is None else str(point["id"])
        candidate = _place(point, measure, label, colour, run or label)
        if candidate is not None:
            found.append(replace(candidate, faint=not point.get("on_front"), chosen=is_chosen(record, point)))
    return found


def _place(point: Point, measure: Measure, label: str, colour: int, owner: str = "") -> charts.Candidate | None:
    x, score = measure(point), point.get("score")
    if not (is_number(x) and x > 0 and is_number(score)):
        return None
    return charts.Candidate(x, score, label, short_text(f"{owner} {point.get('name') or ''}".strip(), NAME_LIMIT), colour)


def draw_fronts(records: Sequence[Record], names: Sequence[str]) -> list[Figure]:
    """The fronts of several runs in one chart each for size and latency; none where no run has a front or their metrics differ."""
    shown = [(colour, record, name) for colour, (record, name) in enumerate(zip(records, names, strict=True)) if list_points(record)]
    if len({choose_metric(record) for _, record, _ in shown}) != 1:
        return []
    metric, figures = choose_metric(shown[0][1]), []
    for title, unit, measure in AXES.values():
        candidates = [candidate for colour, record, name in shown for candidate in place_points(record, measure, colour, name)]
        if candidates:
            svg = charts.front_chart(f"{title}, all runs", candidates, unit, f"dev {metric_text(metric)}", lower=metric in LOWER_IS_BETTER)
            keys = [(colour, name) for colour, _, name in shown]
            figures.append(Figure(f"{title}, everything tried", svg, keys, _explain(candidates, limited=False)))
    return figures


COLUMNS = (
    "id",
    "name",
    "steps",
    "bytes",
    "milliseconds",
    "resident_bytes",
    "score",
    "test",
    "kept",
    "smaller",
    "faster",
    "on_front",
    "chosen",
)
LAST_COLUMNS = ("seconds", "artifact")


def write_front_csv(run: Path) -> Path:
    """Write RUN/front.csv, one row for each point of RUN/front.json in the order of their ids, and return its path.

    Numbers are exact: bytes, milliseconds, shares. Each limit of the search has a column `holds_NAME`.

    InputError where the run has no front or the file cannot be written.
    """
    record = read_record(Path(run))
    if not list_points(record):
        raise InputError(f"{str(run)!r} has no front.json with points. A search writes it: lightune shrink {run} --max-mb 4.5")
    points = sorted(list_points(record), key=lambda point: (not is_number(point.get("id")), point.get("id")))
    limits = list(dict.fromkeys(name for point in points for name in point.get("holds") or {}))
    text = io.StringIO()
    writer = csv.DictWriter(
        text, [*COLUMNS, *(f"holds_{name}" for name in limits), *LAST_COLUMNS], extrasaction="ignore", lineterminator="\n"
    )
    writer.writeheader()
    for point in points:
        writer.writerow(
            {**point, **_compare(record, point), **{f"holds_{name}": held for name, held in (point.get("holds") or {}).items()}}
        )
    return write_text(text.getvalue(), record.folder / "front.csv")


def _compare(record: Record, point: Point) -> dict[str, Any]:
    """The columns that a point itself does not hold."""
    reference = record.front.get("reference") or {}
    factors = {}
    for column, key in (("smaller", "bytes"), ("faster", "milliseconds")):
        was, now = reference.get(key), point.get(key)
        factors[column] = round(was / now, 4) if is_number(was) and is_number(now) and now > 0 else ""
    return {**factors, "steps": " ".join(map(str, point.get("steps") or [])), "chosen": is_chosen(record, point)}
