"""Encoders with a decoder: what is learned, how they write, and the whole way through fit on a tiny T5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_translators import QUICK, write_echoes, write_translator
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lightune import language, models, sources
from lightune.errors import InputError
from lightune.recipes import resolve
from lightune.runtime.answers import Answers
from lightune.runtime.generation import GenerationOptions, Message
from lightune.tasks import task_for

PROMPTS = ("the lower film", "a", "Über die schöne Straße läuft ein Hund, " * 2, "1 2 3 12", "the lower film")


@pytest.fixture(scope="module", params=[False, True], ids=["own-head", "tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_translator(tmp_path_factory.mktemp("base") / "t5", tied=request.param)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_echoes(tmp_path_factory.mktemp("data") / "echo.jsonl")


def prepared(data: Path, base: Path, **options: Any) -> language.Supervision:
    return language.prepare(resolve({}, {**QUICK, "train": str(data), "model": str(base), **options}), str(data))


def open_model(base: Path, template: str | None = None) -> models.Model:
    return models.start_language(sources.resolve_model(base), task_for(Answers("translate", ())), max_length=96, template=template)


def loaded(base: Path) -> Any:
    return AutoModelForSeq2SeqLM.from_pretrained(base).eval()


def test_the_loss_is_that_of_transformers_on_the_targets_alone(data: Path, base: Path) -> None:
    found = prepared(data, base, method="full")
    rows = found.rows["train"][:6]
    network = found.model.network.eval()
    ids = torch.from_numpy(found.model.encoder.pad(language._encode(rows).encoded)["input_ids"])
    each = language.answer_objective(rows)(network, {"input_ids": ids}, torch.zeros(6), np.arange(6))
    whole = loaded(base)
    for place, row in enumerate(rows):
        source, target = (torch.from_numpy(row.ids[part].astype(np.int64))[None] for part in (~row.trained, row.trained))
        assert source[0, -1] == target[0, -1] == 1
        with torch.no_grad():
            assert float(each[place]) == pytest.approx(float(whole(input_ids=source, labels=target).loss), abs=1e-5)


def test_greedy_answers_are_those_of_transformers(base: Path) -> None:
    model, whole, tokenizer = open_model(base), loaded(base), AutoTokenizer.from_pretrained(base)
    generator = language.generator_of(model)
    drafts = generator._drafts([(Message("user", text),) for text in PROMPTS], GenerationOptions(max_tokens=20))
    assert len(list(generator._run(drafts))) >= len(drafts)
    for prompt, draft in zip(PROMPTS, drafts, strict=True):
        given = tokenizer(prompt, return_tensors="pt")
        assert draft.prompt.tolist() == given["input_ids"][0].tolist()
        expected = whole.generate(input_ids=given["input_ids"], max_new_tokens=20, do_sample=False, use_cache=False)[0, 1:].tolist()
        assert draft.tokens == [token for token in expected if token != 1]
    assert len({tuple(draft.tokens) for draft in drafts}) > 1


def test_batches_streams_and_draws_answer_as_prompts_alone(base: Path) -> None:
    generator = language.generator_of(open_model(base))
    for options in (GenerationOptions(max_tokens=15), GenerationOptions(max_tokens=15, temperature=1.0, seed=3)):
        together = generator.generate(PROMPTS[:4], options)
        assert together == [generator.generate([prompt], options)[0] for prompt in PROMPTS[:4]]
        pieces = list(generator.stream(PROMPTS[0], options))
        assert "".join(piece.text for piece in pieces) == together[0].text
    text = together[0].text
    stopped = generator.generate(PROMPTS[:1], GenerationOptions(max_tokens=15, temperature=1.0, seed=3, stop=(text[3:5],)))[0]
    assert stopped.text == text[: text.index(text[3:5])]


def test_token_logprobs_are_those_of_targets_after_sources(base: Path) -> None:
    generator, whole = language.generator_of(open_model(base)), loaded(base)
    pairs = [("the lower film", "a newer show"), ("1 2", "the widest room of all rooms"), ("a newer and wider show, shown", "x")]
    rows = [np.concatenate([generator.encode_prompt(source), generator.encode(target), [1]]).astype(np.int32) for source, target in pairs]
    for (source, _), row, found in zip(pairs, rows, generator.token_logprobs(rows), strict=True):
        size = len(generator.encode_prompt(source))
        assert np.isnan(found[: size - 1]).all()
        with torch.no_grad():
            given, labels = (torch.from_numpy(part.astype(np.int64))[None] for part in (row[:size], row[size:]))
            expected = whole(input_ids=given, labels=labels).logits[0].log_softmax(-1).gather(1, labels[0, :, None])[:, 0]
        np.testing.assert_allclose(found[size - 1 :], expected.numpy(), atol=1e-4)
    with pytest.raises(InputError, match="a source without a target"):
        generator.token_logprobs([rows[0][:4]])


def test_a_template_writes_the_source(base: Path) -> None:
    generator = language.generator_of(open_model(base, "the lower {{ messages[-1]['content'] }}"))
    assert generator.encode_prompt((Message("user", "film"),)).tolist() == [*generator.encode("the lower film"), 1]
    plain = language.generator_of(open_model(base))
    turns = (Message("system", "the"), Message("user", "film"))
    assert plain.encode_prompt(turns).tolist() == [*plain.encode("the\n\nfilm"), 1]
    assert plain.encode_prompt("film </s>").tolist() == plain.encode("film </s>").tolist()


METHODS = (
    "full", "freeze", "norms", "lora", "lora:dora=true", "lora:init=pissa", "lora:base=int8", "lora:targets=q+v", "ia3", "houlsby", "pfeiffer",
    "parallel", "reft", "peft:loha:r=2",
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_in_both_stacks_and_is_saved(data: Path, base: Path, tmp_path: Path, method: str) -> None:
    found = prepared(data, base, method=method)
    training = language.open_training(found, resolve({}, {**QUICK, "epochs": 1.0}).train)
    losses = [fact.loss for fact in training.steps() if fact.kind == "step"]
    assert losses[-1] < losses[0]
    names = found.model.trainable()
    assert any(".decoder." in name for name in names)
    assert any(".encoder." in name for name in names) or method == "freeze"  # half of the blocks are the encoder's
    options = GenerationOptions(max_tokens=10)
    before = language.generator_of(found.model).generate(PROMPTS, options)
    again = models.load(found.model.save(tmp_path / "model"))
    assert language.generator_of(again).generate(PROMPTS, options) == before
    if hasattr(found.model.changes[-1], "merge") and getattr(found.model.changes[-1], "leaves", None) is None:
        assert language.generator_of(again.merge()).generate(PROMPTS, options) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "head"}, "trains nothing of"),
        ({"method": "bitfit"}, "bias"),
        ({"method": "prompt"}, "prompt puts vectors before a text"),
        ({"method": "prefix"}, "prefix puts vectors before a text"),
        ({"packing": "on"}, "cannot be packed"),
        ({"max_length": 6}, "longer than max-length 6.*cut-left, cut-right, drop"),
        ({"too_long": "split", "max_length": 6}, "too-long is 'split'"),
        ({"shape": "text", "prompt": "completion"}, "plain text"),
        ({"label_smoothing": 0.1}, "no meaning for translate"),
    ],
)
def test_what_cannot_be_is_refused_before_training(data: Path, base: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepared(data, base, **options)


def test_a_decoder_and_an_encoder_are_no_translators(data: Path, tiny_source: Any) -> None:
    for family in ("llama", "bert"):
        with pytest.raises(InputError, match=f"it is {family}, expected one of t5"):
            prepared(data, tiny_source(family).folder)
