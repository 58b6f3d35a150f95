"""What a page says about the budget: each limit, what was reached, and by how much it is held or missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightune.reports.formats import GAP, duration_text, is_number, milliseconds_text, share_text, size_text
from lightune.reports.records import Record


@dataclass(frozen=True, slots=True)
class Limit:
    """How a limit is told: its name, what was asked and what was reached as text, and whether it is the least that is allowed or the most."""

    name: str
    ask: Callable[[float], str]
    tell: Callable[[float], str]
    least: bool = False


LIMITS = {  # as run.json and front.json name them: megabytes, milliseconds, megabytes, a share, seconds
    "max_mb": Limit("size", lambda asked: f"{asked:g}{GAP}MB", lambda value: size_text(value * 1e6)),
    "max_ms": Limit("latency", lambda asked: f"{asked:g}{GAP}ms", milliseconds_text),
    "max_ram": Limit("resident memory", lambda asked: f"{asked:g}{GAP}MB", lambda value: size_text(value * 1e6)),
    "keep": Limit("score kept", lambda asked: f"{100 * asked:g}{GAP}%", share_text, least=True),
    "time": Limit("search time", duration_text, duration_text),
}


def show_budget(record: Record) -> dict[str, Any]:
    """Every limit that was set with what was reached, and the share of the reference score that was kept; empty without limits."""
    budget = record.run.get("budget") or {}
    held = budget.get("held") or {}
    rows = [_tell_limit(name, asked, held.get(name) or {}) for name, asked in list_limits(record).items()]
    return {"rows": rows, "kept": tell_kept(budget.get("kept") or {}, str(budget.get("part") or "test"))} if rows else {}


def list_limits(record: Record) -> dict[str, float]:
    """The limits that were set, by name, in the units of LIMITS: those of run.json, else those of the search."""
    told = (record.run.get("budget") or {}).get("limits") or record.front.get("limits") or {}
    return {name: told[name] for name in LIMITS if is_number(told.get(name))}


def summarise_budget(record: Record) -> str:
    """In one line, what was reached of each limit, or only of those that are missed: 'size 5.13 MB of at most 4.50 MB (14.0 % over)'."""
    rows = show_budget(record).get("rows") or []
    missed = [row for row in rows if row["met"] is False]
    return ", ".join(_spell(row) for row in missed or rows)


def _spell(row: dict[str, Any]) -> str:
    if not row["value"]:
        return f"{row['name']} {row['limit']}"
    return f"{row['name']} {row['value']} of {row['limit']}" + (f" ({row['margin']})" if row["met"] is False and row["margin"] else "")


def verdict_text(met: Any) -> str:
    """true → 'held', false → 'not held', and nothing where it is not known."""
    return "held" if met is True else "not held" if met is False else ""


def tell_kept(kept: dict[str, Any], part: str = "test") -> str:
    """The share of the reference score that was kept on the rows of a part, with its interval and its test, as a sentence; nothing where it is not known."""
    if not is_number(kept.get("value")):
        return ""
    facts = [f"95{GAP}% interval {interval}"] if (interval := kept_interval_text(kept)) else []
    facts += [f"below the limit in {share_text(kept['p'])} of the resamples"] if is_number(kept.get("p")) else []
    note = f" (paired bootstrap: {', '.join(facts)})" if facts else ""
    return f"{share_text(kept['value'])} of the reference score is kept on the {part} rows{note}."


def kept_interval_text(kept: dict[str, Any]) -> str:
    """{'low': 0.981, 'high': 1.002} → '98.1 % – 100.2 %'; nothing where a bound is missing."""
    low, high = kept.get("low"), kept.get("high")
    return f"{share_text(low)} – {share_text(high)}" if is_number(low) and is_number(high) else ""


def _tell_limit(name: str, asked: float, held: dict[str, Any]) -> dict[str, Any]:
    limit, value, met = LIMITS[name], held.get("value"), held.get("met")
    return {
        "name": limit.name,
        "limit": f"at {'least' if limit.least else 'most'} {limit.ask(asked)}",
        "value": limit.tell(value) if is_number(value) else "",
        "met": met,
        "verdict": verdict_text(met) or "not measured",
        "margin": _margin(limit, asked, value) if is_number(value) else "",
    }


def _margin(limit: Limit, asked: float, value: float) -> str:
    """How far a value is from its limit: a share is compared in points, everything else by its ratio."""
    if limit.least:
        points = 100 * (value - asked)
        return f"{abs(points):.1f} points {'above' if points >= 0 else 'short'}"
    if not asked:
        return ""
    over = value / asked - 1
    return f"{share_text(abs(over))} {'over' if over > 0 else 'below'}"
