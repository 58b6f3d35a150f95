"""What a page says about one model: its parts, what each knob would save, and what its task can spare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightune import __version__
from lightune.reports import charts
from lightune.reports.figures import Figure
from lightune.reports.files import write_text
from lightune.reports.formats import ABSENT, count_text, is_number, milliseconds_text, ratio_text, score_text, share_text, size_text
from lightune.reports.page import templates

KNOBS = {
    "none": "as it is, fp32", "depth": "depth 1/2", "ffn": "feed-forward 1/2", "heads": "heads 1/2", "hidden": "hidden 1/2",
    "pool": "pairs above 1/2", "vocab": "vocabulary 1/4", "int8": "int8", "int4": "int4",
}  # fmt: skip
SECTIONS = (("parts", "Parts"), ("savings", "What each knob would save"), ("importance", "What the task can spare"))
SUM = 100  # the bars of shares
SMALL = "norms, head and rest"


def write_inspection(facts: dict[str, Any], out: Path) -> Path:
    """Write one page about a model as `inspection.inspect` describes it, and return its path.

    InputError where the page cannot be written.
    """
    return write_text(render_model(facts), out)


def render_model(facts: dict[str, Any]) -> str:
    """The page as HTML."""
    view = {
        "name": str(facts["name"]),
        "summary": summarise_model(facts),
        "stats": list_stats(facts),
        "notes": facts["notes"],
        "parts": show_parts(facts),
        "savings": show_savings(facts),
        "importance": show_importance(facts),
    }
    contents = [(key, title) for key, title in SECTIONS if view[key]]
    return templates().get_template("model.html").render(**view, contents=contents, title=view["name"], version=__version__, created="")


def summarise_model(facts: dict[str, Any]) -> str:
    """The model in a sentence."""
    longest = f", at most {count_text(facts['longest_input'])} tokens" if facts.get("longest_input") else ""
    heads = f" with {facts['heads']} heads" if facts.get("heads") else ""
    return f"{facts['type']}: {facts['blocks']} blocks of {count_text(facts['hidden'])}{heads}, {count_text(facts['vocabulary'])} tokens known{longest}."


def tell_setting(facts: dict[str, Any]) -> str:
    """How it was timed, in words."""
    how = f"{facts['length']} tokens, batch {facts['batch']}, {facts['threads']} thread{'s' * (facts['threads'] > 1)}"
    return f"{how}, fp32 in {facts['runtime']}, median" if facts["milliseconds"] is not None else how


def list_stats(facts: dict[str, Any]) -> list[dict[str, str]]:
    """The figures at the top of the page."""
    found = [
        {"name": "parameters", "value": f"{facts['parameters'] / 1e6:,.1f}M", "note": ""},
        {"name": "size", "value": size_text(facts["bytes"]), "note": "fp32, with the tokenizer"},
    ]
    work = {"name": "work", "value": f"{facts['flops'] / 1e6:,.0f} MFLOP", "note": f"for {facts['length']} tokens, batch {facts['batch']}"}
    if is_number(facts["milliseconds"]):
        found.append({"name": "latency", "value": milliseconds_text(facts["milliseconds"]), "note": tell_setting(facts)})
    return [*found, work]


def show_parts(facts: dict[str, Any]) -> dict[str, Any]:
    """The parts as rows, and each part's share of bytes, FLOPs and milliseconds as bars."""
    rows = [
        {
            "part": part["part"],
            "parameters": count_text(part["parameters"]),
            "bytes": size_text(part["bytes"]),
            "share": share_text(part["share"]),
            "flops": f"{part['flops'] / 1e6:,.2f}",
            "milliseconds": milliseconds_text(part["milliseconds"]),
            "time": share_text(part["milliseconds"] / facts["milliseconds"]) if facts["milliseconds"] else ABSENT,
        }
        for part in facts["parts"]
    ]
    named = (("bytes", "bytes"), ("flops", "FLOPs"), ("milliseconds", "time"))
    bars = [(name, _shares([sum(part[key] or 0 for part in group) for group in _groups(facts["parts"]).values()])) for key, name in named]
    shown, groups = [(name, values) for name, values in bars if any(values)], list(_groups(facts["parts"]))
    svg = charts.bar_chart("Share of each part in percent", shown, groups)
    return {"rows": rows, "figures": [Figure("Share of each part, %", svg, list(enumerate(groups)))], "setting": tell_setting(facts)}


def _groups(parts: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The parts as the bars show them: what is small stands together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        found.setdefault(SMALL if part["part"] in ("norms", "head and rest") else part["part"], []).append(part)
    return found


def _shares(values: list[float]) -> list[float]:
    whole = sum(values)
    return [SUM * value / whole if whole else 0.0 for value in values]


def show_savings(facts: dict[str, Any]) -> dict[str, Any]:
    """Each knob's bytes, milliseconds and lost importance as rows and bars; empty where nothing was timed."""
    if not facts["savings"]:
        return {}
    whole, *tried = facts["savings"]
    rows = [
        {
            "knob": KNOBS.get(saving["knob"], saving["knob"]),
            "spec": saving["spec"],
            "bytes": size_text(saving["bytes"]),
            "smaller": ratio_text(whole["bytes"], saving["bytes"]),
            "milliseconds": milliseconds_text(saving["milliseconds"]),
            "faster": ratio_text(whole["milliseconds"], saving["milliseconds"]),
            "lost": share_text(saving["lost"]),
            "note": saving["note"],
        }
        for saving in facts["savings"]
    ]
    figures = [
        figure for key, name in (("bytes", "bytes"), ("milliseconds", "milliseconds")) if (figure := _draw_savings(whole, tried, key, name))
    ]
    return {"rows": rows, "figures": figures}


def _draw_savings(whole: dict[str, Any], tried: list[dict[str, Any]], key: str, name: str) -> Figure | None:
    """The share of the model's bytes or milliseconds that each knob alone would save."""
    saved = [
        (KNOBS.get(saving["knob"], saving["knob"]), [max(0.0, SUM * (1 - saving[key] / whole[key]))])
        for saving in tried
        if is_number(saving[key]) and whole[key]
    ]
    if not saved:
        return None
    title = f"Share of {name} saved, %"
    return Figure(title, charts.bar_chart(f"{title} by each knob alone", saved, [name]))


def show_importance(facts: dict[str, Any]) -> dict[str, Any]:
    """The curves of what is lost as more is removed, and each block's share; empty where importance was not measured."""
    known = facts["importance"]
    if not known:
        return {}
    lines = [
        charts.Series(knob, [(SUM * removed, SUM * lost) for removed, lost in curve], colour)
        for colour, (knob, curve) in enumerate(known["curves"].items())
    ]
    svg = charts.line_chart("Importance that is lost as more is removed", lines, "removed, %", "importance lost, %")
    note = "The least important go first. A curve that stays low can spare much; along the diagonal everything matters alike."
    figures = [Figure("Importance lost", svg, [(line.colour, line.name) for line in lines], note)]
    blocks = [(f"block {block['block']}", [SUM * block["share"]]) for block in known["blocks"]]
    note = "How much a block changes what passes through it: 1 - cosine of what enters and leaves."
    figures.append(
        Figure("Share of influence, %", charts.bar_chart("Share of all influence by block, in percent", blocks, ["influence"]), note=note)
    )
    rows = [
        {
            "block": block["block"],
            "influence": score_text(block["influence"]),
            "share": share_text(block["share"]),
            "half_of_heads": share_text(block["half_of_heads"]),
            "half_of_ffn": share_text(block["half_of_ffn"]),
        }
        for block in known["blocks"]
    ]
    return {"rows": rows, "figures": figures, "examples": count_text(known["rows"])}
