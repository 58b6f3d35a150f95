"""What a lesson measures once for all its students."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny_models

from lightune import importance, students
from lightune.recipes import DistillOptions

if TYPE_CHECKING:
    from lightune.models import Model
    from lightune.sources import Source

STEPS = ("depth=1", "ffn=1/2")


@pytest.fixture
def prepare(tiny_source: Callable[[str], Source], tmp_path: Path) -> Callable[[], students.Lesson]:
    """Makes a lesson without augmented rows, each time of the same teacher."""
    rows = tiny_models.make_rows(20)
    teacher = tiny_models.start(tiny_source("bert"), rows)
    return lambda: students.prepare_lesson(teacher, None, rows, [], DistillOptions(), tmp_path, times=0)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """The layers of every model whose parts were weighed, and whether also without each layer."""
    seen: list[tuple[int, bool]] = []
    measure = importance.measure

    def watched(model: Model, *given: Any, leave_out: bool, **options: Any) -> importance.Importance:
        seen.append((int(model.network.backbone.config.num_hidden_layers), leave_out))  # type: ignore[union-attr, arg-type]
        return measure(model, *given, leave_out=leave_out, **options)

    monkeypatch.setattr(importance, "measure", watched)
    return seen


def test_the_teacher_is_weighed_once_for_all_students(prepare: Callable[[], students.Lesson], measured: list[tuple[int, bool]]) -> None:
    lesson = prepare()
    first, second = students.make_student(lesson, STEPS), students.make_student(lesson, STEPS)
    assert measured == [(2, True), (1, False), (1, False)]  # what is cut already is another model
    students.make_student(lesson, STEPS[1:])
    assert measured[3:] == [(2, False)]
    alone = students.make_student(prepare(), STEPS)
    weights = alone.network.state_dict()
    for student in (first, second):
        assert all((value == weights[name]).all() for name, value in student.network.state_dict().items())


def test_what_is_not_asked_is_not_measured(prepare: Callable[[], students.Lesson], measured: list[tuple[int, bool]]) -> None:
    students.make_student(prepare(), ("pool=1", "magnitude=1/2"))
    assert measured == []


def test_students_are_fitted_on_the_rows_as_given(
    tiny_source: Callable[[str], Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, seen = tiny_models.make_rows(20), []
    teacher = tiny_models.start(tiny_source("bert"), rows)
    more = [dataclasses.replace(row, target=None) for row in tiny_models.make_rows(30)[20:]]
    lesson = students.prepare_lesson(teacher, None, rows, more, DistillOptions(), tmp_path, times=2)
    assert len(lesson.rows.encoded) == 3 * len(lesson.encoded)
    monkeypatch.setattr(students, "reconstruct", lambda student, before, encoded, effort: seen.append((encoded, effort)))
    students.make_student(lesson, STEPS, fit=0.5)
    students.make_student(lesson, STEPS, fit=0.0)
    ((encoded, effort),) = seen
    given = teacher.encoder.encode([row.text for row in (*rows, *more)]).ids
    assert [ids.tolist() for ids in encoded.ids] == [ids.tolist() for ids in given]
    assert effort == 0.5


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 0), (1e6, 6)])
def test_rows_get_as_many_versions_as_can_be_read(tiny_source: Callable[[str], Source], tmp_path: Path, seconds: float, times: int) -> None:
    rows = tiny_models.make_rows(20)
    teacher = tiny_models.start(tiny_source("bert"), rows)
    lesson = students.prepare_lesson(teacher, None, rows, [], DistillOptions(), tmp_path, seconds=seconds)
    assert lesson.times == times
    assert len(lesson.rows.encoded) == (1 + times) * len(rows)


@pytest.mark.parametrize(
    ("seconds", "asked", "effort"), [(300.0, True, 0.25), (1200.0, True, 1.0), (9000.0, True, 1.0), (300.0, False, 0.0)]
)
def test_a_short_search_fits_its_students_on_fewer_rows(seconds: float, asked: bool, effort: float) -> None:
    assert students.fit_effort(DistillOptions(reconstruct=asked), seconds) == effort
