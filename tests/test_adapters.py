"""PEFT's folders, both ways: what is written here answers the same in PEFT, and what PEFT writes answers the same here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch

from lightune import models
from lightune.adapters import CONFIG, WEIGHTS, read_adapter, write_adapter
from lightune.errors import InputError, IntegrityError
from lightune.methods import make_method
from lightune.models import Model
from lightune.networks import tensors
from lightune.sources import Source
from lightune.tasks import find_task

peft = pytest.importorskip("peft")
ROWS = tiny_models.make_rows(8)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),  # how peft asks transformers
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),  # what peft passes to GPT-2
]
SHARED = [
    ("bert", "lora:rank=2,alpha=6,targets=query+value"),
    ("llama", "lora:rank=4,rslora=true"),
    ("gpt2", "lora:rank=2,targets=c_attn"),
    ("distilbert", "lora:rank=2,dora=true,targets=q_lin"),
    ("bert", "lora:rank=2,ranks=1+2+3+1+2+3+1+2+3+1+2+3"),
    ("bert", "ia3"),
    ("llama", "ia3"),
    ("bert", "norms"),
    ("roberta", "prompt:tokens=3"),
    ("gpt2", "prefix:tokens=3"),
]


def plain(source: Source) -> Model:
    return models.start(source, find_task("classify").describe(ROWS), max_length=16)


def moved(source: Source, spec: str) -> Model:
    """A model whose method holds random values."""
    model = plain(source).apply(make_method(spec))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for item in model.trainable().values():
            item.add_(torch.randn(item.shape, generator=draw) * 0.3)
    return model


def vectors(model: Model, backbone: Any) -> torch.Tensor:
    """What a backbone gives for the tokens of every row, padding left out."""
    encoded = model.encoder.encode([row.text for row in ROWS])
    batch = tensors(model.encoder.pad(encoded))
    batch.pop("token_type_ids", None)  # peft ignores them
    with torch.no_grad():
        found = backbone.eval()(**batch).last_hidden_state
    return found[:, -batch["input_ids"].shape[1] :] * batch["attention_mask"][..., None]


@pytest.mark.parametrize(("family", "spec"), SHARED)
def test_what_is_written_answers_the_same_in_peft(family: str, spec: str, tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    ours, other = moved(tiny_source(family), spec), plain(tiny_source(family))
    theirs = peft.PeftModel.from_pretrained(other.network.backbone, write_adapter(ours, tmp_path / "adapter"))
    torch.testing.assert_close(vectors(ours, ours.network.backbone), vectors(other, theirs), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "spec"), SHARED)
def test_what_peft_writes_answers_the_same_here(family: str, spec: str, tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    first, other = moved(tiny_source(family), spec), plain(tiny_source(family))
    theirs = peft.PeftModel.from_pretrained(other.network.backbone, write_adapter(first, tmp_path / "ours"))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = read_adapter(plain(tiny_source(family)), tmp_path / "theirs")
    torch.testing.assert_close(vectors(ours, ours.network.backbone), vectors(other, theirs), atol=1e-5, rtol=0)
    again = models.load(ours.save(tmp_path / "model"))
    torch.testing.assert_close(vectors(again, again.network.backbone), vectors(ours, ours.network.backbone), atol=0, rtol=0)


def test_an_adapter_of_a_model_with_a_head_is_read(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    source = tiny_source("bert")
    whole = AutoModelForSequenceClassification.from_pretrained(source.folder, num_labels=3)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], init_lora_weights=False)
    peft.get_peft_model(whole, config).save_pretrained(tmp_path / "theirs")
    text = json.loads((tmp_path / "theirs" / CONFIG).read_text())
    (tmp_path / "theirs" / CONFIG).write_text(json.dumps({**text, "modules_to_save": None}))
    ours = read_adapter(plain(source), tmp_path / "theirs")
    torch.testing.assert_close(vectors(ours, ours.network.backbone), vectors(ours, whole.base_model), atol=1e-5, rtol=0)


def test_what_peft_has_not_is_refused(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    for spec in ("full", "houlsby", "lora:init=pissa,rank=2"):
        with pytest.raises(InputError, match="PEFT's format holds what ia3, lora, norms, prefix, prompt trained"):
            write_adapter(moved(tiny_source("bert"), spec), tmp_path / "no")
    assert not (tmp_path / "no").exists()
    with pytest.raises(InputError, match="also holds queries here"):
        write_adapter(moved(tiny_source("gpt2"), "ia3"), tmp_path / "no")


def test_folders_that_do_not_fit_are_refused(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    folder = write_adapter(moved(tiny_source("bert"), "lora:rank=2"), tmp_path / "adapter")
    with pytest.raises(InputError, match="is no PEFT adapter"):
        read_adapter(plain(tiny_source("bert")), tmp_path)
    with pytest.raises(InputError, match="not adapted yet"):
        read_adapter(moved(tiny_source("bert"), "head"), folder)
    with pytest.raises(InputError, match=r"does not fit|but not the like of it"):
        read_adapter(plain(tiny_source("gpt2")), folder)
    facts = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**facts, "peft_type": "VERA"}))
    with pytest.raises(InputError, match="holds the PEFT method 'VERA'"):
        read_adapter(plain(tiny_source("bert")), folder)
    (folder / CONFIG).write_text(json.dumps(facts))
    (folder / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_adapter(plain(tiny_source("bert")), folder)
