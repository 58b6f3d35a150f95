"""Bytes of smaller files are known before they are there, and what is proposed holds the limits."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_generators import make_language, rows_of

from lightune import language_planning, students
from lightune.exports import find_generative
from lightune.exports.gguf.families import collect_tensors, find_family
from lightune.exports.gguf.sizes import count_bytes
from lightune.importance import Importance
from lightune.language_planning import propose

REFERENCE = {"bytes": 700_000, "milliseconds": 7.0}


def worth(model: Any) -> Importance:
    """Scores that are lowest for what comes last."""
    heads, ffn = (tuple(np.linspace(1, 0.1, size) for _ in range(3)) for size in (4, 96))
    tokens = np.bincount(np.concatenate(rows_of(model.encoder.tokenizer)), minlength=400)
    return Importance(np.array([0.5, 0.2, 0.3]), heads, ffn, np.ones(64), tokens, 8, queries=2)


def shapes_of(network: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in collect_tensors(network, find_family(network.backbone)).items()}


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "q4_k_m"])
def test_bytes_are_those_of_the_file(tmp_path: Path, kind: str, tied: bool) -> None:
    import gguf

    large, small = (make_language("llama", tied=tied, **sizes) for sizes in ({}, {"num_hidden_layers": 2, "intermediate_size": 64}))
    folder = find_generative(f"gguf:type={kind}").write(small, tmp_path / "file", sample=rows_of(small.encoder.tokenizer))
    written = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(folder / "model.gguf").tensors)
    tokens = small.network.head.weight.shape[0]
    assert count_bytes(shapes_of(large.network), kind, layers=2, neurons=64 / 96, tokens=tokens, tied=tied) == written


def test_what_is_proposed_holds_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_planning, "ROOM", 20)
    model = make_language("llama")
    found = propose(model, worth(model), {"max_mb": 0.12}, REFERENCE, 3)
    assert 1 < len(found) <= 3
    assert all(item.bytes < 120_000 and item.steps for item in found)
    assert [item.damage for item in found] == sorted(item.damage for item in found)
    assert len({item.ffn for item in found}) == len(found)
    fast = propose(model, worth(model), {"max_ms": 0.8}, REFERENCE, 3)
    assert all(item.milliseconds < 0.8 for item in fast)


def test_steps_that_are_proposed_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_planning, "ROOM", 20)
    model = make_language("llama")
    few = dataclasses.replace(worth(model), tokens=np.zeros(400, dtype=np.int64))
    (first, *_) = propose(model, few, {"max_mb": 0.12}, REFERENCE, 3)
    assert first.steps[0].startswith("vocab=")
    kept = {spec.partition("=")[0] for spec in first.steps}
    assert kept <= {"vocab", "depth", "ffn"}
    assert first.target.startswith("gguf:type=")
    assert students.make_step(first.steps[0]).keep < 400


def test_the_nearest_is_proposed_where_none_holds() -> None:
    model = make_language("llama")
    (found,) = propose(model, worth(model), {"max_mb": 1e-6}, REFERENCE, 3)
    assert "depth=1" in found.steps
    assert found.target == "gguf:type=q4_0"


def test_without_limits_of_size_levels_of_the_reference_are_looked_at() -> None:
    model = make_language("llama")
    found = propose(model, worth(model), {"keep": 0.9}, {"bytes": 300_000, "milliseconds": 2.0}, 3)
    assert len(found) >= 2
    assert any(item.bytes < 100_000 for item in found)


def test_tokens_of_the_data_are_kept() -> None:
    model = make_language("llama")
    many = SimpleNamespace(encoder=model.encoder)
    assert language_planning.needed_tokens(many, np.zeros(400)) < language_planning.needed_tokens(many, np.ones(400))
