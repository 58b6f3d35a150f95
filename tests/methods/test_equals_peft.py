"""What is trained means the same here and in PEFT: equal parameters, equal answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch

from lightune.models import Model
from lightune.networks import tensors
from lightune.sources import Source

peft = pytest.importorskip("peft")
ROWS = tiny_models.make_rows(12)
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # how peft asks transformers


def start(source: Source, spec: str) -> Model:
    return tiny_models.start(source, ROWS, method=spec, max_length=16)


def fill(model: Model, ending: str, spread: float = 1.0) -> dict[str, torch.Tensor]:
    """Random values for the trained parameters whose names end so."""
    draw, found = torch.Generator().manual_seed(0), {}
    with torch.no_grad():
        for name, item in model.network.backbone.named_parameters():
            if re.search(ending, name):
                item.add_(torch.randn(item.shape, generator=draw) * spread)
                found[name] = item
    assert found
    return found


def wrapped(model: Model, config: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters of a model's backbone after PEFT has changed it in place, by their names there."""
    return dict(peft.get_peft_model(model.network.backbone, config).named_parameters())


LORA = [
    ("bert", "lora:rank=2,alpha=6,targets=query+value", {"r": 2, "lora_alpha": 6, "target_modules": ["query", "value"]}),
    ("bert", "lora:rank=4,alpha=6,targets=query,rslora=true", {"r": 4, "lora_alpha": 6, "target_modules": ["query"], "use_rslora": True}),
    ("gpt2", "lora:rank=2,alpha=6,targets=c_attn", {"r": 2, "lora_alpha": 6, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ("bert", "lora:rank=2,alpha=6,targets=query,dora=true", {"r": 2, "lora_alpha": 6, "target_modules": ["query"], "use_dora": True}),
]
ENDS = {"down": "lora_A.default.weight", "up": "lora_B.default.weight", "magnitude": "lora_magnitude_vector.default.weight"}


@pytest.mark.parametrize(("family", "spec", "options"), LORA, ids=["lora", "rslora", "fused Conv1D", "dora"])
def test_lora(family: str, spec: str, options: dict[str, Any], tiny_source: Callable[[str], Source]) -> None:
    ours, theirs = start(tiny_source(family), spec), start(tiny_source(family), "head")
    thin = wrapped(theirs, peft.LoraConfig(**options))
    with torch.no_grad():
        for name, item in fill(ours, r"\.(down|up|magnitude)$").items():
            where, _, part = name.rpartition(".")
            thin[f"base_model.model.{where}.{ENDS[part]}"].copy_(item)
    np.testing.assert_allclose(ours.logits(ROWS), theirs.logits(ROWS), atol=1e-5)


def test_ia3(tiny_source: Callable[[str], Source]) -> None:
    ours, theirs = start(tiny_source("bert"), "ia3"), start(tiny_source("bert"), "head")
    inside = r".*\.layer\.\d+\.output\.dense"
    scales = wrapped(theirs, peft.IA3Config(target_modules=rf".*\.(key|value)|{inside}", feedforward_modules=inside))
    with torch.no_grad():
        for name, item in fill(ours, r"\.scale$", 0.5).items():
            target = scales[f"base_model.model.{name.removesuffix('.scale')}.ia3_l.default"]
            target.copy_(item.view_as(target))
    np.testing.assert_allclose(ours.logits(ROWS), theirs.logits(ROWS), atol=1e-5)


@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_norms(tiny_source: Callable[[str], Source]) -> None:
    ours, theirs = start(tiny_source("bert"), "norms"), start(tiny_source("bert"), "head")
    copies = wrapped(theirs, peft.LNTuningConfig(target_modules=["LayerNorm"]))
    trained = {
        re.sub(r"\.ln_tuning_layers\.default|^base_model\.model\.", "", name): item for name, item in copies.items() if "ln_tuning" in name
    }
    mine = fill(ours, "LayerNorm", 0.3)
    assert set(trained) == set(mine)
    with torch.no_grad():
        for name, item in mine.items():
            trained[name].copy_(item)
    np.testing.assert_allclose(ours.logits(ROWS), theirs.logits(ROWS), atol=1e-5)


def vectors(model: Model, backbone: Any) -> torch.Tensor:
    """What a backbone gives for the tokens of every row, padding left out."""
    encoded = model.encoder.encode([row.text for row in ROWS])
    batch = tensors(model.encoder.pad(encoded))
    batch.pop("token_type_ids", None)  # peft ignores them
    with torch.no_grad():
        found = backbone(**batch).last_hidden_state
    return found[:, -batch["input_ids"].shape[1] :] * batch["attention_mask"][..., None]


def test_prompt(tiny_source: Callable[[str], Source]) -> None:
    ours, theirs = start(tiny_source("bert"), "prompt:tokens=3"), start(tiny_source("bert"), "head")
    config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
    other = peft.get_peft_model(theirs.network.backbone, config).eval()
    with torch.no_grad():
        other.prompt_encoder["default"].embedding.weight.copy_(ours.network.backbone.prompt.embedding)
    torch.testing.assert_close(vectors(ours, ours.network.backbone.eval()), vectors(theirs, other), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # what peft passes
def test_prefix(tiny_source: Callable[[str], Source]) -> None:
    ours, theirs = start(tiny_source("gpt2"), "prefix:tokens=3"), start(tiny_source("gpt2"), "head")
    config = peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
    other = peft.get_peft_model(theirs.network.backbone, config).eval()
    with torch.no_grad():  # theirs are keys and values of the first block, then of the second; ours lie side by side as well
        other.prompt_encoder["default"].embedding.weight.copy_(torch.cat(list(fill(ours, r"\.entries$").values()), 1))
    torch.testing.assert_close(vectors(ours, ours.network.backbone.eval()), vectors(theirs, other), atol=1e-5, rtol=0)
