"""What an answer may be: one of some texts, or JSON that fits a schema. Both say which tokens may come next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from lightune.errors import InputError, MissingExtra
from lightune.runtime.generation import GenerationOptions
from lightune.runtime.token_table import TokenTable


class Constraint(Protocol):
    """What may come next in one answer; asked after every token."""

    def allowed(self, tokens: Sequence[int]) -> np.ndarray:
        """Ids int64 [k] of the tokens that may follow an answer's tokens so far; end tokens among them where it may end, none where it must."""
        ...


def make_constraint(options: GenerationOptions, table: TokenTable) -> Constraint | None:
    """The constraint that options ask for, or None.

    Raises:
        InputError: both kinds at once, a choice without tokens, or a schema that is none. MissingExtra: schemas need the package llguidance.
    """
    if options.choices and options.json_schema is not None:
        raise InputError("choices and json-schema are both given, expected one of them. Put the choices into the schema as an enum.")
    if options.choices:
        return Choices(options.choices, table)
    return Schema(options.json_schema, table) if options.json_schema is not None else None


class Choices:
    """An answer is one of some texts, token for token as the tokenizer writes them: a trie of their tokens."""

    def __init__(self, choices: Sequence[str], table: TokenTable) -> None:
        self._trie: dict[int | None, Any] = {}
        self._ends = sorted(table.ends)
        for choice in choices:
            node = self._trie
            if not (tokens := table.encode(choice)):
                raise InputError(f"The choice {choice!r} has no token, expected text that the answer can be.")
            for token in tokens:
                node = node.setdefault(token, {})
            node[None] = True  # a choice is complete here

    def allowed(self, tokens: Sequence[int]) -> np.ndarray:
        node = self._trie
        for token in tokens:
            node = node[token]
        following = [token for token in node if token is not None]
        return np.array(following + (self._ends if following and None in node else []), dtype=np.int64)


class Schema:
    """An answer is JSON that fits a JSON schema, by llguidance."""

    def __init__(self, schema: str, table: TokenTable) -> None:
        self._matcher = _llguidance().LLMatcher(_tokenizer(table), _grammar(schema), log_level=0)
        self._raise()
        self._count, self._size = 0, len(table.pieces)

    def allowed(self, tokens: Sequence[int]) -> np.ndarray:
        self._matcher.consume_tokens(list(tokens[self._count :]))
        self._count = len(tokens)
        self._raise()
        if self._matcher.is_stopped():
            return np.empty(0, dtype=np.int64)
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        return np.flatnonzero(bits[: self._size])

    def _raise(self) -> None:
        if self._matcher.is_error():
            raise InputError(f"The answer cannot be held to this JSON schema: {self._matcher.get_error()}. Simplify the schema.")


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtra("Answers that fit a JSON schema", "llguidance", "generate") from error
    return llguidance


def _grammar(schema: str) -> str:
    """llguidance's grammar of a schema; white space has a bound, for small models else fill an answer with it."""
    try:
        parsed = json.loads(schema)
    except ValueError as error:
        raise InputError(
            f"json-schema is no JSON ({error}), expected a JSON schema such as {{"
            '"type": "object", "properties": {"city": {"type": "string"}}}.'
        ) from error
    if not isinstance(parsed, dict):
        raise InputError(f"json-schema is {schema[:40]!r}, expected a JSON object.")
    matcher = _llguidance().LLMatcher
    grammar = matcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": r"[ \n]{0,8}"})
    if (problem := matcher.validate_grammar(grammar)) and not problem.startswith("WARNING"):
        raise InputError(f"json-schema cannot be used: {problem.strip()}. Correct the schema.")
    return str(grammar)


class _Wrapped:
    """A token table in the form that llguidance takes."""

    def __init__(self, table: TokenTable) -> None:
        self.tokens = table.pieces
        self.special_token_ids = sorted(table.special)
        self.eos_token_id = min(table.ends)
        self.bos_token_id = None
        self._encode = table.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


@lru_cache(maxsize=4)
def _tokenizer(table: TokenTable) -> Any:
    """llguidance's form of a table, which takes it up to a second to build."""
    if not table.ends:
        raise InputError("This model has no end token, and an answer that fits a JSON schema needs one. Name one in the chat format.")
    package = _llguidance()
    return package.LLTokenizer(package.TokenizerWrapper(_Wrapped(table)), eos_token=sorted(table.ends))
