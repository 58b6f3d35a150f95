"""A conversation as the text that a model was taught: its tokenizer's own Jinja chat template. jinja2 is loaded on first use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from lightune.errors import InputError, MissingExtra
from lightune.runtime.generation import Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_END = "<|im_end|>"
SOURCE = "{% for message in messages %}{{ message['content'] }}{{ '' if loop.last else '\n\n' }}{% endfor %}"
SENTINEL = "\ue000answer\ue001"  # stands for an answer where only what is written around it matters; private use, so no text has it
REASONING = ("reasoning_content", "thinking", "reasoning")  # the names of one field; templates read the first, some the second


@dataclass(frozen=True)
class ChatFormat:
    """How conversations become text, and what ends an answer.

    template: Jinja, as tokenizers carry it. bos, eos: the tokenizer's tokens as text, "" where it has none.
    stop: the texts that end an answer, the one that the template writes first.
    """

    template: str
    bos: str = ""
    eos: str = ""
    stop: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The format, ready for JSON."""
        return {"template": self.template, "bos": self.bos, "eos": self.eos, "stop": list(self.stop)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> ChatFormat:
        """The inverse of `to_dict`."""
        return cls(facts["template"], facts["bos"], facts["eos"], tuple(facts["stop"]))


def make_format(template: str | None, *, bos: str = "", eos: str = "", tokens: Iterable[str] = (), writes_bos: bool = False) -> ChatFormat:
    """A format whose `stop` is found by looking at what the template writes after an answer.

    template: None for ChatML, whose end of turn is `eos` where `tokens` lacks ChatML's own. tokens: the texts that the tokenizer
    takes as one token. writes_bos: whether every text of this tokenizer begins with bos, so that ChatML too must begin with it.

    Raises:
        InputError: the template cannot be read, or fails on a question with its answer.
        MissingExtra: jinja2 is not installed.
    """
    known = tuple(token for token in tokens if token)
    if template is None:
        template = CHATML.replace(CHATML_END, eos) if eos and CHATML_END not in known else CHATML
        template = "{{ bos_token }}" * writes_bos + template
    found = ChatFormat(template, bos, eos)
    end = _ending(closing(found), known)
    return ChatFormat(template, bos, eos, tuple(dict.fromkeys(text for text in (end, eos) if text)))


def chat_format(tokenizer: Any) -> ChatFormat:
    """The format of a tokenizer of transformers: its own template, or ChatML where it has none.

    Raises:
        InputError: its template cannot be used.
    """
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default") or next(iter(template.values()), None)
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    writes_bos = bool(bos) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return make_format(template, bos=bos, eos=eos, tokens=tokenizer.get_added_vocab(), writes_bos=writes_bos)


def source_format(template: str | None, *, eos: str) -> ChatFormat:
    """How conversations become the source that an encoder reads: by a template, or the turns as they are, a blank line between them.

    Raises:
        InputError: a tokenizer without an end token, which ends source and answer.
    """
    if not eos:
        raise InputError(
            "The tokenizer names no end token, by which an encoder with a decoder ends its answers. Name it in tokenizer_config.json."
        )
    return ChatFormat(template or SOURCE, eos=eos, stop=(eos,))


def render(format: ChatFormat, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = (), opening: bool) -> str:
    """The text of a conversation, the same as transformers' `apply_chat_template` writes it.

    opening: whether the text ends with the beginning of the assistant's next turn, ready for an answer.

    Raises:
        InputError: the template cannot be read, or refuses these messages; with its own words.
        MissingExtra: jinja2 is not installed.
    """
    scope = {"bos_token": format.bos, "eos_token": format.eos}
    plain = [_aliased({key: value for key, value in message.to_dict().items() if value is not None}) for message in messages]
    template = _compiled(format.template)
    try:
        return template.render(
            messages=plain,
            tools=[dict(tool) for tool in tools] or None,
            documents=None,
            add_generation_prompt=opening,
            **{name: token for name, token in scope.items() if token},
        )
    except Exception as problem:  # a template is a program: it raises its own refusals and Python's errors alike
        roles = ", ".join(message.role for message in messages) or "none"
        raise InputError(
            f"The chat template refuses a conversation of the roles {roles}: {problem}. Change the conversation, or give another template."
        ) from problem


def closing(format: ChatFormat) -> str:
    """What the template writes after the answer of a finished conversation: '<|im_end|>\\n' in ChatML, '' where it writes nothing.

    Raises:
        InputError: the template fails, or does not write the answer at all.
    """
    text = render(format, (Message("user", "question"), Message("assistant", SENTINEL)), opening=False)
    _, found, rest = text.rpartition(SENTINEL)
    if not found:
        raise InputError("The chat template does not write what the assistant says. Give another template.")
    return rest


def _ending(rest: str, known: Sequence[str]) -> str:
    """The first of the known tokens in what follows an answer, else all of it but for blanks around it."""
    places = {token: rest.find(token) for token in known if token.strip() and token in rest}
    return min(places, key=lambda token: (places[token], -len(token))) if places else rest.strip()


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning, if it has any, under every name that templates know it by."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


@lru_cache(maxsize=32)
def _compiled(source: str) -> Any:
    """The template in a sandbox with what transformers gives to templates."""
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise MissingExtra("a chat template", "jinja2", "generate") from None

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json

    def refuse(reason: str) -> None:
        raise jinja2.TemplateError(reason)

    environment.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.now().strftime(form))
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as problem:
        line = f" in its line {problem.lineno}" if isinstance(problem, jinja2.TemplateSyntaxError) else ""
        raise InputError(f"The chat template cannot be read: {problem}{line}. Correct it, or give another.") from problem


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:  # jinja2's own filter would escape what HTML needs
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_tag() -> Any:
    """The tag {% generation %} ... {% endgeneration %}, which some templates put around answers, as nothing but its content."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (as the base class has it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    return Generation
