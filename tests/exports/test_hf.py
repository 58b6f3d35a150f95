import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_generators import PROMPTS, logits, make_language, make_words, plain, rows_of

from lightune.errors import InputError
from lightune.exports import find_generative
from lightune.methods import make_method
from lightune.runtime import manifest
from lightune.runtime.chat import render
from lightune.runtime.generation import GenerationOptions, Message
from lightune.steps.depth import Depth
from lightune.steps.heads import Heads

LOADER = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, asked = sys.argv[1], json.load(sys.stdin)
model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.inference_mode():
    logits = [model(torch.tensor([row])).logits[0].float().tolist() for row in asked["rows"]]
answers = []
for prompt in asked["prompts"]:
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    made = model.generate(**ids, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
    answers.append(tokenizer.decode(made, skip_special_tokens=True))
messages = [{"role": "user", "content": "the lower film"}]
print(json.dumps({
    "missing": sorted(map(str, report["missing_keys"])), "unexpected": sorted(map(str, report["unexpected_keys"])), "logits": logits,
    "answers": answers, "ids": [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in asked["prompts"]],
    "chat": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
    "ends": model.generation_config.eos_token_id, "dtype": str(model.dtype), "lightune": "lightune" in sys.modules,
}))
"""


def load_plainly(folder: Path, rows: list[np.ndarray]) -> dict[str, Any]:
    """What a fresh process without Lightune finds in a folder."""
    asked = json.dumps({"rows": [row.tolist() for row in rows], "prompts": PROMPTS})
    done = subprocess.run([sys.executable, "-c", LOADER, str(folder)], input=asked, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("qwen2", True), ("gpt2", True), ("qwen3", False)])
def test_plain_transformers_loads_it_and_says_the_same(tmp_path: Path, family: str, tied: bool) -> None:
    model = make_language(family, tied=tied, tokenizer=make_words("qwen2" if family == "qwen2" else "gpt-2"))
    rows = rows_of(model.encoder.tokenizer)[:2]
    path = find_generative("hf").write(model, tmp_path / "artifact", name="mine")
    found = load_plainly(path, rows)
    assert (found["missing"], found["unexpected"], found["lightune"], found["dtype"]) == ([], [], False, "torch.float32")
    for row, theirs in zip(rows, found["logits"], strict=True):
        np.testing.assert_allclose(np.array(theirs), logits(model.network, row).numpy(), atol=2e-4)
    ours = plain(model).generate(PROMPTS, GenerationOptions(max_tokens=12))
    assert found["answers"] == [answer.text for answer in ours]
    assert found["ids"] == [model.encoder.tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in PROMPTS]
    assert found["chat"] == render(model.chat, [Message("user", "the lower film")], opening=True)
    assert found["ends"] == [model.encoder.tokenizer.token_to_id(text) for text in model.chat.stop]


def test_fewer_layers_and_half_the_bytes(tmp_path: Path) -> None:
    model = make_language("llama")
    model.network = Depth(layers=(0, 2)).apply(model.network)
    whole = find_generative("hf").write(model, tmp_path / "f32")
    half = find_generative("hf:type=bf16").write(model, tmp_path / "bf16")
    found = load_plainly(half, rows_of(model.encoder.tokenizer)[:1])
    assert found["dtype"] == "torch.bfloat16"
    np.testing.assert_allclose(found["logits"][0], logits(model.network, rows_of(model.encoder.tokenizer)[0]).numpy(), atol=0.6)
    sizes = [(path / "model.safetensors").stat().st_size for path in (whole, half)]
    assert sizes[1] < 0.6 * sizes[0]


def test_what_stands_in_the_folder(tmp_path: Path) -> None:
    model = make_language("llama")
    model.network.backbone.config.quantization_config = {
        "quant_method": "gguf",
        "gguf_file": "base.gguf",
    }  # as a base from a GGUF file has it
    before = model.network.backbone.config.to_dict()
    path = find_generative("hf").write(model, tmp_path / "artifact")
    manifest.check(path, ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "task.json"))
    assert json.loads((path / "task.json").read_text(encoding="utf-8"))["kind"] == "generate"
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    assert model.network.backbone.config.to_dict() == before
    assert {item.stat().st_mode & 0o777 for item in path.iterdir()} == {(path / "config.json").stat().st_mode & 0o777}


def test_shapes_and_parts_that_no_configuration_tells(tmp_path: Path) -> None:
    cut = make_language("gpt2")
    cut.network = Heads(heads=((0, 1),) * 3).apply(cut.network)
    with pytest.raises(InputError, match="No configuration of 'gpt2' tells the shape"):
        find_generative("hf").write(cut, tmp_path / "artifact")
    adapted = make_language("llama")
    adapted.network.backbone = make_method("lora:rank=2").apply(adapted.network.backbone)
    with pytest.raises(InputError, match="Merge what was added"):
        find_generative("hf").write(adapted, tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_heads_of_a_width_of_their_own(tmp_path: Path) -> None:
    model = make_language("llama")
    model.network = Heads(heads=((0,), (1,), (0,))).apply(model.network)
    rows = rows_of(model.encoder.tokenizer)[:1]
    found = load_plainly(find_generative("hf").write(model, tmp_path / "artifact"), rows)
    np.testing.assert_allclose(np.array(found["logits"][0]), logits(model.network, rows[0]).numpy(), atol=2e-4)
