"""How each exported file is called, from the shell and from Python."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

from lightune.reports.records import Record

TRANSFORMERS = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({path!r})
model = AutoModelForCausalLM.from_pretrained({path!r})
messages = [{{"role": "user", "content": "a question"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
made = model.generate(**inputs, max_new_tokens=256, do_sample=False)
print(tokenizer.decode(made[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
WITHOUT_TORCH = """from lightune.runtime.generation import GenerationOptions, Message
from lightune.runtime.{module} import {load}

generator = {load}({path!r})
(answer,) = generator.generate([[Message("user", "a question")]], GenerationOptions(max_tokens=256))
print(answer.text)
generator.close()"""


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to be copied: what they are for, their language, themselves."""

    title: str
    language: str
    text: str


def show_usage(record: Record) -> list[dict[str, Any]]:
    """How to call what the run made, as {target, codes}: each artefact, the smallest first. A run that generates can be called itself."""
    files = sorted(record.artifacts, key=lambda artifact: artifact.get("bytes") or math.inf)
    tell = _call_generator if record.generates else _call_predictor
    named = [(str(file.get("target")), find_path(record, file)) for file in files]
    found = [{"target": target, "codes": tell(record, target, path)} for target, path in named]
    return [{"target": "the run", "codes": [_talk(record)]}, *found] if record.generates and record.run else found


def find_path(record: Record, artifact: dict[str, Any]) -> str:
    """The place of an artefact, seen from the folder that holds the run's."""
    return f"{record.folder.name}/{artifact.get('path') or 'artifacts/' + str(artifact.get('target'))}"


def tell_install(record: Record) -> str:
    """What has to be installed where the files are used, in a sentence."""
    if record.generates:
        return "A GGUF file needs `pip install 'lightune[gguf,serve]'` and no torch, an ONNX folder `pip install 'lightune[generate,serve]'`, others `pip install 'lightune[train,serve]'`."
    return "`pip install lightune` is enough: predicting needs no torch."


def _call_predictor(record: Record, target: str, path: str) -> list[Code]:
    """Pairs of texts are shown in Python only."""
    pair = record.run.get("task") == "pair" or bool((record.data.get("columns") or {}).get("pair"))
    quoted = shlex.quote(path)
    first = "" if pair else f'lightune predict {quoted} "some text"\n'
    rows = '("first text", "second text")' if pair else '"some text", "another text"'
    python = f"from lightune.runtime import load\n\npredictor = load({path!r})\nprint(predictor.predict([{rows}]))"
    shell = f"{first}lightune bench {quoted}\nlightune evaluate {quoted} more.csv"
    return [Code("Shell", "sh", shell), Code("Python, without torch", "python", python)]


def _call_generator(record: Record, target: str, path: str) -> list[Code]:
    quoted = shlex.quote(path)
    shell = Code("Shell", "sh", f'lightune chat {quoted}\nlightune predict {quoted} "a question"')
    kind = target.partition(":")[0]
    if kind == "onnx":
        return [shell, Code("Python, without torch", "python", WITHOUT_TORCH.format(module="onnx_generation", load="load_onnx", path=path))]
    if kind != "gguf":
        return [shell, Code("Python, with transformers", "python", TRANSFORMERS.format(path=path))]
    file = shlex.quote(f"{path}/model.gguf")
    llama = f"llama-cli -m {file}\nllama-server -m {file}"
    return [
        shell,
        Code("Python, without torch", "python", WITHOUT_TORCH.format(module="gguf", load="load_gguf", path=path)),
        Code("llama.cpp", "sh", llama),
    ]


def _talk(record: Record) -> Code:
    run = shlex.quote(record.folder.name)
    verbs = (f"chat {run}", f"serve {run}", f'predict {run} "a question"', f"evaluate {run} more.jsonl")
    return Code("Shell", "sh", "\n".join(f"lightune {verb}" for verb in verbs))
