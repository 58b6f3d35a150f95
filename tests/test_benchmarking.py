from pathlib import Path

import numpy as np
import pytest
from tiny_artifacts import make_artifact

from lightune import benchmarking
from lightune.benchmarking import folder_bytes, latency, measure, resident_bytes, throughput
from lightune.errors import CheckFailed, InputError
from lightune.runtime import Predictor, load
from lightune.runtime.answers import Answers

TEXTS = ["good film", "the room was bad", "a good room"]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load(make_artifact(tmp_path_factory.mktemp("artifacts") / "tiny"), threads=1)


class Counting:
    """A predictor that counts what it is asked."""

    def __init__(self, inner: Predictor) -> None:
        self.encoder = inner.encoder
        self.inner = inner
        self.sizes: list[int] = []

    def logits(self, examples: list[str]) -> object:
        self.sizes.append(len(examples))
        return self.inner.logits(examples)


def test_latency_counts_runs_and_tokens(predictor: Predictor) -> None:
    counting = Counting(predictor)
    found = latency(counting, TEXTS, runs=20, warmup=3, batch=2)
    assert counting.sizes == [2] * 23
    assert 0 < found.p50 <= found.p95
    assert (found.batch, found.length) == (2, 5)


def test_the_length_is_what_is_left_of_the_text(predictor: Predictor) -> None:
    assert latency(predictor, ["good " * 100], runs=10, warmup=0).length == 16


def test_throughput_runs_full_batches(predictor: Predictor) -> None:
    counting = Counting(predictor)
    assert throughput(counting, TEXTS, batch=4, runs=5) > 0
    assert counting.sizes == [4] * 6


def test_slow_models_run_less_often(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarking, "MOST_SECONDS", 0.0)
    counting = Counting(predictor)
    latency(counting, TEXTS, runs=1000, warmup=1)
    assert len(counting.sizes) == 1 + benchmarking.LEAST_RUNS


def test_memory_is_that_of_the_runtime_alone(predictor: Predictor, tmp_path: Path) -> None:
    ballast = np.ones(40_000_000)  # what this process holds does not count
    found = resident_bytes(predictor.folder, TEXTS)
    assert 20_000_000 < found < 200_000_000
    del ballast
    with pytest.raises(CheckFailed, match="fresh process"):
        resident_bytes(tmp_path, TEXTS)


def test_everything_at_once(predictor: Predictor) -> None:
    found = measure(predictor, TEXTS, predictor.folder)
    assert set(found) == {"milliseconds", "examples_per_second", "resident_bytes", "bytes"}
    assert set(found["milliseconds"]) == {"p50", "p95", "batch", "length"}
    assert found["examples_per_second"]["batch"] == 32
    assert found["bytes"] == folder_bytes(predictor.folder) == sum(path.stat().st_size for path in predictor.folder.iterdir())


def test_a_model_without_a_folder(predictor: Predictor) -> None:
    found = measure(predictor, TEXTS)
    assert found["resident_bytes"] is None
    assert found["bytes"] is None


def test_pairs(tmp_path: Path) -> None:
    predictor = load(make_artifact(tmp_path / "artifact", Answers("pair", ("no", "yes")), types=True), threads=1)
    assert latency(predictor, [("good", "bad")], runs=10, warmup=0).length == 5
    assert resident_bytes(predictor.folder, [("good", "bad")]) > 0


@pytest.mark.parametrize("act", [latency, throughput, measure])
def test_nothing_to_measure_with(predictor: Predictor, act: object) -> None:
    with pytest.raises(InputError, match="no examples"):
        act(predictor, [])  # type: ignore[operator]
