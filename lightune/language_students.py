"""Smaller copies of a model that generates, what they learn from, and how: see `students` for those of models that classify or score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightune import architectures, importance, language
from lightune.language import Supervision, supervised_vectors
from lightune.methods import make_method
from lightune.models import Model
from lightune.networks import tensors
from lightune.recipes import DistillOptions, Recipe, TrainOptions
from lightune.runtime.tokenization import Encoded, batches
from lightune.steps import make_step
from lightune.students import Course, weigh_once
from lightune.supervision import Supervised
from lightune.token_distillation import Expected, Read, describe_reading, imitation_losses, observe_tokens
from lightune.training import Objective, Training

RATE = 5e-4  # of students all of whose weights are trained: they move further than a fine-tuned base
SMALL_CUT = 0.2  # share of the blocks' weights that may be gone before LoRA no longer makes up for it
LORA = "lora:rank=16,alpha=32"
SAMPLE, LEFT_OUT = 64, 24  # rows from which importance is measured; where layers are left out one after another, in over a hundred passes
READ_ROWS, READ_TOKENS = 64, 4096  # of a batch that a teacher reads


@dataclass(frozen=True)
class LanguageLesson:
    """What students with the same tokens learn from.

    data: the teacher, which is the model before with the students' tokens, and the rows in these tokens. folder: where what the teacher
    expects is kept. precision: fp32 or bf16, of passes without training. weighed: what the teacher's parts are worth, see `students.weigh_once`.
    """

    data: Supervision
    folder: Path
    precision: str = "fp32"
    weighed: dict[bool, importance.Importance] = field(default_factory=dict)

    @property
    def teacher(self) -> Model:
        """The model before, with the students' tokens."""
        return self.data.model

    @property
    def rows(self) -> Sequence[Supervised]:
        """The training rows."""
        return self.data.rows["train"]

    @property
    def encoded(self) -> Encoded:
        """The training rows' tokens."""
        return language.encode_rows(self.rows).encoded

    def weigh(self, student: Model, leave_out: bool) -> importance.Importance:
        """What each part of a student is worth to the loss of the training answers."""
        return weigh_once(student, leave_out, self.teacher, self.weighed, self._measure)

    def _measure(self, student: Model, leave_out: bool) -> importance.Importance:
        with self._rounded():
            return importance.measure(
                student,
                language.encode_rows(self.rows),
                rows=LEFT_OUT if leave_out else SAMPLE,
                leave_out=leave_out,
                objective=language.answer_objective(self.rows),
            )

    def observe(self, temperature: float) -> Expected:
        """What the teacher expects of every answer's tokens; it reads them once, then they lie in the folder."""
        counts = np.array([int(row.trained[1:].sum()) for row in self.rows])
        key = describe_reading(self.teacher.network, [row.ids for row in self.rows])
        return observe_tokens(self.teacher.network, counts, key, self._read, self.folder, temperature)

    def _read(self) -> Read:
        network, encoded = self.teacher.network, self.encoded
        network.eval()
        for places in batches([len(ids) for ids in encoded.ids], READ_ROWS, READ_TOKENS):
            ids = tensors(self.teacher.encoder.pad(encoded, places), self.teacher.device)["input_ids"]
            with torch.no_grad(), self._rounded():
                hidden, _, _ = supervised_vectors(network, ids, [self.rows[place] for place in places])
            yield places, hidden.float()

    def _rounded(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.teacher.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def prepare_lesson(
    model: Model, vocab: str | None, data: Supervision, attend: Callable[[Model], Supervision], folder: Path, recipe: Recipe
) -> LanguageLesson:
    """Cut the vocabulary of a copy of the model, and make the rows anew in what tokens are left.

    Args:
        vocab: the spec of the step, None where students keep all tokens. data: the rows in the model's own tokens.
        attend: gives the data as a model reads them.
    """
    if vocab is None:
        return LanguageLesson(data, folder, recipe.train.precision)
    teacher, rows = model.copy(), data.rows["train"]
    found = importance.measure(
        teacher, language.encode_rows(rows[:1]), rows=1, objective=language.answer_objective(rows[:1])
    )  # of which the step reads the counts of tokens alone
    teacher.shrink(make_step(vocab), dataclasses.replace(found, tokens=count_tokens(rows, teacher)))
    if recipe.data.too_long != "error":
        return LanguageLesson(attend(teacher), folder, recipe.train.precision)
    length, longest = teacher.encoder.max_length, architectures.longest_input(teacher.network.backbone.config)
    teacher.encoder.max_length = longest or 4 * length  # a text has more tokens where fewer are known
    spelled = attend(teacher)
    teacher.encoder.max_length = max(length, *(len(row.ids) for part in spelled.rows.values() for row in part))
    return LanguageLesson(spelled, folder, recipe.train.precision)


def count_tokens(rows: Sequence[Supervised], model: Model) -> np.ndarray:
    """How often each token of a model occurs in its rows: int64 [V]."""
    size = architectures.word_embedding(model.network.backbone).num_embeddings
    return np.bincount(np.concatenate([row.ids for row in rows]), minlength=size).astype(np.int64)


def choose_healing(teacher: Model, student: Model, options: DistillOptions) -> str:
    """The method that trains a student: as the options say, or LoRA where little of the blocks' weights was cut, else all weights."""
    if options.healing != "auto":
        return LORA if options.healing == "lora" else options.healing
    left, whole = (
        sum(item.numel() for block in architectures.blocks(model.network.backbone) for item in block.parameters())
        for model in (student, teacher)
    )
    return LORA if 1 - left / whole <= SMALL_CUT else "full"


def open_course(
    student: Model,
    lesson: LanguageLesson,
    method: str,
    options: DistillOptions,
    train: TrainOptions,
    *,
    epochs: float | None = None,
    clock: Callable[[], float] | None = None,
) -> Course:
    """A student's training on a lesson; the method that trains it is put on it here, for `Model.merge` to fold into its weights.

    clock: tells, once the teacher has read, how many seconds the training may take; `epochs` where None.
    """
    torch.manual_seed(train.seed)
    student.apply(make_method(method))
    expected = lesson.observe(options.temperature)
    objective = imitate(lesson.rows, expected, options)
    judge = language.LossJudge(student, lesson.data.rows.get("dev", ())[: language.JUDGED_ROWS])
    judge.remember()
    rate = train.rate or (RATE if method == "full" else None)

    def open(settled: TrainOptions) -> Training:
        training = Training(student, language.encode_rows(lesson.rows), (), settled, objective, judge)
        judge.precision = training.in_precision
        return training

    return Course(open, dataclasses.replace(train, rate=rate, patience=None), epochs=epochs, seconds=clock() if clock else None)


def imitate(rows: Sequence[Supervised], expected: Expected, options: DistillOptions) -> Objective:
    """The mean over each row's supervised tokens of what `imitation_losses` gives."""

    def losses(network: Any, batch: dict[str, Tensor], targets: Tensor, places: np.ndarray) -> Tensor:
        hidden, labels, owners = supervised_vectors(network, batch["input_ids"], [rows[place] for place in places])
        theirs = expected.of(places, hidden.device)
        each = imitation_losses(network, hidden, labels, theirs, expected.temperature, options)
        return language.row_means(each, owners, len(places))

    return losses
