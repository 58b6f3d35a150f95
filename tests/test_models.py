from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from lightune import models
from lightune.errors import InputError, IntegrityError
from lightune.methods import make_method
from lightune.models import Merged
from lightune.networks import Network
from lightune.sources import Source, resolve_model
from lightune.tasks import find_task

ROWS = tiny_models.make_rows(30)
TEXTS = [row.text for row in ROWS]


def jiggle(model: models.Model) -> models.Model:
    """Move every trained weight, as training would."""
    with torch.no_grad():
        for item in model.trainable().values():
            item += 0.05 * torch.randn(item.shape, generator=torch.Generator().manual_seed(item.numel()))
    return model


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_a_text_gets_the_same_logits_alone_and_in_a_padded_batch(family: str, tiny_source: Callable[[str], Source]) -> None:
    model = tiny_models.start(tiny_source(family), ROWS)
    together = model.logits(TEXTS)
    assert together.dtype == np.float32
    alone = np.concatenate([model.logits([text]) for text in TEXTS[:5]])
    np.testing.assert_allclose(together[:5], alone, atol=2e-6)
    assert len(np.unique(together.round(5), axis=0)) > 25


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_the_base_computes_what_transformers_computes(family: str, tiny_source: Callable[[str], Source]) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = models.start(tiny_source(family), find_task("classify").describe(ROWS), max_length=24, pooling="cls")
    tokenizer = AutoTokenizer.from_pretrained(tiny_source(family).folder)
    theirs = AutoModel.from_pretrained(tiny_source(family).folder, attn_implementation="eager").eval()
    ids = tokenizer(TEXTS[0], return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        expected = model.network.head(theirs(**ids).last_hidden_state[:, 0])
    np.testing.assert_allclose(model.logits(TEXTS[:1]), expected.numpy(), atol=1e-5)


def test_poolings_read_the_texts_own_tokens() -> None:
    hidden = torch.arange(24, dtype=torch.float32).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    pool = lambda name, given: Network.pool(type("Stub", (), {"pooling": name})(), hidden, given)  # type: ignore[arg-type]
    assert torch.equal(pool("cls", mask), hidden[:, 0])
    assert torch.equal(pool("last", mask), torch.stack([hidden[0, 1], hidden[1, 3]]))
    assert torch.equal(pool("last", None), hidden[:, 3])
    assert torch.equal(pool("mean", mask), torch.stack([hidden[0, :2].mean(0), hidden[1].mean(0)]))
    assert torch.equal(pool("mean", None), hidden.mean(1))


def test_decoders_read_their_last_token_and_encoders_the_mean(tiny_source: Callable[[str], Source]) -> None:
    found = {family: tiny_models.start(tiny_source(family), ROWS).network for family in ("bert", "gpt2", "llama", "roberta")}
    assert {family: network.pooling for family, network in found.items()} == {
        "bert": "mean",
        "gpt2": "last",
        "llama": "last",
        "roberta": "mean",
    }
    assert {family for family, network in found.items() if "token_type_ids" in network.inputs} == {"bert"}


def test_the_head_comes_from_the_seed_and_leaves_torchs_own_alone(tiny_source: Callable[[str], Source]) -> None:
    before = torch.get_rng_state()
    heads = [tiny_models.start(tiny_source("bert"), ROWS, seed=seed).network.head.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    torch.set_rng_state(before)


def test_pairs_and_cut_tokens(tiny_source: Callable[[str], Source]) -> None:
    rows = tiny_models.make_rows(20, "pair")
    model = tiny_models.start(tiny_source("bert"), rows, "pair", max_length=8)
    whole = tiny_models.start(tiny_source("bert"), rows, "pair")
    first = model.logits(rows)
    cut = model.truncated_tokens
    assert cut == int(np.maximum(model.encoder.encode([r.text for r in rows], [r.pair for r in rows]).lengths - 8, 0).sum()) > 0
    assert not np.allclose(first, whole.logits(rows))
    assert whole.truncated_tokens == 0
    answer = whole.predict([("good film", "it is bad")])[0]
    assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert whole.predict_proba([("good film", "it is bad")]).shape == (1, 2)


def test_what_does_not_fit_the_base_is_told(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    task = find_task("classify").describe(ROWS)
    with pytest.raises(InputError, match=r"max-length is 41, but .* takes at most 40 tokens. Give max-length 40 or less"):
        models.start(tiny_source("bert"), task, max_length=41)
    folder = shutil.copytree(tiny_source("bert").folder, tmp_path / "plain")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"The tokenizer of .* cannot be loaded"):
        models.start(resolve_model(folder), task, max_length=8)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no-such-model"}))
    with pytest.raises(InputError, match=r"The model .* cannot be loaded: .*no-such-model"):
        models.start(resolve_model(folder), task, max_length=8)


@pytest.mark.parametrize("method", ["full", "lora", "head"])
def test_calibration_and_rounding_survive_saving(method: str, tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    model = jiggle(tiny_models.start(tiny_source("bert"), ROWS, method=method, max_length=9))
    model.task = model.task.calibrate(model.logits(ROWS), model.task.targets(ROWS))
    again = models.load(model.save(tmp_path / "model"))
    assert again.answers == model.answers
    assert again.answers.temperature != 1.0
    assert (again.base.name, again.base.sha256) == (model.base.name, model.base.sha256)
    assert (again.encoder.max_length, again.network.pooling) == (9, "mean")
    np.testing.assert_array_equal(again.predict_proba(TEXTS), model.predict_proba(TEXTS))
    assert stat.S_IMODE((tmp_path / "model" / "weights.safetensors").stat().st_mode) & 0o044  # others may read it as they may the rest


def test_only_what_differs_is_saved_and_the_base_must_be_the_same(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    base = resolve_model(shutil.copytree(tiny_source("bert").folder, tmp_path / "base"))
    full = tiny_models.start(base, ROWS).save(tmp_path / "full")
    lora = tiny_models.start(base, ROWS, method="lora:rank=1").save(tmp_path / "lora")
    assert (lora / "weights.safetensors").stat().st_size < (full / "weights.safetensors").stat().st_size / 3
    tiny_models.save_base("bert", tmp_path / "base", initializer_range=0.2)
    with pytest.raises(InputError, match=r"has other weights \(sha256 .*merge the model where it was trained"):
        models.load(lora)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(InputError):
        models.load(lora)
    models.load(full)  # stands alone


@pytest.mark.parametrize(
    "steps", [("merge", "lora"), ("lora:rank=4", "merge", "lora"), ("freeze",), ("merge", "head"), ("bitfit", "merge", "lora", "merge")]
)
def test_changes_on_changed_weights_are_saved_whole(steps: tuple[str, ...], tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    model = jiggle(tiny_models.start(tiny_source("bert"), ROWS))
    for step in steps:
        model = model.merge() if step == "merge" else jiggle(model.apply(make_method(step)))
    again = models.load(model.save(tmp_path / "model"))
    np.testing.assert_array_equal(again.logits(TEXTS), model.logits(TEXTS))
    assert again.changes == model.changes
    assert set(again.trainable()) == set(model.trainable())
    merged = again.merge()
    np.testing.assert_allclose(merged.logits(TEXTS), model.logits(TEXTS), atol=1e-5)
    (record,) = merged.changes
    assert isinstance(record, Merged)
    assert record.was == ("full", *(step for step in steps if step != "merge"))


def test_damaged_models_are_refused(tiny_source: Callable[[str], Source], tmp_path: Path) -> None:
    saved = tiny_models.start(tiny_source("bert"), ROWS).save(tmp_path / "model")

    def damaged(name: str, change: Callable[[bytes], bytes]) -> Path:
        folder = shutil.copytree(saved, tmp_path / f"bad-{len(list(tmp_path.iterdir()))}")
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return folder

    with pytest.raises(IntegrityError, match="cannot be read"):
        models.load(damaged("weights.safetensors", lambda data: data[:-100]))
    with pytest.raises(IntegrityError, match="its sha256 differs"):
        models.load(damaged("weights.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])))
    with pytest.raises(IntegrityError, match=r"model.json is damaged"):
        models.load(damaged("model.json", lambda data: data[:50]))
    with pytest.raises(IntegrityError, match="has the format 99"):
        models.load(damaged("model.json", lambda data: data.replace(b'"format": 1', b'"format": 99')))
    with pytest.raises(IntegrityError, match="is no readable tokenizer"):
        models.load(damaged("tokenizer.json", lambda data: data[:50]))
    with pytest.raises(IntegrityError, match="does not fit the model's description"):
        models.load(damaged("model.json", lambda data: data.replace(b'"intermediate_size": 48', b'"intermediate_size": 64')))
    with pytest.raises(InputError, match=r"is no saved model: it has no model.json"):
        models.load(tmp_path)
