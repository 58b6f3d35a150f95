"""What a page says about several runs side by side."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightune.reports import charts
from lightune.reports.budget import summarise_budget, verdict_text
from lightune.reports.exported import draw_bubbles, find_smallest, place_file
from lightune.reports.figures import Figure
from lightune.reports.formats import (
    ABSENT,
    LOWER_IS_BETTER,
    change_text,
    count_text,
    duration_text,
    factor_text,
    interval_text,
    is_number,
    metric_text,
    milliseconds_text,
    pace_text,
    score_text,
    share_text,
    short_text,
    size_text,
)
from lightune.reports.front import draw_fronts
from lightune.reports.records import Record, read_bounds
from lightune.reports.sections import TASKS, choose_metric, select_metric

SETTING_LIMIT = 200  # characters of one recipe value
COSTS = {"seconds": "seconds of training", "trainable_parameters": "trained parameters"}  # what scores are drawn against


def describe_runs(records: Sequence[Record]) -> dict[str, Any]:
    """The side-by-side part of a comparison page, by name."""
    names = name_apart(records)
    rows = [*_compare_facts(records), *_compare_scores(records), *_compare_costs(records), *_compare_budgets(records)]
    figures = (
        _draw_intervals(records, names),
        _draw_progress(records, names),
        *(_draw_against(records, names, key, title) for key, title in COSTS.items()),
        _draw_trade_off(records, names),
    )
    return {
        "names": names,
        "rows": [row for row in rows if any(value != ABSENT for value, _ in row["cells"])],
        "cautions": list_cautions(records, names),
        "figures": [*(figure for figure in figures if figure), *draw_fronts(records, names)],
        "settings": compare_settings(records),
    }


def name_apart(records: Sequence[Record]) -> list[str]:
    """The runs' names, or their methods where these alone tell them apart; those that several runs share get their folder's name or a number
    added."""
    names = [record.name for record in records]
    methods = [str(record.run.get("method")) for record in records]
    if len(records) > 1 and len(set(names)) == 1 and len(set(methods)) == len(records):
        return methods
    named = [name if names.count(name) == 1 else f"{name} ({record.folder.name})" for name, record in zip(names, records, strict=True)]
    return [name if named.count(name) == 1 else f"{name} #{index}" for index, name in enumerate(named, start=1)]


def list_cautions(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    """Where the figures side by side must not be read as a ranking."""
    found = []
    if len({record.run.get("task") for record in records}) > 1 or len({record.primary for record in records}) > 1:
        found.append("The runs differ in task or metric: their scores cannot be ranked.")
    if len({_identify_rows(record) for record in records}) > 1:
        found.append("The runs were not scored on the same test rows: part of a difference may be the rows.")
    if len({record.run.get("base_sha256") for record in records if "perplexity" in record.scores}) > 1:
        found.append("The runs stand on different bases, whose tokens may differ: compare perplexity per byte, not per token.")
    primary, scored = records[0].primary, []
    for record, name in zip(records, names, strict=True):
        bounds = read_bounds(record.scores.get(primary))
        if bounds:
            scored.append((bounds, name))
    if len(scored) > 1 and not found:
        first, second = sorted(scored, reverse=primary not in LOWER_IS_BETTER)[:2]
        (_, low, high), (_, other_low, other_high) = first[0], second[0]
        if low <= other_high and other_low <= high:
            found.append(f"The intervals of {first[1]} and {second[1]} overlap: these test rows alone do not tell which is better.")
    return found


def _identify_rows(record: Record) -> tuple[Any, ...]:
    part = (record.data.get("parts") or {}).get("test") or {}
    return part.get("sha256") or part.get("source"), (record.run.get("examples") or {}).get("test"), record.evaluation.get("rows")


def _row(name: str, values: Sequence[str], notes: Sequence[str] = (), best: int | None = None) -> dict[str, Any]:
    told = [value if value not in ("", "None") else ABSENT for value in values]
    return {"name": name, "cells": list(zip(told, notes or [""] * len(told), strict=True)), "best": best, "differs": len(set(told)) > 1}


def _compare_facts(records: Sequence[Record]) -> list[dict[str, Any]]:
    runs = [record.run for record in records]
    sizes = [" · ".join(count_text(number) for number in (run.get("examples") or {}).values()) for run in runs]
    return [
        _row("task", [TASKS.get(run.get("task", ""), str(run.get("task"))) for run in runs]),
        _row("base model", [str(run.get("base")) for run in runs]),
        _row("method", [str(run.get("method")) for run in runs]),
        _row("examples", sizes, [" · ".join(run.get("examples") or {}) for run in runs]),
    ]


def _compare_scores(records: Sequence[Record]) -> list[dict[str, Any]]:
    rows = []
    for metric in dict.fromkeys(name for record in records for name in record.scores):
        scores = [record.scores.get(metric) or {} for record in records]
        best = _best([score.get("value") for score in scores], lower=metric in LOWER_IS_BETTER)
        rows.append(_row(metric_text(metric), [score_text(s.get("value")) for s in scores], [interval_text(s) for s in scores], best))
    return rows


def _compare_costs(records: Sequence[Record]) -> list[dict[str, Any]]:
    runs, files = [record.run for record in records], [find_smallest(record) for record in records]
    latency = [(file.get("milliseconds") or {}).get("p50") for file in files]
    was = [((run.get("reference") or {}).get("milliseconds") or {}).get("p50") for run in runs]
    factors = [factor_text(a / b) if is_number(a) and is_number(b) and b else "" for a, b in zip(was, latency, strict=True)]
    faster = [f"{factor} faster than PyTorch" if factor else "" for factor in factors]
    paces, likeness = [file.get("tokens_per_second") or {} for file in files], [file.get("parity") or {} for file in files]
    learned = [(record.ledger.get("train") or {}).get("supervised") for record in records]
    totals = [f"of {count_text(run.get('total_parameters'))}" for run in runs]
    rows = [
        _row("trained parameters", [count_text(run.get("trainable_parameters")) for run in runs], totals),
        _row("tokens learned from", [count_text(value) for value in learned]),
    ]
    plain = (
        ("training time", [run.get("seconds") for run in runs], duration_text, [str(run.get("precision") or "") for run in runs]),
        ("peak memory", [run.get("peak_resident_bytes") for run in runs], size_text, [""] * len(runs)),
        ("its own weights", [run.get("weights_bytes") for run in runs], size_text, [""] * len(runs)),
        ("PyTorch latency", was, milliseconds_text, [""] * len(runs)),
        ("smallest file", [file.get("bytes") for file in files], size_text, [str(file.get("target") or "") for file in files]),
        ("its latency", latency, milliseconds_text, faster),
    )
    rows += [_row(name, [tell(value) for value in values], notes, _best(values, lower=True)) for name, values, tell, notes in plain]
    paced, kept = [pace.get("generation") for pace in paces], [file.get("kept") for file in files]
    return [
        *rows,
        _row("its answers", [pace_text(value) for value in paced], best=_best(paced, lower=False)),
        _row("its perplexity change", [change_text(found.get("change")) for found in likeness]),
        _row("score kept", [share_text(value) for value in kept], best=_best(kept, lower=False)),
    ]


def _compare_budgets(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Whether each run holds its budget; no row where no run has one."""
    told = [summarise_budget(record) for record in records]
    verdicts = [verdict_text(record.run.get("met")) for record in records]
    return [_row("budget", verdicts, told)] if any(told) else []


def _best(values: Sequence[Any], lower: bool) -> int | None:
    """The index of the best value where at least two are known and it stands alone."""
    known = [value for value in values if is_number(value)]
    if len(known) < 2:
        return None
    best = min(known) if lower else max(known)
    return values.index(best) if known.count(best) == 1 else None


def _draw_intervals(records: Sequence[Record], names: Sequence[str]) -> Figure | None:
    primary, rows = records[0].primary, []
    for record, name in zip(records, names, strict=True):
        bounds = read_bounds(record.scores.get(primary))
        if bounds:
            rows.append((name, bounds))
    if not rows:
        return None
    title = f"Test {metric_text(primary)}"
    return Figure(title, charts.interval_chart(f"{title} of each run", rows, "with its 95 % interval"))


def _draw_progress(records: Sequence[Record], names: Sequence[str]) -> Figure | None:
    metric = choose_metric(records[0])
    lines = []
    for colour, (record, name) in enumerate(zip(records, names, strict=True)):
        points = select_metric(record, metric, "epoch")
        if points:
            lines.append(charts.Series(name, points, colour, dots=True))
    if not lines:
        return None
    title = f"Dev {metric_text(metric)}"
    svg = charts.line_chart(f"{title} of each run over epochs", lines, "epoch", "")
    return Figure(title, svg, [(line.colour, line.name) for line in lines])


def _draw_against(records: Sequence[Record], names: Sequence[str], key: str, title: str) -> Figure | None:
    """The score of every run against what it cost; None where the runs cost the same, or fewer than two tell."""
    primary = records[0].primary
    placed = [
        (float(record.run[key]), bounds[0], name)
        for record, name in zip(records, names, strict=True)
        if is_number(record.run.get(key)) and record.run[key] > 0 and (bounds := read_bounds(record.scores.get(primary)))
    ]
    if len({cost for cost, _, _ in placed}) < 2:
        return None
    candidates = [charts.Candidate(cost, score, name, name) for cost, score, name in placed]
    metric = metric_text(primary)
    svg = charts.front_chart(f"Test {metric} against {title}", candidates, title, metric, lower=primary in LOWER_IS_BETTER)
    return Figure(f"Test {metric} and {title}", svg, note="The line is the best score that each cost buys.")


def _draw_trade_off(records: Sequence[Record], names: Sequence[str]) -> Figure | None:
    """The artefacts by size, speed and score, coloured by run; of those runs that are measured as the first is."""
    placed = [
        (place, colour, f"{name}, {file.get('target')}")
        for colour, (record, name) in enumerate(zip(records, names, strict=True))
        for file in record.artifacts
        if record.generates == records[0].generates and (place := place_file(record, file))
    ]
    if not placed:
        return None
    places, colours, tips = zip(*placed, strict=True)
    chart = draw_bubbles(places, [""] * len(places), tips, colours, records[0])
    return replace(chart, keys=[(colour, names[colour]) for colour in dict.fromkeys(colours)])


def compare_settings(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The recipe's settings that are not the same in every run."""
    recipes = [_flat(record.recipe) for record in records]
    rows = (_row(key, [recipe.get(key, "") for recipe in recipes]) for key in dict.fromkeys(key for recipe in recipes for key in recipe))
    return [row for row in rows if row["differs"]]


def _flat(recipe: str) -> dict[str, str]:
    """A TOML recipe as {'train.epochs': '3'}; empty where it is no TOML (the page still shows its text)."""
    try:
        tables = tomllib.loads(recipe)
    except tomllib.TOMLDecodeError:
        return {}
    flat: dict[str, str] = {}
    waiting = list(tables.items())
    while waiting:
        key, value = waiting.pop(0)
        if isinstance(value, dict):
            waiting = [(f"{key}.{name}", part) for name, part in value.items()] + waiting
        else:
            told = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            flat[key] = short_text(told, SETTING_LIMIT)
    return flat
