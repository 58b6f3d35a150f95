"""What is served, by its name."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from live_servers import Start, running
from tiny_artifacts import make_artifact

from lightune.errors import InputError
from lightune.runtime.generation import GenerationOptions, Message
from lightune.serving.opening import Served, open_served
from lightune.serving.settings import Settings


def test_models_are_named_by_their_run_their_folder_or_the_user(tmp_path: Path) -> None:
    run = tmp_path / "topics"
    make_artifact(run / "artifacts" / "onnx-int8")
    (run / "recipe.toml").write_text("", encoding="utf-8")
    words = make_artifact(tmp_path / "words")
    settings = Settings(threads=1)
    assert list(open_served([str(run), str(words), f"mine={words}"], settings)) == ["topics", "words", "mine"]
    assert list(open_served([str(run / "artifacts" / "onnx-int8")], settings)) == ["topics"]


def test_a_name_that_is_given_twice_is_refused_and_so_is_nothing(tmp_path: Path) -> None:
    words = make_artifact(tmp_path / "words")
    with pytest.raises(InputError, match="named words"):
        open_served([str(words), f"words={words}"], Settings())
    with pytest.raises(InputError, match="nothing to serve"):
        open_served([], Settings())
    with pytest.raises(InputError, match="does not exist"):
        open_served([str(tmp_path / "absent")], Settings())


def test_models_on_one_base_share_a_board_and_answer_as_alone(start: Start, tmp_path: Path, tiny_source: object) -> None:
    from lightune import models
    from lightune.methods.lora import LoRA
    from lightune.runtime.answers import Answers
    from lightune.tasks.classify import Classify

    texts = ["good film", "a bad room"]
    for seed, name in enumerate(("first", "second")):
        model = models.start(tiny_source("bert"), Classify(Answers("classify", ("no", name))), max_length=16, seed=seed).apply(LoRA(rank=2))  # type: ignore[operator]
        model.save(tmp_path / name)
    served = open_served([str(tmp_path / "first"), str(tmp_path / "second")], Settings(threads=1))
    assert served["first"].owner is served["second"].owner
    with running(dict(served), Settings(port=0)) as live:
        http = live.http()
        for name in served:
            alone = models.load(tmp_path / name).predict(texts)
            answers = http.post(f"/models/{name}/predict", json={"texts": texts}).json()["answers"]
            assert [answer["label"] for answer in answers] == [answer["label"] for answer in alone]
            assert [answer["probability"] for answer in answers] == pytest.approx([answer["probability"] for answer in alone], abs=1e-5)


def test_generating_models_on_one_base_have_its_weights_in_memory_once(tmp_path: Path) -> None:
    import tiny_models
    from transformers import AutoConfig, AutoModelForCausalLM

    from lightune import models
    from lightune.methods.lora import LoRA
    from lightune.runtime.answers import Answers
    from lightune.sources import resolve_model
    from lightune.tasks import task_for

    config = AutoConfig.for_model("llama", **{**tiny_models.TRANSFORMERS, **tiny_models.FAMILIES["llama"]})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tiny_models.make_tokenizer("llama").save_pretrained(tmp_path / "base")
    for name in ("first", "second"):
        model = models.start_language(resolve_model(tmp_path / "base"), task_for(Answers("generate", ())), max_length=40)
        model.apply(LoRA(rank=2)).save(tmp_path / name)
    served = dict(open_served([str(tmp_path / "first"), str(tmp_path / "second")], Settings(threads=1)))
    tables = [item.engine.network.backbone.get_input_embeddings().weight.data_ptr() for item in served.values()]
    assert tables[0] == tables[1]
    with running(served, Settings(port=0)) as live:
        for name, item in served.items():
            expected = item.engine.generate(["good film"], GenerationOptions(max_tokens=8))[0]
            done = live.openai().completions.create(model=name, prompt="good film", max_tokens=8)
            assert (done.choices[0].text, done.usage.completion_tokens) == (expected.text, expected.tokens)  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_real_gguf_model_chats_through_openais_client(tmp_path: Path) -> None:
    files = sorted(Path("~/.cache/lightune").expanduser().glob("smollm2*/**/*.gguf"))
    if not files:
        pytest.skip("smollm2-135m is not on this machine; fetch it: lightune fetch smollm2-135m")
    settings = Settings(port=0, slots=2, threads=1, context=512)
    served: dict[str, Served] = dict(open_served([f"smol={files[0]}"], settings))
    question = "Name the capital of France."
    with closing(served["smol"].engine) as generator, running(served, settings) as live:
        expected = generator.generate([[Message("user", question)]], GenerationOptions(max_tokens=12))[0]
        client = live.openai()
        messages = [{"role": "user", "content": question}]
        done = client.chat.completions.create(model="smol", messages=messages, max_tokens=12)  # type: ignore[arg-type]
        assert done.choices[0].message.content == expected.text
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (expected.prompt_tokens, expected.tokens)  # type: ignore[union-attr]
        schema = {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        }
        wish = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
        chunks = client.chat.completions.create(model="smol", messages=messages, max_tokens=40, response_format=wish, stream=True)  # type: ignore[call-overload]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert json.loads(text)["city"] in ("Paris", "Rome")
