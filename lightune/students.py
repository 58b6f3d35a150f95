"""Students: smaller copies of a model, and what they learn from. A lesson is made once and serves every student with the same tokens."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lightune import architectures, augmentation, distillation, importance, sources
from lightune.data import Example
from lightune.development import LikenessJudge
from lightune.errors import LightuneError
from lightune.models import Model, load_language_model
from lightune.recipes import DistillOptions, TrainOptions
from lightune.reconstruction import can_reconstruct, reconstruct
from lightune.runtime.tokenization import Encoded
from lightune.steps import UNWEIGHED, make_step, step_name
from lightune.training import Evaluation, Objective, Rows, Step, Training

RATE = 3e-4  # of students: they move further than a fine-tuned base
RATE_AGAIN = 1.5e-4  # of students that learned before: a high one undoes what they know
ROWS = 64  # least rows of a step: what a small model does with fewer is mostly overhead
STATIC_RATE = 3e-3
SAMPLE = 256  # rows from which importance is measured
TIMED_ROWS = 256
CHECKPOINT_SECONDS = 30.0
FIT_SECONDS = 1200.0  # of a search in which students are fitted with full effort

Weigh = Callable[[Model, bool], importance.Importance]  # of a model; whether also by the loss without each layer
Open = Callable[[TrainOptions], Training]


class Teaching(Protocol):
    """What every lesson has: a teacher with the students' tokens, the user's rows in them, and what tells how much each part of a student is worth."""

    @property
    def teacher(self) -> Model: ...

    @property
    def encoded(self) -> Encoded: ...

    def weigh(self, student: Model, leave_out: bool) -> importance.Importance: ...


@dataclass(frozen=True)
class Lesson:
    """What students with the same tokens learn from.

    teacher: the model before, with the students' tokens. rows: the training rows, unlabelled ones and their augmented versions.
    labelled: bool [n], which of them have a label of their own. examples: the labelled rows as text, for importance and the like.
    encoded: the tokens of the rows as they were given, without augmented versions. times: how many of these each row has.
    folder: where the teacher's answers are kept. weighed: what the teacher's parts are worth, see `weigh_once`.
    """

    teacher: Model
    rows: Rows
    labelled: np.ndarray
    examples: Sequence[Example]
    encoded: Encoded
    times: int
    folder: Path
    weighed: dict[bool, importance.Importance] = field(default_factory=dict)

    def weigh(self, student: Model, leave_out: bool) -> importance.Importance:
        """What each part of a student is worth to the task."""
        return weigh_once(student, leave_out, self.teacher, self.weighed, self._measure)

    def _measure(self, student: Model, leave_out: bool) -> importance.Importance:
        return importance.measure(student, self.examples, rows=SAMPLE, leave_out=leave_out)


def prepare_lesson(
    model: Model,
    vocab: Any | None,
    labelled: Sequence[Example],
    unlabelled: Sequence[Example],
    options: DistillOptions,
    folder: Path,
    *,
    seconds: float = float("inf"),
    seed: int = 0,
    times: int | None = None,
) -> Lesson:
    """Cut the vocabulary, encode every row, and add versions with replaced words.

    Args:
        model: the teacher in full. vocab: the planned vocab step of the students, None where they keep all tokens.
        seconds: what the teacher's reading of all rows may take; fewer versions are made where it would take longer.
        times: how many versions; as many as the options and the seconds allow by default.
    """
    teacher = model.copy()
    if vocab is not None:
        teacher.shrink(vocab)
    own = Rows.of(teacher, labelled)
    encoded = own.encoded
    if len(unlabelled):
        encoded = _joined([encoded, teacher.encoder.encode([row.text for row in unlabelled], [row.pair for row in unlabelled])])
    if times is None:
        times = max(0, int(min(options.augment, seconds / max(_reading_seconds(teacher, encoded), 1e-9) - 1)))
    given = encoded
    if times:
        tokens = np.unique(np.concatenate(encoded.ids))
        propose = _proposals(model, vocab, tokens)
        encoded = _joined([encoded, augmentation.augment(encoded, teacher.encoder, propose, times=times, seed=seed)])
    more = len(encoded) - len(own.encoded)
    targets = np.concatenate([own.targets, np.zeros((more, *own.targets.shape[1:]), dtype=own.targets.dtype)])
    known = np.arange(len(encoded)) < len(own.encoded)
    return Lesson(teacher, Rows(encoded, targets, np.ones(len(encoded), dtype=np.float32)), known, labelled, given, times, folder)


def weigh_once(
    student: Model, leave_out: bool, teacher: Model, weighed: dict[bool, importance.Importance], measure: Weigh
) -> importance.Importance:
    """What each part of a student is worth. Students that are not cut yet are all copies of the teacher, which is measured once and kept in `weighed`."""
    if len(student.changes) > len(teacher.changes):
        return measure(student, leave_out)
    if leave_out not in weighed:
        weighed[leave_out] = measure(teacher, leave_out)
    return weighed[leave_out]


def make_student(lesson: Teaching, steps: Sequence[str], before: Model | None = None, *, fit: float = 1.0) -> Model:
    """A smaller copy of a model after some steps: see `cut`.

    Args:
        before: an earlier student of the lesson; its teacher by default.
        fit: the effort with which what is left is given the weights that come nearest to what the model did, where that can be told; see
            `reconstruct`. None at 0.
    """
    before = before or lesson.teacher
    student = cut(before.copy(), steps, lesson.weigh)
    if fit and can_reconstruct(before, student.changes[len(before.changes) :]):
        reconstruct(student, before, lesson.encoded, fit)
    return student


def cut(student: Model, steps: Sequence[str], weigh: Weigh) -> Model:
    """The student itself, made smaller by some steps; each is planned by the importance that is left after the one before."""
    for spec in steps:
        step = make_step(spec)
        student.shrink(step, None if step_name(step) in UNWEIGHED else weigh(student, chooses_layers(spec)))
    return student


def fit_effort(options: DistillOptions, seconds: float) -> float:
    """With what effort the students of a search of so many seconds are fitted."""
    return min(1.0, seconds / FIT_SECONDS) * options.reconstruct


def chooses_layers(spec: str) -> bool:
    """Whether a step takes layers away: what the loss says without each is a better guide to them than what flows through."""
    return type(make_step(spec)).__name__ == "Depth"


def observe_lesson(lesson: Lesson, options: DistillOptions, teachers: Sequence[Model], layers: int) -> distillation.Observed:
    """What the teachers (empty: the lesson's own) say about the rows, as a student of so many layers is compared with it; kept on disk."""
    states = distillation.needed_states(options, lesson.teacher, max(layers, 1))  # a static student reads what others left there
    several = list(teachers) or [lesson.teacher]
    return distillation.observe(several, lesson.rows.encoded, lesson.folder / ("states" if states else "answers"), states=states)


class Course:
    """One student's training, which can stop and go on.

    Args:
        open: gives the training of the student for some options.
        seconds: how long it may take; `epochs` where None.
    """

    def __init__(self, open: Open, train: TrainOptions, *, epochs: float | None = None, seconds: float | None = None) -> None:
        self.training = open(dataclasses.replace(train, epochs=epochs or 1.0))
        self.forecast = self.training.forecast()
        if epochs is None and seconds is not None:
            epochs = max(seconds / max(self.forecast.seconds, 1e-6), 2 / self.training.steps_per_epoch)
            self.training = open(dataclasses.replace(train, epochs=epochs, precision=self.training.precision))
            self.forecast = dataclasses.replace(self.forecast, steps=self.training.total, epochs=epochs, seconds=seconds)
        self.epochs = float(self.training.epochs)

    def steps(
        self, folder: Path, every: float, stop: Callable[[], bool] = lambda: False, seconds: float | None = None
    ) -> Iterator[Step | Evaluation]:
        """Train from the last checkpoint in the folder to the end, writing one now and then; a stop that is asked for saves and returns.

        seconds: how long it may take from here on: the steps follow, see `Training.end_by`.
        """
        self.training.restore(folder)
        if seconds is not None:
            self.training.end_by(self.training.seconds + seconds)
        saved = time.monotonic()
        for fact in self.training.steps():
            yield fact
            if stop():
                self.training.request_stop()
            if (isinstance(fact, Evaluation) or not self.training.evaluates_now) and time.monotonic() - saved >= every:
                self.training.save(folder)
                saved = time.monotonic()
        if self.training.stopping:
            self.training.save(folder)

    def final(self) -> float:
        """The development score of the best weights when `steps` has ended: the primary metric, as the calibrated model answers."""
        return self.training.judge.final()


def open_course(
    student: Model,
    lesson: Lesson,
    dev: Sequence[Example],
    answers: np.ndarray,
    options: DistillOptions,
    train: TrainOptions,
    *,
    teachers: Sequence[Model] = (),
    epochs: float | None = None,
    seconds: float | None = None,
) -> Course:
    """A student's training on a lesson.

    Args:
        answers: logits of the model before for the development rows, [n, k]: the weights that come nearest to them are kept.
        teachers: who is imitated besides the lesson's own teacher; empty for that one alone.
        seconds: how long it may take; `epochs` where None.
    """
    static = not getattr(student.network.backbone.config, "num_hidden_layers", 0)
    train = dataclasses.replace(
        train, rate=STATIC_RATE if static else train.rate or RATE, patience=None, batch_size=max(train.batch_size, ROWS)
    )
    objective = _objective(student, lesson, options, train, teachers)
    known = lesson.rows.targets[lesson.labelled]

    def open(settled: TrainOptions) -> Training:
        return Training(student, lesson.rows, dev, settled, objective, LikenessJudge(student, dev, known, answers))

    return Course(open, train, epochs=epochs, seconds=seconds)


def _objective(student: Model, lesson: Lesson, options: DistillOptions, train: TrainOptions, teachers: Sequence[Model]) -> Objective:
    blocks = int(getattr(student.network.backbone.config, "num_hidden_layers", 0))
    observed = observe_lesson(lesson, options, teachers, blocks)
    if not blocks:
        options = dataclasses.replace(options, hidden_weight=0.0, relations_weight=0.0)
    return distillation.imitate(student, observed, options, lesson.labelled, train.label_smoothing)


def _joined(parts: Sequence[Encoded]) -> Encoded:
    ids = [row for part in parts for row in part.ids]
    types = None if parts[0].types is None else [row for part in parts for row in part.types or ()]
    return Encoded(ids, types, np.concatenate([part.lengths for part in parts]), sum(part.truncated_tokens for part in parts))


def _reading_seconds(teacher: Model, encoded: Encoded) -> float:
    """How long the teacher needs for all rows, from a sample."""
    places = np.linspace(0, len(encoded) - 1, min(TIMED_ROWS, len(encoded))).astype(int)
    types = None if encoded.types is None else [encoded.types[place] for place in places]
    sample = Encoded([encoded.ids[place] for place in places], types, encoded.lengths[places], 0)
    begin = time.perf_counter()
    distillation.read_logits([teacher], sample)
    return (time.perf_counter() - begin) * len(encoded) / len(places)


def _proposals(model: Model, vocab: Any | None, tokens: np.ndarray) -> augmentation.Propose:
    """What the base's masked language model expects, where it has one, else neighbours in the token table, in the students' own ids."""
    ids = np.arange(model.encoder.tokenizer.get_vocab_size()) if vocab is None else np.asarray(vocab.ids)
    mask = model.encoder.tokenizer.token_to_id("[MASK]") or model.encoder.tokenizer.token_to_id("<mask>")
    found = _language_model(model) if mask is not None else None
    if found is not None and mask is not None:
        propose = augmentation.fillers_of(found, mask)
    else:
        propose = augmentation.neighbours_of(architectures.word_embedding(model.network.backbone).weight, ids[tokens])
    return augmentation.translated(propose, ids)


def _language_model(model: Model) -> Any | None:
    """The base with its own masked language model's head; None where its checkpoint has none, or is no longer here."""
    try:
        source = sources.resolve_model(model.base.name, revision=model.base.revision)
        return load_language_model(source)
    except LightuneError:
        return None
