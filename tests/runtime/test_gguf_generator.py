from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_decoders import CHAT, LENGTH, Decoder, make_decoder, make_encoder

from lightune.errors import InputError, IntegrityError, MissingExtra
from lightune.exports import gguf
from lightune.exports.generative import Quantization
from lightune.generation import TorchGenerator
from lightune.runtime import llama
from lightune.runtime.generation import GenerationOptions, Message
from lightune.runtime.gguf import GGUFGenerator, load_gguf
from lightune.sources import resolve_model

pytest.importorskip("xllamacpp")

PROMPTS = ("the lower film", "a", "Über die schöne Straße läuft ein Hund", "x y z 1 2 3")
TALK = [Message("user", "the film?"), Message("assistant", "a room"), Message("user", "then")]
LONG = GenerationOptions(max_tokens=24)


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TorchGenerator, GGUFGenerator]]:
    """The same model in PyTorch and as a file."""
    decoder, folder = make_decoder(request.param), tmp_path_factory.mktemp("gguf") / "tiny"
    gguf.write(decoder, make_encoder(), CHAT, folder, base="base", name="tiny", options=Quantization(type="f32"))
    generator = load_gguf(folder, threads=1)
    yield TorchGenerator(decoder, make_encoder(), CHAT, name="tiny", max_length=LENGTH), generator
    generator.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny"
    return gguf.write(make_decoder("llama"), make_encoder(), CHAT, path, base="base", name="tiny", options=Quantization(type="f32"))


@pytest.fixture(scope="module")
def generator(folder: Path) -> Iterator[GGUFGenerator]:
    made = load_gguf(folder, threads=1, slots=3)
    yield made
    made.close()


def slow_down(generator: GGUFGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every step take so long that no answer ends by itself."""
    decoder = generator._scheduler._decoder
    decode = decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda chunks: (time.sleep(0.03), decode(chunks))[1])


def test_the_file_answers_as_the_model(pair: tuple[TorchGenerator, GGUFGenerator]) -> None:
    model, file = pair
    assert (file.name, file.base, file.max_length) == ("tiny", "base", LENGTH)
    assert file.generate([*PROMPTS, TALK], GenerationOptions(max_tokens=12)) == model.generate(
        [*PROMPTS, TALK], GenerationOptions(max_tokens=12)
    )


def test_the_file_scores_as_the_model(pair: tuple[TorchGenerator, GGUFGenerator]) -> None:
    model, file = pair
    rows = [model.encode(prompt) for prompt in (*PROMPTS, "", "a" * 50)]
    for one, other in zip(model.token_logprobs(rows), file.token_logprobs(rows), strict=True):
        assert len(one) == len(other)
        assert np.allclose(one, other, atol=0.02)  # the file's keys and values have 16 bits


def test_both_see_the_same_tokens(pair: tuple[TorchGenerator, GGUFGenerator]) -> None:
    model, file = pair
    assert np.array_equal(model.encode_prompt(TALK), file.encode_prompt(TALK))
    assert file.encode("<|im_end|>é 😀").tolist() == model.encode("<|im_end|>é 😀").tolist()
    assert file.count_tokens("the film") == len(file.encode("the film"))


def test_a_file_alone_knows_its_tokens_and_template(folder: Path, generator: GGUFGenerator) -> None:
    alone = load_gguf(folder / "model.gguf", threads=1)
    texts = [*PROMPTS, "a\ud800b", "<|im_start|>\n 12 <|im_end|>", "这 部 电 影 😀"]
    assert [alone.encode(text).tolist() for text in texts] == [generator.encode(text).tolist() for text in texts]
    assert np.array_equal(alone.encode_prompt(TALK), generator.encode_prompt(TALK))
    assert [answer.text for answer in alone.generate(PROMPTS, LONG)] == [answer.text for answer in generator.generate(PROMPTS, LONG)]
    assert generator.prompting.table.ends <= alone.prompting.table.ends
    alone.close()


def test_a_stream_joins_to_the_answer(generator: GGUFGenerator) -> None:
    pieces = list(generator.stream(PROMPTS[0], LONG))
    (answer,) = generator.generate([PROMPTS[0]], LONG)
    assert "".join(piece.text for piece in pieces) == answer.text
    assert (pieces[-1].finish, sum(piece.tokens for piece in pieces)) == (answer.finish, answer.tokens) == ("length", 24)
    stop = answer.text[4:7]
    (stopped,) = generator.generate([PROMPTS[0]], GenerationOptions(max_tokens=24, stop=(stop,)))
    assert (stopped.text, stopped.finish) == (answer.text.partition(stop)[0], "stop")


def test_more_prompts_than_slots_are_answered_in_their_order(generator: GGUFGenerator) -> None:
    prompts = [f"{prompt} {number}" for number in range(5) for prompt in PROMPTS]
    options = GenerationOptions(max_tokens=8)
    assert generator.generate(prompts, options) == [generator.generate([prompt], options)[0] for prompt in prompts]


def test_seeds(generator: GGUFGenerator) -> None:
    options = GenerationOptions(max_tokens=10, temperature=1.5, seed=4)
    first = generator.generate([PROMPTS[0]] * 3, options)
    assert first == generator.generate([PROMPTS[0]] * 3, options)
    assert len({answer.text for answer in first}) > 1
    assert "".join(piece.text for piece in generator.stream(PROMPTS[0], options)) == first[0].text


def test_threads_share_it(generator: GGUFGenerator) -> None:
    alone = {prompt: generator.generate([prompt], LONG)[0].text for prompt in PROMPTS}
    found: list[bool] = []

    def ask(prompt: str) -> None:
        for _ in range(3):
            found.append("".join(piece.text for piece in generator.stream(prompt, LONG)) == alone[prompt])

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [True] * 24


def test_closing_a_stream_frees_its_slot(generator: GGUFGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_down(generator, monkeypatch)
    streams = [generator.stream(prompt, GenerationOptions(max_tokens=55)) for prompt in PROMPTS]
    for stream in streams[:3]:
        next(stream)
    assert generator.active == 3
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]
    assert generator.active == 0  # the fourth had not begun
    abandoned = generator.stream("a", GenerationOptions(max_tokens=55))
    next(abandoned)
    del abandoned
    gc.collect()
    assert generator.active == 0


def test_the_next_turn_of_a_conversation_is_answered_as_if_it_were_the_first(folder: Path, generator: GGUFGenerator) -> None:
    fresh = load_gguf(folder, threads=1, slots=1)
    list(generator.stream(TALK[:1], GenerationOptions(max_tokens=3)))
    options = GenerationOptions(max_tokens=6)
    assert generator.generate([TALK], options) == fresh.generate([TALK], options)
    fresh.close()


def test_choices_and_schemas(generator: GGUFGenerator) -> None:
    (answer,) = generator.generate(["x"], GenerationOptions(choices=("the film", "a room")))
    assert answer.text in ("the film", "a room")
    assert answer.finish == "stop"
    pytest.importorskip("llguidance")
    schema = '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["n"], "additionalProperties": false}'
    (answer,) = generator.generate(["x"], GenerationOptions(json_schema=schema, max_tokens=50))
    assert answer.text.replace(" ", "").replace("\n", "")[:5] == '{"n":'


def test_closing_the_generator_ends_its_streams(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = load_gguf(folder, threads=1)
    slow_down(generator, monkeypatch)
    stream = generator.stream("a", GenerationOptions(max_tokens=60))
    first = next(stream)
    generator.close()
    generator.close()
    assert first.tokens == 1
    assert list(stream)[-1].finish == "cancelled"
    assert next(generator.stream("a", LONG)).finish == "cancelled"
    with pytest.raises(InputError, match="closed"):
        generator.token_logprobs([np.arange(5)])


def test_wrong_requests(generator: GGUFGenerator) -> None:
    with pytest.raises(InputError, match=f"fewer than {LENGTH}"):
        generator.stream("the film " * 60, LONG)
    with pytest.raises(InputError, match="empty"):
        generator.generate(["a", ""], LONG)
    with pytest.raises(InputError, match="at most"):
        generator.token_logprobs([np.zeros(LENGTH + 1, dtype=np.int32)])
    assert generator.active == 0


def test_what_is_no_model(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_gguf(tmp_path / "nothing.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(InputError, match="b'hell'"):
        load_gguf(tmp_path / "text.gguf")
    (tmp_path / "cut.gguf").write_bytes((folder / "model.gguf").read_bytes()[:5000])
    with pytest.raises(IntegrityError, match="cannot load"):
        load_gguf(tmp_path / "cut.gguf")
    with pytest.raises(InputError, match="threads is 0 and slots is -1"):
        load_gguf(folder, threads=0, slots=-1)
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    with (copied / "task.json").open("a") as file:
        file.write(" ")
    with pytest.raises(IntegrityError, match=r"task\.json has \d+ bytes"):
        load_gguf(copied)
    llama.library.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="xllamacpp"):
        load_gguf(folder)
    llama.library.cache_clear()


def test_it_prints_nothing_and_needs_no_torch(folder: Path) -> None:
    code = f"""
import sys
from lightune.runtime.gguf import load_gguf
from lightune.runtime.generation import GenerationOptions, Message
generator = load_gguf({str(folder)!r}, threads=1)
answers = generator.generate([[Message("user", "the film")]], GenerationOptions(max_tokens=4))
stream = generator.stream("a", GenerationOptions(max_tokens=40))
next(stream)
try:
    load_gguf({str(folder / "task.json")!r})
except Exception:
    pass
assert not {{"torch", "transformers", "onnxruntime"}} & set(sys.modules)
assert len(answers) == 1
"""  # it ends without closing anything
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_smollm2_is_as_in_transformers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lightune.runtime.chat import chat_format
    from lightune.runtime.tokenization import Encoder

    try:
        source = resolve_model("smollm2-135m")
    except Exception as error:
        pytest.skip(f"SmolLM2 is not here ({error})")
    path = source.folder / str(source.file)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

    model = TorchGenerator(
        Decoder(AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)),
        Encoder(tokenizer.backend_tokenizer, 512),
        chat_format(tokenizer),
        name="smollm2",
        max_length=512,
    )
    file = load_gguf(path, context=512)
    talk = [Message("user", "What is the capital of France?")]
    assert np.array_equal(model.encode_prompt(talk), file.encode_prompt(talk))
    texts = [
        "The capital of France is Paris, and the capital of Germany is Berlin. " * 4,
        "def add(a, b):\n    return a + b\n",
        "Ünïcödé 😀 1234",
    ]
    rows = [model.encode(text) for text in texts]
    assert [row.tolist() for row in rows] == [file.encode(text).tolist() for text in texts]
    one, other = np.concatenate(model.token_logprobs(rows)), np.concatenate(file.token_logprobs(rows))
    assert one.mean() == pytest.approx(other.mean(), abs=0.02)  # llama.cpp rounds activations to 8 bits
    assert np.corrcoef(one, other)[0, 1] > 0.999
    file.close()
