from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from tiny_decoders import make_byte_tokenizer

from lightune.errors import InputError, MissingExtra
from lightune.runtime import constraints
from lightune.runtime.constraints import make_constraint
from lightune.runtime.drafts import Draft
from lightune.runtime.generation import GenerationOptions
from lightune.runtime.token_table import TokenTable, make_table

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "rooms": {"type": "integer", "minimum": 1, "maximum": 99},
        "kind": {"enum": ["hotel", "hostel"]},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["city", "rooms", "kind", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def table() -> TokenTable:
    return make_table(make_byte_tokenizer(), ("<|im_end|>",))


def answer(table: TokenTable, seed: int, **options: object) -> tuple[str, str | None, int]:
    """An answer drawn from random logits, so that the constraint alone gives it a shape."""
    draw = np.random.default_rng(seed)
    draft = Draft(np.array([1]), GenerationOptions(max_tokens=300, temperature=1.0, seed=seed, **options), table, 300, [seed])  # type: ignore[arg-type]
    text = ""
    while draft.finish is None:
        text += draft.add(draw.normal(0, 2, 488).astype(np.float32)).text
    return text, draft.finish, len(draft.tokens)


def test_choices_are_answered_whole(table: TokenTable) -> None:
    choices = ("hotel", "hostel", "hot", "größer 😀")
    found = {answer(table, seed, choices=choices)[:2] for seed in range(60)}
    assert found == {(choice, "stop") for choice in choices}


def test_the_likeliest_choice_is_taken_where_all_tokens_prefer_another_answer(table: TokenTable) -> None:
    first = {choice: table.encode(choice)[0] for choice in ("a", "b")}
    logits = np.zeros(488, dtype=np.float32)
    logits[[first["b"], 300]] = 1.0, 9.0
    draft = Draft(np.array([1]), GenerationOptions(choices=("a", "b")), table, 9)
    piece = draft.add(logits)
    assert (piece.text, piece.finish, piece.tokens) == ("b", "stop", 1)


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_fits_its_schema_whatever_the_model_prefers(table: TokenTable, seed: int) -> None:
    pytest.importorskip("llguidance")
    text, finish, _ = answer(table, seed, json_schema=json.dumps(SCHEMA))
    assert finish == "stop"
    value = json.loads(text)
    assert list(value) == ["city", "rooms", "kind", "tags"]
    assert len(value["city"]) <= 12
    assert 1 <= value["rooms"] <= 99
    assert value["kind"] in ("hotel", "hostel")
    assert len(value["tags"]) <= 3
    assert set(value["tags"]) <= {"a", "b"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"json_schema": "{"}, "json-schema is no JSON"),
        ({"json_schema": "[]"}, "expected a JSON object"),
        ({"json_schema": '{"type": "objekt"}'}, "cannot be used"),
        ({"json_schema": "{}", "choices": ("a",)}, "one of them"),
        ({"choices": ("a", "")}, "has no token"),
    ],
)
def test_wrong_constraints(table: TokenTable, options: dict[str, object], words: str) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(InputError, match=words):
        make_constraint(GenerationOptions(**options), table)  # type: ignore[arg-type]


def test_a_schema_needs_an_end_token(table: TokenTable) -> None:
    pytest.importorskip("llguidance")
    with pytest.raises(InputError, match="end token"):
        make_constraint(GenerationOptions(json_schema="{}"), make_table(make_byte_tokenizer(), ()))


def test_a_missing_package_is_named(table: TokenTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    constraints._tokenizer.cache_clear()
    with pytest.raises(MissingExtra, match=r"lightune\[generate\]"):
        make_constraint(GenerationOptions(json_schema="{}"), table)
