"""The main job: from labelled data to a trained, evaluated, exported and reported model, in one run folder."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lightune import __version__, architectures, exporting, exports, models, sources
from lightune.data import Example, Splits, doctor, read, read_parts, split
from lightune.errors import CheckFailed, InputError, LightuneError
from lightune.evaluation import Scores, evaluate
from lightune.methods import make_method
from lightune.models import Model
from lightune.optimizers import find_optimizer
from lightune.options import format_spec, parse_spec
from lightune.recipes import Recipe, format_recipe, read_recipe, resolve
from lightune.reports import write_card, write_report
from lightune.runs import Run, describe_environment, free_name, full_disk_told, new_run, open_run
from lightune.tasks import find_task
from lightune.training import Evaluation, Forecast, Step, Training

LONGEST = 512  # tokens: the default limit of bases that could take more
LEAST_LENGTH = 16  # tokens, until the base is loaded and says what it can take


class Interrupted(LightuneError):
    """Training was stopped by a signal; the run can be resumed."""

    exit_code = 130


@dataclass(frozen=True)
class Told:
    """A sentence for the user: a stage that begins, something that was guessed, or a warning."""

    text: str
    level: str = "note"


Watch = Callable[[Told | Forecast | Step | Evaluation | Any], None]


def fit(
    data: Any = None,
    out: str | Path | None = None,
    *,
    recipe: Recipe | None = None,
    overwrite: bool = False,
    watch: Watch = lambda fact: None,
    **options: Any,
) -> Run:
    """Adapt a model to labelled data, export it, measure it and write a report.

    Args:
        data: what `lightune.read` takes: a path, a catalogue name, a DataFrame, a list of dicts, (texts, labels).
        out: the run folder; `runs/NAME` by default.
        recipe: every option at once; `options` name single ones, as in `method="lora"`, `epochs=3`, `label="intent"`.
        overwrite: replace what is in the folder.
        watch: called with each fact as it happens: Told, Forecast, Step, Evaluation, doctor's Finding.

    Returns:
        The run; its figures are in `run.record`.

    Raises:
        InputError: the data, a name or an option is wrong. CheckFailed: an export does not answer as the model does.
        Interrupted: Ctrl-C or SIGTERM; `resume` goes on.
    """
    named = data if isinstance(data, (str, Path)) or data is None else None
    flags = {**options, **({"train": str(named)} if named is not None else {})}
    recipe = resolve(dataclasses.asdict(recipe) if recipe else {}, flags)
    find_targets(recipe)
    make_method(recipe.method)
    find_optimizer(parse_spec(recipe.train.optimizer)[0])
    source = data if data is not None else recipe.data.train
    if isinstance(source, str) and not source:
        raise InputError("No data were given. Give a file with texts and labels: lightune fit reviews.csv")
    folder = Path(out) if out else free_name(Path(recipe.data.train).name.split(".")[0] or "rows")
    leader = is_leader()
    run = new_run(folder, overwrite=overwrite) if leader else Run(folder)
    made = leader and not any(folder.iterdir())
    try:
        prepared = prepare(recipe, source, watch)
    except LightuneError:
        if made:
            folder.rmdir()  # nothing was done: leave nothing behind
        raise
    if leader:
        if overwrite:
            _clear(run)
        run.write("recipe.toml", format_recipe(recipe))
        run.write("environment.json", describe_environment(recipe.train.seed))
        run.write("data.json", prepared.facts)
    return _train_and_finish(run, recipe, prepared, watch)


def resume(folder: str | Path, *, data: Any = None, watch: Watch = lambda fact: None) -> Run:
    """Go on with a run where it stopped: from its newest checkpoint if training was not done, else with what comes after training.

    Raises:
        InputError: the folder is no run, or its data are gone.
    """
    run = open_run(folder)
    if (run.folder / "run.json").exists():
        watch(Told(f"{run.folder} is finished already."))
        return run
    recipe = resolve(read_recipe(run.folder / "recipe.toml"), {})
    source = data if data is not None else recipe.data.train
    return _train_and_finish(run, recipe, prepare(recipe, source, watch), watch, resumed=True)


def export_again(folder: str | Path, targets: Sequence[str], *, watch: Watch = lambda fact: None) -> dict[str, Any]:
    """Export a finished run's model, prove it on the run's own data, and put the entries into run.json, which is returned."""
    run = open_run(folder)
    recipe = resolve(read_recipe(run.folder / "recipe.toml"), {})
    model, record = models.load(run.model), run.record
    parts = read_all(recipe, recipe.data.train).parts
    rows = parts.get("test") or parts.get("dev") or parts["train"]
    scores = evaluate(model, rows, resamples=0)
    for target in targets:
        path = run.artifacts / target
        entry = exporting.export(
            model,
            target,
            path,
            dev=parts.get("dev") or rows,
            test=rows,
            reference=scores,
            name=record["name"],
            tell=lambda text: watch(Told(text)),
        )
        entry["path"] = str(path.relative_to(run.folder))
        record["artifacts"] = [old for old in record["artifacts"] if old["target"] != target] + [entry]
    run.write("run.json", record)
    write_card(run.folder)
    write_report([run.folder])
    return record


@dataclass(frozen=True)
class Prepared:
    """Data that were read, split and examined, and the model that will be trained on them."""

    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    model: Model
    facts: dict[str, Any]
    truncated_tokens: int


def prepare(recipe: Recipe, source: Any, watch: Watch = lambda fact: None) -> Prepared:
    """Read, split and examine the data, load the base and put the method on it; nothing is trained or written.

    Raises:
        InputError: every error that the doctor found, or a base, column or option that is wrong.
    """
    watch(Told("Reading the data"))
    splits = read_all(recipe, source)
    parts = {name: part for name, part in splits.parts.items() if name == "train" or len(part)}
    for sentence in splits.facts["told"]:
        watch(Told(sentence))
    for sentence in splits.facts.get("warnings", ()):
        watch(Told(sentence, "warning"))
    task = find_task(parts["train"].columns.task)
    examined = {**parts, **({"unlabelled": splits.unlabelled} if len(splits.unlabelled) else {})}
    _stop_on_errors(doctor.examine(examined))
    base = sources.resolve_model(recipe.model, tell=lambda sentence: watch(Told(sentence)))
    described = task.describe(parts["train"])
    watch(Told(f"Loading the base {recipe.model}"))
    model = models.start(base, described, max_length=LEAST_LENGTH, pooling=recipe.pooling, seed=recipe.train.seed)
    model.encoder.max_length = _max_length(recipe, model)
    lengths = {name: model.encoder.encode([e.text for e in part], [e.pair for e in part]).lengths for name, part in parts.items()}
    findings = doctor.examine(examined, lengths=lengths, max_length=model.encoder.max_length)
    for finding in findings:
        watch(finding)
    facts = doctor.describe(parts, findings, lengths=lengths)
    torch.manual_seed(recipe.train.seed)
    model.apply(make_method(recipe.method))
    cut = sum(int(np.maximum(found - model.encoder.max_length, 0).sum()) for found in lengths.values())
    return Prepared(parts["train"], parts.get("dev", []), parts.get("test", []), model, facts, cut)


def read_all(recipe: Recipe, source: Any) -> Splits:
    """The data in parts, with every sentence that reading and splitting told in facts["told"]."""
    options = recipe.data
    how: dict[str, Any] = {"task": options.task, "text": options.text, "pair": options.pair, "label": options.label}
    form: dict[str, Any] = {"delimiter": options.delimiter, "encoding": options.encoding}
    parts = read_parts(sources.locate_data(source), **how, **form)
    if "train" not in parts:
        raise InputError(f"{options.train} has the parts {', '.join(parts)} but no train part. Give training data.")
    train = parts["train"]
    told = list(train.facts.get("told", []))
    same = train.columns.arguments()
    for name, path in (("dev", options.dev), ("test", options.test)):
        if path:
            parts[name] = read(sources.locate_data(path), **same, **form)
    if options.limit and options.limit < len(train):
        chosen = np.random.default_rng(recipe.train.seed).permutation(len(train))[: options.limit]
        told.append(f"{options.limit} of {len(train)} training rows are used, drawn with seed {recipe.train.seed}.")
        train = train.take(sorted(int(number) for number in chosen))
    divided = split(train, dev=parts.get("dev", options.dev_share), test=parts.get("test", options.test_share), seed=recipe.train.seed)
    unlabelled = divided.unlabelled if len(divided.unlabelled) else parts.get("unlabelled", divided.unlabelled)
    facts = {**divided.facts, "told": told + divided.facts.get("told", [])}
    return dataclasses.replace(divided, unlabelled=unlabelled, facts=facts)


def find_targets(recipe: Recipe) -> tuple[str, ...]:
    """The targets to export, checked before anything slow happens."""
    wanted = () if recipe.to == ("none",) else recipe.to
    for target in wanted:
        exports.find_export(target)
    return wanted


def is_leader() -> bool:
    """Whether this is the process that writes: the only one, or the first of those that accelerate started."""
    return int(os.environ.get("RANK", "0")) == 0


def _train_and_finish(run: Run, recipe: Recipe, prepared: Prepared, watch: Watch, *, resumed: bool = False) -> Run:
    training = Training(prepared.model, prepared.train, prepared.dev, recipe.train)
    done = training.restore(run.checkpoints) if resumed else 0
    if done:
        watch(Told(f"Going on after step {done} of {training.total}."))
    else:
        watch(training.forecast())
    if is_leader():
        run.cut_steps(done)
        run.write("recipe.toml", format_recipe(_resolved(recipe, training)))
    stopped = _train(run, training, recipe, watch)
    if not is_leader():
        return run
    return _finish(run, recipe, prepared, training, stopped, watch)


def _resolved(recipe: Recipe, training: Training) -> Recipe:
    """The recipe with what was chosen on the way, so that it repeats the run: epochs, rate, precision, length."""
    train = dataclasses.replace(recipe.train, epochs=float(training.epochs), rate=training.rate, precision=training.precision)
    data = dataclasses.replace(recipe.data, max_length=training.model.encoder.max_length)
    return dataclasses.replace(recipe, train=train, data=data)


def _train(run: Run, training: Training, recipe: Recipe, watch: Watch) -> str:
    """Run the loop: log every fact, save now and then, save and stop on a signal. Returns how it ended."""
    saved = time.monotonic()
    with stop_on_signals(training) as caught:
        for fact in training.steps():
            if is_leader():
                run.append("steps.jsonl", dataclasses.asdict(fact))
                whole = isinstance(fact, Evaluation) or not training.evaluates_now  # all facts of the step are written
                if whole and time.monotonic() - saved >= recipe.train.checkpoint_seconds:
                    _save_checkpoint(run, training)
                    saved = time.monotonic()
            watch(fact)
    if training.stopping:
        if is_leader():
            _save_checkpoint(run, training)
        name = caught[0] if caught else "a signal"
        raise Interrupted(
            f"Stopped by {name} after step {training.step} of {training.total}; saved. Go on: lightune fit --resume {run.folder}"
        )
    return "finished" if training.step >= training.total else "early"


def _save_checkpoint(run: Run, training: Training) -> None:
    with full_disk_told(run.checkpoints):
        training.save(run.checkpoints)


@contextmanager
def stop_on_signals(training: Training) -> Iterator[list[str]]:
    """Turn Ctrl-C and SIGTERM into a stop after the step in progress; a second one takes effect at once."""
    caught: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def stop(number: int, frame: Any) -> None:
        caught.append(signal.Signals(number).name)
        training.request_stop()
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(run: Run, recipe: Recipe, prepared: Prepared, training: Training, stopped: str, watch: Watch) -> Run:
    model, test = prepared.model, prepared.test
    alarms = training.alarms()
    for alarm in alarms:
        watch(Told(alarm, "warning"))
    model.save(run.model)
    part = "test" if len(test) else "dev" if len(prepared.dev) else "train"
    rows = test or prepared.dev or prepared.train
    watch(Told(f"Scoring on {len(rows)} {part} rows"))
    scores = evaluate(model, rows, part=part)
    dev_scores = evaluate(model, prepared.dev, part="dev", resamples=0) if len(prepared.dev) else None
    run.write("evaluation.json", scores.to_dict())
    record = _describe(recipe, prepared, training, scores, dev_scores) | {"stopped": stopped, "learned": not alarms, "alarms": alarms}
    targets = find_targets(recipe)
    if targets:
        watch(Told("Timing the model in PyTorch on one thread"))
        record["reference"] = exporting.measure_reference(model, rows, run.model)
    refused = []
    for target in targets:
        folder = run.artifacts / target
        try:
            entry = exporting.export(
                model, target, folder, dev=prepared.dev or rows, test=rows, reference=scores, name=record["name"],
                tell=lambda text: watch(Told(text)),
            )  # fmt: skip
        except CheckFailed as error:
            refused.append(str(error))
            continue
        record["artifacts"].append(entry | {"path": str(folder.relative_to(run.folder))})
    record["alarms"] += refused
    run.write("run.json", record)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    write_card(run.folder)
    write_report([run.folder])
    if refused:
        raise CheckFailed(f"{' '.join(refused)} The model itself is saved: {run.model}")
    return run


def _describe(recipe: Recipe, prepared: Prepared, training: Training, scores: Scores, dev_scores: Scores | None) -> dict[str, Any]:
    """The facts of run.json that are known when training is over."""
    model = prepared.model
    method = model.changes[-1]
    tokens = int(training.lengths.sum()) * training.step / training.steps_per_epoch
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    name, values = parse_spec(recipe.method)
    return {
        "format": 1, "lightune": __version__, "created": datetime.now(UTC).isoformat(timespec="seconds"), "name": Path(recipe.data.train).name or "rows",
        "task": model.answers.kind, "base": model.base.name, "base_sha256": model.base.sha256, "method": format_spec(name, method),
        "changes": [{"name": name, "options": values}],
        "examples": {"train": len(prepared.train), "dev": len(prepared.dev), "test": len(prepared.test)},
        "truncated_tokens": prepared.truncated_tokens,
        "trainable_parameters": architectures.share_of(model.network, trainable_only=True),
        "total_parameters": architectures.share_of(model.network),
        "seconds": round(training.seconds, 3), "tokens_per_second": round(tokens / max(training.seconds, 1e-9), 1),
        "examples_per_second": round(len(training.lengths) * training.step / training.steps_per_epoch / max(training.seconds, 1e-9), 1),
        "peak_resident_bytes": peak, "precision": training.precision, "device": str(training.device),
        "scores": scores.summary(), "dev_scores": dev_scores.summary() if dev_scores else None,
        "budget": None, "met": None, "artifacts": [],
    }  # fmt: skip


def _max_length(recipe: Recipe, model: Model) -> int:
    limit = architectures.longest_input(model.network.backbone.config)
    wanted = recipe.data.max_length
    if wanted and limit and wanted > limit:
        raise InputError(f"max-length is {wanted}, but {recipe.model} takes at most {limit} tokens. Give {limit} or less.")
    return wanted or min(limit or LONGEST, LONGEST)


def _stop_on_errors(findings: Sequence[Any]) -> None:
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise InputError("\n".join(f"{finding.message} {finding.cure}".strip() for finding in errors))


def _clear(run: Run) -> None:
    """Empty a run folder of what a run writes, and of nothing else."""
    for name in ("checkpoints", "model", "artifacts"):
        shutil.rmtree(run.folder / name, ignore_errors=True)
    for name in ("recipe.toml", "environment.json", "data.json", "steps.jsonl", "evaluation.json", "run.json", "report.html", "card.md"):
        (run.folder / name).unlink(missing_ok=True)
