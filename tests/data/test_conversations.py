"""`read_conversations`: every shape is found and told, bad rows are named or counted; parts never share a prompt."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightune.data import Conversation, Conversations, read_conversation_parts, read_conversations, split_conversations
from lightune.data.dialogues import Layout
from lightune.errors import InputError
from lightune.runtime.generation import Message

PAIRS = (
    *(
        ("prompt", "completion"),
        ("question", "answer"),
        ("instruction", "response"),
        ("nl", "bash"),
        ("mr", "ref"),
        ("dialogue", "summary"),
    ),
    *(("source", "target"), ("text", "code"), ("input", "output"), ("Question", "Answer")),
)
CHAT = [{"role": "system", "content": "brief"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHARED = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


def saved(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("pair", PAIRS)
def test_question_and_answer_are_known_by_their_names(tmp_path: Path, pair: tuple[str, str]) -> None:
    rows = [{"id": number, pair[1]: f"answer {number}", pair[0]: f"question {number}"} for number in range(1, 4)]
    found = read_conversations(saved(tmp_path, rows))
    assert found.shape == "prompt-completion"
    assert len(found) == 3
    assert turns(found[1]) == [("user", "question 2"), ("assistant", "answer 2")]
    assert found[1].row == 2
    assert f"questions are {pair[0]!r} and answers are {pair[1]!r} (a guess" in " ".join(found.told)
    assert "Not used: 'id'." in found.told


def test_columns_that_are_named_are_used_and_several_are_joined() -> None:
    rows = [
        {"context": "Text.", "question": "Why?", "answer": "no", "reply": "yes"},
        {"context": "", "question": "Who?", "answer": "no", "reply": "me"},
    ]
    found = read_conversations(rows, prompt="context,question", completion="reply")
    assert [turns(each) for each in found] == [
        [("user", "Text.\n\nWhy?"), ("assistant", "yes")],
        [("user", "Who?"), ("assistant", "me")],
    ]
    assert "'context' and 'question', joined by a blank line, and answers are 'reply'." in found.told[1]


def test_one_named_column_finds_its_partner() -> None:
    rows = [{"dialogue": "d", "summary": "s", "topic": "t"}]
    assert read_conversations(rows, prompt="dialogue").columns.completion == "summary"
    assert read_conversations([{"ask": "d", "reply": "s"}], completion="reply").columns.prompt == ("ask",)


def test_alpaca_joins_its_input_by_a_blank_line() -> None:
    rows = [{"instruction": "Sum.", "input": "1 2", "output": "3"}, {"instruction": "Hi.", "input": "", "output": "Hello."}]
    found = read_conversations(rows)
    assert found.shape == "alpaca"
    assert [turns(each)[0][1] for each in found] == ["Sum.\n\n1 2", "Hi."]


@pytest.mark.parametrize("column", ["messages", "conversations", "whatever"])
@pytest.mark.parametrize("as_text", [False, True])
def test_turns_of_role_and_content(column: str, as_text: bool) -> None:
    found = read_conversations([{column: json.dumps(CHAT) if as_text else CHAT, "n": 1}])
    assert found.shape == "messages"
    assert turns(found[0]) == [("system", "brief"), ("user", "a"), ("assistant", "b")]
    assert [message.content for message in found[0].prompt] == ["brief", "a"]
    assert found[0].answers == ("b",)


def test_turns_of_sharegpt_with_system_and_tools_beside_them() -> None:
    call = [{"from": "human", "value": "warm?"}, {"from": "function_call", "value": "{}"}, {"from": "observation", "value": "20"}]
    rows = [
        {"conversations": SHARED, "system": "brief", "tools": '[{"name": "f"}]'},
        {"conversations": [*call, {"from": "gpt", "value": "yes"}], "system": "", "tools": None},
    ]
    found = read_conversations(rows)
    assert found.shape == "sharegpt"
    assert turns(found[0]) == [("system", "brief"), ("user", "a"), ("assistant", "b")]
    assert found[0].tools == ({"name": "f"},)
    assert [role for role, _ in turns(found[1])] == ["user", "assistant", "tool", "assistant"]
    assert found[1].tools == ()


def test_what_a_message_has_besides_is_left_intact() -> None:
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "how "}, {"type": "text", "text": "warm?"}]}
    found = read_conversations([{"messages": [parts, called, {"role": "tool", "content": "20", "tool_call_id": "1"}, CHAT[2]]}])
    assert found[0].messages[0] == Message("user", "how warm?")
    assert found[0].messages[1] == Message("assistant", "", {"tool_calls": called["tool_calls"]})
    assert found[0].messages[2].to_dict() == {"role": "tool", "content": "20", "tool_call_id": "1"}


def test_a_system_turn_is_a_column_or_words_for_every_row_without_one() -> None:
    rows = [{"prompt": "a", "completion": "b", "who": "you are brief"}]
    assert turns(read_conversations(rows, system="who")[0])[0] == ("system", "you are brief")
    found = read_conversations(rows, system="You are kind.")
    assert turns(found[0])[0] == ("system", "You are kind.")
    assert "begins with this one: 'You are kind.'" in " ".join(found.told)
    assert turns(read_conversations([{"messages": CHAT}], system="other")[0])[0] == ("system", "brief")


def test_plain_text_in_a_column_and_in_a_file(tmp_path: Path) -> None:
    found = read_conversations([{"text": "one"}, {"text": " "}, {"text": "three"}])
    assert found.shape == "text"
    assert [(each.text, each.row, each.messages) for each in found] == [("one", 1, ()), ("three", 3, ())]
    assert "1 of 3 rows are empty and were left out: rows 2." in found.told
    (tmp_path / "a.txt").write_text("one\ntwo\n \n\nfive\n", encoding="utf-8")
    assert [(each.text, each.row) for each in read_conversations(tmp_path / "a.txt")] == [("one\ntwo", 1), ("five", 5)]
    (tmp_path / "b.txt").write_text("one\ntwo\n", encoding="utf-8")
    assert [each.text for each in read_conversations(tmp_path / "b.txt")] == ["one", "two"]
    assert read_conversations([{"body": "x", "label": "y"}], shape="text", prompt="body")[0].text == "x"


@pytest.mark.parametrize(
    ("chat", "what"),
    [
        ([CHAT[1], CHAT[1], CHAT[2]], "a user's turn follows another"),
        ([CHAT[2], CHAT[1]], "the assistant speaks first"),
        ([CHAT[1], CHAT[2], CHAT[2]], "an assistant's turn follows another"),
        ([CHAT[1], CHAT[2], CHAT[0]], "a system turn is not the first turn"),
        ([CHAT[1], {"role": "tool", "content": "x"}, CHAT[2]], "a tool's turn does not follow the assistant's"),
        ([{"role": "wizard", "content": "x"}, CHAT[2]], "unknown role 'wizard' (known: system, developer, user, assistant, tool)"),
        ([CHAT[1], {"role": "assistant", "content": {"x": 1}}], "'content' is dict, expected a text"),
        ([CHAT[1], {"role": "assistant", "content": [{"type": "image", "url": "x"}]}], "'content' is list, expected a text"),
        ("no turns", "column 'messages' is no list of turns"),
    ],
)
def test_rows_that_are_no_conversation_are_named(chat: Any, what: str) -> None:
    rows = [{"messages": CHAT}, {"messages": chat}, {"messages": CHAT}, {"messages": chat}]
    with pytest.raises(InputError, match=re.escape(what) + ": row 2, row 4. Correct these rows"):
        read_conversations(rows)


def test_all_that_is_wrong_is_said_at_once() -> None:
    rows = [{"prompt": "a", "completion": ["b"]}, {"prompt": {"a": 1}, "completion": "b"}]
    with pytest.raises(InputError, match=r"'completion' is list, expected a text: row 1\..*'prompt' is dict, expected a text: row 2\."):
        read_conversations(rows, prompt="prompt", completion="completion")


def test_empty_answers_are_left_out_and_counted_and_all_empty_is_an_error() -> None:
    rows = [{"prompt": f"p{number}", "completion": "" if number % 2 else "a"} for number in range(6)] + [{"prompt": "no key"}]
    found = read_conversations(rows)
    assert [each.row for each in found] == [1, 3, 5]
    assert found.facts["left_out"] == 4
    assert found.facts["rows"] == 7
    assert "4 of 7 rows have an empty answer or none and were left out: rows 2, 4, 6, 7." in found.told
    with pytest.raises(InputError, match=r"no row has an answer in 'completion' \(2 rows\)\. Name another column, or fill it"):
        read_conversations([{"prompt": "a", "completion": " "}, {"prompt": "b", "completion": None}])
    with pytest.raises(InputError, match="no row has an answer in 'messages'"):
        read_conversations([{"messages": CHAT[:2]}])


def test_what_is_harmless_is_counted_and_told() -> None:
    rows = [{"messages": [*CHAT, CHAT[1]]}, {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": 42}]}]
    told = " ".join(read_conversations(rows).told)
    assert "1 rows have an empty question" in told
    assert "1 conversations end without an answer" in told
    assert "1 texts are numbers in the source" in told
    found = read_conversations([{"prompt": "half \ud83d", "completion": "b"}])
    assert found[0].messages[0].content == "half \ufffd"
    assert "1 texts held half a character" in " ".join(found.told)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"completion": "anwser"}, r"no column 'anwser'\. Did you mean 'answer'\?.*The columns are: 'ask', 'answer', 'other'"),
        ({"shape": "chatml"}, r"Unknown shape 'chatml'.*Known: alpaca, messages, prompt-completion, sharegpt, text"),
        ({"shape": "messages"}, "No column holds turns of content and role"),
        ({"shape": "text", "prompt": "ask", "completion": "answer"}, "The shape text has one column, and 'ask', 'answer' are named"),
        ({"prompt": "ask", "completion": "ask"}, "named both as prompt and as completion"),
        ({"completion": "answer"}, "the questions could be 'ask', 'other'"),
        ({}, r"No columns look like a question and its answer; the columns are: 'ask', 'answer', 'other'\. Name them"),
    ],
)
def test_columns_that_cannot_be_found_are_an_error_with_a_cure(options: dict[str, str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_conversations([{"ask": "a", "answer": "b", "other": "c"}], **options)


@pytest.mark.parametrize("value", ['[{"role": "user", broken', "words", []])
def test_a_column_of_turns_that_holds_none_is_not_learned_as_text(value: Any) -> None:
    with pytest.raises(InputError, match=r"No columns look like a question and its answer; the columns are: 'messages'"):
        read_conversations([{"messages": value}])


def test_two_columns_of_turns_need_a_name() -> None:
    rows = [{"chosen": CHAT, "rejected": CHAT[1:]}]
    with pytest.raises(InputError, match="'chosen', 'rejected' hold turns"):
        read_conversations(rows)
    assert len(read_conversations(rows, prompt="rejected")[0].messages) == 2


def test_parts_in_a_column_and_in_files(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{number}", "completion": "c", "split": ("train", "dev", "test")[number % 3]} for number in range(9)]
    parts = read_conversation_parts(rows)
    assert {name: [each.row for each in part] for name, part in parts.items()} == {"train": [1, 4, 7], "dev": [2, 5, 8], "test": [3, 6, 9]}
    assert [each.row for each in read_conversations(rows, part="validation")] == [2, 5, 8]
    saved(tmp_path, [{"ask": "a", "reply": "b"}] * 3, "train.jsonl")
    saved(tmp_path, [{"reply": "b", "ask": "a", "prompt": "x", "completion": "y"}] * 2, "test.jsonl")
    parts = read_conversation_parts(tmp_path, prompt="ask", limit=2)
    assert {name: len(part) for name, part in parts.items()} == {"train": 2, "test": 2}
    assert turns(parts["test"][0]) == [("user", "a"), ("assistant", "b")]
    assert "Only the first 2 of 3 rows are used" in parts["train"].told[-1]
    assert "has the parts train, test; this is train." in read_conversations(tmp_path, prompt="ask").told[-1]
    with pytest.raises(InputError, match="has no part 'dev'; it has: train, test"):
        read_conversations(tmp_path, prompt="ask", part="dev")


def test_every_kind_of_file_reads_the_same(tmp_path: Path) -> None:
    import pandas

    frame = pandas.DataFrame({"nl": ["list, files", 'say "hi"\nand go'], "bash": ["ls", "echo hi"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_json(tmp_path / "a.json", orient="records")
    expected = [turns(each) for each in read_conversations(frame)]
    assert expected[1] == [("user", 'say "hi"\nand go'), ("assistant", "echo hi")]
    for name in ("a.csv", "a.parquet", "a.json"):
        assert [turns(each) for each in read_conversations(tmp_path / name)] == expected


def test_parquet_turns_are_turns(tmp_path: Path) -> None:
    import pandas

    pandas.DataFrame({"messages": [CHAT, CHAT[1:]]}).to_parquet(tmp_path / "a.parquet")
    assert [len(each.messages) for each in read_conversations(tmp_path / "a.parquet")] == [3, 2]


def made(prompts: list[str], answers: list[str] | None = None) -> Conversations:
    answers = answers or [f"answer {number}" for number in range(len(prompts))]
    rows = [
        Conversation((Message("user", prompt), Message("assistant", answer)), row=row)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1)
    ]
    return Conversations(rows, Layout("prompt-completion", ("prompt",), "completion"))


def test_equal_prompts_stay_on_one_side_and_repetitions_are_told() -> None:
    prompts = [f"{'Prompt' if number % 2 else 'prompt '} {number // 4}" for number in range(400)]
    splits = split_conversations(made(prompts), seed=3)
    sides = {name: {each.fingerprint() for each in part} for name, part in splits.parts.items()}
    assert not sides["train"] & sides["dev"]
    assert not sides["train"] & sides["test"]
    assert not sides["dev"] & sides["test"]
    assert splits.facts["rows"] == {"train": 320, "dev": 40, "test": 40}
    assert splits.facts["repeated"] == 300
    assert "300 rows repeat another row's prompt and were kept on its side." in splits.facts["told"]
    assert sorted(each.row for part in splits.parts.values() for each in part) == list(range(1, 401))


def test_the_seed_decides() -> None:
    rows = made([f"p{number}" for number in range(100)])
    first, again, other = ([each.row for each in split_conversations(rows, seed=seed).test or ()] for seed in (1, 1, 2))
    assert first == again != other


def test_whole_repetitions_and_leaks_are_counted() -> None:
    train = made(["a", "a", "b", "c"], ["x", "X ", "y", "z"])
    splits = split_conversations(train, dev=None, test=made(["A", "d", "c"]))
    assert splits.facts["duplicates"] == 1
    assert splits.facts["leaked"] == {"test": 2}
    assert splits.facts["warnings"] == ["2 of 3 prompts of test also stand in train."]
    assert splits.dev is None
    assert "1 of 4 rows repeat another row, answers included." in splits.facts["told"]


def test_too_few_prompts_and_wrong_shares_are_errors() -> None:
    with pytest.raises(InputError, match="2 different prompts, too few for 3 parts"):
        split_conversations(made(["a", "b", "a"]))
    with pytest.raises(InputError, match=r"dev is 1\.5"):
        split_conversations(made(["a", "b", "c"]), dev=1.5)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(texts, texts.filter(str.strip)), min_size=1, max_size=6))
def test_any_text_comes_through_unchanged(rows: list[tuple[str, str]]) -> None:
    found = read_conversations([{"prompt": prompt, "completion": answer} for prompt, answer in rows])
    assert [each.answers[0] for each in found] == [answer for _, answer in rows]
    assert [each.messages[0].content for each in found] == [prompt if prompt.strip() else "" for prompt, _ in rows]
    chats = [{"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]} for prompt, answer in rows]
    assert [turns(each) for each in read_conversations(chats)] == [[("user", prompt), ("assistant", answer)] for prompt, answer in rows]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "columns", "parts"),
    [
        ("nl2bash", ("nl", "bash"), {"train": 8090, "dev": 609, "test": 606}),
        ("gsm8k", ("question", "answer"), {"train": 7473, "test": 1319}),
        ("dialogsum", ("dialogue", "summary"), {"train": 12460, "dev": 500, "test": 1500}),
    ],
)
def test_real_data(shared_data: Path, name: str, columns: tuple[str, str], parts: dict[str, int]) -> None:
    found = read_conversation_parts(shared_data / name)
    assert {part: each.facts["rows"] for part, each in found.items()} == parts
    assert {(*each.columns.prompt, each.columns.completion) for each in found.values()} == {columns}
