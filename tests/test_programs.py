"""pass@k through `lightune evaluate`: problems with tests, and a generator that knows right and wrong programs."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from bigrams import BigramGenerator
from parrots import Coder
from test_cli import failure

from lightune import predictors
from lightune.cli import main
from lightune.data.records import read_records
from lightune.errors import InputError
from lightune.language_evaluation import evaluate_programs, read_ks
from lightune.recipes import ProgramOptions

Capture = pytest.CaptureFixture[str]
MBPP = {"text": "Write a function that doubles.", "task_id": 3, "test_setup_code": "", "test_list": ["assert double(2) == 4"]}
HUMANEVAL = {
    "task_id": "HumanEval/9", "prompt": 'def first(xs):\n    """The first of xs."""\n', "entry_point": "first",
    "test": "def check(candidate):\n    assert candidate([3, 4]) == 3",
}  # fmt: skip
RIGHT, WRONG = "```python\ndef double(x):\n    return 2 * x\n```", "def double(x): return x"
KNOWN = {"doubles": (WRONG, RIGHT, WRONG, WRONG), "first": ("    return xs[0]", "    return xs[", "    return xs[-1]", "    return xs[0]")}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two problems, and the generator in the place of a run."""
    monkeypatch.setattr(predictors, "open_generator", lambda *_, **__: predictors.Writer(Coder(KNOWN), tmp_path))
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (MBPP, HUMANEVAL)), encoding="utf-8")
    return path


def evaluated(capture: Capture, *arguments: str) -> dict[str, Any]:
    capture.readouterr()
    assert main(["evaluate", "coder", *arguments, "--json"]) == 0
    return json.loads(capture.readouterr().out)


def chance(passed: int, draws: int, k: int) -> float:
    """The share of all choices of k programs that hold one that passes."""
    choices = list(combinations([True] * passed + [False] * (draws - passed), k))
    return sum(any(choice) for choice in choices) / len(choices)


def test_several_programs_are_drawn_and_run(data: Path, capsys: Capture) -> None:
    found = evaluated(capsys, str(data), "--metrics", "pass@1,pass@3", "--draws", "4")
    assert (found["rows"], found["draws"], found["temperature"]) == (2, 4, 0.8)
    for k in (1, 3):
        assert found["scores"][f"pass@{k}"]["value"] == pytest.approx((chance(1, 4, k) + chance(2, 4, k)) / 2, abs=1e-6)
    assert found["scores"]["primary"] == "pass@1"
    assert found["outcomes"] == {"assertion": 4, "passed": 3, "syntax": 1}
    worst = found["worst"][0]
    assert (worst["row"], worst["answer"], worst["passed"], worst["reason"]) == (1, WRONG, 1, "assertion")


def test_one_program_is_the_likeliest(data: Path, capsys: Capture) -> None:
    found = evaluated(capsys, str(data), "--metrics", "pass@1")
    assert (found["draws"], found["temperature"]) == (1, 0)
    assert found["scores"]["pass@1"]["value"] == 0.5
    assert evaluated(capsys, str(data), "--metrics", "pass@1", "pass@2")["draws"] == 2
    assert main(["evaluate", "coder", str(data), "--metrics", "pass@1", "--at-least", "0.6"]) == 1
    assert "Worst answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metrics", "pass@1", "bleu"), "bleu is no pass@k"),
        (("--metrics", "pass@0"), "pass@0 is no pass@k"),
        (("--metrics", "pass@5", "--draws", "3"), "expected at least 5 draws"),
        (("--metrics", "pass@5", "--temperature", "0"), "a temperature above 0"),
        (("--metrics", "pass@1", "--part", "test"), "no parts"),
        (("--metrics", "multiple_choice"), "Row 1 is no question"),
        (("--metrics", "multiple_choice", "bleu"), "stands alone"),
    ],
)
def test_what_cannot_be_measured_is_refused(data: Path, capsys: Capture, options: tuple[str, ...], message: str) -> None:
    assert message in failure(capsys, "evaluate", "coder", str(data), *options)


def test_rows_without_tests_are_refused_with_their_columns() -> None:
    with pytest.raises(InputError, match="expected text and test_list"):
        evaluate_programs(Coder(KNOWN), [(1, {"question": "?"})], (1,), ProgramOptions())
    assert read_ks(("pass@1", "pass@10")) == (1, 10)
    assert read_ks(("bleu",)) == ()


def test_a_program_that_never_ends_is_a_timeout() -> None:
    found = evaluate_programs(Coder({"doubles": ("while True: pass",)}), [(1, MBPP)], (1,), ProgramOptions(test_seconds=0.3))
    assert found["outcomes"] == {"timeout": 1}


def test_multiple_choice_by_the_command_line(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictors, "open_generator", lambda *_, **__: predictors.Writer(BigramGenerator({" ": "a", "a": "b"}), tmp_path))
    rows = [{"question": f"q{number}", "choices": ["ab", "xq"], "answer": number % 2} for number in range(4)]
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = evaluated(capsys, str(path), "--metrics", "multiple_choice", "--score-rows", "3")
    assert (found["rows"], found["available"]) == (3, 4)
    assert {pick for pick, _ in found["predictions"]} == {0}


def test_records_of_a_part_and_of_rows(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / f"{part}.jsonl").write_text(json.dumps({"a": part}) + "\n" + json.dumps({"b": 1}) + "\n", encoding="utf-8")
    assert read_records(tmp_path) == [(1, {"a": "test"}), (2, {"b": 1})]
    assert read_records(tmp_path, part="train", limit=1) == [(1, {"a": "train"})]
    assert read_records([{"a": 1}]) == [(1, {"a": 1})]
    with pytest.raises(InputError, match="no part 'dev'"):
        read_records(tmp_path, part="dev")


@pytest.mark.shared
def test_real_problems_are_read(shared_data: Path) -> None:
    for name, count in (("humaneval", 164), ("mbpp", 500)):
        assert len(read_records(shared_data / name)) == count
