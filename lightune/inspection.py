"""`inspect`: what a model is made of, or what is wrong with data, as one dict and as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightune import sources
from lightune.catalogue import CATALOGUE
from lightune.data import doctor, read_parts
from lightune.errors import InputError, MissingExtra
from lightune.recipes import DEFAULTS, resolve
from lightune.reports import write_inspection
from lightune.reports.inspected import KNOBS, tell_setting

Table = tuple[str, list[str], list[list[Any]]]
Tell = Callable[[str], None]
DATA_SUFFIXES = {".csv", ".tsv", ".tab", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".txt", ".gz", ".zst"}
ABSENT = "–"
SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)  # at which the curves are told
GENERATE = "generate"
SHOWN = 5  # conversations whose tokens are shown
CONVERSING = ("shape", "prompt", "completion", "system", "template", "too_long", "max_length")  # options that conversations alone have


def inspect(
    target: str,
    *,
    model: str | None = None,
    data: str | None = None,
    rows: int | None = None,
    length: int | None = None,
    batch: int | None = None,
    threads: int | None = None,
    quick: bool = False,
    out: str | Path | None = None,
    tell: Tell = lambda _: None,
    **columns: Any,
) -> dict[str, Any]:
    """Facts on a model {"model": ...}, on data {"data": ...} or on conversations {"conversations": ...}, whichever the name or path is.

    Args:
        target: a model (name, folder, hub id, run) or data (file, folder, name).
        model: the base by whose tokens conversations are shown. Data are conversations where it is given, or task generate or an option of theirs.
        data: labelled data of a fine-tuned model's task: tells which parts the task can spare.
        rows: at most so many of these data, or as many conversations whose tokens are shown.
        length, batch, threads: what is timed. quick: count only, time nothing. out: write a page on the model, too.
        columns: how the data are read.

    Raises:
        InputError: neither a model nor data, or options of a model given for data, or those of conversations for something else.
    """
    timing = {"length": length, "batch": batch, "threads": threads}
    options = {name: value for name, value in timing.items() if value is not None}
    conversing = ["model"] * bool(model) + [name for name in CONVERSING if name in columns]
    if not is_data(target):
        _refuse(conversing, f"{target!r} is a model, but --{{}} is for conversations. Leave it out, or name data.")
        rows_too = {} if rows is None else {"rows": rows}
        facts = inspect_model(target, data=data, quick=quick, tell=tell, columns=columns, **options, **rows_too)
        if out:
            write_inspection(facts, Path(out))
        return {"model": facts}
    generates = columns.get("task", GENERATE if conversing else None) in DEFAULTS
    wrong = [
        name for name, value in {**options, "rows": None if generates else rows, "data": data, "quick": quick, "out": out}.items() if value
    ]
    _refuse(wrong, f"{target!r} is data, but --{{}} is for models. Leave it out, or name a model.")
    if generates:
        return {"conversations": inspect_conversations(target, model=model, rows=SHOWN if rows is None else rows, tell=tell, **columns)}
    _refuse(conversing, f"--{{}} is for conversations, but the task is {columns.get('task')}. Leave it out, or say --task generate.")
    return {"data": inspect_data(target, **columns)}


def _refuse(names: Sequence[str], message: str) -> None:
    """An error about the first of the options that do not belong here."""
    if names:
        raise InputError(message.format(names[0].replace("_", "-")))


def is_data(target: str) -> bool:
    """Whether a name or path means data and no model."""
    entry = CATALOGUE.get(target)
    named = bool(entry and entry.kind == "data") or target.startswith("hub:")
    return named or Path(target).suffix.lower() in DATA_SUFFIXES or _is_data_folder(target)


def inspect_data(target: str, **columns: Any) -> dict[str, Any]:
    """What the doctor finds in the parts of the data: the form of data.json. Lengths in tokens need a model and are left to `fit`."""
    parts = read_parts(sources.locate_data(target), **columns)
    return doctor.describe(parts, doctor.examine(parts))


def inspect_conversations(
    target: str, *, model: str | None = None, rows: int = SHOWN, tell: Tell = lambda _: None, **options: Any
) -> dict[str, Any]:
    """What a model would learn of conversations.

    Args:
        model: the base; that of the task (generate by default) where none is named. rows: how many of each part are shown.
        options: of `recipes.DataOptions`.

    Returns:
        model; columns; told (sentences on the data); ledger (counts of each part, see `supervision.Ledger`); shown: rows with part, row (in
        the data), tokens (texts) and learned (whether each is a target).

    Raises:
        InputError: the data, the template or the base are wrong; rows too long where nothing is said of them; nothing to learn.
    """
    try:
        from lightune import language
        from lightune.supervision import show
    except ImportError:
        raise MissingExtra("showing what is learned", "torch", "train") from None
    flags = {"train": target, "task": options.get("task", GENERATE), "dev_share": 0.0, "test_share": 0.0}
    recipe = resolve({}, {**options, **flags, "model": model})
    base = language.open_base(recipe, tell)
    found = language.attend(base, recipe, target)
    shown = [
        {"part": part, "row": row.row, "tokens": [text for text, _ in tokens], "learned": [learned for _, learned in tokens]}
        for part, made in found.rows.items()
        for row, tokens in zip(made, show(made, base.encoder, rows), strict=False)
    ]
    facts = {name: found.facts[name] for name in ("columns", "told", "ledger")}
    return {"model": recipe.model, **facts, "shown": shown}


def inspect_model(
    target: str, *, data: str | None = None, columns: Mapping[str, Any] | None = None, tell: Tell = lambda _: None, **options: Any
) -> dict[str, Any]:
    """Parameters, bytes, FLOPs and milliseconds of each part of a model, and what its task can spare: see `anatomy.describe_model`."""
    try:
        from lightune import anatomy
    except ImportError:
        raise MissingExtra("inspecting a model", "torch", "train") from None
    model = anatomy.open_model(target)
    examples = _read_labelled(data, model.answers.kind, columns or {}) if data else ()
    return anatomy.describe_model(model, target, examples=examples, tell=tell, **options)


def _read_labelled(data: str, task: str, columns: Mapping[str, Any]) -> Sequence[Any]:
    """The development rows where the data have them, else the training rows, else the only ones."""
    parts = read_parts(sources.locate_data(data), **{"task": task, **columns})
    return next(parts[name] for name in ("dev", "train", *parts) if name in parts)


def tables(facts: dict[str, Any]) -> list[Table]:
    """The facts as (title, headers, rows)."""
    if "conversations" in facts:
        return _ledger_tables(facts["conversations"])
    return _data_tables(facts["data"]) if "data" in facts else _model_tables(facts["model"])


def _is_data_folder(target: str) -> bool:
    folder = Path(target)
    return folder.is_dir() and not any((folder / name).exists() for name in ("config.json", "model.json", "manifest.json", "recipe.toml"))


def _data_tables(data: dict[str, Any]) -> list[Table]:
    parts = [
        [name, part["rows"], part["characters"]["median"], part["characters"]["max"], len(part["labels"])]
        for name, part in data["parts"].items()
    ]
    found: list[Table] = [("Parts", ["part", "rows", "median characters", "longest", "labels"], parts)]
    found.append(("Read", [""], [[sentence] for sentence in data["told"]]))
    rows = [[finding["level"], f"{finding['message']} {finding['cure']}"] for finding in data["findings"]]
    found.append(("Findings", ["level", "what, and the cure"], rows or [["", "nothing wrong was found"]]))
    return found


def _ledger_tables(found: dict[str, Any]) -> list[Table]:
    """What became of the rows of each part; a count that is nowhere above 0 is left out."""
    ledgers = found["ledger"]
    counts = [name for name in next(iter(ledgers.values())) if any(ledger[name] for ledger in ledgers.values())]
    rows = [[part, *(f"{ledger[name]:,}" for name in counts)] for part, ledger in ledgers.items()]
    told: Table = ("Read", [""], [[sentence] for sentence in found["told"]])
    return [told, (f"What {found['model']} learns", ["part", *(name.replace("_", " ") for name in counts)], rows)]


def _model_tables(model: dict[str, Any]) -> list[Table]:
    known = [_parts_table(model)]
    known += [_savings_table(model)] if model["savings"] else []
    known += [_curves_table(model["importance"]), _blocks_table(model["importance"])] if model["importance"] else []
    return [*known, *((("Notes", [""], [[note] for note in model["notes"]]),) if model["notes"] else ())]


def _parts_table(model: dict[str, Any]) -> Table:
    total = model["milliseconds"]
    rows = [
        [
            part["part"], f"{part['parameters']:,}", f"{part['bytes'] / 1e6:.2f} MB", f"{part['share']:.1%}", _millions(part["flops"]),
            _number(part["milliseconds"]), f"{part['milliseconds'] / total:.1%}" if total else ABSENT,
        ]
        for part in model["parts"]
    ]  # fmt: skip
    last = ["all", f"{model['parameters']:,}", f"{model['bytes'] / 1e6:.2f} MB", "", _millions(model["flops"]), _number(total), ""]
    title = f"{model['name']}: {model['type']}, {model['blocks']} blocks of {model['hidden']}, {model['heads']} heads, at most {model['longest_input']} tokens"
    return f"{title}\n{tell_setting(model)}", ["part", "parameters", "fp32", "share", "MFLOP", "ms", "share of ms"], [*rows, last]


def _savings_table(model: dict[str, Any]) -> Table:
    whole = model["savings"][0]
    rows = [
        [
            KNOBS.get(saving["knob"], saving["knob"]), _megabytes(saving["bytes"]), _times(whole["bytes"], saving["bytes"]), _number(saving["milliseconds"]),
            _times(whole["milliseconds"], saving["milliseconds"]), ABSENT if saving["lost"] is None else f"{saving['lost']:.1%}", saving["note"],
        ]
        for saving in model["savings"]
    ]  # fmt: skip
    headers = ["each knob alone", "artefact", "smaller", "ms", "faster", "importance lost", ""]
    return "What each knob would save, exported and timed without training", headers, rows


def _curves_table(known: dict[str, Any]) -> Table:
    rows = [[knob, *(f"{lost_at(curve, share):.1%}" for share in SHARES)] for knob, curve in known["curves"].items()]
    title = f"Importance lost when the least important go first ({known['rows']} rows)"
    return title, ["knob", *(f"{share:.0%} removed" for share in SHARES)], rows


def lost_at(curve: Sequence[Sequence[float]], share: float) -> float:
    """The value of a curve at a share, on the line between its points."""
    (x, y), *rest = curve
    for right, value in rest:
        if right >= share:
            return y + (value - y) * (share - x) / (right - x) if right > x else value
        x, y = right, value
    return y


def _blocks_table(known: dict[str, Any]) -> Table:
    rows = [
        [
            block["block"],
            f"{block['influence']:.4f}",
            f"{block['share']:.1%}",
            f"{block['half_of_heads']:.1%}",
            f"{block['half_of_ffn']:.1%}",
        ]
        for block in known["blocks"]
    ]
    headers = ["block", "influence", "share of all", "in its lesser half of heads", "in its lesser half of neurons"]
    return "Importance of each block", headers, rows


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3f}"


def _millions(value: int) -> str:
    return f"{value / 1e6:,.2f}"


def _megabytes(value: int | None) -> str:
    return ABSENT if value is None else f"{value / 1e6:.2f} MB"


def _times(whole: float | None, value: float | None) -> str:
    return f"{whole / value:.2f}x" if whole and value else ABSENT
