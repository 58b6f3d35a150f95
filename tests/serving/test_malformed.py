"""Whatever a client sends, the server's own fault (500) is never the answer, and every refusal has one form."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parrots import Parrot
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from starlette.testclient import TestClient

from lightune.serving.app import make_app
from lightune.serving.opening import Served
from lightune.serving.settings import Settings

ROUTES = ("/v1/chat/completions", "/v1/completions", "/predict", "/models/classify/predict")
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
BOUNDED = settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def app(predictors: dict[str, Served]) -> Any:
    return make_app({"parrot": Served("parrot", "generate", Parrot()), **predictors}, Settings())


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", ROUTES)
def test_requests_made_from_the_description_never_break_the_server(app: Any, path: str, mode: GenerationMode) -> None:
    description = schemathesis.openapi.from_asgi("/openapi.json", app)
    operation = next(iter(description[path.replace("classify", "{name}")].values()))

    @BOUNDED
    @given(case=operation.as_strategy(mode))
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    check()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system", ""]) | json_values, "content": st.text(max_size=9) | json_values}),
    max_size=3,
)
FIELDS: dict[str, Any] = {
    "model": st.sampled_from(["parrot", "classify", "cat"]) | json_values,
    "messages": messages | json_values,
    "prompt": st.text(max_size=9) | st.lists(st.text(max_size=9), max_size=3) | json_values,
    "texts": st.lists(st.text(max_size=9), max_size=3) | json_values,
    "rows": st.lists(st.lists(st.text(max_size=9), max_size=3), max_size=3) | json_values,
}
OPTIONS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "choices",
    "n",
    "stream",
    "stream_options",
    "response_format",
)
bodies = st.fixed_dictionaries({}, optional={**FIELDS, **dict.fromkeys(OPTIONS, st.integers(-1, 3) | st.floats() | json_values)})


@settings(BOUNDED, max_examples=100)
@given(route=st.sampled_from(ROUTES), body=bodies | json_values)
def test_bodies_of_known_fields_with_wild_values_never_break_the_server(app: Any, route: str, body: Any) -> None:
    response = TestClient(app).post(route, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"[]", b"null", b"[" * 100_000, b'{"texts": ["\\ud800"]}', b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"prompt": "\\ud800"}', b'{"n": 1' + b"0" * 5000 + b"}", b'{"temperature": NaN, "prompt": "a"}', b'{"prompt": "a", "max_tokens": 1e999}',
        b'{"model": "parrot", "messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_schema", "json_schema": {"schema": '
        + b'{"a":' * 800 + b"1" + b"}" * 800 + b"}}}",
    ],
    ids=["empty", "half", "bytes", "list", "null", "deep", "half-character", "half-character-chat", "half-character-prompt", "long-number", "nan", "infinite", "deep-schema"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["application/json", "text/plain", None])
def test_bodies_that_are_hardly_json_are_refused(app: Any, route: str, content: bytes, kind: str | None) -> None:
    response = TestClient(app).post(route, content=content, headers={"content-type": kind} if kind else {})
    assert response.status_code in (200, 400)
    if response.status_code == 400:
        assert response.json()["error"]["type"] == "invalid_request_error"
