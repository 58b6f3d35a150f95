import json
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from lightune.data import Example
from lightune.errors import LightuneError
from lightune.exports import Tolerance, find_export, verify
from lightune.exports.onnx import trace, write
from lightune.models import Model
from lightune.precision import Precision
from lightune.runtime import load
from lightune.sources import resolve_model

pytestmark = [pytest.mark.slow, pytest.mark.shared]


def read_rows(path: Path) -> list[Example]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Example(row["text"], None, str(row["label"]), number) for number, row in enumerate(map(json.loads, lines), 1)]


def start(name: str, rows: list[Example]) -> Model:
    try:
        model = tiny_models.start(resolve_model(name), rows, max_length=128)
    except LightuneError as error:
        pytest.skip(f"{name} cannot be had here: {error}")
    model.network.eval()
    return model


def median_ratio(slow: Model, fast: object, texts: list[str]) -> float:
    """How many times as long the one takes as the other, text by text in turn on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: list[list[float]] = [[], []]
    for text in texts:
        for found, predictor in zip(seconds, (slow, fast), strict=True):
            begun = time.perf_counter()
            predictor.logits([text])  # type: ignore[attr-defined]
            found.append(time.perf_counter() - begun)
    torch.set_num_threads(threads)
    return float(np.median(seconds[0][10:]) / np.median(seconds[1][10:]))


def test_minilm_is_small_fast_and_right(shared_data: Path, tmp_path: Path) -> None:
    rows = read_rows(shared_data / "trec" / "test.jsonl")[:200]
    model = start("minilm", rows)
    graph, logits = trace(model.network, model.encoder.inputs), model.logits(rows)
    plain = write(graph, model.answers, model.encoder, tmp_path / "fp32", base="minilm", name="trec")
    assert verify(logits, plain, rows, find_export("onnx").tolerance).agree == 1.0
    small = write(
        graph, model.answers, model.encoder, tmp_path / "int8", precision=Precision(weights=8, tables=8), base="minilm", name="trec"
    )
    verify(logits, small, rows, Tolerance(agree=0.9))  # the head is untrained, so its answers lie close together
    predictor = load(small, threads=1)
    error = predictor.logits(rows) - logits
    assert np.linalg.norm(error) < 0.15 * np.linalg.norm(logits - logits.mean(axis=0))
    assert sum(path.stat().st_size for path in small.iterdir()) <= 24_000_000
    assert median_ratio(model, predictor, [row.text for row in rows[:60]]) > 2  # 4 and more on a quiet machine


def test_shared_layers_are_stored_once(shared_data: Path, tmp_path: Path) -> None:
    rows = read_rows(shared_data / "chnsenticorp" / "test.jsonl")[:50]
    model = start("albert-tiny-zh", rows)
    path = find_export("onnx-int8").write(model, tmp_path / "int8")
    verify(model.logits(rows), path, rows, Tolerance(agree=0.9))
    weights = sum(item.numel() for item in model.network.parameters())
    assert (path / "model.onnx").stat().st_size < 1.1 * weights
