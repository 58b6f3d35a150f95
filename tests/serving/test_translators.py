"""An encoder with a decoder behind OpenAI's interface: the prompt is the source."""

from __future__ import annotations

from pathlib import Path

from live_servers import running
from tiny_translators import write_translator

from lightune import language, models, sources
from lightune.methods import make_method
from lightune.runtime.answers import Answers
from lightune.runtime.generation import GenerationOptions
from lightune.serving.opening import open_served
from lightune.serving.settings import Settings
from lightune.tasks import task_for


def test_completions_and_chat_answer_the_source(tmp_path: Path) -> None:
    source = sources.resolve_model(write_translator(tmp_path / "t5"))
    model = models.start_language(source, task_for(Answers("translate", ())), max_length=64).apply(make_method("lora"))
    (expected,) = language.generator_of(model).generate(["the film"], GenerationOptions(max_tokens=8))
    served = open_served([f"mine={model.save(tmp_path / 'model')}"], Settings(threads=1))
    asked = {"model": "mine", "max_tokens": 8}
    with running(dict(served), Settings(port=0)) as live:
        written = live.http().post("/v1/completions", json=asked | {"prompt": "the film"}).json()["choices"][0]
        turns = [{"role": "user", "content": "the film"}]
        said = live.http().post("/v1/chat/completions", json=asked | {"messages": turns}).json()["choices"][0]
    assert written["text"] == said["message"]["content"] == expected.text
    assert written["finish_reason"] == said["finish_reason"] == expected.finish
