"""From a finished run and a budget to an exported model that is proven to hold it, or to the nearest one.

RUN/search.json keeps the state of a search, RUN/candidates/ID/ each student (model, checkpoints, artefact), RUN/front.json everything tried.
A search that is stopped goes on where it was, and the best so far is always on disk.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lightune import (
    benchmarking,
    distillation,
    exporting,
    exports,
    importance,
    language_shrinking,
    models,
    planning,
    probes,
    proving,
    students,
)
from lightune.costs import CostTable, Shape
from lightune.costs.measuring import stretch_text
from lightune.data import Example, read, split
from lightune.development import measure_distance
from lightune.errors import CheckFailed, InputError
from lightune.evaluation import evaluate
from lightune.exports import onnx, sensitivity
from lightune.exports.rounding import mark_rounded, read_rounded
from lightune.grids import Grid, Rounded
from lightune.journal import Journal, forget
from lightune.models import Model
from lightune.options import format_spec
from lightune.planning import Candidate
from lightune.precision import FP32, Precision
from lightune.preparation import Interrupted, Told, Watch, read_all, stop_on_signals
from lightune.recipes import Budget, Recipe, TrainOptions, read_recipe, resolve
from lightune.runs import Run, full_disk_told, open_run
from lightune.runtime import load as load_artifact
from lightune.simulation import simulated
from lightune.sources import locate_data
from lightune.steps import check_lasting, make_step
from lightune.steps.pool import can_pool
from lightune.tasks import GENERATIVE
from lightune.vocabularies import Vocabulary

if TYPE_CHECKING:
    import onnx_ir as ir

COUNT = 4  # candidates of the first rung
LESSON_SHARE = 0.12  # of the time that the teacher may read the rows of a lesson
LEARNING = 3.0  # times as long as it is read, a row is learned from by a model of the same size
FIRST_SHARE = 0.3  # of the time left when the candidates are planned, for their first rungs; of each, half may be overhead
DEV_SHARE, MOST_DEV = 0.1, 1000  # rows held out where the run has no development data; most rows that choose
STATIC_SECONDS = 60.0
ALLOWED_LOSS = 0.003  # of the development score, or of the answers' probability, by quantization, before it is trained for
AGREE = 0.99  # share of answers that mixed precision should leave as they are
LAST_STAGES = ("static", "winner", "rounded")  # whose files get bits back where few cost accuracy: others are trained on, or lose
LEAST_SECONDS = 1.0  # of a rung that is worth its overhead
MIDDLE_SHARE = 1 / 3  # of a rung's time for larger students on the way
MEASURED = ("milliseconds", "examples_per_second", "resident_bytes", "bytes")
OVERHEAD_SECONDS = 12.0  # what exporting, comparing and timing one candidate takes, until that was measured
MAKING_SECONDS = 30.0  # what cutting and fitting one takes with full effort, until that was measured
REPORT_SECONDS = 3.0  # for the report and the card
SLACK = 0.005  # of the time, for what the estimates of rungs and proof miss
FASTER = 5  # an artefact answers at least so many times as fast as the run's model
LARGE_CUT = 0.25  # of the work of the blocks, at most: students that small may come by way of a larger one
NEAR = 1.1  # times the predicted milliseconds beyond which a time is taken again
LOOKS = 4  # more times at most
NEARLY = 1.1  # times the limit of milliseconds that a file may take between rungs: so far other work on the machine puts a time off
LOOKED_AT = 512  # development rows by which a vocabulary is judged
ROOM = 1000  # tokens for characters and common words that the data happen to lack
INT8 = "onnx-int8"


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
    reading: float  # seconds in which the model answers the rows of the proof

    @property
    def proof(self) -> Sequence[Example]:
        """The rows of the proof, on which the reference and every file are timed: those of the test, or of the development part."""
        return self.test if len(self.test) else self.dev


def shrink(
    folder: str | Path,
    *,
    data: Any = None,
    steps: Sequence[str] = (),
    take: int | None = None,
    epochs: float | None = None,
    to: str | None = None,
    overwrite: bool = False,
    watch: Watch = lambda fact: None,
    **options: Any,
) -> Run:
    """Make a finished run's model smaller: by named steps, or by a search for what holds a budget.

    Args:
        folder: a run. steps: specs such as ``depth=3``; without them the budget decides.
        take: the id of a point of the front that becomes the run's small artefact; nothing is trained.
        epochs: passes over the rows for named steps; by default the time decides.
        to: what the model is exported to after named steps, by default onnx-int8, or gguf where it generates; a search chooses the precision
            itself.
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
    """Make a point of an earlier search's front the run's small artefact. It was scored and timed at the end of the search: no data are read.

    Raises:
        InputError: there was no search that came to its end, or it has no such point.
    """
    if not (run.folder / "search.json").exists():
        raise InputError(f"{run.folder} holds no search to take a point from. Search first: lightune shrink {run.folder} --keep 0.99")
    state = run.read("search.json")
    point = next((point for point in state["points"] if point["id"] == number), None)
    if point is None:
        known = ", ".join(str(point["id"]) for point in state["points"])
        raise InputError(f"There is no point {number} on the front of {run.folder}. Known: {known}.")
    if "proof" not in point:
        raise InputError(f"The search of {run.folder} has not come to its end. Let it go on with the command that began it.")
    watch(Told(f"Taking candidate {number}: {point['name']}"))
    proving.crown(run, point, Budget(**state["settings"]["budget"]).limits)
    return run


def search(
    run: Run,
    recipe: Recipe,
    *,
    data: Any = None,
    steps: Sequence[str] = (),
    epochs: float | None = None,
    to: str | None = None,
    watch: Watch = lambda fact: None,
) -> Run:
    """Search, or go on with a search, in a finished run; see `shrink`."""
    begin = time.monotonic()
    for spec in steps:
        make_step(spec)
    if recipe.data.task in GENERATIVE:
        return language_shrinking.search(run, recipe, data=data, steps=steps, epochs=epochs, to=to, watch=watch)
    if recipe.distill.healing != "auto":
        raise InputError(
            f"healing {recipe.distill.healing} has no meaning for {recipe.data.task or 'this task'}, whose students train all their weights. Leave it out."
        )
    to = to or INT8
    exports.find_export(to)
    ground = survey(run, recipe, watch, data)
    found = Search(ground, watch, steps, epochs, to, begin)
    with stop_on_signals(found) as caught:
        found.run()
    if found.stopping:
        name = caught[0] if caught else "a signal"
        raise Interrupted(f"Stopped by {name}; what was found is saved. Go on with the same command: lightune shrink {run.folder}")
    prove(found, watch)
    return run


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
    begin = time.monotonic()
    found = evaluate(model, rows, resamples=0)[primary]
    reading = time.monotonic() - begin
    reference = {
        "bytes": facts["bytes"], "milliseconds": facts["milliseconds"]["p50"], "score": score, "test": found if len(test) else None
    }  # fmt: skip
    return Ground(run, recipe, model, train, dev, test, more, teachers, reference, reading)


class Search:
    """Candidates, rungs and what came out of them; every result is written before the next begins."""

    def __init__(
        self,
        ground: Ground,
        watch: Watch,
        steps: Sequence[str] = (),
        epochs: float | None = None,
        to: str = INT8,
        begin: float | None = None,
    ) -> None:
        self.ground, self.watch, self.epochs, self.target = ground, watch, epochs, to
        self.budget: Budget = ground.recipe.budget
        self.limits = self.budget.limits
        self.steps = tuple(steps)
        self.stopping = False
        self.lessons: dict[str | None, students.Lesson] = {}
        self.journal = self._open_journal(begin)
        self.state, self.seconds = self.journal.state, self.journal.seconds
        self.rungs: list[planning.Rung] = []  # that are still to come

    @property
    def points(self) -> list[dict[str, Any]]:
        """Everything tried so far, in the form of front.json."""
        return list(self.state["points"])

    @property
    def elapsed(self) -> float:
        """Seconds since the search began, those of earlier sittings included."""
        return self.journal.elapsed

    def request_stop(self) -> None:
        """End after the step in progress. Safe in a signal handler."""
        self.stopping = True

    def run(self) -> None:
        """Plan, train in rungs of successive halving, export and score everything; what an earlier sitting did is not done again."""
        if not self.state["candidates"]:
            self._plan()
        known = self._known()
        gradual = self.ground.recipe.distill.stages > 1 and not self.steps
        stages = 1 if gradual else self.ground.recipe.distill.stages  # of those that no other candidate led to
        still = [number for number, item in enumerate(known) if not item.shape.layers]
        regular = [number for number, item in enumerate(known) if item.shape.layers and item.follows is None and item.stages == stages]
        self.rungs = planning.plan_rungs(len(still), len(regular), gradual=gradual)
        for number in still:
            self._train(number, known[number], "static")
        for number in regular if len(regular) > 1 or gradual else ():
            self._train(number, known[number], "first")
        for number in self._promote("second", self._best(regular, 2)) if len(regular) > 2 else ():
            self._train(number, known[number], "second")
        if gradual and not self.stopping:
            regular += self._try_stages(regular)
        for number in self._promote("winner", self._best(regular, 1) or regular[:1]):
            if not self._suffers(number):
                self.rungs = [rung for rung in self.rungs if rung.stage != "rounded"]
            self._train(number, self._known()[number], "winner")
            if self._suffers(number) and not self.stopping:
                self._train_rounded(number)

    def _known(self) -> list[Candidate]:
        """The candidates that were written down."""
        return [Candidate(**{**item, "shape": Shape(**item["shape"]), "steps": tuple(item["steps"])}) for item in self.state["candidates"]]

    def _suffers(self, number: int) -> bool:
        """Whether a candidate's file scores lower than its model by more than is allowed, or strays further from the model before."""
        lost = next((max(point["lost"], point["strayed"]) for point in self.state["points"] if point["id"] == number), 0.0)
        return bool(lost > ALLOWED_LOSS)

    def _train_rounded(self, number: int) -> None:
        """Go on from a candidate with its matrices rounded as its file rounds them, as a candidate of its own."""
        target = next(point["target"] for point in self.state["points"] if point["id"] == number)
        rounded = self._derive(dataclasses.replace(self._known()[number], follows=number, target=target))
        folders = [self._folder(place) / "model" for place in (number, rounded)]
        if f"{rounded}/rounded" not in self.state["running"]:
            with full_disk_told(folders[1]):
                shutil.copytree(folders[0], folders[1], dirs_exist_ok=True)
        self._train(rounded, self._known()[rounded], "rounded")

    def _try_stages(self, regular: Sequence[int]) -> list[int]:
        """A twin of the best candidate that is cut in stages, trained as long as it was; none where the cut is not large."""
        for number in self._promote("gradual", self._best(regular, 1)):
            base, item = Shape.of(self.ground.model), self._known()[number]
            if item.shape.work <= LARGE_CUT * base.work:
                twin = self._derive(dataclasses.replace(item, stages=self.ground.recipe.distill.stages))
                self._train(twin, self._known()[twin], "gradual")
                return [twin]
        return []

    def _derive(self, candidate: Candidate) -> int:
        """The number of a candidate that was made of another, written down where it is not yet."""
        known = self._known()
        if candidate not in known:
            self.state["candidates"].append(dataclasses.asdict(candidate))
            self.journal.write()
            return len(known)
        return known.index(candidate)

    def _folder(self, number: int) -> Path:
        """Where a candidate's model, checkpoints and artefact lie."""
        return self.ground.run.folder / "candidates" / str(number)

    def _was_made(self, number: int) -> bool:
        """Whether an earlier rung left a candidate's student."""
        return (self._folder(number) / "model" / "model.json").exists()

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
            lost = self._lost_answers(counts)
            pools = can_pool(model.network.backbone) and distillation.compares_ends(self.ground.recipe.distill)
            known = list(planning.enumerate_candidates(base, costs, _loser(found, lost), list(lost), rank, pools=pools))
            sizes = (self.ground.reference["bytes"], self.ground.reference["milliseconds"])
            count = int(FIRST_SHARE * self._left / (2 * OVERHEAD_SECONDS))
            chosen = planning.choose(known, self.limits, sizes, min(COUNT, max(1, count)))
            if chosen and planning.excess(chosen[0], self.limits) > 1:
                self.watch(Told("No shape is predicted to hold the limits; the nearest is tried.", "warning"))
            chosen.append(planning.choose_static(base, costs, chosen[0].shape.vocabulary, self.limits, rank))
        for number, item in enumerate(chosen if not self.steps else ()):
            self.watch(Told(f"Candidate {number}: {item.name}, expected {item.bytes / 1e6:.1f} MB and {item.milliseconds:.2f} ms"))
        self.state["candidates"] = [dataclasses.asdict(item) for item in chosen]
        self.journal.write()

    def _lost_answers(self, counts: np.ndarray) -> dict[int, float]:
        """How far the development answers move when the model reads with fewer tokens, for every size that is worth trying: some
        hundred rows tell two vocabularies apart by it that change the same handful of answers.

        counts: of each token in the training rows, int64 [V]. Other than a layer, a token that is gone cannot be learned back.
        """
        model, rows = self.ground.model, self.ground.dev[:LOOKED_AT]
        whole = self._answers[:LOOKED_AT]
        found = dataclasses.replace(importance.measure(model, self.ground.train[:1], rows=1), tokens=counts)
        lost = {}
        for size in vocabulary_sizes(model, counts):
            lost[size] = 0.0
            if size < len(counts):
                small = model.copy()
                small.shrink(make_step(f"vocab={size}").plan(small, found))
                lost[size] = measure_distance(model.answers, whole, small.logits(rows))
        return lost

    def _named(self, base: Shape) -> Candidate:
        """The candidate that named steps make."""
        return Candidate(base, self.steps, self.target, 0, 0.0, 0, 0.0, stages=self.ground.recipe.distill.stages)

    def _costs(self) -> CostTable:
        if self.budget.table:
            return CostTable.from_dict(json.loads(Path(self.budget.table).read_text(encoding="utf-8")))
        return probes.measure_table(
            self.ground.model, self.ground.proof, threads=self.budget.bench_threads, batch=self.budget.bench_batch,
            length=self.budget.bench_length, tell=lambda text: self.watch(Told(text)),
        )  # fmt: skip

    @property
    def _left(self) -> float:
        """Seconds until the proof must begin, without those in which students will be made."""
        proof = self.ground.reading * (1 + (len(self.state["candidates"]) + 1) / FASTER) + self._overhead + REPORT_SECONDS
        coming = sum(rung.stage == "first" for rung in self.rungs)
        making = float(np.median(self.state["makings"])) if self.state["makings"] else MAKING_SECONDS * self._effort
        return self.seconds * (1 - SLACK) - self.elapsed - proof - coming * making

    @cached_property
    def _answers(self) -> np.ndarray:
        """What the model before answers to the development rows: logits [n, k]."""
        return self.ground.model.logits(self.ground.dev)

    def _distance(self, logits: np.ndarray) -> float:
        """How far answers to the development rows are from those of the model before."""
        return measure_distance(self.ground.model.answers, self._answers, logits)

    @property
    def _effort(self) -> float:
        """With what effort students are fitted."""
        return students.fit_effort(self.ground.recipe.distill, self.seconds)

    @property
    def _overhead(self) -> float:
        """Seconds that a rung takes beside its training, as the last ones did."""
        return float(np.median(self.state["overheads"][-3:])) if self.state["overheads"] else OVERHEAD_SECONDS

    def _share(self, stage: str) -> float:
        """Seconds of training for a rung that begins, which then no longer counts among those to come."""
        place = next((place for place, rung in enumerate(self.rungs) if rung.stage == stage), len(self.rungs))
        rungs = self.rungs[place:] or [planning.Rung(stage, 1.0)]
        del self.rungs[: place + 1]
        seconds = planning.share_time(self._left, self._overhead, rungs)
        return min(seconds, STATIC_SECONDS) if stage == "static" else seconds

    def _train(self, number: int, candidate: Candidate, stage: str) -> None:
        """Train one candidate for its share of the time, unless that was done before; then export and score it."""
        name = f"{number}/{stage}"
        if self.stopping or name in self.state["done"]:
            self._share(stage)
            return
        lesson = self._lesson(next((spec for spec in candidate.steps if spec.startswith("vocab")), None), candidate.shape.layers)
        fresh = self._make(number, candidate, lesson)
        seconds = self._share(stage)
        if seconds < LEAST_SECONDS and not self.epochs and self.state["points"]:
            self.watch(Told(f"Candidate {number}, {stage} rung: left out, for no time is left for it"))
            return
        seconds, left = max(seconds, LEAST_SECONDS), max(self.seconds - self.elapsed, 0)
        self.watch(Told(f"Candidate {number}, {stage} rung, {seconds:.0f} s: {candidate.name} · {left / 60:.0f} min of the search left"))
        begin, folder = time.monotonic(), self._folder(number)
        student, seconds, trained = (fresh, seconds, 0.0) if fresh else self._open(number, candidate, lesson, seconds)
        rounding = FP32 if candidate.follows is None else exports.find_export(candidate.target).precision
        with simulated(student.network, rounding, self._round(student, rounding)) as grids:
            last, whole = self._take_course(name, student, lesson, seconds, 1.0 if candidate.stages == 1 else 1 - MIDDLE_SHARE)
        if self.stopping:
            self.journal.write()
            return
        trained += last
        if whole < self._least(number):
            self.watch(
                Told(f"Candidate {number}: dev {student.task.primary} {whole:.4f} is much lower than before; the earlier weights stay")
            )
        else:
            with full_disk_told(folder):
                student.save(folder / "model")
            self._record(number, candidate, student, trained, whole, stage, grids)
        self.state["done"].append(name)
        if candidate.shape.layers:
            self.state["overheads"].append(round(time.monotonic() - begin - trained, 3))
        self.journal.write()

    def _round(self, student: Model, precision: Precision) -> dict[str, Rounded]:
        """Where the matrices of a student that trains rounded begin: as a file has them."""
        if not precision.quantizes:
            return {}
        graph = onnx.trace(student.network, student.encoder.inputs)
        return read_rounded(onnx.round_seen(graph, student.encoder, self.ground.train[: exporting.SAMPLE_TEXTS], precision))

    def _make(self, number: int, candidate: Candidate, lesson: students.Lesson) -> Model | None:
        """A new student, whose rung begins when it is made; None where an earlier rung left it, or it comes in stages."""
        if self._was_made(number) or candidate.stages > 1:
            return None
        begin = time.monotonic()
        student = students.make_student(lesson, cuts_of(candidate), fit=self._effort)
        if candidate.shape.layers:
            self.state["makings"].append(round(time.monotonic() - begin, 3))
        return student

    def _open(self, number: int, candidate: Candidate, lesson: students.Lesson, seconds: float) -> tuple[Model, float, float]:
        """The student that a rung goes on with; a new one, which has stages, comes by way of larger ones.

        Returns:
            The student, the seconds that are left of the rung, and those in which larger students were trained.
        """
        folder = self._folder(number)
        if self._was_made(number):
            return models.load(folder / "model"), seconds, 0.0
        steps, fit = cuts_of(candidate), self._effort
        *middle, last = planning.divide_steps(Shape.of(lesson.teacher), steps, candidate.stages)
        student, trained, share = lesson.teacher, 0.0, MIDDLE_SHARE / max(len(middle), 1)
        for place, specs in enumerate(middle):
            name, kept = f"{number}/middle {place + 1}", folder / f"middle-{place + 1}"
            if name in self.state["done"]:
                student = models.load(kept)
                continue
            student = students.make_student(lesson, specs, student, fit=fit)
            self.watch(Told(f"Candidate {number} comes by way of {' · '.join(specs)}"))
            trained += self._take_course(name, student, lesson, seconds * share, share)[0]
            if self.stopping:
                return student, seconds, trained
            with full_disk_told(folder):
                student.save(kept)
            self.state["done"].append(name)
            self.journal.write()
        return students.make_student(lesson, last, student, fit=fit), seconds * (1 - MIDDLE_SHARE), trained

    def _take_course(self, name: str, student: Model, lesson: students.Lesson, seconds: float, share: float) -> tuple[float, float]:
        """Let a student learn for some time, or go on where it was stopped; at the end it holds its best weights.

        share: of the epochs that were asked for, where they were.

        Returns:
            Seconds of training in this sitting, and the development score of the best weights; nan where it was stopped.
        """
        if self.stopping:
            return 0.0, math.nan
        begin, number = time.monotonic(), int(name.partition("/")[0])
        course = students.open_course(
            student, lesson, self.ground.dev, self._answers, self.ground.recipe.distill, self._train_options(self._was_made(number)), teachers=self.ground.teachers,
            epochs=self.state["running"].get(name) or (self.epochs * share if self.epochs else None), seconds=seconds,
        )  # fmt: skip
        self.state["running"][name] = course.epochs
        self.journal.write()
        self.watch(course.forecast)
        setup = time.monotonic() - begin
        folder = self._folder(number) / "checkpoints"
        for fact in course.steps(folder, students.CHECKPOINT_SECONDS, lambda: self.stopping, None if self.epochs else seconds):
            self.watch(fact)
        if self.stopping:
            return 0.0, math.nan
        shutil.rmtree(folder, ignore_errors=True)
        return time.monotonic() - begin - setup, course.final()

    def _least(self, number: int) -> float:
        """The development score that a candidate's model must reach after another rung: that of before less a standard error, for longer training
        makes better students in the mean and chance shall not undo it; below every score where there was no rung before."""
        before = next((point["score"] + point["lost"] for point in self.state["points"] if point["id"] == number), -math.inf)
        return float(before - planning.standard_error(before, len(self.ground.dev)))

    def _record(
        self, number: int, candidate: Candidate, student: Model, seconds: float, whole: float, stage: str, grids: Mapping[str, Grid]
    ) -> None:
        """Export a student, score the file on the development rows, and put the point among the others.

        whole: what the model scores there. grids: on which its matrices lie, where it was trained rounded.
        """
        folder = self._folder(number) / "artifact"
        entry = self._export(student, candidate, folder, whole if stage in LAST_STAGES else -math.inf, grids)
        before: dict[str, Any] = next((point for point in self.state["points"] if point["id"] == number), {})
        primary = self.ground.model.task.primary
        shape = dataclasses.asdict(candidate.shape if candidate.shape.layers == 0 or not self.steps else Shape.of(student))
        score = entry["scores"][primary]["value"]
        milliseconds = self._milliseconds(entry["milliseconds"][self.budget.percentile], folder, candidate)
        distance, without = (self._distance(what.logits(self.ground.dev)) for what in (load_artifact(folder), student))
        point = {
            "id": number, "name": candidate.name if not self.steps else " · ".join(self.steps), "steps": list(candidate.steps), "shape": shape,
            "target": entry["target"], "bytes": entry["bytes"], "milliseconds": milliseconds, "p95": entry["milliseconds"]["p95"],
            "resident_bytes": entry["resident_bytes"], "dev": {primary: score}, "score": score,
            "distance": round(distance, 6), "strayed": round(distance - without, 6), "test": None,
            "kept": round(score / self.ground.reference["score"], 6) if self.ground.reference["score"] else None, "on_front": False,
            "artifact": str(folder.relative_to(self.ground.run.folder)), "seconds": round(before.get("seconds", 0.0) + seconds, 1), "parity": entry["parity"],
            "sha256": entry["sha256"], "lost": round(whole - score, 6),
            "measured": {key: entry[key] for key in MEASURED},
        }  # fmt: skip
        point["milliseconds"] = self._least_time(point)
        point["holds"] = proving.holds(self.limits, point)
        self.journal.put(point)
        self.watch(Told(f"Candidate {number}: dev {primary} {score:.4f}, {point['bytes'] / 1e6:.2f} MB, {point['milliseconds']:.3f} ms"))

    def _export(self, student: Model, candidate: Candidate, folder: Path, model_score: float, grids: Mapping[str, Grid]) -> dict[str, Any]:
        """The artefact in the candidate's precision, or in a higher one where that costs accuracy and still holds the limits.

        model_score: on the development rows, which the file should reach but for ALLOWED_LOSS. grids: on which the student's matrices lie already.
        """
        graph = onnx.trace(student.network, student.encoder.inputs)
        mark_rounded(graph, grids)
        best: dict[str, Any] | None = None
        for target in self._precisions(student, candidate, graph):
            if target == "onnx" and best is not None:
                break  # floating point only where nothing else answers as the model does
            passing = folder.with_name(f"artifact-{len(target)}")
            try:
                entry = exporting.export(
                    student,
                    target,
                    passing,
                    dev=self.ground.dev,
                    test=self.ground.dev,
                    timed=self.ground.proof,
                    sample=self.ground.train,
                    name=folder.parent.name,
                    graph=graph,
                    spares=False,
                    resamples=0,
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

    def _milliseconds(self, seen: float, folder: Path, candidate: Candidate) -> float:
        """What max_ms limits: as measured here, or, for another machine, as its table says; seen: of single texts on one thread, so far."""
        budget, limit = self.budget, self.limits.get("max_ms")
        if budget.table:
            return round(self._costs().milliseconds(Shape.of(models.load(folder.parent / "model")), self._rank), 4)
        if (budget.bench_threads, budget.bench_batch, budget.bench_length) == (1, 1, None):
            beyond = min(limit or float("inf"), candidate.milliseconds * NEAR or float("inf"))
            for _ in range(LOOKS):  # other work on the machine only slows: look again where the time is not as predicted, or not as asked
                if seen <= beyond:
                    break
                again = benchmarking.latency(load_artifact(folder, threads=1), self.ground.proof[: exporting.PARITY_ROWS])
                seen = min(seen, float(getattr(again, budget.percentile)))
            return seen
        artifact = load_artifact(folder, threads=budget.bench_threads)
        rows: Sequence[Any] = self.ground.proof
        if budget.bench_length:
            texts = [[row.text, row.pair] for row in rows[: exporting.PARITY_ROWS]]
            rows = [stretch_text(artifact.encoder, texts, budget.bench_length, artifact.answers.to_dict())]
        found = benchmarking.latency(artifact, rows, batch=budget.bench_batch)
        return float(getattr(found, budget.percentile))

    def retake_times(self) -> None:
        """Time the files again that miss the limit of time by no more than other work on the machine explains: it comes and goes in minutes."""
        known, limit = self._known(), self.limits.get("max_ms", math.inf)
        for point in self.state["points"] if not self.budget.table else ():
            least = self._least_time(point)
            if limit < least <= limit * NEARLY:
                least = min(least, self._milliseconds(least, self.ground.run.folder / point["artifact"], known[point["id"]]))
            point["milliseconds"] = least
            point["holds"] = proving.holds(self.limits, point)

    def _least_time(self, point: Mapping[str, Any]) -> float:
        """The least milliseconds of all files of a point's shape and precision, its own among them: other work on the machine only slows."""
        alike = [other for other in self.state["points"] if (other["steps"], other["target"]) == (point["steps"], point["target"])]
        return float(min(item["milliseconds"] for item in (point, *alike)))

    def _promote(self, stage: str, best: Sequence[int]) -> list[int]:
        """Who goes on to a stage; nobody where the search was stopped before all that came first were tried."""
        return [] if self.stopping else self.journal.settle(stage, best)

    def _best(self, numbers: Sequence[int], count: int) -> list[int]:
        """The best of some candidates so far: those that hold the limits first, then the higher score; without limits, the smallest that keep.

        What misses a limit of time by no more than other work moves a time goes on, for its time is taken again; it was planned to hold it.
        """
        limits = {name: limit * (NEARLY if name == "max_ms" else 1) for name, limit in self.limits.items()}
        points = [{**point, "holds": proving.holds(limits, point)} for point in self.state["points"] if point["id"] in numbers]
        ranked = sorted(points, key=lambda point: proving.rank(limits, point))
        return [point["id"] for point in self._settle(ranked)[:count]]

    def order(self) -> list[dict[str, Any]]:
        """All points, the best first; a static student that is as good as all others stays first, being far smaller."""
        points = sorted(self.state["points"], key=self.rank)
        return self._settle(points) if points[0]["shape"]["layers"] else points

    def _settle(self, points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Ties among points settled, the best first, where the limits say how small or fast a student must be, so that the better of those wins."""
        limited = {"max_mb", "max_ms"} & set(self.limits)
        return planning.settle_ties(points, len(self.ground.dev)) if limited else list(points)

    def rank(self, point: Mapping[str, Any]) -> tuple[float, ...]:
        """What a point is sorted by, the best first."""
        return proving.rank(self.limits, point)

    @property
    def _rank(self) -> int:
        return int(self.budget.percentile.removeprefix("p"))

    def _train_options(self, again: bool) -> TrainOptions:
        """The run's own training options, with a rate for students, new ones or such as learned before, and no early stop."""
        rate = students.RATE_AGAIN if again else None
        return dataclasses.replace(self.ground.recipe.train, rate=rate, epochs=None, patience=None, evaluate_every=None, schedule="linear")

    def _lesson(self, vocab: str | None, layers: int) -> students.Lesson:
        """What students with these tokens learn from; the teacher reads it once, and what those of so many layers are compared with."""
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
                seconds=self._lesson_seconds(), seed=ground.recipe.train.seed, times=self.state["times"].get(str(vocab)),
            )  # fmt: skip
            self.state["times"][str(vocab)] = self.lessons[vocab].times
        students.observe_lesson(self.lessons[vocab], self.ground.recipe.distill, self.ground.teachers, layers)
        return self.lessons[vocab]

    def _lesson_seconds(self) -> float:
        """How long the teacher may read a lesson: no longer than the largest student needs to go over all of it once in its first rung.

        Of a lesson with more versions of its rows a short rung sees few rows as they are.
        """
        share, place = self.seconds * LESSON_SHARE, next((n for n, rung in enumerate(self.rungs) if rung.stage != "static"), None)
        if self.epochs or place is None:
            return share
        largest = max(item.shape.work for item in self._known()) / Shape.of(self.ground.model).work
        first = planning.share_time(self._left, self._overhead, self.rungs[place:])
        return min(share, first / (LEARNING * largest))

    def _open_journal(self, begin: float | None) -> Journal:
        """What an earlier sitting left, where it had the same settings; else the beginning."""
        ground = self.ground
        budget = {name: value for name, value in dataclasses.asdict(self.budget).items() if name != "time"}
        settings = json.loads(json.dumps({"budget": budget, "distill": dataclasses.asdict(ground.recipe.distill), "steps": self.steps}))
        empty: dict[str, Any] = {"candidates": [], "done": [], "running": {}, "times": {}, "overheads": [], "makings": []}
        journal = Journal(ground.run, settings, empty, self.budget, ground.reference, ground.model.task.primary, begin)
        if journal.resumed:
            self.watch(
                Told(f"Going on with the search after {journal.state['seconds']:.0f} s: {len(journal.state['done'])} rungs are done.")
            )
        return journal


def prove(search: Search, watch: Watch) -> None:
    """Score every point on the test rows, make the best one the run's small artefact, and test every limit on it.

    Raises:
        CheckFailed: a limit is not held.
    """
    ground, run = search.ground, search.ground.run
    search.retake_times()
    points = search.order()
    rows, part = ground.proof, "test" if len(ground.test) else "dev"
    watch(Told(f"Proving candidate {points[0]['id']} on {len(rows)} {part} rows"))
    proving.score_points(run, points, proving.proof_by(ground.model, rows, part, search.limits.get("keep")))
    folder = run.folder / points[0]["artifact"]
    points[0]["measured"] = benchmarking.measure(load_artifact(folder, threads=1), list(rows[: exporting.PARITY_ROWS]), folder)
    points[0]["resident_bytes"] = points[0]["measured"]["resident_bytes"]
    search.journal.write()
    held = proving.crown(run, points[0], search.limits)
    shutil.rmtree(run.folder / "candidates" / "lessons", ignore_errors=True)
    proving.stop_unless_met(held, run.artifacts / proving.SMALL)


def cuts_of(candidate: Candidate) -> list[str]:
    """The steps that make a candidate of a lesson's teacher, whose tokens are the candidate's already."""
    return [spec for spec in candidate.steps if not spec.startswith("vocab")]


def _loser(found: importance.Importance, lost: Mapping[int, float]) -> planning.Lose:
    """The share of importance that a shape takes away, by knob; of tokens, how far the answers move."""

    @cache
    def removed(layers: int, heads: int, ffn: int, hidden: int) -> dict[str, float]:
        return importance.shares(found, layers=layers, heads=heads, ffn=ffn, hidden=hidden)

    def lose(shape: Shape) -> dict[str, float]:
        return {**removed(shape.layers, shape.heads, shape.ffn, shape.hidden), "vocab": lost[shape.vocabulary]}

    return lose


def count_tokens(model: Model, rows: Sequence[Example]) -> np.ndarray:
    """How often each token occurs in some rows: int64 [V]."""
    encoded = model.encoder.encode([row.text for row in rows], [row.pair for row in rows])
    return np.bincount(np.concatenate(encoded.ids), minlength=model.encoder.tokenizer.get_vocab_size()).astype(np.int64)


def vocabulary_sizes(model: Model, counts: np.ndarray) -> list[int]:
    """How many tokens are worth trying: all, and those that occur once, twice or four times, with what keeps every text readable and some more."""
    whole = len(counts)
    least = len(Vocabulary.of(model.encoder.tokenizer).essential)
    wanted = [(1, 4 * ROOM), (1, ROOM), (2, ROOM), (4, ROOM)]
    sizes = {-(-(least + int((counts >= times).sum()) + room) // 100) * 100 for times, room in wanted}
    return sorted({min(size, whole) for size in sizes} | {whole}, reverse=True)
