"""Whole runs in processes of their own: killed, stopped, resumed, and two at once."""

from __future__ import annotations

import csv
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

pytestmark = pytest.mark.slow
LIGHTUNE = [sys.executable, "-m", "lightune"]
PATIENCE = 240  # seconds for a process on a busy machine


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data.csv and a base."""
    folder = tmp_path_factory.mktemp("given")
    tiny_models.save_base("bert", folder / "base")
    with open(folder / "data.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        table.writerows((row.text, row.target) for row in tiny_models.make_rows(400))
    return folder


def arguments(given: Path, out: Path, **options: object) -> list[str]:
    chosen = {
        "model": given / "base", "out": out, "to": "none", "epochs": 5, "batch-size": 16, "precision": "fp32", "device": "cpu", "threads": 1,
        "dropout": 0.1, "rate": 2e-3, "checkpoint-seconds": 0, **options,
    }  # fmt: skip
    return ["fit", str(given / "data.csv"), *(text for name, value in chosen.items() for text in (f"--{name}", str(value)))]


def finish(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


def facts(run: Path) -> list[dict[str, Any]]:
    """What was told of every step, but for the time it took."""
    lines = (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def interrupt(command: list[str], run: Path, number: int, after: int) -> subprocess.Popen[str]:
    """Start a process, and send it a signal when it has taken `after` more steps; gives the process when it has ended."""
    steps = run / "steps.jsonl"
    count = lambda: steps.read_bytes().count(b"\n") if steps.exists() else 0
    begun, limit = count(), time.monotonic() + PATIENCE
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while count() < begun + after and process.poll() is None:
            assert time.monotonic() < limit
            time.sleep(0.002)
        time.sleep(random.random() * 0.03)
        process.send_signal(number)
        process.wait(PATIENCE)
        assert process.stderr
        process.told = process.stderr.read()  # type: ignore[attr-defined]
    return process


@pytest.fixture(scope="module")
def whole(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    finish([*LIGHTUNE, *arguments(given, run)])
    return run


def assert_same(run: Path, whole: Path) -> None:
    assert facts(run) == facts(whole)
    one, other = (json.loads((folder / "run.json").read_text()) for folder in (run, whole))
    assert one["scores"] == other["scores"]
    assert not (run / "checkpoints").exists()


def test_a_run_that_is_killed_at_ten_random_moments_goes_on_exactly(given: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = interrupt([*LIGHTUNE, *arguments(given, run)], run, signal.SIGKILL, random.randint(1, 9))
    assert ended.returncode == -signal.SIGKILL
    for _ in range(9):
        interrupt([*LIGHTUNE, "fit", "--resume", str(run)], run, signal.SIGKILL, random.randint(1, 9))
    finish([*LIGHTUNE, "fit", "--resume", str(run)])
    assert_same(run, whole)


def test_signals_stop_a_run_that_can_be_resumed(given: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = [*LIGHTUNE, *arguments(given, run, **{"checkpoint-seconds": 1000})]
    command = first
    for number in (signal.SIGINT, signal.SIGTERM):
        ended = interrupt(command, run, number, 10)
        told = ended.told  # type: ignore[attr-defined]
        assert ended.returncode == 130, told
        assert re.search(rf"Stopped by {number.name} after step \d+ of 100; saved.", told.replace("\n", " "))
        assert "Traceback" not in told
        command = [*LIGHTUNE, "fit", "--resume", str(run)]
    assert "Going on after step" in finish(command)
    assert_same(run, whole)


def test_two_processes_give_the_losses_of_one_with_the_doubled_batch(given: Path, tmp_path: Path) -> None:
    quiet = {"dropout": 0, "head-dropout": 0, "epochs": 2}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--num_processes", "2"),
        *("--main_process_port", port, "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "lightune"),
    ]
    finish([*LIGHTUNE, *arguments(given, tmp_path / "one", **{**quiet, "batch-size": 32})])
    finish([*launch, *arguments(given, tmp_path / "two", **{**quiet, "batch-size": 16})])
    one, two = facts(tmp_path / "one"), facts(tmp_path / "two")
    assert [(fact["kind"], fact["step"], fact.get("examples"), fact.get("tokens")) for fact in two] == [
        (fact["kind"], fact["step"], fact.get("examples"), fact.get("tokens")) for fact in one
    ]
    assert len(one) == 22
    np.testing.assert_allclose([fact["loss"] for fact in two], [fact["loss"] for fact in one], rtol=1e-4)
    norms = [[fact["gradient_norm"] for fact in found if fact["kind"] == "step"] for found in (one, two)]
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-3)
