"""`peft:NAME`: any other method of the peft package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from lightune import models
from lightune.errors import InputError, MissingExtra
from lightune.methods import make_method, method_name
from lightune.options import format_spec
from lightune.sources import Source

pytest.importorskip("peft")
ROWS = tiny_models.make_rows(12)
NAMES = (
    "vera",
    "loha:r=4",
    "lokr",
    "oft",
    "boft:boft_block_size=4",
    "fourierft:n_frequency=50",
    "hra",
    "randlora",
    "ln_tuning",
    "lora:r=2,use_dora=true",
)


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_saves_and_merges_through_peft(name: str, tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    model = tiny_models.start(tiny_source("bert"), ROWS, method=f"peft:{name}", max_length=16)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for item in model.trainable().values():
            item += 0.05 * torch.randn(item.shape, generator=draw)
    before = model.logits(ROWS)
    small = model.save(tmp_path / "model")
    again = models.load(small)
    np.testing.assert_array_equal(again.logits(ROWS), before)
    assert set(again.trainable()) == set(model.trainable())
    np.testing.assert_allclose(again.merge().logits(ROWS), before, atol=1e-5)
    assert (small / "weights.safetensors").stat().st_size < (again.save(tmp_path / "whole") / "weights.safetensors").stat().st_size
    plain = tiny_models.start(tiny_source("bert"), ROWS, method="head")
    assert set(again.network.state_dict()) == set(plain.network.state_dict())


def test_specs_come_back() -> None:
    short = make_method("peft:loha:r=4,target_modules=query+value")
    assert (short.name, short.options) == ("loha", "r=4;target_modules=query+value")
    assert make_method("peft:loha,r=4,target_modules=query+value") == short
    assert make_method(format_spec(method_name(short), short)) == short
    assert make_method("peft") == make_method("peft:vera")


def test_options_reach_peft(tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source("bert"), ROWS, method="peft:lora:r=3,target_modules=query+value")
    assert {item.shape[0] for name, item in model.trainable().items() if "lora_A" in name} == {3}
    assert {name.split(".lora")[0].rpartition(".")[2] for name in model.trainable() if "lora" in name} == {"query", "value"}


def test_what_peft_refuses_is_told(tiny_source: Callable[[str], Source]) -> None:
    for spec, family, told in (
        ("peft:vra", "bert", r"Unknown method of peft 'vra'.*Did you mean 'vera'"),
        ("peft:prompt_tuning", "bert", "Unknown method of peft 'prompt_tuning'"),
        ("peft:loha:rank=4", "bert", "PEFT's loha has no option 'rank'"),
        ("peft:loha", "gpt2", r"PEFT cannot put loha into GPT2Model: .*Conv1D"),
    ):
        with pytest.raises(InputError, match=told):
            tiny_models.start(tiny_source(family), ROWS, method=spec)


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, tiny_source: Callable[[str], Source]) -> None:
    monkeypatch.setitem(sys.modules, "peft.mapping", None)
    with pytest.raises(MissingExtra, match=r"the method peft:vera needs the package 'peft'.*pip install 'lightune\[peft\]'"):
        tiny_models.start(tiny_source("bert"), ROWS, method="peft:vera")
