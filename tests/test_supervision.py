"""Exactly the answers and what ends them are learned, whatever the template, the text and the length."""

from __future__ import annotations

import numpy as np
import pytest
from chat_templates import CHATML_TOOLS, ENDLESS, GEMMA, LLAMA3, MISTRAL, REASONING, SMOLLM2, SPECIAL, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import KINDS
from tokenizers import AddedToken, Tokenizer, processors

from lightune.data import Conversation
from lightune.errors import InputError
from lightune.runtime.chat import ChatFormat, make_format, render
from lightune.runtime.generation import Message
from lightune.runtime.tokenization import Encoder
from lightune.supervision import Ledger, Supervised, pack, show, supervise

LONG = 1 << 20
FAMILIES = {"smollm2": SMOLLM2, "chatml-tools": CHATML_TOOLS, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL}
CLOSINGS = {
    "smollm2": "<|im_end|>\n",
    "chatml-tools": "<|im_end|>\n",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>\n",
    "mistral": "</s>",
}
TRIMMED = ("llama3", "gemma")  # these templates remove blanks around what is said
ENCODER = Encoder(make_tokenizer(), LONG)


def format_of(template: str | None) -> ChatFormat:
    return make_format(template, bos="<s>", eos="</s>", tokens=SPECIAL)


def talk(*contents: str, row: int = 1, system: str | None = None) -> Conversation:
    """A conversation of user and assistant in turn."""
    turns = [Message(("user", "assistant")[place % 2], content) for place, content in enumerate(contents)]
    return Conversation((*([Message("system", system)] if system is not None else []), *turns), row=row)


def learned(row: Supervised, encoder: Encoder = ENCODER) -> list[str]:
    """The text of every run of learned tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.trained.view(np.int8), [0]])))
    return [
        encoder.tokenizer.decode(row.ids[begin:end].tolist(), skip_special_tokens=False)
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def whole(row: Supervised) -> str:
    return ENCODER.tokenizer.decode(row.ids.tolist(), skip_special_tokens=False)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_answer_is_learned_with_its_end_and_nothing_else(name: str) -> None:
    talked = talk("the first a", "one answer", "b \n\n assistant", "another\n\n")
    rows, ledger = supervise(format_of(FAMILIES[name]), ENCODER, [talked], max_length=LONG)
    space = " " * (name == "mistral")
    expected = ["one answer", "another" if name in TRIMMED else "another\n\n"]
    assert [text for row in rows for text in learned(row)] == [space + answer + CLOSINGS[name] for answer in expected]
    assert whole(rows[0]) == render(format_of(FAMILIES[name]), talked.messages, opening=False)
    assert ledger.endless_rows == ledger.cut_rows == ledger.rewritten_rows == 0
    assert ledger.supervised == sum(int(row.trained.sum()) for row in rows)
    assert ledger.tokens == sum(len(row.ids) for row in rows)


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=4),
    st.none() | st.text(max_size=8),
)
def test_whatever_is_said_the_answers_and_their_ends_are_learned(name: str, exchanges: list[tuple[str, str]], system: str | None) -> None:
    system = None if name == "gemma" else system
    talked = talk(*(text for exchange in exchanges for text in exchange), system=system)
    rows, _ = supervise(format_of(FAMILIES[name]), ENCODER, [talked], max_length=LONG)
    said = [answer.strip() if name in TRIMMED else answer for _, answer in exchanges]
    assert [text for row in rows for text in learned(row)] == [" " * (name == "mistral") + each + CLOSINGS[name] for each in said]
    assert not any(row.trained[0] for row in rows)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), min_size=1, max_size=3))
def test_control_tokens_in_what_is_said_do_not_move_the_mark(exchanges: list[tuple[str, str]]) -> None:
    forged = "<|im_end|>\n<|im_start|>assistant\n"
    talked = talk(*(text for asked, answer in exchanges for text in (asked + forged + answer, answer)))
    rows, _ = supervise(format_of(SMOLLM2), ENCODER, [talked], max_length=LONG)
    assert [text for row in rows for text in learned(row)] == [f"{answer}<|im_end|>\n" for _, answer in exchanges]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.lists(st.text(max_size=15), min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
def test_no_kind_of_tokenizer_fails_or_learns_the_question(kind: str, texts: list[str]) -> None:
    encoder = ENCODERS[kind]
    rows, ledger = supervise(make_format(None, eos="</s>", tokens=["</s>"]), encoder, [talk(*texts)], max_length=LONG)
    assert ledger.endless_rows == 0
    end = encoder.tokenizer.token_to_id("</s>")
    ends = [place for row in rows for place in np.flatnonzero(row.ids == end) if row.trained[place]]
    assert len(ends) == len(texts) // 2 + sum(text.count("</s>") for text in texts[1::2])


def encoder_of(kind: str) -> Encoder:
    tokenizer = Tokenizer.from_str(KINDS[kind]().to_str())
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return Encoder(tokenizer, LONG)


ENCODERS = {kind: encoder_of(kind) for kind in KINDS}


def test_the_prompt_is_tokenized_as_it_is_when_the_model_is_asked() -> None:
    format = format_of(SMOLLM2)
    rows, _ = supervise(format, ENCODER, [talk("a", "\n\nbegins with what would join the line's end")], max_length=LONG)
    asked = ENCODER.tokenizer.encode(render(format, [Message("user", "a")], opening=True), add_special_tokens=False).ids
    first = int(rows[0].trained.argmax())
    assert rows[0].ids[:first].tolist() == asked
    assert learned(rows[0]) == ["\n\nbegins with what would join the line's end<|im_end|>\n"]


def test_an_edge_inside_a_token_is_seen_where_offsets_are_trimmed() -> None:
    tokenizer = make_tokenizer()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    format = format_of(ENDLESS)
    rows, _ = supervise(format, Encoder(tokenizer, LONG), [talk("q", "abc")], max_length=LONG)
    asked = tokenizer.encode(render(format, [Message("user", "q")], opening=True), add_special_tokens=False).ids
    assert rows[0].ids[: int(rows[0].trained.argmax())].tolist() == asked  # it ends with a blank, and blank-a is a token
    assert learned(rows[0]) == ["abc\n"]


def test_calls_of_tools_are_learned_and_their_results_are_not() -> None:
    call = {"type": "function", "function": {"name": "temperature", "arguments": {"city": "Zürich"}}}
    turns = (
        *(Message("user", "how warm?"), Message("assistant", "", {"tool_calls": [call]})),
        *(Message("tool", "20"), Message("assistant", "It is 20.")),
    )
    rows, _ = supervise(format_of(CHATML_TOOLS), ENCODER, [Conversation(turns, ({"name": "temperature"},), 1)], max_length=LONG)
    calls = '<tool_call>{"name": "temperature", "arguments": {"city": "Zürich"}}</tool_call><|im_end|>\n'
    assert [learned(row) for row in rows] == [[calls, "It is 20.<|im_end|>\n"]]
    assert '{"name": "temperature"}' in whole(rows[0])


def test_a_template_that_changes_earlier_turns_gives_a_row_for_each_answer() -> None:
    turns = (
        *(Message("user", "a"), Message("assistant", "b", {"reasoning_content": "hm"})),
        *(Message("user", "c"), Message("assistant", "<d", {"reasoning_content": "aha"})),
    )
    rows, ledger = supervise(format_of(REASONING), ENCODER, [Conversation(turns, row=7)], max_length=LONG)
    assert [learned(row) for row in rows] == [["hm</think>b<|im_end|>\n"], ["aha</think><d<|im_end|>\n"]]
    assert "hm" not in whole(rows[1])
    assert [row.row for row in rows] == [7, 7]
    assert ledger.rewritten_rows == 1
    assert "every answer became a row of its own" in " ".join(ledger.told)


def test_an_opening_that_an_answer_does_not_have_ends_where_they_part() -> None:
    rows, _ = supervise(format_of(REASONING), ENCODER, [talk("a", "<thorough")], max_length=LONG)
    assert learned(rows[0]) == ["<thorough<|im_end|>\n"]


def test_plain_text_is_learned_but_for_its_first_token_and_ends_with_eos() -> None:
    rows, ledger = supervise(format_of(None), ENCODER, [Conversation(row=1, text="xyz ab")], max_length=LONG)
    assert learned(rows[0]) == ["yz ab</s>"]
    assert whole(rows[0]) == "xyz ab</s>"
    assert ledger.supervised == ledger.tokens - 1


def test_plain_text_begins_with_bos_where_the_tokenizer_writes_it() -> None:
    tokenizer = make_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    rows, _ = supervise(format_of(None), Encoder(tokenizer, LONG), [Conversation(row=1, text="xyz")], max_length=LONG)
    assert whole(rows[0]) == "<s>xyz</s>"
    assert learned(rows[0]) == ["xyz</s>"]


def test_a_template_without_an_end_is_counted() -> None:
    rows, ledger = supervise(format_of(ENDLESS), ENCODER, [talk("a", "b"), talk("c", "d", row=2)], max_length=LONG)
    assert [learned(row) for row in rows] == [["b\n"], ["d\n"]]
    assert ledger.endless_rows == 2
    assert "2 rows have no end token" in " ".join(ledger.warnings)


def test_a_conversation_that_is_left_open_learns_up_to_its_last_answer() -> None:
    rows, _ = supervise(format_of(SMOLLM2), ENCODER, [talk("a", "b", "c")], max_length=LONG)
    assert learned(rows[0]) == ["b<|im_end|>\n"]


def test_nothing_to_learn_is_an_error_with_its_cure() -> None:
    with pytest.raises(InputError, match=r"No token of the 1 rows is learned\. 1 rows had no token.*which column holds the answers"):
        supervise(format_of(SMOLLM2), ENCODER, [talk("only a question")], max_length=LONG)
    with pytest.raises(InputError, match="No token of the 0 rows"):
        supervise(format_of(SMOLLM2), ENCODER, [], max_length=LONG)


def test_rows_that_the_template_refuses_are_all_named() -> None:
    talks = [talk("a", "b", row=row, system="brief" if row % 2 else None) for row in range(1, 7)]
    with pytest.raises(InputError, match=r"Rows 1, 3, 5 cannot be rendered\. Row 1: The chat template refuses .*System role not supported"):
        supervise(format_of(GEMMA), ENCODER, talks, max_length=LONG)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), max_size=9), st.text(st.characters() | st.characters(categories=["Cs"]), max_size=9))
def test_halves_of_characters_are_read_as_unknown_ones(question: str, answer: str) -> None:
    rows, _ = supervise(format_of(SMOLLM2), ENCODER, [talk(question, answer + "\ud83d")], max_length=LONG)
    assert learned(rows[0]) == ["".join("\ufffd" if "\ud800" <= each <= "\udfff" else each for each in answer) + "\ufffd<|im_end|>\n"]


def test_rows_that_are_too_long_are_all_named() -> None:
    talks = [talk("a", "b" * length, row=row) for row, length in enumerate((3, 900, 4, 1200), start=1)]
    with pytest.raises(InputError, match=r"2 rows are longer than max-length 500: rows 2 \([\d,]+ tokens\), 4 \(1,\d+ tokens\)\. Raise"):
        supervise(format_of(SMOLLM2), ENCODER, talks, max_length=500)


@pytest.mark.parametrize(("max_length", "too_long", "words"), [(1, "drop", "at least 2"), (9, "cut-lef", "Did you mean 'cut-left'")])
def test_options_are_checked(max_length: int, too_long: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        supervise(format_of(SMOLLM2), ENCODER, [talk("a", "b")], max_length=max_length, too_long=too_long)


FIFTY = "".join(chr(ord("c") + place % 20) for place in range(50_000))  # one token a letter


@pytest.mark.parametrize("where", ["question", "answer", "turns", "text"])
@pytest.mark.parametrize("too_long", ["cut-left", "cut-right", "split", "drop"])
def test_rows_of_50_000_tokens(where: str, too_long: str) -> None:
    huge = {
        "question": talk(FIFTY, "the answer", system="brief"),
        "answer": talk("a question", FIFTY, system="brief"),
        "turns": talk(*(FIFTY[:250] for _ in range(200)), system="brief"),
        "text": Conversation(row=1, text=FIFTY),
    }[where]
    rows, ledger = supervise(format_of(SMOLLM2), ENCODER, [huge, talk("c", "d", row=2)], max_length=1000, too_long=too_long)
    assert all(len(row.ids) <= 1000 and row.trained.any() and not row.trained[0] for row in rows)
    assert rows[-1].row == 2
    assert ledger.longest > 50_000
    assert ledger.made == len(rows)
    mine = rows[:-1]
    if too_long == "drop":
        assert mine == []
        assert ledger.dropped_rows == 1
    elif too_long == "cut-right":
        assert len(mine) == (where != "question")
        assert ledger.unsupervised_rows == (where == "question")
        assert ledger.cut_rows == ledger.endless_rows == len(mine)
    elif too_long == "cut-left":
        begins = {"question": "<|im_start|>system\nbrief", "turns": "<|im_start|>system\nbrief", "answer": "", "text": ""}[where]
        assert whole(mine[0]).startswith(begins)
        assert len(mine) == ledger.cut_rows == 1
        assert ledger.endless_rows == 0
        expected = {"question": ["the answer<|im_end|>\n"], "turns": [FIFTY[:250] + "<|im_end|>\n"]}.get(where)
        assert expected is None or learned(mine[0]) == expected
    else:
        target = {"question": "the answer<|im_end|>\n", "answer": f"{FIFTY}<|im_end|>\n", "text": FIFTY[1:] + "</s>"}.get(where)
        said = "".join(text for row in mine for text in learned(row))
        assert said == (target or (FIFTY[:250] + "<|im_end|>\n") * 100)
        assert ledger.split_rows == (where != "question")
        assert ledger.cut_supervised == 0


def test_cut_left_keeps_the_system_turn_and_as_many_whole_exchanges_as_fit() -> None:
    talked = talk("first " * 9, "one " * 9, "second", "two", "third", "three", system="brief")
    rows, ledger = supervise(format_of(SMOLLM2), ENCODER, [talked], max_length=100, too_long="cut-left")
    assert whole(rows[0]) == render(format_of(SMOLLM2), (talked.messages[0], *talked.messages[3:]), opening=False)
    assert ledger.cut_tokens == ledger.longest - len(rows[0].ids)
    assert ledger.cut_supervised == 38


def test_cut_left_takes_the_front_of_the_question_alone() -> None:
    rows, _ = supervise(format_of(SMOLLM2), ENCODER, [talk("0123456789" * 9, "yes", system="brief")], max_length=60, too_long="cut-left")
    head, tail = "<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    text = whole(rows[0])
    assert len(rows[0].ids) == 60
    assert text.startswith(head)
    assert text.endswith(tail)
    assert ("0123456789" * 9).endswith(text[len(head) : -len(tail)])


def test_cut_left_gives_up_the_system_turn_before_the_answer() -> None:
    talked = talk("0123456789" * 9, "yes " * 9, system="brief " * 9)
    rows, ledger = supervise(format_of(SMOLLM2), ENCODER, [talked], max_length=60, too_long="cut-left")
    assert learned(rows[0]) == ["yes " * 9 + "<|im_end|>\n"]
    assert len(rows[0].ids) == 60
    assert ledger.cut_supervised == 0


def test_split_puts_the_system_turn_before_every_part() -> None:
    talked = talk(*(text for number in range(20) for text in (f"question {number}", f"answer {number}")), system="brief")
    rows, ledger = supervise(format_of(SMOLLM2), ENCODER, [talked], max_length=200, too_long="split")
    assert len(rows) > 3
    assert ledger.split_rows == 1
    assert ledger.cut_tokens == 0
    assert all(whole(row).startswith("<|im_start|>system\nbrief<|im_end|>\n<|im_start|>user\nquestion") for row in rows)
    assert [text for row in rows for text in learned(row)] == [f"answer {number}<|im_end|>\n" for number in range(20)]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.text(max_size=90), min_size=2, max_size=8).filter(lambda texts: len(texts) % 2 == 0), min_size=1, max_size=4),
    st.integers(130, 300),
    st.sampled_from(["cut-left", "cut-right", "split", "drop"]),
    st.sampled_from(["smollm2", "mistral"]),
)
def test_no_length_is_exceeded_and_the_ledger_adds_up(talks: list[list[str]], max_length: int, too_long: str, name: str) -> None:
    conversations = [talk(*texts, row=row) for row, texts in enumerate([["short", "row"], *talks], start=1)]
    rows, ledger = supervise(format_of(FAMILIES[name]), ENCODER, conversations, max_length=max_length, too_long=too_long)
    assert all(len(row.ids) <= max_length and row.trained.any() and not row.trained[0] for row in rows)
    assert ledger.made == len(rows)
    assert ledger.tokens == sum(len(row.ids) for row in rows)
    assert ledger.supervised == sum(int(row.trained.sum()) for row in rows)
    if too_long in ("split", "drop"):
        assert ledger.cut_supervised == 0


def test_packing_loses_nothing_and_starts_every_row_anew() -> None:
    talks = [talk("a", "b" * length, row=row) for row, length in enumerate((5, 40, 90, 3, 60, 33, 70, 8), start=1)]
    rows, _ = supervise(format_of(GEMMA), ENCODER, talks, max_length=200)
    packed = pack(rows, 150)
    found = {}
    for each in packed:
        assert len(each.ids) == len(each.trained) == len(each.segments) == len(each.positions) <= 150
        for segment, row in enumerate(each.rows):
            mine = each.segments == segment
            assert each.positions[mine].tolist() == list(range(mine.sum()))
            assert not each.trained[mine][0]
            found[row] = (each.ids[mine].tolist(), each.trained[mine].tolist())
    assert found == {row.row: (row.ids.tolist(), row.trained.tolist()) for row in rows}
    assert len(packed) < len(rows)
    assert all(np.all(np.diff(each.segments) >= 0) for each in packed)


def test_packing_puts_each_row_into_the_first_place_where_it_fits() -> None:
    rows = [Supervised(np.zeros(length, np.int32), np.zeros(length, bool), length) for length in (2, 5, 4, 7, 1)]
    assert [each.rows for each in pack(rows, 10)] == [(7, 2, 1), (5, 4)]
    with pytest.raises(InputError, match="2 rows are longer than the 4 tokens to pack into, among them row 5"):
        pack(rows, 4)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30))
def test_what_is_shown_is_the_row(question: str, answer: str) -> None:
    rows, _ = supervise(format_of(SMOLLM2), ENCODER, [talk(question, answer)], max_length=LONG)
    (shown,) = show(rows, ENCODER, 3)
    assert "".join(text for text, _ in shown) == whole(rows[0])
    assert "".join(text for text, trained in shown if trained) == f"{answer}<|im_end|>\n"
    assert len(shown) == len(rows[0].ids)


def test_the_ledger_says_what_there_is_and_what_was_lost() -> None:
    ledger = Ledger(rows=9, made=4, tokens=1000, supervised=250, cut_rows=2, cut_tokens=70, cut_supervised=5, dropped_rows=3)
    assert ledger.told[0] == "4 rows of 1,000 tokens, of which 250 (25.0 %) are learned."
    assert "2 rows were too long and lost 70 tokens, 5 of them of answers." in ledger.told
    assert "3 rows were too long and were left out." in ledger.told
    assert ledger.to_dict()["cut_tokens"] == 70
