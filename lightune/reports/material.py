"""What a page says about the data: parts, labels, lengths and what the doctor found."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from lightune.reports import charts
from lightune.reports.figures import Figure
from lightune.reports.formats import HASH_DIGITS, answer_text, count_text, is_number, share_text, short_text
from lightune.reports.records import Record
from lightune.supervision import Ledger

LABEL_BARS = 300
ROW_NUMBERS = 20
MESSAGE_LIMIT = 1000


def show_data(record: Record) -> dict[str, Any]:
    """The parts of the data, their labels and lengths, and what was told while reading."""
    parts = record.data.get("parts") or {}
    if not parts:
        return {}
    named = ((name, value) for name, value in (record.data.get("columns") or {}).items() if value and name != "task")
    told = [*(record.data.get("told") or []), *((record.data.get("split") or {}).get("told") or [])]
    limits = sorted({limit for part in parts.values() for limit in (part.get("tokens") or {}).get("cut_at") or {}}, key=float)
    figures = [*_draw_labels(parts), *_draw_lengths(parts, "tokens", limits), *_draw_lengths(parts, "characters", ())]
    return {
        "parts": [_tell_part(name, part, limits) for name, part in parts.items()],
        "limits": limits,
        "figures": figures,
        "ledger": tabulate_ledger(record),
        "columns": [(name if name == "shape" else f"{name} column", answer_text(value)) for name, value in named],
        "told": list(dict.fromkeys(str(sentence) for sentence in told)),
    }


def tabulate_ledger(record: Record) -> list[dict[str, str]]:
    """For each part what became of its conversations: rows, tokens, how many of these are learned, and what was lost on the way."""
    return [
        {
            "name": name,
            "came": count_text(facts.get("rows")),
            "made": count_text(facts.get("made")),
            "tokens": count_text(facts.get("tokens")),
            "learned": count_text(facts.get("supervised")),
            "share": share_text(facts["supervised"] / facts["tokens"]) if facts.get("tokens") else "",
            "longest": count_text(facts.get("longest")),
            "cut": count_text(facts.get("cut_rows")),
            "cut_tokens": f"{count_text(facts['cut_tokens'])} tokens" if facts.get("cut_tokens") else "",
            "split": count_text(facts.get("split_rows")),
            "left_out": count_text((facts.get("dropped_rows") or 0) + (facts.get("unsupervised_rows") or 0)),
        }
        for name, facts in record.ledger.items()
    ]


def list_losses(record: Record) -> list[str]:
    """A sentence for all that conversations lost on their way to rows, by part, and for what stands in two parts."""
    known = {item.name for item in dataclasses.fields(Ledger)}
    ledgers = {part: Ledger(**{name: count for name, count in facts.items() if name in known}) for part, facts in record.ledger.items()}
    lost = [f"{part}: {sentence}" for part, ledger in ledgers.items() for sentence in ledger.warnings]
    return lost + [str(sentence) for sentence in (record.data.get("split") or {}).get("warnings") or []] if ledgers else []


def _tell_part(name: str, part: dict[str, Any], limits: Sequence[str]) -> dict[str, Any]:
    characters, tokens = part.get("characters") or {}, part.get("tokens") or {}
    return {
        "name": name,
        "rows": count_text(part.get("rows")),
        "source": str(part.get("source") or ""),
        "sha256": str(part.get("sha256") or "")[:HASH_DIGITS],
        "characters": [count_text(characters.get(key)) for key in ("median", "p95", "max")],
        "tokens": [count_text(tokens.get(key)) for key in ("median", "p95", "max")],
        "cut": [count_text((tokens.get("cut_at") or {}).get(limit)) for limit in limits],
    }


def _draw_labels(parts: dict[str, Any]) -> list[Figure]:
    names = [name for name, part in parts.items() if part.get("labels")]
    totals: dict[str, list[float]] = {}
    for place, name in enumerate(names):
        for label, count in parts[name]["labels"].items():
            totals.setdefault(short_text(label), [0.0] * len(names))[place] = count
    if not totals:
        return []
    rows = sorted(totals.items(), key=lambda row: (-sum(row[1]), row[0]))
    note = f"The {count_text(LABEL_BARS)} most frequent of {count_text(len(rows))} labels." if len(rows) > LABEL_BARS else ""
    svg = charts.bar_chart(f"Rows of each of {len(rows)} labels", rows[:LABEL_BARS], names)
    return [Figure("Labels", svg, list(enumerate(names)), note)]


def _draw_lengths(parts: dict[str, Any], unit: str, limits: Sequence[str]) -> list[Figure]:
    """A histogram of the first part where the data tells one, and one chart of least, median, 95 % and most."""
    figures, ranges = [], []
    for name, part in parts.items():
        lengths = part.get(unit) or {}
        told = lengths.get("histogram") or {}
        values = [lengths[key] for key in ("min", "median", "p95", "max") if is_number(lengths.get(key))]
        if told.get("counts") and name == next(iter(parts)):
            title = f"Length in {unit}, {name}"
            columns = list(zip(told["edges"], told["edges"][1:], told["counts"], strict=False))
            svg = charts.histogram(title, columns, unit, [float(limit) for limit in limits])
            figures.append(Figure(title, svg, note="Dashed: length limits." if limits else ""))
        if len(values) == 4:
            ranges.append((name, values))
    if ranges:
        title = f"Length in {unit}" + (" by part" if figures else "")
        note = "Line: least to most. Bar: median to 95 %."
        figures.append(Figure(title, charts.range_chart(title, ranges, unit), note=note))
    return figures


def list_findings(record: Record) -> list[dict[str, Any]]:
    """What the doctor found, errors first, each with at most 20 row numbers."""
    order = {"error": 0, "warning": 1, "note": 2}
    found = sorted(record.data.get("findings") or [], key=lambda finding: order.get(finding.get("level"), 3))
    return [
        {
            "level": str(finding.get("level") or "note"),
            "code": str(finding.get("code") or ""),
            "message": short_text(finding.get("message") or "", MESSAGE_LIMIT),
            "part": str(finding.get("part") or ""),
            "count": count_text(finding.get("count")),
            "cure": str(finding.get("cure") or ""),
            "rows": [str(row) for row in (finding.get("rows") or [])[:ROW_NUMBERS]],
            "more": max(0, len(finding.get("rows") or []) - ROW_NUMBERS),
        }
        for finding in found
    ]
