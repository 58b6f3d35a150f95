"""Generate text from an exported ONNX folder without torch: numpy, onnxruntime and tokenizers are enough.

from lightune.runtime.onnx_generation import load_onnx

generator = load_onnx("artifacts/onnx")
generator.generate(["Once upon a time"], GenerationOptions(max_tokens=64))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightune.errors import InputError, IntegrityError
from lightune.runtime import manifest
from lightune.runtime.batched import TOKENS, BatchedGenerator
from lightune.runtime.chat import ChatFormat
from lightune.runtime.predictor import check_folder, open_session, usable_cores
from lightune.runtime.prompting import Prompting
from lightune.runtime.sampling import logprobs
from lightune.runtime.token_table import make_table
from lightune.runtime.tokenization import Encoder

FORMAT = 1
KINDS = ("generate", "translate")
LOGITS = 2**24  # most logits in memory at a time: 64 MB
UNSEEN = np.float32(np.finfo(np.float32).min)


class ONNXGenerator(BatchedGenerator):
    """An exported decoder that generates; made by `load_onnx`. Threads may share it.

    base: the model that it was made from.
    """

    def __init__(self, session: Any, prompting: Prompting, facts: dict[str, Any]) -> None:
        super().__init__(facts["name"], prompting)
        self.base = facts.get("base")
        self.session = session
        shapes = {item.name: item.shape for item in session.get_inputs()}
        self._past = [(shape[1], shape[3]) for name, shape in shapes.items() if name.startswith("past_")]
        logits = next(item for item in session.get_outputs() if item.name == "logits")
        self.scored_tokens = min(TOKENS, LOGITS // int(logits.shape[-1]))

    def close(self) -> None:
        self.session = None

    def _start(self, prompts: list[np.ndarray]) -> Any:
        longest = max(map(len, prompts))
        tokens, seen = np.zeros((len(prompts), longest), np.int64), np.zeros((len(prompts), longest), bool)
        for row, prompt in enumerate(prompts):  # filled on the left, so that all rows end together
            tokens[row, longest - len(prompt) :] = prompt
            seen[row, longest - len(prompt) :] = True
        return _Decoding(tokens, _nothing(self._past, len(prompts)), {}, seen)

    def _next_logits(self, state: Any) -> np.ndarray:
        last = np.full((len(state.tokens), 1), state.tokens.shape[1] - 1, np.int64)
        logits, *state.past = self.session.run(None, state.inputs() | {"places": last})
        return logits[:, 0]

    def _scores(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What fills short rows follows them, so that nothing sees it."""
        lengths = [len(row) - 1 for row in rows]
        tokens = np.zeros((len(rows), max(lengths)), np.int64)
        for place, row in enumerate(rows):
            tokens[place, : lengths[place]] = row[:-1]
        state = _Decoding(tokens, _nothing(self._past, len(rows)), {}, np.ones(tokens.shape, bool))
        logits = self._all_logits(state)
        return [logprobs(found[:length], row[1:]) for found, length, row in zip(logits, lengths, rows, strict=True)]

    def _all_logits(self, state: Any) -> np.ndarray:
        """Logits float32 [b, s, v] at every place of what a batch reads next."""
        places = np.tile(np.arange(state.tokens.shape[1]), (len(state.tokens), 1))
        (found,) = self.session.run(["logits"], state.inputs() | {"places": places})
        return found


class ONNXTranslator(ONNXGenerator):
    """An exported encoder with a decoder. A source is read once, by a session of its own."""

    def __init__(self, session: Any, prompting: Prompting, facts: dict[str, Any], encoder: Any) -> None:
        super().__init__(session, prompting, facts)
        self.encoder = encoder
        self.begin, self.end = int(facts["start"]), int(facts["end"])

    def close(self) -> None:
        super().close()
        self.encoder = None

    def _start(self, prompts: list[np.ndarray]) -> Any:
        return self._begin(prompts, np.full((len(prompts), 1), self.begin, np.int64))

    def _begin(self, sources: Sequence[np.ndarray], tokens: np.ndarray) -> Any:
        """A batch whose sources were read and whose decoder reads tokens int64 [b, t] next."""
        lengths = np.array([len(source) for source in sources])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        given = np.zeros_like(mask)
        given[mask.astype(bool)] = np.concatenate(sources)
        cross = self.encoder.run(None, {"source": given, "mask": mask})
        return _Writing(tokens, _nothing(self._past, len(sources)), {"mask": mask, **_numbered("cross", cross)})

    def _scores(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """A source's tokens are NaN: nothing predicts them."""
        ends = [int(found[0]) + 1 if len(found := np.flatnonzero(row == self.end)) else len(row) for row in rows]
        if any(end == len(row) for end, row in zip(ends, rows, strict=True)):
            raise InputError(
                "A row is a source without a target. An encoder with a decoder tells how likely a target is, after the source's end token."
            )
        targets = [row[end:] for row, end in zip(rows, ends, strict=True)]
        tokens = np.full((len(rows), max(map(len, targets))), self.begin, np.int64)
        for place, target in enumerate(targets):
            tokens[place, 1 : len(target)] = target[:-1]
        logits = self._all_logits(self._begin([row[:end] for row, end in zip(rows, ends, strict=True)], tokens))
        scored = [logprobs(found[: len(target)], target) for found, target in zip(logits, targets, strict=True)]
        return [np.concatenate([np.full(end - 1, np.nan, np.float32), found]) for end, found in zip(ends, scored, strict=True)]


@dataclass
class _Writing:
    """A batch that keeps keys and values: `tokens` int64 [b, s] are read next; `past` [b, h, p, d] is what was read, `fixed` what stays."""

    tokens: np.ndarray
    past: list[np.ndarray]
    fixed: dict[str, np.ndarray]

    def inputs(self) -> dict[str, np.ndarray]:
        """What the graph is given, but for the places that are wanted."""
        return {"tokens": self.tokens, **self.fixed, **_numbered("past", self.past)}

    def go_on(self, tokens: list[int], rows: list[int]) -> None:
        if len(rows) < len(self.tokens):
            self.past = [item[rows] for item in self.past]
            self.fixed = {name: item[rows] for name, item in self.fixed.items()}
        self.tokens = np.array(tokens, np.int64)[:, None]


@dataclass
class _Decoding(_Writing):
    """As its parent; seen: bool [b, p + s], which of the tokens are no filling."""

    seen: np.ndarray

    def inputs(self) -> dict[str, np.ndarray]:
        count, total = self.tokens.shape[1], self.seen.shape[1]
        before = np.arange(total) <= np.arange(total - count, total)[:, None]
        bias = np.where(before & self.seen[:, None, :], np.float32(0), UNSEEN)[:, None]
        positions = (self.seen.cumsum(1) - 1).clip(min=0)[:, total - count :]
        return {**super().inputs(), "positions": positions, "bias": bias}

    def go_on(self, tokens: list[int], rows: list[int]) -> None:
        super().go_on(tokens, rows)
        self.seen = np.concatenate([self.seen[rows], np.ones((len(rows), 1), bool)], axis=1)


def _nothing(shapes: Sequence[tuple[int, int]], rows: int) -> list[np.ndarray]:
    """Keys and values of a batch that has read nothing."""
    return [np.zeros((rows, heads, 0, size), np.float32) for heads, size in shapes]


def _numbered(name: str, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{name}_{place}": array for place, array in enumerate(arrays)}


def _described(folder: Path, facts: dict[str, Any]) -> Prompting:
    try:
        encoder, chat = Encoder.from_file(folder / "tokenizer.json", **facts["tokenizer"]), ChatFormat.from_dict(facts["chat"])
        return Prompting(make_table(encoder.tokenizer, chat.stop), chat, int(facts["max_length"]), facts.get("end"))
    except (KeyError, TypeError, InputError) as error:
        raise IntegrityError(f"{folder / 'task.json'} does not describe a model that generates ({error}). {manifest.CURE}") from error


def load_onnx(folder: str | Path, *, threads: int | None = None, verify: bool = True) -> ONNXGenerator:
    """The generator of an exported folder.

    Args:
        threads: how many it computes with; None means every core this process may use.
        verify: compare every file with its sha256 first; without it only sizes are compared.

    Raises:
        InputError: there is no such folder, or `threads` is no positive number.
        IntegrityError: files are missing, truncated or altered, or do not belong together.
    """
    folder = check_folder(folder, threads, verify)
    facts = manifest.read_task(folder, FORMAT, KINDS)
    prompting = _described(folder, facts)
    session = open_session(folder / "model.onnx", threads or usable_cores())
    if facts["kind"] == "generate":
        return ONNXGenerator(session, prompting, facts)
    manifest.check(folder, ("encoder.onnx",), contents=False)
    return ONNXTranslator(session, prompting, facts, open_session(folder / "encoder.onnx", threads or usable_cores()))
