"""Generate text from a GGUF file without torch: numpy, tokenizers and llama.cpp (package xllamacpp) are enough.

from lightune.runtime.gguf import load_gguf

with closing(load_gguf("artifacts/gguf")) as generator:
    generator.generate(["Once upon a time"], GenerationOptions(max_tokens=64))
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from lightune.errors import InputError, IntegrityError
from lightune.runtime import manifest
from lightune.runtime.chat import ChatFormat, make_format
from lightune.runtime.drafts import Draft, collect
from lightune.runtime.generation import Generated, GenerationOptions, Piece, Prompt
from lightune.runtime.llama import BATCH, Llama
from lightune.runtime.predictor import usable_cores
from lightune.runtime.prompting import Prompted, Prompting
from lightune.runtime.sampling import logprobs, seeds
from lightune.runtime.scheduling import Scheduler
from lightune.runtime.token_table import TokenTable, make_table

FILES = ("model.gguf", "task.json")
FORMAT = 1
SLOTS = 4
LENGTH = 2048  # tokens of prompt and answer where nothing says how many: the memory of a slot grows with them


class GGUFGenerator(Prompted):
    """A GGUF file that generates; made by `load_gguf`. Threads may share it: what they ask for is computed together.

    See `generation.Generator` for its members. base: the model that it was made from, None where the file alone was opened.
    """

    def __init__(self, llama: Llama, prompting: Prompting, name: str, base: str | None = None, slots: int = SLOTS) -> None:
        super().__init__(name, prompting)
        self.base = base
        self._scheduler = Scheduler(llama, slots, BATCH)
        self._finalizer = weakref.finalize(self, _close, self._scheduler, llama)

    @property
    def active(self) -> int:
        """How many answers and rows are being computed or wait."""
        return self._scheduler.active

    def stream(self, prompt: Prompt, options: GenerationOptions) -> Iterator[Piece]:
        return self._pieces(self._answers([prompt], options)[0])

    def generate(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[Generated]:
        answers = self._answers(prompts, options)
        try:
            for answer in answers:
                self._scheduler.submit(answer)
            return [collect(len(answer.tokens), iter(answer.next, None)) for answer in answers]
        finally:
            for answer in answers:
                self._scheduler.cancel(answer)

    def token_logprobs(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        jobs = [_Score(row) for row in rows if len(row) > 1]
        if longest := max((len(row) for row in rows if len(row) > self.max_length), default=0):
            raise InputError(
                f"A row has {longest} tokens, expected at most {self.max_length}. Cut it, or load the file with a greater context."
            )
        try:
            for job in jobs:
                self._scheduler.submit(job)
            found = iter([job.result() for job in jobs])
        finally:
            for job in jobs:
                self._scheduler.cancel(job)
        return [next(found) if len(row) > 1 else np.empty(0, dtype=np.float32) for row in rows]

    def close(self) -> None:
        self._finalizer()

    def _answers(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[_Answer]:
        rows = [self.encode_prompt(prompt) for prompt in prompts]
        return [
            _Answer(Draft(ids, options, self.prompting.table, self.prompting.room(ids), seed))
            for ids, seed in zip(rows, seeds(options.seed, rows), strict=True)
        ]

    def _pieces(self, answer: _Answer) -> Iterator[Piece]:
        self._scheduler.submit(answer)
        try:
            yield from iter(answer.next, None)
        finally:
            self._scheduler.cancel(answer)


class _Answer:
    """A draft as a job; its pieces come out of `next`, None after the last."""

    scores = False

    def __init__(self, draft: Draft) -> None:
        self.tokens = draft.prompt.tolist()
        self._draft = draft
        self._pieces: SimpleQueue[Piece | Exception] = SimpleQueue()
        self._ended = False

    def take(self, logits: np.ndarray) -> Sequence[int]:
        piece = self._draft.add(logits[0])
        self._pieces.put(piece)
        return () if piece.finish else self._draft.tokens[-1:]

    def end(self, error: Exception | None) -> None:
        self._pieces.put(error or self._draft.cancel())

    def next(self) -> Piece | None:
        """The next piece, waited for; the error that ended the work is raised."""
        if self._ended:
            return None
        piece = self._pieces.get()
        if isinstance(piece, Exception):
            raise piece
        self._ended = piece.finish is not None
        return piece


class _Score:
    """The log-probabilities of a row's tokens as a job."""

    scores = True

    def __init__(self, row: np.ndarray) -> None:
        self.tokens = row[:-1].tolist()
        self._targets = np.asarray(row[1:], dtype=np.int64)
        self._parts: list[np.ndarray] = []
        self._result: SimpleQueue[np.ndarray | Exception] = SimpleQueue()

    def take(self, logits: np.ndarray) -> Sequence[int]:
        start = sum(map(len, self._parts))
        self._parts.append(logprobs(logits, self._targets[start : start + len(logits)]))
        if start + len(logits) == len(self._targets):
            self._result.put(np.concatenate(self._parts))
        return ()

    def end(self, error: Exception | None) -> None:
        self._result.put(error or InputError("The generator was closed while it computed. Ask before it is closed."))

    def result(self) -> np.ndarray:
        """The log-probabilities, waited for."""
        found = self._result.get()
        if isinstance(found, Exception):
            raise found
        return found


def load_gguf(
    path: str | Path, *, threads: int | None = None, context: int | None = None, slots: int = SLOTS, verify: bool = True
) -> GGUFGenerator:
    """The generator of an exported folder, or of a .gguf file alone.

    Args:
        threads: how many it computes with; None means every core this process may use.
        context: most tokens of prompt and answer; None means what the folder says, else 2048, never more than the model was made for.
        slots: how many answers are computed side by side, each with memory for `context` tokens.
        verify: compare every file of a folder with its sha256 first; without it only sizes are compared.

    Raises:
        InputError: there is no such file, or a number is out of bounds. MissingExtra: xllamacpp is not installed.
        IntegrityError: files are missing, truncated or altered, or llama.cpp cannot load them.
    """
    wrong = [
        f"{name} is {value}"
        for name, value in (("threads", threads), ("context", context), ("slots", slots))
        if value is not None and value < 1
    ]
    if wrong:
        raise InputError(f"{' and '.join(wrong)}, expected at least 1.")
    path = Path(path)
    if path.is_dir():
        facts, file, tokenizer = _folder(path, verify)
    else:
        facts, file, tokenizer = {}, _file(path), None
    wished = context or facts.get("max_length") or LENGTH
    llama = Llama(file, threads=threads or usable_cores(), context=wished, slots=slots)
    try:
        chat = ChatFormat.from_dict(facts["chat"]) if facts.get("chat") else _own_chat(llama)
        table = make_table(tokenizer, chat.stop if chat else ()) if tokenizer else _own_table(llama, chat, facts)
        return GGUFGenerator(llama, Prompting(table, chat, llama.context), facts.get("name") or file.stem, facts.get("base"), slots)
    except BaseException:
        llama.close()
        raise


def _folder(folder: Path, verify: bool) -> tuple[dict[str, Any], Path, Any]:
    tokenizer = folder / "tokenizer.json"
    manifest.check(folder, (*FILES, tokenizer.name) if tokenizer.exists() else FILES, contents=verify)
    facts = manifest.read_task(folder, FORMAT, ("generate",))
    return facts, folder / "model.gguf", _tokenizer(tokenizer)


def _tokenizer(path: Path) -> Any:
    """The tokenizer in a folder, None where it has none."""
    if not path.exists():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise IntegrityError(f"{path} is no readable tokenizer ({error}). Export the model again.") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _file(path: Path) -> Path:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}), expected an exported folder or a .gguf file.") from error
    if magic != b"GGUF":
        raise InputError(f"{path} begins with {magic!r}, expected a GGUF file, which begins with b'GGUF'.")
    return path


def _own_chat(llama: Llama) -> ChatFormat | None:
    """The chat format that a GGUF file carries, None where it has no template."""
    template = llama.metadata("tokenizer.chat_template")
    if template is None:
        return None
    special = [llama.text(token) for token in sorted(llama.special())]
    return make_format(template, bos=llama.bos, eos=llama.eos, tokens=special, writes_bos=llama.adds_bos)


def _own_table(llama: Llama, chat: ChatFormat | None, facts: dict[str, Any]) -> TokenTable:
    """The tokens as the GGUF file has them; of a file alone, all that llama.cpp knows to end an answer do."""
    tokens = {text: llama.tokenize(text) for text in (chat.stop if chat else ())}
    ends = frozenset(ids[0] for ids in tokens.values() if len(ids) == 1) | (frozenset() if facts else llama.ends())
    pieces = [llama.piece(token) for token in range(llama.vocabulary_size)]
    return TokenTable(pieces, llama.special(), ends, tuple(text for text, ids in tokens.items() if len(ids) != 1), llama.tokenize)


def _close(scheduler: Scheduler, llama: Llama) -> None:
    scheduler.close()
    llama.close()
