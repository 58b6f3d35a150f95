"""The main job: from labelled data to a trained, evaluated, exported and reported model, in one run folder."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightune import (
    __version__,
    architectures,
    benchmarking,
    choosing,
    contrast,
    exporting,
    exports,
    journal,
    language,
    models,
    selftraining,
    shrinking,
)
from lightune.adapters import write_adapter
from lightune.caching import keep_frozen
from lightune.errors import CheckFailed, InputError, LightuneError
from lightune.evaluation import evaluate
from lightune.methods import make_method, method_name, read_spec
from lightune.models import Model
from lightune.optimizers import find_optimizer
from lightune.options import format_spec, parse_spec
from lightune.preparation import Interrupted, Prepared, Told, Watch, prepare, read_all, stop_on_signals
from lightune.recipes import Recipe, format_recipe, read_recipe, resolve
from lightune.reports import write_card, write_report
from lightune.runs import Run, describe_environment, free_name, full_disk_told, new_run, open_run
from lightune.steps import check_lasting
from lightune.tasks import GENERATIVE
from lightune.training import Evaluation, Training

SPARE = 0.95  # of the seconds that training may take: what the forecast of two steps may be wrong by

PEFT = "peft"  # an export of the method alone, which is no artefact that runs by itself


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
    _check_names(recipe)
    source = data if data is not None else recipe.data.train
    if isinstance(source, str) and not source:
        raise InputError("No data were given. Give a file with texts and labels: lightune fit reviews.csv")
    folder = Path(out) if out else free_name(Path(recipe.data.train).name.split(".")[0] or "rows")
    leader = is_leader()
    run = new_run(folder, overwrite=overwrite) if leader else Run(folder)
    made = leader and not any(folder.iterdir())
    choice = None
    try:
        if choosing.is_auto(recipe.method):
            choice = choosing.choose(recipe, source, watch)
            recipe = choice.recipe
        prepared = _prepare(recipe, source, watch)
        if recipe.train.contrast:
            contrast.check_suits(prepared.model, recipe.train)
        if recipe.train.self_training:
            selftraining.check_suits(prepared.model, prepared.dev, prepared.unlabelled)
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
        if choice:
            run.write("choice.json", choice.to_dict())
    complete(run, recipe, prepared, watch)
    return _hold_budget(run, recipe, source, watch)


def _check_names(recipe: Recipe) -> None:
    """Refuse targets, methods and optimizers that do not exist, or do not fit a budget, before anything is read."""
    find_targets(recipe)
    if not choosing.is_auto(recipe.method):
        method = make_method(recipe.method)
        if recipe.budget.limits:
            check_lasting([method])
    find_optimizer(parse_spec(recipe.train.optimizer)[0])


def resume(folder: str | Path, *, data: Any = None, watch: Watch = lambda fact: None) -> Run:
    """Go on with a run where it stopped: from its newest checkpoint if training was not done, else with what comes after training.

    Raises:
        InputError: the folder is no run, or its data are gone.
    """
    run = open_run(folder)
    recipe = resolve(read_recipe(run.folder / "recipe.toml"), {})
    source = data if data is not None else recipe.data.train
    if not (run.folder / "run.json").exists():
        complete(run, recipe, _prepare(recipe, source, watch), watch, resumed=True)
    elif not recipe.budget.limits or run.record["budget"]:
        watch(Told(f"{run.folder} is finished already."))
        return run
    return _hold_budget(run, recipe, source, watch)


def _prepare(recipe: Recipe, source: Any, watch: Watch) -> Prepared:
    return language.prepare(recipe, source, watch) if recipe.data.task in GENERATIVE else prepare(recipe, source, watch)


def _hold_budget(run: Run, recipe: Recipe, source: Any, watch: Watch) -> Run:
    """Search for what holds the budget, where there is one."""
    if recipe.budget.limits and is_leader():
        shrinking.search(run, recipe, data=source, watch=watch)
    return run


def export_again(folder: str | Path, targets: Sequence[str], *, watch: Watch = lambda fact: None) -> dict[str, Any]:
    """Export a finished run's model, prove it on the run's own data, and put the entries into run.json, which is returned."""
    run = open_run(folder)
    recipe = resolve(read_recipe(run.folder / "recipe.toml"), {})
    model, record = models.load(run.model), run.record
    if recipe.data.task in GENERATIVE:
        find_targets(dataclasses.replace(recipe, to=tuple(targets)))
        prepared = language.attend(model, recipe, recipe.data.train, watch)
        record["artifacts"], refused = _export_generators(run, prepared, targets, record, watch)
        _close(run, record, refused)
        return record
    parts = read_all(recipe, recipe.data.train).parts
    rows = parts.get("test") or parts.get("dev") or parts["train"]
    scores = evaluate(model, rows, resamples=0)
    for target in targets:
        path = run.artifacts / exports.folder_name(target)
        if target == PEFT:
            watch(Told(f"What the method trained is in PEFT's format now: {write_adapter(model, path)}"))
            continue
        entry = exporting.export(
            model,
            target,
            path,
            dev=parts.get("dev") or rows,
            test=rows,
            sample=parts["train"],
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


def find_targets(recipe: Recipe) -> tuple[str, ...]:
    """The targets to export, checked before anything slow happens."""
    wanted = () if recipe.to == ("none",) else recipe.to
    for target in wanted:
        if target == PEFT:
            continue
        if recipe.data.task in GENERATIVE:
            exports.find_generative(target, recipe.data.task)
        else:
            exports.find_export(target)
    return wanted


def is_leader() -> bool:
    """Whether this is the process that writes: the only one, or the first of those that accelerate started."""
    return int(os.environ.get("RANK", "0")) == 0


def complete(run: Run, recipe: Recipe, prepared: Prepared, watch: Watch, *, resumed: bool = False, seconds: float | None = None) -> Run:
    """Train, score, export and report in a run folder that has its recipe: all of `fit` that comes after the data.

    Args:
        resumed: go on from the folder's checkpoint, where it has one.
        seconds: end training within them, by fewer epochs, and time the model also where nothing is exported.

    Raises:
        CheckFailed: an export does not answer as the model does. Interrupted: as for `fit`. InputError: too few seconds.
    """
    fresh = prepared.model.copy() if recipe.train.self_training else None
    training = _open_training(run, prepared, recipe, seconds)
    done = training.restore(run.checkpoints) if resumed else 0
    if done:
        watch(Told(f"Going on after step {done} of {training.total}."))
    else:
        watch(training.forecast() if seconds is None else training.settle(seconds * SPARE - training.seconds))
    if is_leader():
        run.cut_steps(done)
        run.write("recipe.toml", format_recipe(_resolved(recipe, training)))
    stopped = _train(run, training, recipe, prepared, watch, seconds)
    if not is_leader():
        return run
    if recipe.train.contrast:
        watch(Told("Fitting the head on the vectors of the training rows"))
        contrast.fit_head(prepared.model, prepared.train, prepared.dev, balanced=recipe.train.class_weights == "balanced")
    if isinstance(prepared, language.Supervision):
        return _finish_language(run, recipe, prepared, training, stopped, watch)
    if fresh is not None:
        prepared, training = _teach(run, recipe, prepared, fresh, training, watch)
    return _finish(run, recipe, prepared, training, stopped, watch, timed=seconds is not None)


def _open_training(run: Run, prepared: Prepared, recipe: Recipe, seconds: float | None) -> Training:
    """The training of the task, which reads what its frozen parts say from memory where that pays."""
    if isinstance(prepared, language.Supervision):
        return language.open_training(prepared, recipe.train)
    training = contrast.open_training(prepared.model, prepared.train, prepared.dev, recipe.train)
    if not recipe.train.contrast:
        keep_frozen(training, run.folder, seconds=math.inf if seconds is None else seconds / 4)
    return training


def _teach(run: Run, recipe: Recipe, prepared: Prepared, fresh: Model, training: Training, watch: Watch) -> tuple[Prepared, Training]:
    """The rounds of self-training, each told and all kept in self-training.json; gives what they made better. They begin again after a stop."""
    watch(Told(f"Self-training on {len(prepared.unlabelled)} rows without labels"))

    def learn(student: Training) -> None:
        for fact in student.steps():
            watch(fact)

    rows = (prepared.train, prepared.dev, prepared.unlabelled)
    taught = selftraining.teach(prepared.model, fresh, *rows, recipe.train, rounds=recipe.train.self_training, run=learn)
    for number, done in enumerate(taught.rounds, 1):
        verdict = "kept" if done.kept else "left"
        watch(
            Told(
                f"Round {number}: {done.taken} rows of which the model is sure at {done.confidence:.3f}; dev {done.before:.3f} → "
                f"{done.after:.3f}, {verdict}"
            )
        )
    run.write("self-training.json", [dataclasses.asdict(done) for done in taught.rounds])
    return dataclasses.replace(prepared, model=taught.model), taught.training or training


def _resolved(recipe: Recipe, training: Training) -> Recipe:
    """The recipe with what was chosen on the way, so that it repeats the run: epochs, rate, precision, length."""
    train = dataclasses.replace(recipe.train, epochs=float(training.epochs), rate=training.rate, precision=training.precision)
    data = dataclasses.replace(recipe.data, max_length=training.model.encoder.max_length)
    return dataclasses.replace(recipe, train=train, data=data)


def _train(run: Run, training: Training, recipe: Recipe, prepared: Prepared, watch: Watch, seconds: float | None) -> str:
    """Run the loop: log every fact, save now and then, save and stop on a signal. Returns how it ended: finished, early or time."""
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
            if isinstance(fact, Evaluation) and isinstance(prepared, language.Supervision):
                _show_samples(run, prepared, recipe, fact.step, watch)
            if seconds is not None and fact.seconds >= seconds:
                training.finish_early()
    if training.stopping:
        if is_leader():
            _save_checkpoint(run, training)
        name = caught[0] if caught else "a signal"
        raise Interrupted(
            f"Stopped by {name} after step {training.step} of {training.total}; saved. Go on: lightune fit --resume {run.folder}"
        )
    if training.step < training.total:
        return "early"
    return "finished" if training.total == training.planned else "time"


def _show_samples(run: Run, prepared: language.Supervision, recipe: Recipe, step: int, watch: Watch) -> None:
    """Keep what the model answers now, to be looked at."""
    if is_leader() and (samples := language.draw_samples(prepared, recipe, step)):
        run.append("samples.jsonl", dataclasses.asdict(samples))
        watch(samples)


def _save_checkpoint(run: Run, training: Training) -> None:
    with full_disk_told(run.checkpoints):
        training.save(run.checkpoints)


def _finish(run: Run, recipe: Recipe, prepared: Prepared, training: Training, stopped: str, watch: Watch, *, timed: bool) -> Run:
    model, test = prepared.model, prepared.test
    peak = benchmarking.peak_bytes()
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
    record = _describe(recipe, prepared, training, scores.summary(), dev_scores.summary() if dev_scores else None) | {
        "stopped": stopped, "learned": not alarms, "alarms": alarms, "peak_resident_bytes": peak,
        "weights_bytes": (run.model / "weights.safetensors").stat().st_size,
    }  # fmt: skip
    if (run.folder / "choice.json").exists():
        record["choice"] = run.read("choice.json")
    if recipe.train.self_training:
        record["self_training"] = run.read("self-training.json")
    targets = find_targets(recipe)
    if targets or timed:
        watch(Told("Timing the model in PyTorch on one thread"))
        record["reference"] = exporting.measure_reference(model, rows, run.model)
    refused = []
    for target in targets:
        folder = run.artifacts / exports.folder_name(target)
        try:
            entry = exporting.export(
                model, target, folder, dev=prepared.dev or rows, test=rows, sample=prepared.train, reference=scores, name=record["name"],
                tell=lambda text: watch(Told(text)),
            )  # fmt: skip
        except CheckFailed as error:
            refused.append(str(error))
            continue
        record["artifacts"].append(entry | {"path": str(folder.relative_to(run.folder))})
    return _close(run, record, refused)


def _close(run: Run, record: dict[str, Any], refused: list[str]) -> Run:
    """Write the record and the report; an export that was refused is told last, when all else is safe."""
    record["alarms"] += refused
    run.write("run.json", record)
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    write_card(run.folder)
    write_report([run.folder])
    if refused:
        raise CheckFailed(f"{' '.join(refused)} The model itself is saved: {run.model}")
    return run


def _finish_language(run: Run, recipe: Recipe, prepared: language.Supervision, training: Training, stopped: str, watch: Watch) -> Run:
    """What comes after the training of a model that generates: saved, scored on held-out answers, exported."""
    model = prepared.model
    peak = benchmarking.peak_bytes()
    alarms = training.alarms()
    for alarm in alarms:
        watch(Told(alarm, "warning"))
    model.save(run.model)
    found = language.score(prepared, recipe, lambda text: watch(Told(text)))
    run.write("evaluation.json", found)
    record = _describe(recipe, prepared, training, found["scores"], None) | {
        "loss_before": round(training.judge.ignorant("loss"), 6) if len(training.judge) else None,
        "stopped": stopped, "learned": not alarms, "alarms": alarms, "peak_resident_bytes": peak,
        "weights_bytes": (run.model / "weights.safetensors").stat().st_size, "ledger": prepared.facts["ledger"],
    }  # fmt: skip
    record["artifacts"], refused = _export_generators(run, prepared, find_targets(recipe), record, watch)
    return _close(run, record, refused)


def _export_generators(
    run: Run, prepared: language.Supervision, targets: Sequence[str], record: dict[str, Any], watch: Watch
) -> tuple[list[dict[str, Any]], list[str]]:
    """The entries of all artefacts, those of these targets written anew, and why any was refused."""
    entries, refused = {entry["target"]: entry for entry in record["artifacts"]}, []
    rows, prompts = language.held_out(prepared)
    sample = [row.ids for row in prepared.rows["train"]]
    for target in targets:
        folder = run.artifacts / exports.folder_name(target)
        if target == PEFT:
            watch(Told(f"What the method trained is in PEFT's format now: {write_adapter(prepared.model, folder)}"))
            continue
        try:
            entry = exporting.export_generator(
                prepared.model, target, folder, rows=rows, prompts=prompts, sample=sample, name=record["name"],
                tell=lambda text: watch(Told(text)),
            )  # fmt: skip
            entries[target] = entry | {"path": str(folder.relative_to(run.folder))}
        except CheckFailed as error:
            refused.append(str(error))
    return list(entries.values()), refused


def _describe(
    recipe: Recipe, prepared: Prepared, training: Training, scores: dict[str, Any], dev_scores: dict[str, Any] | None
) -> dict[str, Any]:
    """The facts of run.json that are known when training is over."""
    model = prepared.model
    method = model.changes[-1]
    tokens = int(training.lengths.sum()) * training.step / training.steps_per_epoch
    spec = format_spec(method_name(method), method)
    name, values = read_spec(spec)
    return {
        "format": 1, "lightune": __version__, "created": datetime.now(UTC).isoformat(timespec="seconds"), "name": Path(recipe.data.train).name or "rows",
        "task": model.answers.kind, "base": model.base.name, "base_sha256": model.base.sha256, "method": spec,
        "changes": [{"name": name, "options": values}],
        "examples": {"train": len(prepared.train), "dev": len(prepared.dev), "test": len(prepared.test)},
        "truncated_tokens": prepared.truncated_tokens,
        "trainable_parameters": architectures.share_of(model.network, trainable_only=True),
        "total_parameters": architectures.share_of(model.network),
        "seconds": round(training.seconds, 3), "tokens_per_second": round(tokens / max(training.seconds, 1e-9), 1),
        "examples_per_second": round(len(training.lengths) * training.step / training.steps_per_epoch / max(training.seconds, 1e-9), 1),
        "epochs": round(training.step / training.steps_per_epoch, 4), "steps": training.step,
        "precision": training.precision, "device": str(training.device),
        "scores": scores, "dev_scores": dev_scores,
        "budget": None, "met": None, "artifacts": [],
    }  # fmt: skip


def _clear(run: Run) -> None:
    """Empty a run folder of what a run writes, and of nothing else."""
    journal.forget(run)
    for name in ("checkpoints", "model", "artifacts"):
        shutil.rmtree(run.folder / name, ignore_errors=True)
    for name in (
        "recipe.toml",
        "environment.json",
        "data.json",
        "steps.jsonl",
        "choice.json",
        "self-training.json",
        "evaluation.json",
        "samples.jsonl",
        "run.json",
        "report.html",
        "card.md",
    ):
        (run.folder / name).unlink(missing_ok=True)
