"""OpenAI's own client against a live server."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from live_servers import Start, wait_until
from openai import OpenAI
from parrots import Parrot


def ask(client: OpenAI, text: str, **options: Any) -> Any:
    return client.chat.completions.create(model="parrot", messages=[{"role": "user", "content": text}], **options)


@pytest.fixture
def client(start: Start) -> OpenAI:
    return start().openai()


def test_a_chat_is_answered_whole(client: OpenAI) -> None:
    done = ask(client, "good morning to you")
    assert done.object == "chat.completion"
    assert done.id.startswith("chatcmpl-")
    assert done.model == "parrot"
    (choice,) = done.choices
    assert (choice.index, choice.message.role, choice.message.content, choice.finish_reason) == (
        0,
        "assistant",
        "good morning to you",
        "stop",
    )
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (4, 4, 8)


def test_a_chat_is_streamed_role_first_and_the_reason_last(client: OpenAI) -> None:
    chunks = list(ask(client, "one two three", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" and chunk.usage is None for chunk in chunks)


def test_a_stream_is_made_of_events_and_ends_with_done(start: Start) -> None:
    body = {"model": "parrot", "messages": [{"role": "user", "content": "a b"}], "stream": True}
    with start().http().stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"


def test_a_stream_comes_while_the_model_still_speaks(start: Start) -> None:
    parrot = Parrot(pause=0.02)
    with ask(start(parrot).openai(), "a forever", stream=True, max_tokens=400) as stream:
        next(stream), next(stream)
        assert parrot.running == 1


def test_a_stream_tells_the_tokens_where_it_is_asked(client: OpenAI) -> None:
    *chunks, last = ask(client, "one two three", stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 3)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


@pytest.mark.parametrize("stop", ["three", ["xyz", "three"]])
def test_stop_texts_end_an_answer_and_are_no_part_of_it(client: OpenAI, stop: Any) -> None:
    (choice,) = ask(client, "one two three four", stop=stop).choices
    assert (choice.message.content, choice.finish_reason) == ("one two ", "stop")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_number_of_tokens_is_limited_under_either_name(client: OpenAI, name: str) -> None:
    (choice,) = ask(client, "one two three", **{name: 2}).choices
    assert (choice.message.content, choice.finish_reason) == ("one two ", "length")


def test_a_chat_without_a_limit_ends_with_the_servers_and_with_the_context(start: Start) -> None:
    assert ask(start(max_tokens=7).openai(), "forever").usage.completion_tokens == 7
    assert ask(start(Parrot(max_length=9)).openai(), "forever").usage.completion_tokens == 8


def test_a_seed_repeats_a_draw_and_several_draws_differ(client: OpenAI) -> None:
    text = " ".join("abcdefghijklmnop")
    first, again = (ask(client, text, temperature=1, seed=-5, n=3) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert first.usage.completion_tokens == 3 * 16


def test_several_draws_are_streamed_each_with_its_role_and_reason(client: OpenAI) -> None:
    chunks = [chunk.choices[0] for chunk in ask(client, "a b", stream=True, n=2)]
    for index in (0, 1):
        own = [choice for choice in chunks if choice.index == index]
        assert own[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in own) == "a b"
        assert own[-1].finish_reason == "stop"


def test_parts_of_text_are_one_message(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    done = client.chat.completions.create(model="parrot", messages=[{"role": "system", "content": "s"}, {"role": "user", "content": parts}])  # type: ignore[arg-type, misc, list-item]
    assert done.choices[0].message.content == "one two"


def test_forms_of_answers_reach_the_model(client: OpenAI) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}, "strict": True}}
    assert ask(client, "a", response_format=schema).choices[0].message.content == "{}"
    assert ask(client, "a", response_format={"type": "json_object"}).choices[0].message.content == "{}"
    assert ask(client, "a", response_format={"type": "text"}).choices[0].message.content == "a"
    assert ask(client, "a", extra_body={"choices": ["yes", "no"]}).choices[0].message.content == "yes"


def test_unknown_fields_and_empty_ones_are_ignored(client: OpenAI) -> None:
    done = ask(client, "a", user="me", metadata={"a": "b"}, presence_penalty=0, tools=[], extra_body={"brand_new": [1]})
    assert done.choices[0].message.content == "a"


def test_completions_continue_one_text_or_several(client: OpenAI) -> None:
    done = client.completions.create(model="parrot", prompt="one two", max_tokens=5)
    assert (done.object, done.choices[0].text, done.choices[0].finish_reason) == ("text_completion", "one two", "stop")
    done = client.completions.create(model="parrot", prompt=["a", "b c"], n=2)
    assert [(choice.index, choice.text) for choice in done.choices] == [(0, "a"), (1, "a"), (2, "b c"), (3, "b c")]
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 6)  # type: ignore[union-attr]
    assert client.completions.create(model="parrot", prompt="forever").usage.completion_tokens == 16  # type: ignore[union-attr]


def test_completions_are_streamed(client: OpenAI) -> None:
    chunks = list(client.completions.create(model="parrot", prompt="one two", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one two"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["parrot", "classify", "pair", "multilabel", "regress"]
    assert client.models.retrieve("pair").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("cat")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 100}, "n: "),
        ({"stop": [""]}, "stop"),
        ({"presence_penalty": 1.5}, "repetition_penalty"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"title": "impossible"}}}}, "cannot be met"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "type"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(client: OpenAI, options: dict[str, Any], words: str) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], **options}
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.chat.completions.create(model="parrot", **body)
    assert caught.value.type == "invalid_request_error"
    assert set(caught.value.body) == {"message", "type", "param", "code"}  # type: ignore[call-overload]


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="parrot") as caught:
        client.chat.completions.create(model="cat", messages=[{"role": "user", "content": "a"}])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_model_of_another_task_is_refused_with_the_way_to_ask_it(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="/predict"):
        client.chat.completions.create(model="classify", messages=[{"role": "user", "content": "a"}])


@pytest.mark.parametrize(("limit", "expected"), [(None, "20 tokens, expected at most 11"), (5, "20 tokens, expected at most 5")])
def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(start: Start, limit: int | None, expected: str) -> None:
    client = start(Parrot(max_length=12), max_prompt=limit).openai()
    with pytest.raises(openai.BadRequestError, match=expected) as caught:
        ask(client, "word " * 20)
    assert caught.value.code == "context_length_exceeded"


def test_a_failure_of_the_model_is_a_500_that_tells_nothing_of_it(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    client = start().openai()
    with pytest.raises(openai.InternalServerError, match="failed to answer") as caught:
        ask(client, "choke")
    assert "choked" not in str(caught.value)
    assert "the parrot choked" in caplog.text
    with pytest.raises(openai.APIError, match="failed to answer"):
        list(ask(client, "one choke", stream=True))
    assert ask(client, "fine").choices[0].message.content == "fine"


def test_sixty_four_clients_at_once_all_get_their_own_answers(start: Start) -> None:
    parrot = Parrot(pause=0.001)
    live = start(parrot, slots=8, queue=64)

    def talk(number: int) -> str:
        client = live.openai()
        if number % 2:
            return str(ask(client, f"client {number} speaks").choices[0].message.content)
        return "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, f"client {number} speaks", stream=True))

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(talk, range(64)))
    assert answers == [f"client {number} speaks" for number in range(64)]
    assert 2 <= parrot.most <= 8
    assert parrot.running == 0


def test_a_full_line_is_429_and_tells_when_to_come_back(start: Start) -> None:
    parrot = Parrot(pause=0.02)
    live = start(parrot, slots=1, queue=1)
    client = live.openai()
    with ask(client, "a forever", stream=True, max_tokens=500) as stream:
        next(stream)
        waiting = threading.Thread(target=lambda: ask(client, "patient"), daemon=True)
        waiting.start()
        wait_until(lambda: live.service._lines["parrot"].waiting == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(client, "too many")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        assert caught.value.type == "rate_limit_error"
    waiting.join(10)
    assert not waiting.is_alive()


def test_an_answer_that_takes_too_long_is_504_and_frees_its_slot(start: Start) -> None:
    parrot = Parrot(pause=0.02)
    client = start(parrot, timeout=0.3).openai()
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, "forever")
    assert caught.value.status_code == 504
    with pytest.raises(openai.APIError, match=r"within 0\.3 s"):
        list(ask(client, "forever", stream=True))
    wait_until(lambda: parrot.running == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_at_once(start: Start, stream: bool) -> None:
    parrot = Parrot(pause=0.02, max_length=100_000)
    live = start(parrot, slots=1)
    body = {"model": "parrot", "messages": [{"role": "user", "content": "forever"}], "stream": stream, "max_tokens": 50_000}
    if stream:
        with live.http().stream("POST", "/v1/chat/completions", json=body) as response:
            next(response.iter_raw())
    else:
        with pytest.raises(httpx.ReadTimeout):
            live.http().post("/v1/chat/completions", json=body, timeout=0.3)
    wait_until(lambda: parrot.running == 0, 1.0)
    assert ask(live.openai(), "next please").choices[0].message.content == "next please"


def test_a_client_that_leaves_the_line_is_forgotten(start: Start) -> None:
    parrot = Parrot(pause=0.02)
    live = start(parrot, slots=1)
    with ask(live.openai(), "a forever", stream=True, max_tokens=400) as stream:
        next(stream)
        with pytest.raises(httpx.ReadTimeout):
            live.http().post("/v1/chat/completions", json={"model": "parrot", "messages": [{"role": "user", "content": "b"}]}, timeout=0.2)
        wait_until(lambda: live.service._lines["parrot"].waiting == 0, 1.0)
