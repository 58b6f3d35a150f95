"""The conversation by itself, with a generator that says things again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from parrots import Parrot

from lightune.chatting import Chat, converse
from lightune.data import read_conversations
from lightune.errors import InputError
from lightune.runtime.generation import GenerationOptions, Message

OPTIONS = GenerationOptions(max_tokens=50)


def talk(*lines: str | type[BaseException], parrot: Parrot | None = None, system: str = "", save: Path | None = None) -> tuple[str, Chat]:
    """What is written when these lines are said; an exception is raised where a line is read."""
    said: list[str] = []
    waiting: Iterator[str | type[BaseException]] = iter(lines)

    def read() -> str | None:
        line = next(waiting, None)
        if isinstance(line, type):
            raise line
        return line

    chat = converse(parrot or Parrot(), system=system, options=OPTIONS, read=read, write=said.append, save=save)
    return "".join(said), chat


def test_it_answers_and_remembers() -> None:
    written, chat = talk("hello there", "", "and now")
    assert written == "hello there\nand now\n"
    assert [(turn.role, turn.content) for turn in chat.turns] == [
        ("user", "hello there"), ("assistant", "hello there"), ("user", "and now"), ("assistant", "and now")
    ]  # fmt: skip


def test_an_answer_is_written_as_it_comes() -> None:
    said: list[str] = []
    lines = iter(["one two three", None])
    converse(Parrot(), options=OPTIONS, read=lambda: next(lines), write=said.append)
    assert said[:3] == ["one ", "two ", "three"]


def test_the_system_prompt_comes_first_and_can_change() -> None:
    _, chat = talk("a", "/system Be brief.", "b", system="Be long.")
    assert chat.messages()[0] == Message("system", "Be brief.")
    assert len(chat.messages()) == 5
    written, chat = talk("/system", system="x")
    assert "no system prompt" in written
    assert chat.messages() == []


def test_reset_forgets_and_quit_leaves() -> None:
    written, chat = talk("a", "/reset", "b", "/quit", "c")
    assert [turn.content for turn in chat.turns] == ["b", "b"]
    assert "anew" in written


def test_help_and_unknown_commands_are_told() -> None:
    written, chat = talk("/help", "/sing")
    for name in ("/reset", "/system", "/save", "/quit", "Ctrl-C"):
        assert name in written
    assert "no command /sing" in written
    assert chat.turns == []


def test_what_is_saved_can_be_learned_from(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    talk("hello", "how are you", "/reset", "שלום", system="Be kind.", save=path)
    rows = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert [[message["role"] for message in row] for row in rows] == [
        ["system", *["user", "assistant"] * 2],
        ["system", "user", "assistant"],
    ]
    assert rows[1][1]["content"] == "שלום"
    read = read_conversations(path)
    assert len(read) == 2


def test_saving_by_command(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    written, _ = talk(f"/save {path}", "/save", "a", f"/save {path}", f"/save {tmp_path}")
    assert [text in written for text in ("nothing to save", "Name a file", "Saved to", "cannot be written")] == [True] * 4
    assert len(path.read_text().splitlines()) == 1


def test_ctrl_c_stops_the_answer_and_not_the_chat() -> None:
    parrot, said = Parrot(), []
    lines = iter(["a b forever", "next", None])

    def write(text: str) -> None:
        said.append(text)
        if len(said) == 5:
            raise KeyboardInterrupt

    chat = converse(parrot, options=OPTIONS, read=lambda: next(lines), write=write)
    assert [turn.content for turn in chat.turns] == ["a b forever", "a b forevera b ", "next", "next"]
    assert parrot.running == 0
    assert "· Stopped.\n" in "".join(said)


def test_ctrl_c_at_the_prompt_tells_how_to_leave() -> None:
    written, chat = talk(KeyboardInterrupt, "a")
    assert "/quit" in written
    assert len(chat.turns) == 2


def test_a_history_that_no_longer_fits_loses_its_oldest_turns_and_says_so() -> None:
    parrot = Parrot(max_length=40)  # a quarter is kept for the answer
    written, chat = talk("1 " * 10, "2 " * 9, "3 " * 9, parrot=parrot)
    assert [turn.content[0] for turn in chat.turns] == ["2", "2", "3", "3"]
    assert "oldest 1 question with" in written
    assert parrot.count_tokens(chat.messages()) <= 40


def test_a_question_that_is_too_long_by_itself_is_told_and_not_kept() -> None:
    written, chat = talk("x " * 60, "fine", parrot=Parrot(max_length=40))
    assert "60 tokens" in written
    assert [turn.content for turn in chat.turns] == ["fine", "fine"]


def test_a_file_that_cannot_be_written_is_an_error_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        talk("a", save=tmp_path)
