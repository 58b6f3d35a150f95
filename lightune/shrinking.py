"""From a finished run and a budget to an exported model that is proven to hold it, or to the nearest one.

RUN/search.json keeps the state of a search, RUN/candidates/ID/ each student (model, checkpoints, artefact), RUN/front.json everything tried.
A search that is stopped goes on where it was, and the best so far is always on disk.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightune import benchmarking, distillation, exporting, exports, importance, metrics, models, planning, probes, students
from lightune.costs import CostTable, Shape
from lightune.costs.measuring import stretch_text
from lightune.data import Example, read, split
from lightune.errors import CheckFailed, InputError
from lightune.evaluation import evaluate
from lightune.exports import onnx, sensitivity
from lightune.models import Model
from lightune.options import format_spec
from lightune.planning import Candidate
from lightune.precision import FP32
from lightune.preparation import Interrupted, Told, Watch, read_all, stop_on_signals
from lightune.recipes import Budget, Recipe, parse_seconds, read_recipe, resolve
from lightune.reports import write_card, write_front_csv, write_report
from lightune.runs import Run, full_disk_told, open_run
from lightune.runtime import load as load_artifact
from lightune.simulation import simulated
from lightune.sources import locate_data
from lightune.steps import check_lasting, make_step
from lightune.vocabularies import Vocabulary

if TYPE_CHECKING:
    import onnx_ir as ir

SECONDS = 1200.0  # of a search, where none are given
COUNT = 4  # candidates of the first rung
LESSON_SHARE = 0.1  # of the time that the teacher may read augmented rows
DEV_SHARE, MOST_DEV = 0.1, 1000  # rows held out where the run has no development data; most rows that choose
STATIC_SECONDS = 60.0
STATIC_WIDTH = 128
ALLOWED_LOSS = 0.003  # of the development score by quantization, before it is trained for
AWARE_SHARE = 0.1  # of the time for that training
AGREE = 0.99  # share of answers that mixed precision should leave as they are
CHECKPOINT_SECONDS = 30.0
EXPORT_SECONDS = 12.0  # what exporting, comparing and timing one candidate takes, about
LATE = 1.5  # times the planned seconds after which a rung is cut short
NEAR = 1.1  # times the predicted milliseconds beyond which a time is taken again
LOOKS = 4  # more times at most
ROOM = 1000  # tokens for characters and common words that the data happen to lack
INT8 = "onnx-int8"
SMALL = "small"  # the chosen artefact's name


@dataclass(frozen=True)
class Ground:
    """What a search stands on: the model before, the rows, and what the reference costs and scores."""

    run: Run
    recipe: Recipe
    model: Model
    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    unlabelled: Sequence[Example]
    teachers: tuple[Model, ...]
    reference: dict[str, Any]


def shrink(
    folder: str | Path,
    *,
    data: Any = None,
    steps: Sequence[str] = (),
    take: int | None = None,
    epochs: float | None = None,
    to: str = INT8,
    overwrite: bool = False,
    watch: Watch = lambda fact: None,
    **options: Any,
) -> Run:
    """Make a finished run's model smaller: by named steps, or by a search for what holds a budget.

    Args:
        folder: a run. steps: specs such as ``depth=3``; without them the budget decides.
        take: the id of a point of the front that becomes the run's small artefact; nothing is trained.
        epochs: passes over the rows for named steps; by default the time decides.
        to: what the model is exported to after named steps; a search chooses the precision itself.
        overwrite: forget an earlier search.
        options: those of Budget and DistillOptions, as in ``keep=0.99``, ``max_mb=4.5``, ``time="20min"``.

    Raises:
        CheckFailed: a limit is not held; the nearest model is saved, and the message says which limit to relax.
        InputError: the folder is no finished run, or an option is wrong.
    """
    run = open_run(folder)
    values = read_recipe(run.folder / "recipe.toml")
    if take is not None:
        return take_point(run, take, watch)
    if overwrite:
        forget(run)
    recipe = resolve({**values, "budget": {}, "distill": {}}, options)
    return search(run, recipe, data=data, steps=steps, epochs=epochs, to=to, watch=watch)


def take_point(run: Run, number: int, watch: Watch = lambda fact: None) -> Run:
    """Make a point of an earlier search's front the run's small artefact, and prove it.

    Raises:
        InputError: there was no search, or it has no such point.
    """
    if not (run.folder / "search.json").exists():
        raise InputError(f"{run.folder} holds no search to take a point from. Search first: lightune shrink {run.folder} --keep 0.99")
    settings = run.read("search.json")["settings"]
    sections = {name: {key: value for key, value in settings[name].items() if value is not None} for name in ("budget", "distill")}
    recipe = resolve({**read_recipe(run.folder / "recipe.toml"), **sections}, {})
    found = Search(survey(run, recipe, watch), watch, settings["steps"])
    prove(found, watch, number)
    return run


def search(
    run: Run,
    recipe: Recipe,
    *,
    data: Any = None,
    steps: Sequence[str] = (),
    epochs: float | None = None,
    to: str = INT8,
    watch: Watch = lambda fact: None,
) -> Run:
    """Search, or go on with a search, in a finished run; see `shrink`."""
    for spec in steps:
        make_step(spec)
    exports.find_export(to)
    ground = survey(run, recipe, watch, data)
    found = Search(ground, watch, steps, epochs, to)
    with stop_on_signals(found) as caught:
        found.run()
    if found.stopping:
        name = caught[0] if caught else "a signal"
        raise Interrupted(f"Stopped by {name}; what was found is saved. Go on with the same command: lightune shrink {run.folder}")
    prove(found, watch)
    return run


def forget(run: Run) -> None:
    """Remove what an earlier search has left in a run."""
    shutil.rmtree(run.folder / "candidates", ignore_errors=True)
    for name in ("search.json", "front.json", "front.csv"):
        (run.folder / name).unlink(missing_ok=True)


def survey(run: Run, recipe: Recipe, watch: Watch, data: Any = None) -> Ground:
    """Read the run's data again, load its model, and score and time it as the reference."""
    record = run.record
    watch(Told("Reading the run's data and model"))
    parts = read_all(recipe, recipe.data.train if data is None else data).parts
    nothing: Sequence[Example] = ()
    train, dev, test = parts["train"], parts.get("dev", nothing), parts.get("test", nothing)
    if not len(dev):
        held = split(train, dev=DEV_SHARE, test=0.0, seed=recipe.train.seed).parts
        train, dev = held["train"], held["dev"]
        watch(Told("The run has no development data: a tenth of its training rows chooses. It has learned them, so they flatter it."))
    dev = dev[:MOST_DEV]
    model = exporting.fold(models.load(run.model)).copy()
    check_lasting(model.changes)
    more = read(locate_data(recipe.distill.unlabelled), labelled=False) if recipe.distill.unlabelled else []
    teachers = tuple(exporting.fold(models.load(open_run(name).model)) for name in recipe.distill.teacher)
    for teacher in teachers:
        distillation.check_teacher(teacher, model)
    rows = test if len(test) else dev
    watch(Told("Timing the run's model in PyTorch on one thread"))
    facts = record.get("reference") or exporting.measure_reference(model, rows, run.model)
    primary = model.task.primary
    score = evaluate(model, dev, part="dev", resamples=0)[primary]
    on_test = evaluate(model, test, resamples=0)[primary] if len(test) else None
    reference = {"bytes": facts["bytes"], "milliseconds": facts["milliseconds"]["p50"], "score": score, "test": on_test}
    return Ground(run, recipe, model, train, dev, test, more, teachers, reference)


class Search:
    """Candidates, rungs and what came out of them; every result is written before the next begins."""

    def __init__(self, ground: Ground, watch: Watch, steps: Sequence[str] = (), epochs: float | None = None, to: str = INT8) -> None:
        self.ground, self.watch, self.epochs, self.target = ground, watch, epochs, to
        self.budget: Budget = ground.recipe.budget
        self.limits = self.budget.limits
        self.seconds = parse_seconds(self.budget.time) if self.budget.time else SECONDS
        self.steps = tuple(steps)
        self.stopping = False
        self.lessons: dict[str | None, students.Lesson] = {}
        self.state = self._open_state()
        self.begun = time.monotonic() - self.state["seconds"]

    @property
    def points(self) -> list[dict[str, Any]]:
        """Everything tried so far, in the form of front.json."""
        return list(self.state["points"])

    @property
    def elapsed(self) -> float:
        """Seconds since the search began, those of earlier sittings included."""
        return time.monotonic() - self.begun

    def request_stop(self) -> None:
        """End after the step in progress. Safe in a signal handler."""
        self.stopping = True

    def run(self) -> None:
        """Plan, train in rungs of successive halving, export and score everything; what an earlier sitting did is not done again."""
        if not self.state["candidates"]:
            self._plan()
        known = self._known()
        regular = [number for number, item in enumerate(known) if item.shape.layers and item.follows is None]
        for number in [number for number, item in enumerate(known) if not item.shape.layers]:
            self._train(number, known[number], "static", min(STATIC_SECONDS, self.seconds / 10))
        left = self.seconds - self.state["planned"] - STATIC_SECONDS - EXPORT_SECONDS * (len(regular) + 3)
        times = planning.share_time(max(left, 1.0), len(regular))
        for number in regular if times["first"] else ():
            self._train(number, known[number], "first", times["first"])
        for number in self._best(regular, 2) if times["second"] else ():
            self._train(number, known[number], "second", times["second"])
        for number in self._best(regular, 1) or regular[:1]:
            aware = AWARE_SHARE * self.seconds if self._suffers(number) else 0.0
            self._train(number, known[number], "winner", max(times["winner"] / 2, self.seconds - self.elapsed - 3 * EXPORT_SECONDS - aware))
            if self._suffers(number) and not self.stopping:
                self._train_rounded(number)

    def _known(self) -> list[Candidate]:
        """The candidates that were written down."""
        return [Candidate(**{**item, "shape": Shape(**item["shape"]), "steps": tuple(item["steps"])}) for item in self.state["candidates"]]

    def _suffers(self, number: int) -> bool:
        """Whether a candidate's file scores lower than its model by more than is allowed."""
        lost = next((point["lost"] for point in self.state["points"] if point["id"] == number), 0.0)
        return bool(lost > ALLOWED_LOSS)

    def _train_rounded(self, number: int) -> None:
        """Go on from a candidate with its matrices rounded as its file rounds them, as a candidate of its own."""
        known = self._known()
        rounded = next((place for place, item in enumerate(known) if item.follows == number), len(known))
        if rounded == len(known):
            target = next(point["target"] for point in self.state["points"] if point["id"] == number)
            known.append(dataclasses.replace(known[number], follows=number, target=target))
            self.state["candidates"].append(dataclasses.asdict(known[-1]))
            folders = [self.ground.run.folder / "candidates" / str(place) / "model" for place in (number, rounded)]
            with full_disk_told(folders[1]):
                shutil.copytree(folders[0], folders[1], dirs_exist_ok=True)
            self._write_state()
        self._train(rounded, known[rounded], "rounded", AWARE_SHARE * self.seconds)

    def _plan(self) -> None:
        """The candidates that are worth training, written down before the first begins."""
        model, sample = self.ground.model, self.ground.train
        base = Shape.of(model)
        self.watch(Told("Measuring what each part of the model is worth to the task"))
        found = importance.measure(
            model, sample, rows=students.SAMPLE
        )  # influence: greedy losses favour deep, narrow shapes, which learn less
        counts = count_tokens(model, [*self.ground.train, *self.ground.unlabelled])
        if self.steps:
            chosen = [self._named(base)]
        else:
            costs = self._costs()
            rank = int(self.budget.percentile.removeprefix("p"))
            known = list(planning.enumerate_candidates(base, costs, _loser(found, counts), vocabulary_sizes(model, counts), rank))
            sizes = (self.ground.reference["bytes"], self.ground.reference["milliseconds"])
            chosen = planning.choose(known, self.limits, sizes, COUNT)
            if chosen and planning.excess(chosen[0], self.limits) > 1:
                self.watch(Told("No shape is predicted to hold the limits; the nearest is tried.", "warning"))
            width = min(STATIC_WIDTH, base.hidden)
            still = dataclasses.replace(
                base, layers=0, hidden=width, embedding=0, vocabulary=chosen[0].shape.vocabulary, weights=8, tables=8
            )
            chosen.append(planning.make_candidate(base, still, costs, 1.0, rank))
        for number, item in enumerate(chosen if not self.steps else ()):
            self.watch(Told(f"Candidate {number}: {item.name}, expected {item.bytes / 1e6:.1f} MB and {item.milliseconds:.2f} ms"))
        self.state["candidates"] = [dataclasses.asdict(item) for item in chosen]
        self.state["planned"] = self.elapsed
        self._write_state()

    def _named(self, base: Shape) -> Candidate:
        """The candidate that named steps make."""
        return Candidate(base, self.steps, self.target, 0, 0.0, 0, 0.0)

    def _costs(self) -> CostTable:
        if self.budget.table:
            return CostTable.from_dict(json.loads(Path(self.budget.table).read_text(encoding="utf-8")))
        return probes.measure_table(
            self.ground.model, self.ground.dev, threads=self.budget.bench_threads, batch=self.budget.bench_batch,
            length=self.budget.bench_length, tell=lambda text: self.watch(Told(text)),
        )  # fmt: skip

    def _train(self, number: int, candidate: Candidate, stage: str, seconds: float) -> None:
        """Train one candidate for some time, unless that was done before; then export and score it."""
        name = f"{number}/{stage}"
        if self.stopping or name in self.state["done"]:
            return
        left = max(self.seconds - self.elapsed, 0)
        self.watch(Told(f"Candidate {number}, {stage} rung, {seconds:.0f} s: {candidate.name} · {left / 60:.0f} min of the search left"))
        folder = self.ground.run.folder / "candidates" / str(number)
        lesson = self._lesson(next((spec for spec in candidate.steps if spec.startswith("vocab")), None))
        if (folder / "model" / "model.json").exists():
            student = models.load(folder / "model")
        else:
            student = students.make_student(lesson, [spec for spec in candidate.steps if not spec.startswith("vocab")])
        begin = time.monotonic()
        rounding = FP32 if candidate.follows is None else exports.find_export(candidate.target).precision
        with simulated(student.network, rounding):
            self._take_course(name, student, lesson, seconds)
        if self.stopping:
            self._write_state()
            return
        with full_disk_told(folder):
            student.save(folder / "model")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        self._record(number, candidate, student, time.monotonic() - begin)
        self.state["done"].append(name)
        self._write_state()

    def _take_course(self, name: str, student: Model, lesson: students.Lesson, seconds: float) -> None:
        """Let a student learn for some time, or go on where it was stopped; at the end it holds its best weights."""
        course = students.Course(
            student, lesson, self.ground.dev, self.ground.recipe.distill, self._train_options(), teachers=self.ground.teachers,
            epochs=self.state["running"].get(name) or (self.epochs if self.steps else None), seconds=seconds,
        )  # fmt: skip
        self.state["running"][name] = course.epochs
        self._write_state()
        self.watch(course.forecast)
        last = float("inf") if self.epochs else time.monotonic() + LATE * seconds + EXPORT_SECONDS
        folder = self.ground.run.folder / "candidates" / name.partition("/")[0] / "checkpoints"
        for fact in course.steps(folder, CHECKPOINT_SECONDS, lambda: self.stopping or time.monotonic() > last):
            self.watch(fact)
        if not self.stopping:
            course.training.keep_best()

    def _record(self, number: int, candidate: Candidate, student: Model, seconds: float) -> None:
        """Export a student, score the file on the development rows, and put the point among the others."""
        folder = self.ground.run.folder / "candidates" / str(number) / "artifact"
        whole = evaluate(student, self.ground.dev, part="dev", resamples=0)[student.task.primary]
        entry = self._export(student, candidate, folder, whole)
        before: dict[str, Any] = next((point for point in self.state["points"] if point["id"] == number), {})
        primary = self.ground.model.task.primary
        shape = dataclasses.asdict(candidate.shape if candidate.shape.layers == 0 or not self.steps else Shape.of(student))
        score = entry["scores"][primary]["value"]
        point = {
            "id": number, "name": candidate.name if not self.steps else " · ".join(self.steps), "steps": list(candidate.steps), "shape": shape,
            "target": entry["target"], "bytes": entry["bytes"], "milliseconds": self._milliseconds(entry, folder, candidate), "p95": entry["milliseconds"]["p95"],
            "resident_bytes": entry["resident_bytes"], "dev": {primary: score}, "score": score, "test": None,
            "kept": round(score / self.ground.reference["score"], 6) if self.ground.reference["score"] else None, "on_front": False,
            "artifact": str(folder.relative_to(self.ground.run.folder)), "seconds": round(before.get("seconds", 0.0) + seconds, 1), "parity": entry["parity"],
            "sha256": entry["sha256"], "lost": round(whole - score, 6),
        }  # fmt: skip
        if before.get("target") == point["target"]:  # of one shape in one precision the faster time is the truer: other work only slows
            point["milliseconds"] = min(point["milliseconds"], before["milliseconds"])
        point["holds"] = {name.removeprefix("max_"): value <= limit for name, value, limit in self.costs_of(point)}
        self.state["points"] = [old for old in self.state["points"] if old["id"] != number] + [point]
        self.watch(Told(f"Candidate {number}: dev {primary} {score:.4f}, {point['bytes'] / 1e6:.2f} MB, {point['milliseconds']:.3f} ms"))

    def _export(self, student: Model, candidate: Candidate, folder: Path, model_score: float) -> dict[str, Any]:
        """The artefact in the candidate's precision, or in a higher one where that costs accuracy and still holds the limits."""
        graph = onnx.trace(student.network, student.encoder.inputs)
        best: dict[str, Any] | None = None
        for target in self._precisions(student, candidate, graph):
            if target == "onnx" and best is not None:
                break  # floating point only where nothing else answers as the model does
            passing = folder.with_name(f"artifact-{len(target)}")
            try:
                entry = exporting.export(
                    student, target, passing, dev=self.ground.dev, test=self.ground.dev, name=folder.parent.name, graph=graph
                )
            except CheckFailed as error:
                self.watch(Told(str(error), "warning"))
                continue
            score = entry["scores"][student.task.primary]["value"]
            if best is None or (self._fits(entry) and score > best["scores"][student.task.primary]["value"]):
                best = entry
                shutil.rmtree(folder, ignore_errors=True)
                passing.rename(folder)
            shutil.rmtree(passing, ignore_errors=True)
            if model_score - score <= ALLOWED_LOSS:
                break
        if best is None:
            raise CheckFailed(f"No precision of candidate {folder.parent.name} answers as its model does. Give more time, or fewer steps.")
        return best

    def _fits(self, entry: Mapping[str, Any]) -> bool:
        """Whether an artefact, as measured here, holds the limits of bytes and milliseconds."""
        seen = {"max_mb": entry["bytes"] / 1e6, "max_ms": 0.0 if self.budget.table else entry["milliseconds"][self.budget.percentile]}
        return all(value <= self.limits.get(name, float("inf")) for name, value in seen.items())

    def _precisions(self, student: Model, candidate: Candidate, graph: ir.Model) -> Iterator[str]:
        """Specs of export targets: the candidate's own, then with more bits where they matter most, then with more bits for all tables."""
        yield candidate.target
        own = exports.find_export(candidate.target).precision
        if own.quantizes:
            mixed = sensitivity.back_off(graph, student.answers, student.encoder, self.ground.dev, own, agree=AGREE)
            if mixed != own:
                yield format_spec("onnx", mixed)
            if own.tables == 4:
                yield format_spec("onnx", dataclasses.replace(own, tables=8))
        yield "onnx"

    def _milliseconds(self, entry: dict[str, Any], folder: Path, candidate: Candidate) -> float:
        """What max_ms limits: as measured here, or, for another machine, as its table says."""
        budget, limit = self.budget, self.limits.get("max_ms")
        if budget.table:
            return round(self._costs().milliseconds(Shape.of(models.load(folder.parent / "model")), self._rank), 4)
        if (budget.bench_threads, budget.bench_batch, budget.bench_length) == (1, 1, None):
            seen = float(entry["milliseconds"][budget.percentile])
            beyond = min(limit or float("inf"), candidate.milliseconds * NEAR or float("inf"))
            for _ in range(LOOKS):  # other work on the machine only slows: look again where the time is not as predicted, or not as asked
                if seen <= beyond:
                    break
                again = benchmarking.latency(load_artifact(folder, threads=1), self.ground.dev[: exporting.PARITY_ROWS])
                seen = min(seen, float(getattr(again, budget.percentile)))
            return seen
        artifact = load_artifact(folder, threads=budget.bench_threads)
        rows: Sequence[Any] = self.ground.dev
        if budget.bench_length:
            texts = [[row.text, row.pair] for row in rows[: exporting.PARITY_ROWS]]
            rows = [stretch_text(artifact.encoder, texts, budget.bench_length, artifact.answers.to_dict())]
        found = benchmarking.latency(artifact, rows, batch=budget.bench_batch)
        return float(getattr(found, budget.percentile))

    def costs_of(self, point: Mapping[str, Any]) -> list[tuple[str, float, float]]:
        """Name, value and limit of each size and speed that is limited."""
        values = {"max_mb": point["bytes"] / 1e6, "max_ms": point["milliseconds"], "max_ram": (point["resident_bytes"] or 0) / 1e6}
        return [(name, values[name], limit) for name, limit in self.limits.items() if name in values]

    def _best(self, numbers: Sequence[int], count: int) -> list[int]:
        """The best of some candidates so far: those that hold the limits first, then the higher score; without limits, the smallest that keep."""
        points = [point for point in self.state["points"] if point["id"] in numbers]
        return [point["id"] for point in sorted(points, key=self.rank)[:count]]

    def rank(self, point: Mapping[str, Any]) -> tuple[float, ...]:
        """What a point is sorted by, the best first."""
        excess = max((value / limit for _, value, limit in self.costs_of(point)), default=0.0)
        wanted = self.limits.get("keep")
        kept = point["kept"] or 0.0
        if "max_mb" in self.limits or "max_ms" in self.limits or wanted is None:
            return (max(excess, 1.0), -kept, point["bytes"] * point["milliseconds"])
        return (max(excess, 1.0), max(wanted - kept, 0.0), point["bytes"] * point["milliseconds"])

    @property
    def _rank(self) -> int:
        return int(self.budget.percentile.removeprefix("p"))

    def _train_options(self) -> Any:
        """The run's own training options, with a rate for students and no early stop."""
        return dataclasses.replace(self.ground.recipe.train, rate=None, epochs=None, patience=None, evaluate_every=None, schedule="linear")

    def _lesson(self, vocab: str | None) -> students.Lesson:
        """What students with these tokens learn from; the teacher reads it once."""
        if vocab not in self.lessons:
            ground = self.ground
            self.lessons.clear()  # one is in use at a time
            self.watch(Told(f"Preparing what students with {vocab or 'all tokens'} learn from"))
            step = None
            if vocab is not None:
                found = importance.measure(ground.model, ground.train[:1], rows=1)
                counts = count_tokens(ground.model, [*ground.train, *ground.unlabelled])
                step = make_step(vocab).plan(ground.model, dataclasses.replace(found, tokens=counts))
            folder = ground.run.folder / "candidates" / "lessons" / (vocab or "all").replace("=", "-")
            self.lessons[vocab] = students.prepare_lesson(
                ground.model, step, ground.train, ground.unlabelled, ground.recipe.distill, folder,
                seconds=self.seconds * LESSON_SHARE, seed=ground.recipe.train.seed, times=self.state["times"].get(str(vocab)),
            )  # fmt: skip
            self.state["times"][str(vocab)] = self.lessons[vocab].times
        return self.lessons[vocab]

    def _open_state(self) -> dict[str, Any]:
        """What an earlier sitting left, where it had the same settings; else the beginning."""
        budget = {name: value for name, value in dataclasses.asdict(self.budget).items() if name != "time"}
        settings = json.loads(
            json.dumps({"budget": budget, "distill": dataclasses.asdict(self.ground.recipe.distill), "steps": self.steps})
        )
        path = self.ground.run.folder / "search.json"
        if path.exists():
            state: dict[str, Any] = self.ground.run.read("search.json")
            if state["settings"] == settings:
                self.watch(Told(f"Going on with the search after {state['seconds']:.0f} s: {len(state['done'])} rungs are done."))
                return state
            raise InputError(
                f"{self.ground.run.folder} holds a search with other settings. Take one of its points with --take ID, or forget it with --overwrite."
            )
        empty: dict[str, Any] = {"candidates": [], "points": [], "done": [], "running": {}, "times": {}}
        return {"settings": settings, "seconds": 0.0, "planned": 0.0, **empty}

    def _write_state(self) -> None:
        self.state["seconds"] = self.elapsed
        self.ground.run.write("search.json", self.state)
        self.write_front()

    def write_front(self, chosen: int | None = None) -> None:
        """front.json and front.csv: everything tried so far."""
        for point, holds in zip(self.state["points"], planning.on_front(self.state["points"]), strict=True):
            point["on_front"] = holds
        seconds = parse_seconds(self.budget.time) if self.budget.time else None
        limits: dict[str, float | None] = {name: self.limits.get(name) for name in ("max_mb", "max_ms", "max_ram", "keep")}
        facts = {
            "reference": self.ground.reference, "limits": {**limits, "time": seconds}, "points": self.state["points"],
            "chosen": chosen, "metric": self.ground.model.task.primary,
        }  # fmt: skip
        self.ground.run.write("front.json", facts)
        if self.state["points"]:
            write_front_csv(self.ground.run.folder)


def prove(search: Search, watch: Watch, take: int | None = None) -> None:
    """Make the best point, or the one that is taken, the run's small artefact, and test every limit on it with the test rows.

    Raises:
        CheckFailed: a limit is not held.
    """
    ground, run = search.ground, search.ground.run
    points = sorted(search.state["points"], key=search.rank)
    chosen = points[0] if take is None else next((point for point in points if point["id"] == take), None)
    if chosen is None:
        raise InputError(
            f"There is no point {take} on the front of {run.folder}. Known: {', '.join(str(point['id']) for point in points)}."
        )
    rows, part = (ground.test, "test") if len(ground.test) else (ground.dev, "dev")
    for point in points:
        if len(ground.test) and (point["on_front"] or point is chosen) and point["test"] is None:
            point["test"] = evaluate(load_artifact(run.folder / point["artifact"]), ground.test, resamples=0)[ground.model.task.primary]
    watch(Told(f"Proving candidate {chosen['id']} on {len(rows)} {part} rows"))
    folder = run.artifacts / SMALL
    shutil.rmtree(folder, ignore_errors=True)
    with full_disk_told(folder):
        shutil.copytree(run.folder / chosen["artifact"], folder)
    artifact = load_artifact(folder, threads=1)
    scores = evaluate(artifact, rows, part=part)
    kept = compare_scores(ground.model, artifact, rows, search.limits.get("keep"))
    entry = {
        "target": chosen["target"], "path": str(folder.relative_to(run.folder)), "sha256": chosen["sha256"], "parity": chosen["parity"],
        "scores": scores.summary(), "kept": round(kept["value"], 6), **benchmarking.measure(artifact, list(rows[: exporting.PARITY_ROWS]), folder),
    }  # fmt: skip
    held = judge(search, chosen, entry, kept)
    met = all(item["met"] for item in held.values()) if held else None
    record = run.record
    small = [old for old in record["artifacts"] if old["path"] != entry["path"]]
    budget = {"limits": search.limits, "held": held, "kept": kept, "candidate": chosen["id"], "steps": chosen["steps"], "part": part}
    run.write("run.json", record | {"artifacts": [*small, entry], "budget": budget, "met": met})
    search.write_front(chosen["id"])
    run.write("search.json", search.state)
    shutil.rmtree(run.folder / "candidates" / "lessons", ignore_errors=True)
    write_card(run.folder)
    write_report([run.folder])
    if met is False and take is None:
        raise CheckFailed(explain(held, folder))


def compare_scores(model: Model, artifact: Any, rows: Sequence[Example], least: float | None) -> dict[str, float]:
    """The share of the model's main metric that an artefact keeps on the same rows, by paired bootstrap: see `metrics.kept_share`."""
    task, primary = model.task, model.task.primary
    targets, whole, small = task.targets(rows), model.logits(rows), artifact.logits(rows)
    other = type(task)(artifact.answers)

    def score(chosen: np.ndarray) -> tuple[float, float]:
        return other.score(small[chosen], targets[chosen])[primary], task.score(whole[chosen], targets[chosen])[primary]

    return {name: round(value, 6) for name, value in metrics.kept_share(score, len(rows), least, resamples=300).items()}


def judge(search: Search, chosen: Mapping[str, Any], entry: Mapping[str, Any], kept: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Each limit, what the artefact has, and whether it holds."""
    point = {**chosen, "bytes": entry["bytes"], "resident_bytes": entry["resident_bytes"]}
    held = {name: {"limit": limit, "value": round(value, 4), "met": value <= limit} for name, value, limit in search.costs_of(point)}
    if (least := search.limits.get("keep")) is not None:
        held["keep"] = {"limit": least, "value": kept["value"], "met": kept["value"] >= least}
    return held


def explain(held: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """Which limits were missed, by how much, and what to relax."""
    units = {"max_mb": "MB", "max_ms": "ms", "max_ram": "MB of memory", "keep": "of the score"}
    missed = [
        f"{name.replace('_', '-')} {item['limit']:g}: reached {item['value']:.4g} {units[name]}"
        for name, item in held.items()
        if not item["met"]
    ]
    relaxed = [f"--{name.replace('_', '-')} {item['value']:.3g}" for name, item in held.items() if not item["met"]]
    return f"The budget is not held ({'; '.join(missed)}). The nearest model is saved: {folder}. Relax it to {' '.join(relaxed)}, or give more --time."


def _loser(found: importance.Importance, counts: np.ndarray) -> planning.Lose:
    """The share of importance that a shape takes away, by knob; of tokens, that of their occurrences."""
    often = np.sort(counts)[::-1]
    whole = max(int(often.sum()), 1)

    def lose(shape: Shape) -> dict[str, float]:
        removed = importance.shares(found, layers=shape.layers, heads=shape.heads, ffn=shape.ffn, hidden=shape.hidden)
        return {**removed, "vocab": float(often[shape.vocabulary :].sum()) / whole}

    return lose


def count_tokens(model: Model, rows: Sequence[Example]) -> np.ndarray:
    """How often each token occurs in some rows: int64 [V]."""
    encoded = model.encoder.encode([row.text for row in rows], [row.pair for row in rows])
    return np.bincount(np.concatenate(encoded.ids), minlength=model.encoder.tokenizer.get_vocab_size()).astype(np.int64)


def vocabulary_sizes(model: Model, counts: np.ndarray) -> list[int]:
    """How many tokens are worth trying: all, and those that occur at least once, twice or four times, with what keeps every text readable."""
    whole = len(counts)
    least = len(Vocabulary.of(model.encoder.tokenizer).essential)
    sizes = {-(-(least + int((counts >= times).sum()) + ROOM) // 100) * 100 for times in (1, 2, 4)}
    return sorted({min(size, whole) for size in sizes} | {whole}, reverse=True)
