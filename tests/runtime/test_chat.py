"""Chat templates: the same text as transformers writes, and what ends an answer."""

from __future__ import annotations

import pytest
from chat_templates import CHATML_TOOLS, ENDLESS, ENDS, GEMMA, MISTRAL, SMOLLM2, SPECIAL, TEMPLATES, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from lightune.errors import InputError
from lightune.runtime.chat import CHATML, ChatFormat, chat_format, closing, make_format, render
from lightune.runtime.generation import Message

TOOL = {
    "type": "function",
    "function": {"name": "temperature", "description": "<of> a 'city' & é", "parameters": {"city": {"type": "string"}}},
}
CALL = {"type": "function", "function": {"name": "temperature", "arguments": {"city": "Zürich"}}}
CONVERSATIONS = {
    "question": [Message("user", "How warm is it?")],
    "answered": [Message("user", "  How warm? \n"), Message("assistant", " 20 °C <b>&</b> \n")],
    "two-turns": [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")],
    "system": [Message("system", " Be brief. "), Message("user", "a"), Message("assistant", "b"), Message("user", "c")],
    "tools": [
        *(Message("user", "How warm?"), Message("assistant", "", {"tool_calls": [CALL], "name": None})),
        *(Message("tool", '{"degrees": 20}', {"tool_call_id": "1"}), Message("assistant", "20 °C", {"thinking": "easy"})),
    ],
}  # fmt: skip
REFUSED = {("gemma", "system"): "System role not supported", ("gemma", "tools"): "Conversation roles must alternate"}


def transformers_tokenizer(template: str | None):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=make_tokenizer(), bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("opening", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("which", CONVERSATIONS)
def test_the_text_is_the_one_that_transformers_writes(name: str, which: str, opening: bool) -> None:
    tokenizer, messages = transformers_tokenizer(TEMPLATES[name]), CONVERSATIONS[which]
    tools = [TOOL] if which == "tools" else []
    plain = [message.to_dict() for message in messages]
    if refused := REFUSED.get((name, which)):
        with pytest.raises(Exception, match=refused):
            tokenizer.apply_chat_template(plain, tools=tools or None, tokenize=False, add_generation_prompt=opening)
        with pytest.raises(InputError, match=refused):
            render(chat_format(tokenizer), messages, tools=tools, opening=opening)
        return
    expected = tokenizer.apply_chat_template(plain, tools=tools or None, tokenize=False, add_generation_prompt=opening)
    assert render(chat_format(tokenizer), messages, tools=tools, opening=opening) == expected


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(TEMPLATES)), st.lists(st.text(max_size=20), min_size=1, max_size=5), st.booleans())
def test_any_text_comes_out_as_transformers_writes_it(name: str, contents: list[str], opening: bool) -> None:
    messages = [Message(("user", "assistant")[place % 2], content) for place, content in enumerate(contents)]
    tokenizer = transformers_tokenizer(TEMPLATES[name])
    expected = tokenizer.apply_chat_template([each.to_dict() for each in messages], tokenize=False, add_generation_prompt=opening)
    assert render(chat_format(tokenizer), messages, opening=opening) == expected


def test_templates_of_the_test_differ_where_families_do() -> None:
    asked = CONVERSATIONS["two-turns"]
    texts = {name: render(make_format(template, bos="<s>", eos="</s>"), asked, opening=True) for name, template in TEMPLATES.items()}
    assert len(set(texts.values())) == len(TEMPLATES)
    assert texts["mistral"] == "<s>[INST] a[/INST] b</s>[INST] c[/INST] d</s>"


@pytest.mark.parametrize("name", ENDS)
def test_what_ends_an_answer_is_found(name: str) -> None:
    found = chat_format(transformers_tokenizer(TEMPLATES[name]))
    assert found.stop[0] == ENDS[name]
    assert set(found.stop) == {ENDS[name], "</s>"}
    assert closing(found).startswith(ENDS[name])


def test_a_template_without_an_end_has_eos_alone() -> None:
    assert make_format(ENDLESS, eos="</s>", tokens=SPECIAL).stop == ("</s>",)
    assert make_format(ENDLESS).stop == ()


def test_words_that_end_an_answer_count_where_they_are_no_token() -> None:
    assert make_format(SMOLLM2.replace("<|im_end|>", "\n### End"), eos="</s>", tokens=["</s>"]).stop == ("### End", "</s>")


def test_a_model_without_a_template_gets_chatml() -> None:
    found = chat_format(transformers_tokenizer(None))
    assert found.template == CHATML
    assert render(found, [Message("user", "a")], opening=True) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


def test_chatml_ends_turns_with_eos_where_its_own_token_is_unknown_and_begins_with_bos_where_texts_do() -> None:
    found = make_format(None, bos="<s>", eos="</s>", tokens=["<s>", "</s>"], writes_bos=True)
    assert found.stop == ("</s>",)
    assert render(found, [Message("user", "a"), Message("assistant", "b")], opening=False) == (
        "<s><|im_start|>user\na</s>\n<|im_start|>assistant\nb</s>\n"
    )


def test_the_template_named_default_is_taken_of_several() -> None:
    tokenizer = transformers_tokenizer(None)
    tokenizer.chat_template = {"tool_use": CHATML_TOOLS, "default": MISTRAL}
    assert chat_format(tokenizer).template == MISTRAL


def test_a_format_comes_back_from_its_dict() -> None:
    found = make_format(SMOLLM2, bos="<s>", eos="</s>", tokens=SPECIAL)
    assert ChatFormat.from_dict(found.to_dict()) == found


def test_a_refusal_comes_with_the_templates_words_and_the_roles() -> None:
    with pytest.raises(InputError, match=r"refuses a conversation of the roles system, user: System role not supported\. Change"):
        render(make_format(GEMMA), CONVERSATIONS["system"][:2], opening=True)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for message in messages %}", "cannot be read.*line 1"),
        ("{{ messages[0].content | nothing }}", "cannot be read.*nothing"),
        ("{{ messages[0]['content'] + 1 }}", "refuses a conversation"),
        ("{{ messages.append(1) }}", "refuses a conversation.*unsafe|immutable|not safely callable"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 'always the same' }}", "does not write what the assistant says"),
    ],
)
def test_a_template_that_is_wrong_is_an_error_of_the_user(template: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_format(template)


@pytest.mark.slow
def test_smollm2s_own_template_and_tokens() -> None:
    from transformers import AutoTokenizer

    from lightune.sources import resolve_model

    try:
        source = resolve_model("smollm2-135m")
    except InputError as problem:
        pytest.skip(str(problem))
    tokenizer = AutoTokenizer.from_pretrained(source.folder, gguf_file=source.file)
    found = chat_format(tokenizer)
    assert found.template == SMOLLM2
    assert found.stop == ("<|im_end|>",)
    for messages in CONVERSATIONS.values():
        plain = [message.to_dict() for message in messages]
        for opening in (True, False):
            assert render(found, messages, opening=opening) == tokenizer.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=opening
            )
