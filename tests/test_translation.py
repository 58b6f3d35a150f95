"""Encoders with a decoder: what is learned, how they write, and the whole way through fit on a tiny T5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_translators import QUICK, write_echoes, write_translator
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import lightune
from lightune import exporting, language, models, predictors, sources
from lightune.cli import main
from lightune.errors import InputError
from lightune.exports import find_generative
from lightune.recipes import resolve
from lightune.runs import open_run
from lightune.runtime.answers import Answers
from lightune.runtime.generation import GenerationOptions, Message
from lightune.supervision.translation import _cut
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
    ids = torch.from_numpy(found.model.encoder.pad(language.encode_rows(rows).encoded)["input_ids"])
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
    training = language.open_training(found, resolve({}, {**QUICK, "epochs": 4.0}).train)
    losses = [fact.loss for fact in training.steps() if fact.kind == "step"]
    assert sum(losses[-training.steps_per_epoch :]) < sum(losses[: training.steps_per_epoch])  # over the same rows
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


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = write_translator(tmp_path_factory.mktemp("base") / "t5")
    return lightune.fit(str(data), tmp_path_factory.mktemp("runs") / "echo", model=str(base), method="full", to=("hf",), **QUICK)


def test_a_run_learns_and_its_export_writes_as_the_model_does(run: Any) -> None:
    record = run.record
    assert (record["task"], record["learned"], record["stopped"]) == ("translate", True, "finished")
    assert record["scores"]["perplexity"]["value"] < np.exp(record["loss_before"])
    assert record["scores"]["exact_match"]["value"] > 0.5
    (entry,) = record["artifacts"]
    assert entry["parity"]["agree"] == 1.0
    assert abs(entry["parity"]["change"]) < 1e-4
    assert entry["parity"]["tokens"] < record["ledger"]["test"]["tokens"] + record["ledger"]["dev"]["tokens"] - 10  # targets alone
    assert entry["tokens_per_second"]["generation"] > 0
    assert "text for text" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_plain_transformers_loads_the_export_and_says_the_same(run: Any) -> None:
    folder = run.folder / "artifacts" / "hf"
    model, report = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours, written = language.generator_of(models.load(run.model)), predictors.open_generator(folder)
    assert written is not None
    texts = ["7 lower", "8 film", "the newest room"]
    answers = [one.text for one in ours.generate([(Message("user", text),) for text in texts], GenerationOptions(max_tokens=8))]
    assert [one.text for one in written.generator.generate(texts, GenerationOptions(max_tokens=8))] == answers
    for text, answer in zip(texts, answers, strict=True):
        made = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=8, use_cache=False)
        assert tokenizer.decode(made[0], skip_special_tokens=True) == answer


def test_a_graph_of_each_stack_answers_and_scores_as_the_run(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.folder), "--to", "onnx:bits=32"]) == 0
    capsys.readouterr()
    parity = next(entry["parity"] for entry in open_run(run.folder).record["artifacts"] if entry["target"] == "onnx:bits=32")
    assert parity["agree"] == 1.0
    assert abs(parity["change"]) < 1e-4
    ours, written = language.generator_of(models.load(run.model)), predictors.open_generator(run.folder)
    assert written is not None
    assert written.place == run.folder / "artifacts" / "onnx-bits-32"  # before the folder that needs torch
    texts = ["7 lower", "8 film", "the newest room", "a"]
    options = GenerationOptions(max_tokens=8)
    assert written.generator.generate(texts, options) == ours.generate(texts, options)
    rows = [np.array([*ours.encode(text), 1, *ours.encode("a film"), 1], dtype=np.int32) for text in texts]
    for one, other in zip(ours.token_logprobs(rows), written.generator.token_logprobs(rows), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4)
    with pytest.raises(InputError, match="a source without a target"):
        written.generator.token_logprobs([rows[0][:3]])


@pytest.mark.parametrize(("tied", "kind"), [(True, "f32"), (True, "bf16"), (False, "f16")])
def test_exports_hold_every_tensor_once(tmp_path: Path, tied: bool, kind: str) -> None:
    model = open_model(write_translator(tmp_path / "base", tied=tied))
    folder = find_generative(f"hf:type={kind}", "translate").write(model, tmp_path / "hf")
    names = set(load_file(folder / "model.safetensors"))
    assert ("lm_head.weight" in names) != tied
    assert "encoder.embed_tokens.weight" not in names
    again = exporting.open_written(folder)
    rows = [np.array([*again.encode("the film"), 1, *again.encode("a room"), 1], dtype=np.int32)]
    ours = language.generator_of(model).token_logprobs(rows)[0]
    np.testing.assert_allclose(again.token_logprobs(rows)[0], ours, atol=1e-5 if kind == "f32" else 0.2)


def test_the_command_line_writes_scores_and_refuses_gguf(run: Any, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(run.folder), "7 lower", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"text", "prompt_tokens", "tokens", "finish"}
    assert main(["evaluate", str(run.folder), str(data), "--metrics", "exact_match", "--max-tokens", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["exact_match"]["value"] > 0.5
    assert main(["inspect", str(data), "--task", "translate", "--model", str(run.record["base"]), "--rows", "1"]) == 0
    assert "⟧" in capsys.readouterr().out
    assert main(["predict", str(run.folder), "7 lower"]) == 0
    assert capsys.readouterr().out == "lower\n"
    assert main(["export", str(run.folder), "--to", "gguf"]) == 2
    assert "'gguf' is no export target of translate" in capsys.readouterr().err
    assert main(["fit", str(data), "--task", "translate", "--to", "gguf:type=q4_0"]) == 2
    assert "Choose onnx, hf" in capsys.readouterr().err
    assert main(["fit", str(data), "--task", "translate", "--method", "auto:seconds=9", "--to", "none"]) == 2
    assert "method auto does not choose for them" in capsys.readouterr().err


def test_gradient_checkpointing_changes_no_loss(data: Path, base: Path) -> None:
    losses = []
    for checkpointing in (False, True):
        found = prepared(data, base, method="lora", gradient_checkpointing=checkpointing)
        # not Adam, which makes much of what rounding makes of a gradient near zero
        options = {**QUICK, "epochs": 0.5, "gradient_checkpointing": checkpointing, "optimizer": "sgd", "rate": 0.03}
        recipe = resolve({}, options)
        losses.append([fact.loss for fact in language.open_training(found, recipe.train).steps() if fact.kind == "step"])
    assert losses[0][:2] == pytest.approx(losses[1][:2], abs=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_resumed_equals_uninterrupted(data: Path, base: Path, tmp_path: Path) -> None:
    recipe = resolve({}, {**QUICK, "epochs": 2.0})
    whole = [fact.loss for fact in language.open_training(prepared(data, base), recipe.train).steps() if fact.kind == "step"]
    first = language.open_training(prepared(data, base), recipe.train)
    steps = first.steps()
    while first.step < 7:
        next(steps)
    first.save(tmp_path)
    again = language.open_training(prepared(data, base), recipe.train)
    assert again.restore(tmp_path) == 7
    losses = [fact.loss for fact in again.steps() if fact.kind == "step"]
    assert losses == pytest.approx(whole[7:], abs=1e-6)


def test_a_step_is_the_same_however_it_is_cut(data: Path, base: Path) -> None:
    gradients = []
    for budget in (10_000, 40):
        found = prepared(data, base, method="full", batch_tokens=budget)
        training = language.open_training(found, resolve({}, {**QUICK, "batch_tokens": budget, "head_dropout": 0.0}).train)
        training._gradient(np.arange(8))
        gradients.append(torch.cat([item.grad.to_dense().flatten() for item in found.model.trainable().values() if item.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize(("policy", "source", "target"), [("cut-left", [7, 8, 1], [9, 9, 1]), ("cut-right", [4, 5, 1], [9, 9, 1])])
def test_what_is_too_long_loses_of_its_source(policy: str, source: list[int], target: list[int]) -> None:
    row = _cut(np.array([4, 5, 6, 7, 8, 1]), np.array([9, 9, 1]), 6, policy)
    assert row.ids.tolist() == source + target
    assert row.trained.tolist() == [False] * 3 + [True] * 3
    assert row.ended
    alone = _cut(np.array([4, 5, 1]), np.array([9, 9, 9, 9, 1]), 5, policy)
    assert alone.ids.tolist() == [1, 9, 9, 9, 9]
    assert not alone.ended


def test_losses_of_rows_are_counted(data: Path, base: Path) -> None:
    whole = prepared(data, base).facts["ledger"]["train"]
    for policy in ("cut-left", "cut-right"):
        ledger = prepared(data, base, max_length=whole["longest"] - 2, too_long=policy).facts["ledger"]["train"]
        assert ledger["made"] == whole["made"]
        assert ledger["tokens"] == whole["tokens"] - ledger["cut_tokens"] < whole["tokens"]
        assert ledger["cut_supervised"] == ledger["endless_rows"] == 0
    dropped = prepared(data, base, max_length=whole["longest"] - 2, too_long="drop").facts["ledger"]["train"]
    assert dropped["made"] + dropped["dropped_rows"] == whole["made"] > dropped["made"]


def test_end_tokens_inside_texts_are_named(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "the </s> film", "completion": "film"}, {"prompt": "a", "completion": "b"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(InputError, match=r"Rows 1 hold the text '</s>'"):
        prepared(tmp_path / "rows.jsonl", base, dev_share=0.0, test_share=0.0)


@pytest.mark.slow
def test_title_t5_learns_a_few_summaries(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "dialogsum" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:96]
    rows = [json.loads(line) for line in lines]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({name: row[name] for name in ("dialogue", "summary")}) + "\n" for row in rows))
    options = {**QUICK, "batch_size": 8, "epochs": 1.0, "rate": 1e-3, "max_length": 1024, "score_rows": 4, "max_tokens": 32}
    run = lightune.fit(
        str(tmp_path / "rows.jsonl"), tmp_path / "run", prompt="dialogue", completion="summary", to=("hf", "onnx"), **options
    )
    assert run.record["base"] == "title-t5"
    assert run.record["learned"]
    whole, small = run.record["artifacts"]
    assert whole["parity"]["agree"] == 1.0
    assert abs(small["parity"]["change"]) < 0.05
    assert small["bytes"] < 0.4 * whole["bytes"]
