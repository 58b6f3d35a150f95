"""What small language models learn from is made once, and how they learn follows from how much was cut."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_conversations import QUICK, write_base, write_echoes

from lightune import importance, language, language_students, students, token_distillation
from lightune.language_students import LanguageLesson
from lightune.recipes import DistillOptions, resolve


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, language.Supervision, Any]:
    """A recipe, its data as its model reads them, and what gives them to another model."""
    folder = tmp_path_factory.mktemp("ground")
    base, data = write_base(folder / "llama"), write_echoes(folder / "echo.jsonl")
    recipe = resolve({}, {**QUICK, "train": str(data), "model": str(base), "method": "full"})
    prepared = language.prepare(recipe, str(data))
    prepared.model.merge()
    return recipe, prepared, partial(language.attend, recipe=recipe, source=str(data))


def lesson_of(ground: Any, folder: Path, vocab: str | None = None) -> LanguageLesson:
    recipe, prepared, attend = ground
    return language_students.prepare_lesson(prepared.model, vocab, prepared, attend, folder, recipe)


def test_the_teacher_reads_once(ground: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lesson_of(ground, tmp_path).observe(2.0)
    monkeypatch.setattr(token_distillation, "_record", lambda *given: pytest.fail("read again"))
    again = lesson_of(ground, tmp_path).observe(2.0)
    assert np.array_equal(first.ids, again.ids)
    with pytest.raises(pytest.fail.Exception):
        lesson_of(ground, tmp_path).observe(1.0)


def test_the_teacher_is_weighed_once_for_all_students(ground: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = lesson_of(ground, tmp_path)
    first = students.cut(lesson.teacher.copy(), ["depth=2"], lesson.weigh)
    monkeypatch.setattr(importance, "measure", lambda *given, **options: pytest.fail("weighed again"))
    second = students.cut(lesson.teacher.copy(), ["depth=2"], lesson.weigh)
    assert all(torch.equal(value, second.network.state_dict()[name]) for name, value in first.network.state_dict().items())
    with pytest.raises(pytest.fail.Exception):
        students.cut(first, ["ffn=1/2"], lesson.weigh)


@pytest.mark.parametrize("steps", [["depth=2"], ["ffn=1/2"]])
def test_a_student_is_fitted_to_expect_what_its_teacher_expects(ground: Any, tmp_path: Path, steps: list[str]) -> None:
    lesson = lesson_of(ground, tmp_path)
    rows = [torch.from_numpy(row.ids[None].astype(np.int64)) for row in lesson.rows[:20]]

    def distance(student: Any) -> float:
        with torch.no_grad():
            pairs = [(lesson.teacher.network.eval()(ids).log_softmax(-1), student.network.eval()(ids).log_softmax(-1)) for ids in rows]
        return float(np.mean([float((ours.exp() * (ours - theirs)).sum(-1).mean()) for ours, theirs in pairs]))

    plain, fitted = (students.make_student(lesson, steps, fit=fit) for fit in (0.0, 1.0))
    assert distance(fitted) < 0.9 * distance(plain)


def test_what_the_teacher_expects_belongs_to_the_rows(ground: Any, tmp_path: Path) -> None:
    lesson = lesson_of(ground, tmp_path, "vocab=340")
    expected = lesson.observe(1.0)
    network = lesson.teacher.network.eval()
    for place in (0, 40, 75):
        row = lesson.rows[place]
        with torch.no_grad():
            logits = network(torch.from_numpy(row.ids[None].astype(np.int64)))[0]
        found = logits[:-1][torch.from_numpy(row.trained[1:])].log_softmax(1)
        ids, chances = expected.of([place], torch.device("cpu"))
        assert torch.allclose(found.gather(1, ids), chances[:, :-1], atol=0.02)


def test_a_smaller_vocabulary_spells_the_same_texts(ground: Any, tmp_path: Path) -> None:
    _, prepared, _ = ground
    lesson = lesson_of(ground, tmp_path, "vocab=300")
    assert lesson.teacher.network.head.weight.shape[0] == 300
    assert prepared.model.network.head.weight.shape[0] > 300
    for ours, theirs in zip(lesson.rows[:8], prepared.rows["train"][:8], strict=True):
        assert lesson.teacher.encoder.tokenizer.decode(ours.ids, skip_special_tokens=False) == prepared.model.encoder.tokenizer.decode(
            theirs.ids, skip_special_tokens=False
        )
        assert len(ours.ids) <= lesson.teacher.encoder.max_length


@pytest.mark.parametrize(
    ("step", "healing", "method"),
    [
        ("ffn:keep=0.84,multiple=1", "auto", language_students.LORA),
        ("depth=2", "auto", "full"),
        ("depth=2", "lora", language_students.LORA),
        ("ffn:keep=0.84,multiple=1", "full", "full"),
        ("depth=2", "lora:rank=3", "lora:rank=3"),
    ],
)
def test_deep_cuts_train_all_weights(ground: Any, tmp_path: Path, step: str, healing: str, method: str) -> None:
    lesson = lesson_of(ground, tmp_path)
    student = students.cut(lesson.teacher.copy(), [step], lesson.weigh)
    assert language_students.choose_healing(lesson.teacher, student, DistillOptions(healing=healing)) == method


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_student_comes_nearer_to_its_teacher(ground: Any, tmp_path: Path, method: str) -> None:
    lesson = lesson_of(ground, tmp_path)
    lesson = dataclasses.replace(
        lesson, data=dataclasses.replace(lesson.data, rows={"train": lesson.rows})
    )  # so that the last weights stay
    student = students.cut(lesson.teacher.copy(), ["depth=2"], lesson.weigh)
    options = DistillOptions(labels_weight=0.0)
    expected = lesson.observe(options.temperature)
    objective = language_students.imitate(lesson.rows, expected, options)

    def gap() -> float:
        places = np.arange(16)
        ids = torch.from_numpy(student.encoder.pad(language.encode_rows(lesson.rows[:16]).encoded)["input_ids"])
        with torch.no_grad():
            return float(objective(student.network.eval(), {"input_ids": ids}, torch.zeros(16), places).mean())

    before = gap()
    course = language_students.open_course(student, lesson, method, options, resolve({}, {**QUICK, "rate": 0.003}).train, epochs=4.0)
    assert len(list(course.steps(tmp_path / "checkpoints", 1e9))) > 0
    student = student.merge()
    assert gap() < 0.7 * before


def test_a_teacher_knows_nothing_to_gain(ground: Any, tmp_path: Path) -> None:
    lesson = lesson_of(ground, tmp_path)
    options = DistillOptions(labels_weight=0.0)
    objective = language_students.imitate(lesson.rows, lesson.observe(options.temperature), options)
    ids = torch.from_numpy(lesson.teacher.encoder.pad(language.encode_rows(lesson.rows[3:9]).encoded)["input_ids"])
    with torch.no_grad():
        losses = objective(lesson.teacher.network.eval(), {"input_ids": ids}, torch.zeros(6), np.arange(3, 9))
    assert losses.shape == (6,)
    assert losses.abs().max() < 0.01
