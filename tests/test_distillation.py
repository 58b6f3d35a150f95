"""A student imitates a teacher: what is recorded, what the losses mean, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny_models
import torch

from lightune import distillation, importance
from lightune.errors import InputError
from lightune.networks import tensors
from lightune.recipes import DistillOptions, TrainOptions
from lightune.runtime.tokenization import batches
from lightune.steps import make_step
from lightune.training import Training

if TYPE_CHECKING:
    from lightune.models import Model
    from lightune.runtime.tokenization import Encoded
    from lightune.sources import Source

FAMILIES = ("bert", "distilbert", "albert")  # encoders with separate matrices
ALONE = DistillOptions(labels_weight=0.0, hidden_weight=0.0)


@pytest.fixture
def teacher(tiny_source: Callable[[str], Source]) -> Model:
    return tiny_models.start(tiny_source("bert"), tiny_models.make_rows(20))


def read(model: Model, count: int = 20) -> Encoded:
    rows = tiny_models.make_rows(count)
    return model.encoder.encode([row.text for row in rows])


def loss_of(student: Model, observed: distillation.Observed, encoded: Encoded, options: DistillOptions) -> float:
    objective = distillation.imitate(student, observed, options)
    total = 0.0
    student.network.eval()
    for rows in batches([len(ids) for ids in encoded.ids], 8):
        batch = tensors(student.encoder.pad(encoded, rows), student.device)
        total += float(
            objective(student.network, batch, torch.zeros(len(rows), dtype=torch.int64, device=student.device), rows).detach().sum()
        )
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(family: str, tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    model = tiny_models.start(tiny_source(family), tiny_models.make_rows(20))
    encoded = read(model)
    options = DistillOptions(labels_weight=0.0, compare="all", relations_weight=1.0)
    observed = distillation.observe([model], encoded, tmp_path, states=distillation.needed_states(options, model, 2))
    assert loss_of(model, observed, encoded, options) < 1e-3  # states are kept in 16 bits
    with torch.no_grad():
        for item in model.network.backbone.parameters():
            item += 0.1 * torch.randn(item.shape, generator=torch.Generator().manual_seed(1))
    assert loss_of(model, observed, encoded, options) > 0.1


def test_logits_are_the_models_own_and_averaged_over_teachers(teacher: Model, tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    rows, encoded = tiny_models.make_rows(20), read(teacher)
    other = tiny_models.start(tiny_source("bert"), rows, seed=5)
    observed = distillation.observe([teacher, other], encoded, tmp_path)
    np.testing.assert_allclose(observed.logits, (teacher.logits(rows) + other.logits(rows)) / 2, atol=1e-5)


def test_what_was_recorded_is_read_again_until_something_changes(teacher: Model, tmp_path: Path) -> None:
    encoded = read(teacher)
    distillation.observe([teacher], encoded, tmp_path, states=("hidden.2",))
    written = (tmp_path / "logits.npy").stat().st_mtime_ns
    distillation.observe([teacher], encoded, tmp_path, states=("hidden.2",))
    assert (tmp_path / "logits.npy").stat().st_mtime_ns == written
    with torch.no_grad():
        teacher.network.head.bias += 1
    again = distillation.observe([teacher], encoded, tmp_path, states=("hidden.2",))
    assert (tmp_path / "logits.npy").stat().st_mtime_ns > written
    np.testing.assert_allclose(again.logits, teacher.logits(tiny_models.make_rows(20)), atol=1e-5)


def test_states_belong_to_their_rows(teacher: Model, tmp_path: Path) -> None:
    encoded = read(teacher)
    observed = distillation.observe([teacher], encoded, tmp_path, states=("hidden.2",))
    for place in (0, 7):
        batch = tensors(teacher.encoder.pad(encoded, [place]))
        with torch.no_grad():
            expected = teacher.network.eval().read(**batch).last_hidden_state[0]
        torch.testing.assert_close(observed.of("hidden.2", np.array([place])), expected, atol=2e-3, rtol=2e-3)


def test_a_student_of_fewer_layers_and_dimensions_learns_from_the_teacher(teacher: Model, tmp_path: Path) -> None:
    rows = tiny_models.make_rows(200)
    for _ in Training(teacher, rows, [], TrainOptions(epochs=6, rate=3e-3)).steps():
        pass
    student = teacher.copy()
    for spec in ("depth=1", "hidden=1/2"):
        student.shrink(make_step(spec), importance.measure(student, rows[:40]))
    encoded = teacher.encoder.encode([row.text for row in rows])
    options = DistillOptions(labels_weight=0.0)
    observed = distillation.observe([teacher], encoded, tmp_path, states=distillation.needed_states(options, teacher, 1))
    test = tiny_models.make_rows(100, seed=3)

    def agreement() -> float:
        return float((student.logits(test).argmax(1) == teacher.logits(test).argmax(1)).mean())

    before, loss = agreement(), loss_of(student, observed, encoded, options)
    for _ in Training(student, rows, [], TrainOptions(epochs=8, rate=3e-3), distillation.imitate(student, observed, options)).steps():
        pass
    assert loss_of(student, observed, encoded, options) < 0.5 * loss
    assert agreement() > before + 0.2


def test_rows_without_a_label_teach_by_the_teacher_alone(teacher: Model, tmp_path: Path) -> None:
    encoded = read(teacher, 4)
    observed = distillation.observe([teacher], encoded, tmp_path)
    known = np.array([True, False, True, False])
    objective = distillation.imitate(teacher, observed, DistillOptions(logits_weight=0.0, hidden_weight=0.0, labels_weight=1.0), known)
    rows = np.arange(4)
    found = objective(teacher.network, tensors(teacher.encoder.pad(encoded, rows)), torch.zeros(4, dtype=torch.int64), rows)
    assert (found.detach().numpy() > 0).tolist() == known.tolist()


def test_the_distance_from_answers_is_zero_for_equal_logits_and_grows(teacher: Model) -> None:
    logits = torch.randn(5, teacher.answers.outputs, generator=torch.Generator().manual_seed(0))
    same = teacher.task.imitate(logits, logits, 2.0)
    assert float(same.abs().max()) < 1e-6
    assert (teacher.task.imitate(logits * 0.1, logits, 2.0) > 1e-4).all()


def test_a_teacher_with_another_tokenizer_or_other_labels_is_refused(teacher: Model, tiny_source: Callable[[str], Source]) -> None:
    rows = tiny_models.make_rows(20)
    with pytest.raises(InputError, match="another tokenizer"):
        distillation.check_teacher(tiny_models.start(tiny_source("roberta"), rows), teacher)
    with pytest.raises(InputError, match="labels"):
        distillation.check_teacher(tiny_models.start(tiny_source("bert"), tiny_models.make_rows(20, "pair"), "pair"), teacher)
    distillation.check_teacher(teacher, teacher)


def test_relations_of_a_base_with_one_matrix_for_all_are_refused(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("gpt2"), tiny_models.make_rows(20))
    with pytest.raises(InputError, match="relations"):
        distillation.needed_states(DistillOptions(relations_weight=1.0), model, 2)
