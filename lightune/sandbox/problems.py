"""Programming problems with tests, in the shapes of MBPP and HumanEval, the code in an answer, and pass@k."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightune.errors import InputError
from lightune.sandbox import Outcome, run_python

STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(")  # where the continuation of a HumanEval prompt ends (Chen et al. 2021)
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Problem:
    """A task for a program. name: its id. prompt: what a model is asked. before, after: code around an answer that makes it a tested program."""

    name: str
    prompt: str
    before: str
    after: str

    def program(self, answer: str) -> str:
        """The whole program to be run: what comes before, the answer's code, the tests."""
        return f"{self.before}{extract_code(answer)}\n{self.after}\n"


def read_problem(row: Mapping[str, Any]) -> Problem:
    """A row of MBPP (text, test_list, test_setup_code) or HumanEval (prompt, test, entry_point) as a Problem.

    MBPP's prompt is that of Austin et al. 2021. An answer to HumanEval is the rest of the function, or the function again as a whole.
    """
    if {"prompt", "test", "entry_point"} <= row.keys():
        checks = f"{row['test']}\ncheck({row['entry_point']})"
        return Problem(str(row.get("task_id", "")), row["prompt"], row["prompt"], checks)
    if {"text", "test_list"} <= row.keys():
        tests = "\n".join(row["test_list"])
        prompt = (
            f"You are an expert Python programmer, and here is your task: {row['text']} Your code should pass these tests:\n\n{tests}\n"
        )
        return Problem(str(row.get("task_id", "")), prompt, "", "\n".join(filter(None, (row.get("test_setup_code"), tests))))
    raise InputError(
        f"A programming problem has the keys {', '.join(row) or '(none)'}; expected text and test_list (MBPP), or prompt, test and "
        "entry_point (HumanEval)."
    )


def extract_code(answer: str) -> str:
    """The Python in an answer: its first fenced block that says python (else its first fenced block; else all of it), as it stands."""
    blocks = _FENCE.findall(answer)
    if not blocks:
        return answer
    return next((code for language, code in blocks if language.lower() in ("python", "py", "python3")), blocks[0][1])


def run_samples(problem: Problem, answers: Sequence[str], *, seconds: float = 10.0, memory_mb: int = 512) -> list[Outcome]:
    """Each answer to a problem, run with its tests: see `run_python`. Equal programs are run once."""
    programs = [problem.program(answer) for answer in answers]
    outcomes = {program: run_python(program, seconds=seconds, memory_mb=memory_mb) for program in dict.fromkeys(programs)}
    return [outcomes[program] for program in programs]


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """The chance that of k samples of one problem at least one passes: 1 - C(n - c, k) / C(n, k), unbiased (Chen et al. 2021, equation 1).

    Raises:
        InputError: k is less than 1 or more than the samples, or more passed than there are.
    """
    if not 1 <= k <= samples or not 0 <= passed <= samples:
        raise InputError(f"Got pass@{k} of {samples} samples of which {passed} passed; expected 1 ≤ k ≤ samples and 0 ≤ passed ≤ samples.")
    if samples - passed < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))
