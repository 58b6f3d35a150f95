from pathlib import Path

import numpy as np
import pytest
from tiny_artifacts import make_artifact

from lightune.errors import CheckFailed, InputError
from lightune.exports import EXPORTS, Tolerance, find_export, verify
from lightune.runtime import load
from lightune.runtime.answers import Answers

TEXTS = ["good film", "bad film", "the room was bad", "a good room", "😀", ""] * 10
STRICT = Tolerance(agree=1.0, difference=1e-3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "artifact")


def test_equal_logits_pass(folder: Path) -> None:
    parity = verify(load(folder).logits(TEXTS), folder, TEXTS, STRICT)
    assert parity.to_dict() == {"max_abs": pytest.approx(0, abs=1e-6), "agree": 1.0, "rows": 60}


def test_a_difference_of_logits_names_the_example(folder: Path) -> None:
    logits = load(folder).logits(TEXTS)
    logits[2] += 0.01
    with pytest.raises(CheckFailed, match=r"differ by up to 0\.01, allowed 0\.001\d*\. Worst is row 3, 'the room was bad'"):
        verify(logits, folder, TEXTS, STRICT)
    assert verify(logits, folder, TEXTS, Tolerance(agree=1.0)).max_abs == pytest.approx(0.01, abs=1e-5)


def test_other_answers_name_the_worst_of_them(folder: Path) -> None:
    logits = load(folder).logits(TEXTS)
    logits[[1, 4]] = -logits[[1, 4]] * [[1], [3]]
    logits[0] += 100  # a larger difference that changes no answer
    with pytest.raises(
        CheckFailed, match=r"96\.7% of 60 answers are equal, expected at least 98\.0%\. Worst is row 5, '😀': the model says"
    ):
        verify(logits, folder, TEXTS, Tolerance(agree=0.98))


def test_one_other_answer_is_allowed(folder: Path) -> None:
    logits = load(folder).logits(TEXTS[:6])
    logits[1] = -logits[1]
    assert verify(logits, folder, TEXTS[:6], Tolerance(agree=0.98)).agree == pytest.approx(5 / 6)


def test_large_logits_may_differ_by_more(folder: Path) -> None:
    logits = load(folder).logits(TEXTS)
    assert verify(logits + 0.0005, folder, TEXTS, STRICT).max_abs == pytest.approx(0.0005, abs=1e-5)


def test_no_finite_numbers(folder: Path) -> None:
    logits = load(folder).logits(TEXTS)
    logits[3, 1] = np.nan
    with pytest.raises(CheckFailed, match=r"no finite numbers.*row 4"):
        verify(logits, folder, TEXTS, Tolerance(agree=0.0))


def test_each_of_many_labels_is_an_answer(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact", Answers("multilabel", ("a", "b", "c"), thresholds=(0.5, 0.6, 0.4)))
    logits = load(folder).logits(TEXTS)
    logits[5, 1] = -5 if "b" in load(folder).answers.decide(logits)[5] else 5
    assert verify(logits, folder, TEXTS, Tolerance(agree=0.98)).agree == pytest.approx(179 / 180)


def test_numbers_agree_within_a_tenth(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact", Answers("regress", ()))
    logits = load(folder).logits(TEXTS)
    assert verify(logits + 0.05, folder, TEXTS, Tolerance(agree=1.0)).agree == 1.0
    with pytest.raises(CheckFailed, match=r"0\.0% of 60 answers"):
        verify(logits + 0.2, folder, TEXTS, Tolerance(agree=0.98))


def test_rows_and_logits_must_match(folder: Path) -> None:
    with pytest.raises(InputError, match="as many of both"):
        verify(np.zeros((2, 3)), folder, TEXTS, STRICT)
    with pytest.raises(InputError, match="at least one"):
        verify(np.zeros((0, 3)), folder, [], STRICT)


def test_targets_by_name() -> None:
    assert find_export("onnx-int8") is EXPORTS["onnx-int8"]
    with pytest.raises(InputError, match=r"Unknown export target 'onx'.*Did you mean 'onnx'"):
        find_export("onx")
