"""Keys, limits, counts and what is said to whoever asks wrongly."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest
from live_servers import Live, Start
from parrots import Parrot

from lightune.errors import InputError
from lightune.serving.gate import read_keys
from lightune.serving.settings import KEYS_VARIABLE, Settings

CHAT = {"model": "parrot", "messages": [{"role": "user", "content": "a b"}]}


def value(live: Live, name: str) -> float:
    """A number of /metrics by its name and labels."""
    lines = live.http().get("/metrics").text.splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " "))


@pytest.mark.parametrize("key", ["secret-one", "secret-two"])
def test_who_has_a_key_may_ask(start: Start, keys_file: Path, key: str) -> None:
    assert len(start(keys=str(keys_file)).openai(key).models.list().data) == 5


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer secret-on", "Bearer # ours", "Basic secret-one", "Bearer", "Bearer \xff"])
def test_without_a_key_nothing_is_told_but_the_health(start: Start, keys_file: Path, header: str | None) -> None:
    http = start(keys=str(keys_file)).http()
    headers = {"Authorization": header.encode("latin-1")} if header else {}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
        response = http.get(path, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "secret" not in response.text
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").status_code == 200


def test_keys_stand_in_the_environment_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "from-one from-two")
    live = start()
    assert live.openai("from-two").models.list().data
    with pytest.raises(openai.AuthenticationError):
        live.openai("from-three").models.list()


def test_a_file_without_keys_is_refused_rather_than_letting_everyone_in(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n# none yet\n", encoding="utf-8")
    with pytest.raises(InputError, match="holds no API key"):
        read_keys(Settings(keys=str(tmp_path / "keys")))
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(Settings(keys=str(tmp_path / "absent")))


def test_a_body_over_the_limit_is_413_whether_or_not_its_length_is_told(start: Start) -> None:
    http = start(max_body=2000).http()
    large = {"model": "parrot", "messages": [{"role": "user", "content": "x" * 2000}]}
    assert http.post("/v1/chat/completions", json=large).status_code == 413
    response = http.post("/predict", content=iter([b"x" * 1500] * 2), headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/chat/completions", 405), ("DELETE", "/predict", 405), ("GET", "/docs", 404)],
)
def test_wrong_paths_and_methods_are_told_in_the_same_form(start: Start, method: str, path: str, status: int) -> None:
    response = start().http().request(method, path)
    assert response.status_code == status
    assert path in response.json()["error"]["message"]


def test_requests_tokens_and_rows_are_counted(start: Start) -> None:
    live = start()
    http = live.http()
    http.post("/v1/chat/completions", json=CHAT)
    http.post("/v1/chat/completions", json={**CHAT, "model": "cat"})
    http.post("/predict", json={"model": "classify", "texts": ["good", "bad " * 20]})
    assert value(live, 'lightune_requests_total{model="parrot",route="/v1/chat/completions",status="200"}') == 1
    assert value(live, 'lightune_requests_total{model="",route="/v1/chat/completions",status="404"}') == 1
    assert value(live, 'lightune_request_seconds_count{model="classify",route="/predict"}') == 1
    assert value(live, 'lightune_tokens_total{model="parrot",part="prompt"}') == 2
    assert value(live, 'lightune_tokens_total{model="parrot",part="answer"}') == 2
    assert value(live, 'lightune_rows_total{model="classify"}') == 2
    assert value(live, 'lightune_truncated_tokens_total{model="classify"}') == 6
    assert value(live, 'lightune_in_flight{model="parrot"}') == 0


def test_what_waits_and_what_runs_is_told(start: Start) -> None:
    live = start(Parrot(pause=0.02), slots=1)
    with live.http().stream(
        "POST", "/v1/chat/completions", json={**CHAT, "stream": True, "messages": [{"role": "user", "content": "forever"}]}
    ) as response:
        next(response.iter_raw())
        assert value(live, 'lightune_in_flight{model="parrot"}') == 1
        assert value(live, 'lightune_queue_length{model="parrot"}') == 0
