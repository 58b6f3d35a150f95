import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_generators import PROMPTS, SPLITS, TEXTS, make_language, make_words, plain, rows_of
from tiny_tokenizers import KINDS

from lightune import models, sources
from lightune.errors import CheckFailed, InputError, LightuneError
from lightune.exports import find_generative
from lightune.exports.generative import TYPES, Closeness
from lightune.exports.gguf import measure_imatrix
from lightune.exports.gguf.families import FAMILIES
from lightune.exports.gguf.recipes import RECIPES, choose_type
from lightune.exports.gguf.tokens import check_tokens, describe_tokens
from lightune.exports.likeness import compare
from lightune.methods import make_method
from lightune.runtime import manifest
from lightune.runtime.answers import Answers
from lightune.runtime.chat import ChatFormat, render
from lightune.runtime.generation import GenerationOptions, Message
from lightune.runtime.tokenization import Encoder
from lightune.steps.depth import Depth
from lightune.steps.ffn import FFN
from lightune.steps.heads import Heads
from lightune.steps.vocab import Vocab
from lightune.tasks import task_for
from lightune.vocabularies import Vocabulary, choose

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
from lightune.exports.gguf.blocks import pack  # noqa: E402
from lightune.runtime.gguf import load_gguf  # noqa: E402
from lightune.runtime.llama import Llama  # noqa: E402

ALIKE = Closeness(perplexity=0.002, agree=1.0)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    with closing(load_gguf(path, threads=1, slots=2)) as generator:
        yield generator


def prove(model: Any, folder: Path, spec: str = "gguf:type=f32", tolerance: Closeness = ALIKE) -> Any:
    """Export a model, let llama.cpp run it, and compare both."""
    path = find_generative(spec).write(model, folder, sample=rows_of(model.encoder.tokenizer))
    rows = rows_of(model.encoder.tokenizer)
    with opened(path) as generator:
        ours, theirs = plain(model).token_logprobs(rows), generator.token_logprobs(rows)
        if spec == "gguf:type=f32":
            assert max(np.abs(one - other).max() for one, other in zip(ours, theirs, strict=True)) < 0.03  # its cache of keys is f16
        return compare(plain(model), generator, rows, PROMPTS, tolerance, max_tokens=12)


def held(path: Path) -> dict[str, str]:
    """The type of every tensor in a file."""
    return {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(path / "model.gguf").tensors}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_llama_cpp_computes_what_the_model_computes(tmp_path: Path, family: str, tied: bool) -> None:
    if family == "gemma" and not tied:
        pytest.skip("llama.cpp reads no head of its own from a Gemma")
    model = make_language(family, tied=tied)
    prove(model, tmp_path / "artifact")
    assert ("output.weight" in held(tmp_path / "artifact")) is not tied


def test_a_gemma_with_a_head_of_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="head of its own"):
        find_generative("gguf").write(make_language("gemma", tied=False), tmp_path / "artifact")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        {
            "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500000.0,
            "original_max_position_embeddings": 16,
        },
    ],
    ids=["linear", "llama3"],
)  # fmt: skip
def test_stretched_rotations(tmp_path: Path, rope: dict[str, Any]) -> None:
    prove(make_language("llama", rope_parameters=rope), tmp_path / "artifact")


def _depth(model: Any) -> None:
    model.network = Depth(layers=(0, 2)).apply(model.network)


def _narrow(model: Any) -> None:
    model.network = FFN(neurons=((*range(10, 74),),) * 3).apply(model.network)
    model.network = Heads(heads=((1,), (0,), (1,))).apply(model.network)


def _trim(model: Any) -> None:
    vocabulary = Vocabulary.of(model.encoder.tokenizer)
    step = Vocab(keep=300, ids=choose(vocabulary, 300))
    model.network, model.encoder = step.apply(model.network), step.reencode(model.encoder)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("cut", [_depth, _narrow, _trim])
def test_smaller_models(tmp_path: Path, family: str, cut: Callable[[Any], None]) -> None:
    model = make_language(family)
    cut(model)
    prove(model, tmp_path / "artifact")
    with closing(Llama(tmp_path / "artifact" / "model.gguf", threads=1, context=8, slots=1)) as llama:
        assert llama.vocabulary_size == model.encoder.tokenizer.get_vocab_size()


def test_a_gpt2_with_fewer_heads_than_its_width_holds_is_refused(tmp_path: Path) -> None:
    model = make_language("gpt2")
    model.network = Heads(heads=((0, 1),) * 3).apply(model.network)
    with pytest.raises(InputError, match=r"as many heads as fill its width"):
        find_generative("gguf").write(model, tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_rows_that_no_token_has(tmp_path: Path) -> None:
    prove(make_language("llama", rows=448), tmp_path / "artifact")


@pytest.mark.parametrize("split", SPLITS)
def test_texts_are_split_as_the_tokenizer_splits_them(tmp_path: Path, split: str) -> None:
    tokenizer = make_words(split)
    assert describe_tokens(tokenizer, 400).splitter == split
    model = make_language("llama", tokenizer=tokenizer)
    prove(model, tmp_path / "artifact")
    check_tokens(tmp_path / "artifact" / "model.gguf", tokenizer, TEXTS)


def test_bytes_that_no_token_spells(tmp_path: Path) -> None:
    tokenizer = make_words("smollm", every_byte=False)
    assert tokenizer.encode("\x01").ids == []
    path = find_generative("gguf").write(make_language("llama", tokenizer=tokenizer), tmp_path / "artifact")
    check_tokens(path / "model.gguf", tokenizer, ["a film\x01 that was slower"])


def test_bytes_for_unknown_characters(tmp_path: Path) -> None:
    tokenizer = KINDS["byte-fallback"]()
    model = make_language("llama", tokenizer=tokenizer)
    model.chat = ChatFormat("{{ messages[-1].content }}</s>", "<s>", "</s>", ("</s>",))
    path = find_generative("gguf").write(model, tmp_path / "artifact")
    check_tokens(path / "model.gguf", tokenizer, TEXTS)


@pytest.mark.parametrize("kind", ["every-split", "end-of-word", "continued", "unigram", "words"])
def test_tokenizers_that_llama_cpp_has_no_equal_of(tmp_path: Path, kind: str) -> None:
    model = make_language("llama", tokenizer=KINDS[kind]())
    with pytest.raises(InputError, match=r"llama\.cpp has no .*Export hf instead"):
        find_generative("gguf").write(model, tmp_path / "artifact")


def test_another_split_is_caught(tmp_path: Path) -> None:
    path = find_generative("gguf").write(make_language("llama"), tmp_path / "artifact")
    with pytest.raises(CheckFailed, match=r"llama\.cpp reads .* otherwise than this tokenizer: from token \d+"):
        check_tokens(path / "model.gguf", make_words("smollm"), ["1234"])


def test_what_stands_in_the_file(tmp_path: Path) -> None:
    model = make_language("llama")
    path = find_generative("gguf:type=q4_0").write(model, tmp_path / "artifact", name="mine", sample=rows_of(model.encoder.tokenizer))
    manifest.check(path, ("model.gguf", "tokenizer.json", "task.json"))
    task = json.loads((path / "task.json").read_text(encoding="utf-8"))
    assert task["kind"] == "generate"
    assert (task["name"], task["base"], task["quantization"], task["imatrix"]) == ("mine", "tiny", "q4_0", True)
    assert ChatFormat.from_dict(task["chat"]) == model.chat
    assert Encoder.from_file(path / "tokenizer.json", **task["tokenizer"]).max_length == task["max_length"] == 48
    assert sum(task["types"].values()) == len(held(path))
    with closing(Llama(path / "model.gguf", threads=1, context=8, slots=1)) as llama:
        assert llama.metadata("tokenizer.chat_template") == model.chat.template
        assert llama.metadata("llama.context_length") == "64"
        assert {model.encoder.tokenizer.token_to_id(text) for text in model.chat.stop} <= llama.ends()
        assert not llama.adds_bos


def test_answers_end_where_the_model_ends_them(tmp_path: Path) -> None:
    model = make_language("llama", tied=False)
    stop = model.encoder.tokenizer.token_to_id("<|im_end|>")
    with torch.no_grad():
        model.network.head.weight[stop] = model.network.head.weight.abs().sum(0) * torch.sign(model.network.head.weight[stop])
    path = find_generative("gguf:type=f32").write(model, tmp_path / "artifact")
    ours = plain(model).generate(PROMPTS, GenerationOptions(max_tokens=12))
    assert any(answer.finish == "stop" for answer in ours)
    with opened(path) as generator:
        theirs = generator.generate(PROMPTS, GenerationOptions(max_tokens=12))
    assert [(answer.text, answer.finish) for answer in theirs] == [(answer.text, answer.finish) for answer in ours]


def _unknown(model: Any) -> None:
    model.network.backbone.config.model_type = "opt"


def _adapted(model: Any) -> None:
    model.network.backbone = make_method("lora:rank=2").apply(model.network.backbone)


def _yarn(model: Any) -> None:
    model.network.backbone.config.rope_parameters = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}


def _relu(model: Any) -> None:
    model.network.backbone.config.hidden_act = "relu"


def _endless(model: Any) -> None:
    model.chat = ChatFormat("{{ messages[-1].content }}", stop=("### End",))


def _narrow_table(model: Any) -> None:
    model.encoder.tokenizer.add_special_tokens(["<|new|>"])


def _broken(model: Any) -> None:
    with torch.no_grad():
        model.network.head.weight[3, 3] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_unknown, "does not know models of the type 'opt'"), (_adapted, "GGUF has no place for .*Merge"), (_yarn, "rope_type is 'yarn'"),
        (_relu, "hidden_act is 'relu', expected 'silu'"), (_endless, "'### End'.*is a token"), (_narrow_table, "token table has"),
        (_broken, "no finite number"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_do_otherwise_is_refused(tmp_path: Path, spoil: Callable[[Any], None], told: str) -> None:
    model = make_language("llama")
    spoil(model)
    with pytest.raises(InputError, match=told):
        find_generative("gguf:type=f16").write(model, tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "initializer_range": 0.08}


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_runs(tmp_path: Path, kind: str) -> None:
    found = prove(make_language("llama", **WIDE), tmp_path / "artifact", f"gguf:type={kind}", Closeness(perplexity=0.4))
    assert found.tokens > 100
    assert abs(found.change) < {"f32": 2e-3, "f16": 2e-3, "q8_0": 0.02}.get(kind, 0.4)


def test_fewer_bits_make_smaller_files(tmp_path: Path) -> None:
    model = make_language("llama", **WIDE)
    sizes = [
        (find_generative(f"gguf:type={kind}").write(model, tmp_path / kind) / "model.gguf").stat().st_size
        for kind in ("f32", "f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
    ]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(("kind", "name"), [("q8_0", "Q8_0"), ("q4_0", "Q4_0"), ("q5_0", "Q5_0"), ("q4_1", "Q4_1")])
def test_blocks_are_those_of_the_reference(kind: str, name: str) -> None:
    values = np.random.default_rng(1).standard_normal((24, 96)).astype(np.float32)
    reference = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    ours = pack(values, kind)
    assert ours.shape == reference.shape
    assert (ours == reference).mean() > 0.999  # one rounds halves up, the other to even


@pytest.mark.parametrize("kind", ["q4_0", "q4_k", "q5_k", "q6_k"])
def test_importance_moves_the_error_to_what_is_read_least(kind: str) -> None:
    random = np.random.default_rng(2)
    values = random.standard_normal((64, 256)).astype(np.float32)
    importance = np.where(random.random(256) < 0.2, 100.0, 0.01).astype(np.float32)

    def error(packed: np.ndarray) -> float:
        restored = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind.replace("_k", "_K").upper()])
        return float((np.square(restored - values) * importance).sum())

    assert error(pack(values, kind, importance)) < 0.95 * error(pack(values, kind))
    dead = np.zeros(256, dtype=np.float32)
    assert np.isfinite(error(pack(values, kind, dead)))


def test_the_importance_matrix_is_the_mean_square_of_what_each_matrix_reads() -> None:
    model = make_language("llama")
    rows = rows_of(model.encoder.tokenizer)
    found = measure_imatrix(model.network, rows)
    assert {name.split(".", 2)[2] for name in found} == {
        f"{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    backbone: Any = model.network.backbone
    with torch.inference_mode():
        inputs = [backbone.layers[0].input_layernorm(backbone.embed_tokens(torch.as_tensor(row)[None].long()))[0] for row in rows]
    expected = torch.cat(inputs).square().mean(0).numpy()
    np.testing.assert_allclose(found["blk.0.attn_q.weight"], expected, rtol=1e-4)
    assert found["blk.2.ffn_down.weight"].shape == (96,)
    with pytest.raises(InputError, match="no rows"):
        measure_imatrix(model.network, [])


def test_types_are_those_of_llama_cpp() -> None:
    assert list(RECIPES) == list(TYPES)

    def kind(name: str, *shape: int, type: str = "q4_k_m", tied: bool = False, layers: int = 30, weighted: bool = False) -> tuple[str, str]:
        return choose_type(RECIPES[type], name, shape, layers, tied=tied, weighted=weighted)

    assert kind("blk.4.attn_q.weight", 576, 576) == ("q4_k", "q5_0")  # SmolLM2-135M: rows of 576 are no multiple of 256
    assert kind("blk.0.attn_v.weight", 192, 576) == ("q6_k", "q8_0")
    assert kind("blk.0.ffn_down.weight", 576, 1536) == ("q6_k", "q6_k")
    assert [kind(f"blk.{number}.ffn_down.weight", 576, 1536)[0] for number in range(2, 9)] == [
        "q6_k", "q4_k", "q4_k", "q6_k", "q4_k", "q4_k", "q6_k",
    ]  # fmt: skip
    assert kind("blk.29.ffn_down.weight", 576, 1536)[0] == "q6_k"
    assert kind("token_embd.weight", 49152, 576, tied=True) == ("q8_0", "q8_0")
    assert kind("token_embd.weight", 49152, 512, tied=True) == ("q6_k", "q6_k")
    assert kind("token_embd.weight", 49152, 512) == ("q4_k", "q4_k")
    assert kind("output.weight", 49152, 576, type="q4_0") == ("q6_k", "q8_0")
    assert kind("blk.0.ffn_down.weight", 576, 1536, type="q4_0", weighted=True)[0] == "q4_1"
    assert kind("blk.9.ffn_down.weight", 576, 1536, type="q4_0", weighted=True)[0] == "q4_0"
    assert kind("blk.3.attn_q.weight", 50, 50) == ("q4_k", "f16")
    assert kind("blk.3.attn_norm.weight", 512) == kind("blk.3.attn_q.bias", 512) == ("f32", "f32")
    assert kind("position_embd.weight", 64, 512) == ("f32", "f32")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("gguf:type=q4", "type is 'q4', expected one of"), ("gguf:bits=4", "unknown option 'bits'"), ("onnx-int8", "models that classify or score"),
        ("ggf", "Did you mean 'gguf'"),
    ],
)  # fmt: skip
def test_specs_that_are_wrong(spec: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        find_generative(spec)


@pytest.fixture(scope="module")
def smollm2() -> Any:
    try:
        model = models.start_language(sources.resolve_model("smollm2-135m"), task_for(Answers("generate", ())), max_length=512)
    except LightuneError as error:
        pytest.skip(f"smollm2-135m cannot be had here: {error}")
    model.network.eval()
    return model


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("spec", ["gguf:type=f16", "gguf:type=q8_0", "gguf:type=q4_k_m", "gguf:type=q4_0"])
def test_smollm2_stays_what_it_is(shared_data: Path, tmp_path: Path, smollm2: Any, spec: str) -> None:
    lines = [json.loads(line) for line in (shared_data / "nl2bash" / "train.jsonl").read_text(encoding="utf-8").splitlines()[:48]]
    turns = [(Message("user", row["nl"]), Message("assistant", row["bash"])) for row in lines]
    rows = [np.array(smollm2.encoder.tokenizer.encode(render(smollm2.chat, turn, opening=False)).ids) for turn in turns]
    target = find_generative(spec)
    path = target.write(smollm2, tmp_path / "artifact", sample=rows[12:])
    with opened(path) as generator:
        found = compare(plain(smollm2, 512), generator, rows[:12], [turn[:1] for turn in turns[:2]], target.tolerance, max_tokens=12)
    assert found.tokens > 400
    if spec.endswith("f16"):
        assert found.agree == 1.0
        assert abs(found.change) < 0.005
    if spec.endswith("q4_k_m"):
        assert json.loads((path / "task.json").read_text(encoding="utf-8"))["fallbacks"]["q4_k as q5_0"] > 100  # rows of 576
