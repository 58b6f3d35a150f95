"""A conversation with whatever generates: history, streaming, commands. It neither reads nor prints by itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from lightune.errors import InputError
from lightune.runtime.generation import GenerationOptions, Generator, Message

HELP = """/reset        forget the conversation
/system TEXT  say how the model shall behave from now on; without TEXT, nothing
/save FILE    add the conversation to a file of JSON lines
/help         this list
/quit         leave, as the end of input does
Ctrl-C stops an answer."""
SPARE = 4  # at least 1/SPARE of the context is kept for an answer, or max_tokens where that is less


@dataclass
class Chat:
    """A conversation under way.

    system: what the model is told first, perhaps nothing. turns: what the user and the model said, in turn.
    """

    generator: Generator
    options: GenerationOptions
    system: str = ""
    turns: list[Message] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """The conversation as the model reads it."""
        return [Message("system", self.system)] * bool(self.system) + self.turns

    def fit(self, text: str) -> int:
        """Drop the oldest questions with their answers until an answer to a text has room; how many were dropped.

        The text itself stays, whatever its length: the generator says what is wrong with it.
        """
        most = self.generator.max_length
        room = most - min(self.options.max_tokens, most // SPARE)
        dropped = 0
        while self.turns and self.generator.count_tokens([*self.messages(), Message("user", text)]) > room:
            del self.turns[:2]
            dropped += 1
        return dropped

    def answer(self, text: str) -> Iterator[str]:
        """What the model says to a text, as it comes. Where the iterator is closed before its end, what was said so far is its turn."""
        self.turns.append(Message("user", text))
        said: list[str] = []
        try:
            with closing(self.generator.stream(self.messages(), self.options)) as pieces:  # type: ignore[type-var]
                for piece in pieces:
                    said.append(piece.text)
                    yield piece.text
        finally:
            if "".join(said):
                self.turns.append(Message("assistant", "".join(said)))
            else:
                self.turns.pop()

    def save(self, path: str | Path) -> bool:
        """Add the conversation to a file as one JSON line, which `read_conversations` reads; whether there was anything to save.

        Raises:
            InputError: the file cannot be written.
        """
        if not self.turns:
            return False
        line = json.dumps({"messages": [message.to_dict() for message in self.messages()]}, ensure_ascii=False)
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise InputError(f"{str(path)!r} cannot be written: {error.strerror}. Choose another file.") from None
        return True


def converse(
    generator: Generator,
    *,
    system: str = "",
    options: GenerationOptions,
    read: Callable[[], str | None],
    write: Callable[[str], None],
    save: str | Path | None = None,
) -> Chat:
    """Talk until the end of input or /quit.

    Args:
        read: the user's next line without its end, None where there is no more. It may raise KeyboardInterrupt.
        write: takes pieces of answers as they come, and whole lines with their ends; a line that is not the model's begins with "· ".
        save: where the conversation is added to when it ends or is forgotten.

    Raises:
        InputError: the file of `save` cannot be written.
    """
    chat = Chat(generator, options, system)
    while (line := _read(read, write)) is not None:
        text = line.strip()
        if text == "/quit":
            break
        if text.startswith("/"):
            _command(chat, text, write, save)
        elif text:
            _answer(chat, text, write)
    if save is not None:
        chat.save(save)
    return chat


def _read(read: Callable[[], str | None], write: Callable[[str], None]) -> str | None:
    """The next line; Ctrl-C while nothing is said tells how to leave."""
    while True:
        try:
            return read()
        except KeyboardInterrupt:
            _tell(write, "/quit leaves.", "\n")


def _answer(chat: Chat, text: str, write: Callable[[str], None]) -> None:
    """Say what the model says; Ctrl-C ends the answer, and an error tells itself."""
    try:
        if dropped := chat.fit(text):
            _tell(
                write, f"The conversation is too long: the oldest {dropped} question{'s' * (dropped > 1)} with the answers no longer count."
            )
        with closing(chat.answer(text)) as pieces:  # type: ignore[type-var]
            for piece in pieces:
                write(piece)
        write("\n")
    except KeyboardInterrupt:
        _tell(write, "Stopped.", "\n")
    except InputError as error:
        _tell(write, str(error))


def _command(chat: Chat, line: str, write: Callable[[str], None], save: str | Path | None) -> None:
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/help":
        _tell(write, HELP)
    elif name == "/reset":
        if save is not None:
            chat.save(save)
        chat.turns.clear()
        _tell(write, "The conversation begins anew.")
    elif name == "/system":
        chat.system = rest
        _tell(write, f"The system prompt is now: {rest}" if rest else "There is no system prompt now.")
    elif name == "/save":
        _save(chat, rest, write)
    else:
        _tell(write, f"There is no command {name}. /help lists them.")


def _save(chat: Chat, path: str, write: Callable[[str], None]) -> None:
    if not path:
        _tell(write, "Name a file: /save FILE")
        return
    try:
        _tell(write, f"Saved to {path}." if chat.save(path) else "There is nothing to save yet.")
    except InputError as error:
        _tell(write, str(error))


def _tell(write: Callable[[str], None], text: str, before: str = "") -> None:
    """Lines that are not the model's."""
    write(before + "".join(f"· {line}\n" for line in text.splitlines()))
