"""What clients may send: typed, bounded, and turned into prompts and options. Fields that nobody knows are ignored."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from lightune.runtime.generation import GenerationOptions, Message

Text = Annotated[str, StringConstraints(min_length=1)]
UNSUPPORTED = {
    "presence_penalty": "give repetition_penalty instead",
    "frequency_penalty": "give repetition_penalty instead",
    "logit_bias": "give choices or response_format to constrain the answer",
    "logprobs": "leave it out",
    "top_logprobs": "leave it out",
    "tools": "give response_format with a JSON schema instead",
    "functions": "give response_format with a JSON schema instead",
    "echo": "leave it out",
    "suffix": "leave it out",
}
SEEDS = 2**63


class StreamOptions(BaseModel):
    """What a stream tells beside the answer."""

    include_usage: bool | None = Field(None, description="a last chunk without choices tells the tokens")


class SchemaFormat(BaseModel):
    """A JSON schema with a name."""

    name: str | None = None
    schema_: dict[str, Any] | bool = Field(alias="schema")


class ResponseFormat(BaseModel):
    """What form the answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is missing; expected {name, schema}")
        return self

    def schema_text(self) -> str | None:
        """The JSON schema that an answer must fit, None where any text will do."""
        if self.type == "json_schema" and self.json_schema:
            return json.dumps(self.json_schema.schema_)
        return '{"type": "object"}' if self.type == "json_object" else None


class Asked(BaseModel):
    """How an answer is to be generated: the fields that chat and completions have in common."""

    model: str | None = Field(None, description="a name of /v1/models; may be left out where there is one")
    max_tokens: int | None = Field(None, ge=1, description="most tokens of an answer")
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0, the default, takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-SEEDS, lt=SEEDS)
    stop: Text | list[Text] | None = Field(None, description="texts at which the answer ends")
    choices: list[Text] | None = Field(None, max_length=1000, description="the answer is one of these texts")
    n: int | None = Field(None, ge=1, le=16, description="answers to each prompt, drawn one after the other")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, values: Any) -> Any:
        wrong = [f"{name} is not supported: {cure}" for name, cure in UNSUPPORTED.items() if isinstance(values, dict) and values.get(name)]
        if wrong:
            raise ValueError("; ".join(wrong))
        return values

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, stop: Any) -> Any:
        if isinstance(stop, list) and len(stop) > 16:
            raise ValueError(f"{len(stop)} stop texts, expected at most 16")
        return stop

    def options(self, max_tokens: int) -> GenerationOptions:
        """The options of an answer of at most so many tokens.

        Raises:
            InputError: they do not go together.
        """
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "choices")}
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return GenerationOptions(
            max_tokens=max_tokens,
            stop=stop,
            seed=None if self.seed is None else self.seed % SEEDS,
            json_schema=self.response_format.schema_text() if self.response_format else None,
            **{name: value for name, value in given.items() if value is not None},
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(BaseModel):
    """A part of a message; texts alone are understood."""

    type: Literal["text", "input_text"]
    text: str


class ChatMessage(BaseModel):
    """One turn; what else it has (name, tool_calls, tool_call_id) goes to the template as it is."""

    model_config = ConfigDict(extra="allow")

    role: Text
    content: str | list[TextPart] | None = None

    def message(self) -> Message:
        """The turn as templates know it."""
        content = "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""
        role = "system" if self.role == "developer" else self.role
        return Message(role, content, {name: value for name, value in (self.model_extra or {}).items() if value is not None})


class ChatBody(Asked):
    """A conversation whose next turn is asked for."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="the newer name of max_tokens")


class CompletionBody(Asked):
    """Texts that are to be continued."""

    prompt: str | list[str]
    best_of: int | None = Field(None, description="as n")

    @model_validator(mode="after")
    def _few(self) -> CompletionBody:
        if isinstance(self.prompt, list) and not 1 <= len(self.prompt) <= 64:
            raise ValueError(f"prompt is a list of {len(self.prompt)} texts, expected 1 to 64")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported: leave it out, or give n alone")
        return self

    def prompts(self) -> list[str]:
        """The texts, however many they are."""
        return self.prompt if isinstance(self.prompt, list) else [self.prompt]


class PredictBody(BaseModel):
    """What is to be classified or valued: texts, or rows of one text or two."""

    model: str | None = Field(None, description="a name of /v1/models; may be left out where there is one")
    texts: list[str] | None = None
    rows: list[Annotated[list[str], Field(min_length=1, max_length=2)] | str] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> PredictBody:
        if (self.texts is None) == (self.rows is None):
            raise ValueError("expected either texts or rows")
        return self

    def examples(self) -> list[Any]:
        """Texts, and tuples of two texts."""
        if self.texts is not None:
            return list(self.texts)
        return [row if isinstance(row, str) else row[0] if len(row) == 1 else tuple(row) for row in self.rows or ()]
