"""ONNX graphs that remember what they have read answer and score as the model does, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_decoders import CHAT, LENGTH, make_decoder, make_encoder

from lightune.errors import InputError, IntegrityError
from lightune.exports import find_export, find_generative, folder_name, onnx_generation
from lightune.exports.generative import Graph
from lightune.generation import TorchGenerator
from lightune.methods import make_method
from lightune.predictors import open_generator
from lightune.runtime import manifest
from lightune.runtime.generation import GenerationOptions, Message
from lightune.runtime.onnx_generation import ONNXGenerator, load_onnx
from lightune.runtime.written import load_written

PROMPTS = ("the lower film", "a", "Über die schöne Straße läuft ein Hund", "x y z 1 2 3")
TALK = [Message("user", "the film?"), Message("assistant", "a room"), Message("user", "then")]
SHORT, LONG = GenerationOptions(max_tokens=12), GenerationOptions(max_tokens=24)
FAMILIES: dict[str, dict[str, Any]] = {"gpt2": {}, "gemma2": {"sliding_window": LENGTH}}  # learned positions; a soft cap, a window


def export(decoder: Any, folder: Path, **options: int) -> Path:
    return onnx_generation.write(decoder, make_encoder(), CHAT, folder, base="base", name="tiny", options=Graph(**{"bits": 32, **options}))


def in_torch(decoder: Any) -> TorchGenerator:
    return TorchGenerator(decoder, make_encoder(), CHAT, name="tiny", max_length=LENGTH)


def check_alike(model: TorchGenerator, file: ONNXGenerator) -> None:
    """Greedy answers of a batch and log-probabilities of rows of every length."""
    assert file.generate([*PROMPTS, TALK], SHORT) == model.generate([*PROMPTS, TALK], SHORT)
    rows = [model.encode(prompt) for prompt in (*PROMPTS, "", "a" * 50)]
    for one, other in zip(model.token_logprobs(rows), file.token_logprobs(rows), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4)


@pytest.fixture(scope="module")
def decoder() -> Any:
    """A Llama with adapters between its blocks' parts, which no GGUF file and no configuration of transformers can tell."""
    found = make_decoder("llama")
    found.backbone = make_method("houlsby:reduction=4").apply(found.backbone)
    for name, item in found.backbone.named_parameters():
        if "adapter" in name or item.requires_grad:
            item.data += 0.1
    return found.eval()


@pytest.fixture(scope="module")
def folder(decoder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(decoder, tmp_path_factory.mktemp("onnx") / "tiny")


@pytest.fixture(scope="module")
def generator(folder: Path) -> ONNXGenerator:
    return load_onnx(folder, threads=1)


def test_a_decoder_with_adapters_answers_as_in_torch(decoder: Any, generator: ONNXGenerator) -> None:
    assert (generator.name, generator.base, generator.max_length) == ("tiny", "base", LENGTH)
    check_alike(in_torch(decoder), generator)
    bare = in_torch(make_decoder("llama"))
    assert generator.generate(PROMPTS, SHORT) != bare.generate(PROMPTS, SHORT)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_answer_as_in_torch(family: str, tmp_path: Path) -> None:
    decoder = make_decoder(family, **FAMILIES[family])
    check_alike(in_torch(decoder), load_onnx(export(decoder, tmp_path / "tiny"), threads=1))


def test_fewer_bits_are_smaller_and_near(generator: ONNXGenerator, tmp_path: Path) -> None:
    wide = make_decoder("llama", intermediate_size=320)  # whose matrices are large enough to lose bits
    whole = export(wide, tmp_path / "fp32")
    rows, gaps = [generator.encode(prompt) for prompt in PROMPTS], []
    expected = np.concatenate(load_onnx(whole).token_logprobs(rows))
    for bits, label in ((8, "int8"), (4, "int4")):
        small = export(wide, tmp_path / label, bits=bits)
        assert (small / "model.onnx").stat().st_size < 0.7 * (whole / "model.onnx").stat().st_size  # of so small a file much is operators
        far = np.concatenate(load_onnx(small).token_logprobs(rows)) - expected
        gaps.append(float(np.abs(far).mean()))
        assert json.loads((small / "task.json").read_text())["quantization"] == label
    assert 0 < gaps[0] < 0.5 * gaps[1] < 0.25


def test_a_stream_joins_to_the_answer_and_seeds_repeat(generator: ONNXGenerator) -> None:
    pieces = list(generator.stream(PROMPTS[0], LONG))
    assert "".join(piece.text for piece in pieces) == generator.generate([PROMPTS[0]], LONG)[0].text
    drawn = GenerationOptions(max_tokens=10, temperature=1.5, seed=4)
    first = generator.generate([PROMPTS[0]] * 3, drawn)
    assert first == generator.generate([PROMPTS[0]] * 3, drawn)
    assert len({answer.text for answer in first}) > 1


def test_many_prompts_are_answered_in_their_order_as_alone(generator: ONNXGenerator) -> None:
    prompts = [f"{prompt} {number}" for number in range(9) for prompt in PROMPTS]
    assert generator.generate(prompts, SHORT) == [generator.generate([prompt], SHORT)[0] for prompt in prompts]


def test_threads_share_it(generator: ONNXGenerator) -> None:
    alone = {prompt: generator.generate([prompt], SHORT)[0].text for prompt in PROMPTS}
    found: list[bool] = []

    def ask(prompt: str) -> None:
        found.append("".join(piece.text for piece in generator.stream(prompt, SHORT)) == alone[prompt])

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * len(threads)


def test_wrong_requests(generator: ONNXGenerator) -> None:
    with pytest.raises(InputError, match=f"expected fewer than {LENGTH}"):
        generator.generate(["a " * 80], SHORT)
    with pytest.raises(InputError, match=f"A row has {LENGTH + 9} tokens"):
        generator.token_logprobs([np.zeros(LENGTH + 9, np.int32)])


def test_what_cannot_go_on_from_what_it_has_read_is_refused(tmp_path: Path) -> None:
    prompted = make_decoder("llama")
    prompted.backbone = make_method("prompt:tokens=3").apply(prompted.backbone)
    with pytest.raises(InputError, match="reads its whole text anew"):
        export(prompted, tmp_path / "tiny")
    with pytest.raises(InputError, match=r"gemma2 looks back 8 tokens.*at most 8, or as gguf"):
        export(make_decoder("gemma2", sliding_window=8), tmp_path / "tiny")
    assert not (tmp_path / "tiny").exists()


def test_one_name_stands_for_both_kinds_of_graphs() -> None:
    assert find_generative("onnx:bits=32").tolerance.agree == 0.99
    assert find_generative("onnx", "translate").tolerance.perplexity == 0.05
    assert find_export("onnx").precision.weights == 32
    with pytest.raises(InputError, match="bits is 2, expected one of 32, 8, 4"):
        find_generative("onnx:bits=2")
    assert folder_name("onnx:bits=32") == "onnx-bits-32"


def test_it_is_found_by_its_path_and_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from lightune.predictors import open_generator; from lightune.runtime.generation import GenerationOptions\n"
        "writer = open_generator(sys.argv[1], threads=1); print(writer.generator.generate(['a'], GenerationOptions(max_tokens=3))[0].tokens)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "3"), done.stderr
    assert load_written(folder.parent) is None


def test_damage_is_refused(folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    task = json.loads((damaged / "task.json").read_text(encoding="utf-8"))
    (damaged / "task.json").write_text(json.dumps(task | {"format": 9}), encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"was altered|has .* bytes"):
        load_onnx(damaged)
    manifest.write(damaged, "0")
    with pytest.raises(IntegrityError, match="has the format 9 and the kind 'generate', expected 1"):
        load_onnx(damaged)
    (damaged / "task.json").write_text(json.dumps({key: value for key, value in task.items() if key != "chat"}), encoding="utf-8")
    manifest.write(damaged, "0")
    with pytest.raises(IntegrityError, match="does not describe a model that generates"):
        load_onnx(damaged)
    (damaged / "task.json").write_text(json.dumps(task | {"kind": "translate", "start": 0, "end": 1}), encoding="utf-8")
    manifest.write(damaged, "0")
    with pytest.raises(IntegrityError, match=r"encoder\.onnx is not in manifest"):
        open_generator(damaged)
    with pytest.raises(InputError, match="threads is 0"):
        load_onnx(folder, threads=0)
