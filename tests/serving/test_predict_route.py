"""`/predict` on real artefacts, over HTTP."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from live_servers import Start

from lightune.serving.opening import Served


@pytest.mark.parametrize(
    ("name", "body", "rows"),
    [
        ("classify", {"texts": ["good film", "bad room 😀"]}, ["good film", "bad room 😀"]),
        ("classify", {"rows": [["good"], "bad"]}, ["good", "bad"]),
        ("pair", {"rows": [["good", "bad"], ["film", "room"]]}, [("good", "bad"), ("film", "room")]),
        ("multilabel", {"texts": ["good"]}, ["good"]),
        ("regress", {"texts": [""]}, [""]),
        ("regress", {"texts": []}, []),
    ],
)
def test_the_answers_are_those_of_the_model(
    start: Start, predictors: dict[str, Served], name: str, body: dict[str, Any], rows: list[Any]
) -> None:
    http = start().http()
    expected = {"model": name, "answers": predictors[name].engine.predict(rows) if rows else [], "truncated_tokens": 0}
    assert http.post("/predict", json={"model": name, **body}).json() == expected
    assert http.post(f"/models/{name}/predict", json=body).json() == expected


def test_what_is_cut_is_told_to_whom_it_was_cut_from(start: Start) -> None:
    http = start().http()
    assert http.post("/predict", json={"model": "classify", "texts": ["good", "bad " * 20]}).json()["truncated_tokens"] == 22 - 16
    assert http.post("/predict", json={"model": "classify", "texts": ["good"]}).json()["truncated_tokens"] == 0


def test_many_clients_get_the_answers_to_their_own_rows(start: Start, predictors: dict[str, Served]) -> None:
    live = start(queue=64)
    texts = [[word] * (1 + number % 3) for number, word in enumerate(["good", "bad", "film", "room", "the", "was"] * 8)]
    clients = [live.http() for _ in range(8)]

    def ask(number: int) -> Any:
        return clients[number % 8].post("/predict", json={"model": "classify", "texts": texts[number]}).json()["answers"]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(len(texts))))
    engine = predictors["classify"].engine
    for own, given in zip(answers, texts, strict=True):
        assert [answer["label"] for answer in own] == [answer["label"] for answer in engine.predict(given)]
        assert [answer["probability"] for answer in own] == pytest.approx([answer["probability"] for answer in engine.predict(given)])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "either texts or rows"),
        ({"texts": ["a"], "rows": ["a"]}, "either texts or rows"),
        ({"texts": "a"}, "texts"),
        ({"rows": [["a", "b", "c"]]}, "rows"),
        ({"rows": [["a", "b"], "c"], "model": "pair"}, "Row 1 is one text"),
        ({"texts": ["a"], "model": "pair"}, "Row 0 is one text"),
        ({"texts": ["a"], "model": "parrot"}, "/v1/chat/completions"),
    ],
)
def test_what_cannot_be_predicted_is_refused_with_the_reason(start: Start, body: dict[str, Any], words: str) -> None:
    response = start().http().post("/predict", json={"model": "classify", **body})
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_a_model_must_be_named_where_there_are_several(start: Start) -> None:
    response = start().http().post("/predict", json={"texts": ["a"]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
