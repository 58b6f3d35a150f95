"""From a finished run of a model that generates to a smaller exported one that is proven: see `shrinking` for models that classify or score.

The steps are cut, the student learns what the run's model expects (`token_distillation`), then it is exported, compared, scored on held-out
rows beside the run's model, and timed. Every call adds to the same front. RUN/candidates/lessons/ holds what the run's model expects, for
all students with the same tokens; RUN/candidates/ID/ holds each student: cut/ before it learns, model/ afterwards, checkpoints/, artifact/.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightune import benchmarking, exporting, exports, language, language_planning, language_students, models, proving, students
from lightune.costs import Shape
from lightune.errors import CheckFailed, InputError
from lightune.examination import Exam, Paper
from lightune.journal import Journal
from lightune.language import Supervision
from lightune.language_students import LanguageLesson
from lightune.methods import make_method
from lightune.models import Model
from lightune.preparation import Interrupted, Told, Watch, stop_on_signals
from lightune.recipes import Budget, Recipe
from lightune.runs import Run, full_disk_told
from lightune.runtime.generation import Generator
from lightune.steps import check_lasting, make_step

TARGET = "gguf"
FLUENT_ROWS = 256  # most held-out rows whose perplexity is told
DEV_QUESTIONS = 64  # that choose
LEAST_SECONDS = 1.0  # of training
SLACK = 4.0  # times the tolerance of an export: here the file's own answers are scored, which says more
COUNT, FIRST_SHARE = 3, 0.5  # candidates of a search, and the share of the training time in which all of them learn before the best goes on
PROOF_SHARE = 0.3  # of the time for exports, answers and timing, which a student does not learn in
WITHOUT = {"compare": "last", "relations_weight": 0.0, "hidden_weight": 1.0, "augment": 6, "unlabelled": None, "stages": 1, "teacher": ()}


@dataclass(frozen=True)
class Ground:
    """What a search stands on: the run, its data (where they lie, and in its model's tokens), what is examined, and what the model before
    costs and scores."""

    run: Run
    recipe: Recipe
    source: Any
    data: Supervision
    exams: dict[str, Exam]
    papers: dict[str, Paper]
    reference: dict[str, Any]

    @property
    def model(self) -> Model:
        """The run's model, what it learned folded into its weights."""
        return self.data.model


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
    """Take named steps, or search for what holds a budget, or go on with either, in a finished run of the task generate; see `shrinking.shrink`."""
    begin = time.monotonic()
    check_options(recipe, steps, to)
    ground = survey(run, recipe, recipe.data.train if data is None else data, watch)
    found = Search(ground, watch, steps, epochs, to or TARGET, begin)
    with stop_on_signals(found) as caught:
        found.run()
    if found.stopping:
        name = caught[0] if caught else "a signal"
        raise Interrupted(f"Stopped by {name}; what was found is saved. Go on with the same command: lightune shrink {run.folder}")
    found.prove()
    return run


def check_options(recipe: Recipe, steps: Sequence[str], to: str | None) -> None:
    """Refuse what cannot be done before anything is read.

    Raises:
        InputError: naming it.
    """
    if recipe.data.task != "generate":
        raise InputError(f"shrink does not know models of the task {recipe.data.task} yet. Export them as hf, or give a run of generate.")
    for spec in steps:
        if type(make_step(spec)).__name__ == "Static":
            raise InputError(
                "static leaves nothing that could write text. Use depth, ffn, heads, hidden or vocab for a model that generates."
            )
    if len([spec for spec in steps if spec.startswith("vocab")]) > 1:
        raise InputError(f"The steps {' '.join(steps)} cut the vocabulary more than once. Name the last size alone.")
    if to is not None and not steps:
        raise InputError(f"--to {to} goes with named steps; a search chooses the type itself. Leave it out, or add --step depth=20.")
    exports.find_generative(to or TARGET)
    wrong = [name for name, plain in WITHOUT.items() if getattr(recipe.distill, name) != plain]
    if wrong:
        names = ", ".join(name.replace("_", "-") for name in wrong)
        raise InputError(
            f"{names} has no meaning for generate, whose students learn what their own run expects of every token. Leave it out."
        )
    if recipe.distill.healing != "auto":
        method = make_method(recipe.distill.healing)
        if getattr(method, "leaves", None) is not None:
            raise InputError(
                f"healing is {recipe.distill.healing!r}, which stays beside the weights. Choose full, lora or another that is folded in."
            )
    if recipe.budget.table:
        raise InputError("A cost table of another machine tells nothing of models that generate. Leave --table out.")


def survey(run: Run, recipe: Recipe, source: Any, watch: Watch) -> Ground:
    """Read the run's data again, load its model, and let it take the exams, unless it has before."""
    watch(Told("Reading the run's data and model"))
    model = exporting.fold(models.load(run.model)).copy()
    check_lasting(model.changes)
    data = language.attend(model, recipe, source, watch)
    answers = recipe.answers
    parts = {"dev": "dev" if data.rows.get("dev") else language.held_part(data), "proof": language.held_part(data)}
    limits = {"dev": min(answers.score_rows, DEV_QUESTIONS), "proof": answers.score_rows}
    exams = {
        name: Exam.of(part, getattr(data, part), limit=limits[name], max_tokens=answers.max_tokens, metrics=answers.metrics, seed=recipe.train.seed)
        for name, part in parts.items()
    }  # fmt: skip
    papers = _take_once(run, exams, data, watch)
    reference = measure_reference(run, model, data, watch)
    test = exams["proof"].value(papers["proof"].table) if parts["proof"] == "test" else None
    told = {"score": exams["dev"].value(papers["dev"].table), "test": test}
    return Ground(run, recipe, source, data, exams, papers, {**reference, **told})


def measure_reference(run: Run, model: Model, data: Supervision, watch: Watch) -> dict[str, Any]:
    """Bytes of the model before and milliseconds of a token that it writes: as the run exported it, else in PyTorch."""
    known = [entry for entry in run.record["artifacts"] if not entry["path"].endswith(f"/{proving.SMALL}")]
    if known:
        return {"target": known[0]["target"], "bytes": known[0]["bytes"], "milliseconds": _milliseconds(known[0]["tokens_per_second"])}
    watch(Told("Timing the run's model in PyTorch"))
    _, prompts = language.held_out(data)
    speed = benchmarking.generation_speed(language.generator_of(model), prompts[:2], tokens=32)
    size = sum(item.numel() * item.element_size() for item in model.network.parameters())
    return {"target": "PyTorch", "bytes": size, "milliseconds": _milliseconds(speed)}


class Search:
    """Students, and what came out of them, of this call and of earlier ones; every result is written before the next begins."""

    def __init__(
        self, ground: Ground, watch: Watch, steps: Sequence[str], epochs: float | None, to: str, begin: float | None = None
    ) -> None:
        self.ground, self.watch, self.epochs = ground, watch, epochs
        self.begin = time.monotonic() if begin is None else begin
        self.budget: Budget = ground.recipe.budget
        self.stopping = False
        self.lessons: dict[str | None, LanguageLesson] = {}
        budget = {name: value for name, value in dataclasses.asdict(self.budget).items() if name != "time"}
        settings = json.loads(json.dumps({"budget": budget, "distill": dataclasses.asdict(ground.recipe.distill)}))
        empty: dict[str, Any] = {"candidates": [], "done": [], "running": {}}
        self.journal = Journal(ground.run, settings, empty, self.budget, ground.reference, ground.exams["dev"].primary, begin)
        self.state = self.journal.state
        if self.journal.resumed:
            watch(Told(f"{len(self.state['done'])} students and {len(self.state['points'])} files are there already."))
        self.chosen = self._number(steps, to) if steps else None

    def request_stop(self) -> None:
        """End after the step in progress. Safe in a signal handler."""
        self.stopping = True

    def run(self) -> None:
        """Cut, train and export what was named or planned; what an earlier sitting did is not done again."""
        seconds = (1 - PROOF_SHARE) * self.journal.seconds
        if self.chosen is not None:
            self._train(self.chosen, "first", self.begin + seconds)
            return
        planned = self._plan()
        for place, number in enumerate(planned, 1):
            self._try(number, "first", self.begin + (FIRST_SHARE if len(planned) > 1 else 1.0) * seconds * place / len(planned))
        best = self._best(planned)
        if len(planned) > 1 and best is not None and not self.stopping:
            (winner,) = self.journal.settle("winner", [best])
            self._try(winner, "winner", self.begin + seconds)
        self.chosen = self._best(planned)
        if self.chosen is None and not self.stopping:
            raise CheckFailed(
                "No file of any candidate writes as its model does. Give more time, or name the steps and a --to with more bits."
            )

    def _try(self, number: int, stage: str, until: float) -> None:
        """Train and export a candidate; a file that does not write as its model does is told, and no point of the front."""
        try:
            self._train(number, stage, until)
        except CheckFailed as error:
            self.watch(Told(str(error), "warning"))

    def _best(self, numbers: Sequence[int]) -> int | None:
        """The best of some candidates that have a file."""
        points = (point for point in self.state["points"] if point["id"] in numbers)
        return next((point["id"] for point in sorted(points, key=partial(proving.rank, self.budget.limits))), None)

    def _plan(self) -> list[int]:
        """The numbers of the candidates that are worth training, written down before the first begins."""
        if "planned" not in self.state:
            ground = self.ground
            self.watch(Told("Measuring what each part of the model is worth to the task"))
            lesson = self._lesson(None)
            counts = language_students.count_tokens(lesson.rows, lesson.teacher)
            found = dataclasses.replace(lesson.weigh(lesson.teacher, False), tokens=counts)
            chosen = language_planning.propose(ground.model, found, self.budget.limits, ground.reference, COUNT)
            self.state["planned"] = [self._number(item.steps, item.target) for item in chosen]
            for number, item in zip(self.state["planned"], chosen, strict=True):
                told = f"expected {item.bytes / 1e6:.1f} MB and {item.milliseconds:.1f} ms a token"
                self.watch(Told(f"Candidate {number}: {' · '.join(item.steps)} as {item.target}, {told}"))
            self.journal.write()
        return list(self.state["planned"])

    def prove(self) -> None:
        """Score every file on the held-out rows, make the chosen one the run's small artefact, and test every limit on it.

        Raises:
            CheckFailed: a limit is not held.
        """
        ground, run = self.ground, self.ground.run
        point = next(point for point in self.state["points"] if point["id"] == self.chosen)
        exam = ground.exams["proof"]
        self.watch(Told(f"Proving {point['name']} on {len(exam) or 'all'} {exam.part} {'questions' if len(exam) else 'rows'}"))
        proving.score_points(run, self.state["points"], self._prove)
        self.journal.write()
        held = proving.crown(run, point, self.budget.limits)
        proving.stop_unless_met(held, run.artifacts / proving.SMALL)

    def _number(self, steps: Sequence[str], target: str) -> int:
        """The number of a candidate: its steps and its file's target; of equal steps one student is trained."""
        wanted = {"steps": list(steps), "target": target}
        if wanted not in self.state["candidates"]:
            self.state["candidates"].append(wanted)
        return int(self.state["candidates"].index(wanted))

    def _folder(self, number: int) -> Path:
        """Where a candidate's student and artefact lie."""
        return self.ground.run.folder / "candidates" / str(number)

    def _train(self, number: int, stage: str, until: float) -> None:
        """Train the student of a candidate until some time of the monotonic clock, unless that was done before, then export and score it."""
        if self.stopping:
            return
        steps = self.state["candidates"][number]["steps"]
        first = next(place for place, other in enumerate(self.state["candidates"]) if other["steps"] == steps)
        begin = time.monotonic()
        if f"{first}/{stage}" not in self.state["done"]:
            self._learn(first, stage, until)
        if self.stopping:
            self.journal.write()
        elif not any(point["id"] == number for point in self.state["points"]):
            self._record(number, models.load(self._folder(first) / "model"), time.monotonic() - begin)
            self.journal.write()

    def _learn(self, number: int, stage: str, until: float) -> None:
        """Let a student learn until some time, or for the epochs that were asked for, and save it; files of what it was before are forgotten."""
        name, folder, distill = f"{number}/{stage}", self._folder(number), self.ground.recipe.distill
        steps = self.state["candidates"][number]["steps"]
        lesson = self._lesson(_vocab_of(steps))
        student = self._open(number, steps, lesson)
        method = language_students.choose_healing(lesson.teacher, student, distill)
        self.watch(Told(f"{_size(student)} learn with {method} what the run's model expects of {len(lesson.rows)} rows"))
        known = self.state["running"].get(name) or self.epochs
        course = language_students.open_course(
            student,
            lesson,
            method,
            distill,
            self._train_options(),
            epochs=known,
            clock=lambda: max(until - time.monotonic(), LEAST_SECONDS),
        )
        self.state["running"][name] = course.epochs
        self.journal.write()
        self.watch(course.forecast)
        seconds = None if known else max(until - time.monotonic(), LEAST_SECONDS)
        for fact in course.steps(folder / "checkpoints", students.CHECKPOINT_SECONDS, lambda: self.stopping, seconds):
            self.watch(fact)
        if self.stopping:
            return
        if worse := course.training.alarms():
            self.watch(Told(f"{worse[0]} The weights from before stay.", "warning"))
        with full_disk_told(folder):
            (models.load(folder / "cut") if worse else student.merge()).save(folder / "model")
        for left in ("checkpoints", "cut"):
            shutil.rmtree(folder / left, ignore_errors=True)
        self.state["points"] = [point for point in self.state["points"] if point["steps"] != steps]
        self.state["done"].append(name)
        self.journal.write()

    def _open(self, number: int, steps: Sequence[str], lesson: LanguageLesson) -> Model:
        """The student as it is before it learns, or learns on."""
        start, learned = (self._folder(number) / name for name in ("cut", "model"))
        if not (start / "model.json").exists():
            cuts = [spec for spec in steps if spec != _vocab_of(steps)]
            if learned.exists():
                student = models.load(learned)
            else:
                self.watch(Told(f"Measuring what each part is worth, and cutting {' · '.join(cuts) or 'nothing but the vocabulary'}"))
                student = students.make_student(lesson, cuts, fit=students.fit_effort(self.ground.recipe.distill, self.journal.seconds))
            with full_disk_told(start):
                student.save(start)
        return models.load(start)

    def _lesson(self, vocab: str | None) -> LanguageLesson:
        """What students with these tokens learn from; one is in use at a time."""
        if vocab not in self.lessons:
            ground = self.ground
            self.lessons.clear()
            folder = ground.run.folder / "candidates" / "lessons" / (vocab or "all").replace("=", "-").replace("/", "-")
            attend = partial(language.attend, recipe=ground.recipe, source=ground.source)
            self.lessons[vocab] = language_students.prepare_lesson(ground.model, vocab, ground.data, attend, folder, ground.recipe)
        return self.lessons[vocab]

    def _train_options(self) -> Any:
        """The run's own training options, with a rate for students and no early stop."""
        return dataclasses.replace(
            self.ground.recipe.train, rate=None, epochs=None, patience=None, evaluate_every=None, schedule="linear", packing="off"
        )

    def _record(self, number: int, student: Model, seconds: float) -> None:
        """Export a student, let the file take the development exam, and put the point among the others."""
        ground, folder, candidate = self.ground, self._folder(number) / "artifact", self.state["candidates"][number]
        lesson = self._lesson(_vocab_of(candidate["steps"]))
        rows, prompts = language.held_out(lesson.data)
        entry = exporting.export_generator(
            student, candidate["target"], folder, rows=rows, prompts=prompts, sample=[row.ids for row in lesson.rows], name=str(number),
            slack=SLACK, tell=lambda text: self.watch(Told(text)),
        )  # fmt: skip
        score, shape = self._examine("dev", folder)[1], Shape.of(student)
        reference = ground.reference["score"]
        point = {
            "id": number, "name": " · ".join([*candidate["steps"], candidate["target"]]), "steps": candidate["steps"], "target": candidate["target"],
            "shape": {name: getattr(shape, name) for name in ("layers", "hidden", "heads", "ffn", "vocabulary")}, "bytes": entry["bytes"],
            "milliseconds": _milliseconds(entry["tokens_per_second"]), "resident_bytes": entry["resident_bytes"],
            "dev": {ground.exams["dev"].primary: score}, "score": score, "test": None, "kept": round(score / reference, 6) if reference else None,
            "on_front": False, "artifact": str(folder.relative_to(ground.run.folder)), "seconds": round(seconds, 1), "parity": entry["parity"],
            "sha256": entry["sha256"], "measured": {key: entry[key] for key in ("tokens_per_second", "resident_bytes", "bytes")},
        }  # fmt: skip
        point["holds"] = {name.removeprefix("max_"): value <= limit for name, value, limit in proving.costs_of(self.budget.limits, point)}
        self.journal.put(point)

    def _examine(self, name: str, folder: Path) -> tuple[Paper, float]:
        """What a file makes of an exam, and its score."""
        exam, generator = self.ground.exams[name], exporting.open_written(folder)
        candidate = self.state["candidates"][int(folder.parent.name)]
        data = self._lesson(_vocab_of(candidate["steps"])).data
        try:
            paper = take(exam, generator, data)
        finally:
            generator.close()
        return paper, exam.value(paper.table)

    def _prove(self, folder: Path) -> dict[str, Any]:
        """Scores of a file on rows that nothing was chosen by, and the share of the model's score that it keeps."""
        exam = self.ground.exams["proof"]
        paper, _ = self._examine("proof", folder)
        kept = exam.compare(paper, self.ground.papers["proof"], self.budget.limits.get("keep"))
        return {"part": exam.part, "scores": paper.scores, "kept": kept}


def take(exam: Exam, generator: Generator, data: Supervision) -> Paper:
    """Let a generator take an exam, whose part's rows are those of the data: in the generator's tokens."""
    rows = data.rows[exam.part] if exam.questions is None else data.rows[exam.part][:FLUENT_ROWS]
    return exam.take(generator, language.token_rows(data.model, rows), [row.row for row in rows])


def _take_once(run: Run, exams: dict[str, Exam], data: Supervision, watch: Watch) -> dict[str, Paper]:
    """What the run's model makes of the exams, kept beside the students."""
    path = run.folder / "candidates" / "reference.json"
    asked = {name: [exam.part, len(exam), list(exam.metrics), exam.max_tokens] for name, exam in exams.items()}
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known.get("asked") != asked:
        watch(Told(f"Scoring the run's model on {' and '.join(dict.fromkeys(exam.part for exam in exams.values()))} rows"))
        generator = language.generator_of(data.model)
        papers = {name: take(exam, generator, data).to_dict() for name, exam in exams.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with full_disk_told(path):
            path.write_text(json.dumps({"asked": asked, "papers": papers}), encoding="utf-8")
        known = json.loads(path.read_text(encoding="utf-8"))
    return {name: Paper.from_dict(facts) for name, facts in known["papers"].items()}


def _milliseconds(speed: dict[str, float]) -> float:
    """Of a token that is written."""
    return round(1000 / max(speed["generation"], 1e-3), 4)


def _size(student: Model) -> str:
    shape = Shape.of(student)
    weights = sum(item.numel() for item in student.network.parameters())
    return f"{shape.layers} layers with {shape.vocabulary:,} tokens ({weights / 1e6:.1f}M weights)"


def _vocab_of(steps: Sequence[str]) -> str | None:
    """The step that cuts the vocabulary, which goes before all others."""
    return next((spec for spec in steps if spec.startswith("vocab")), None)
