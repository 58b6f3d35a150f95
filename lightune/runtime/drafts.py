"""An answer in the making: from the logits of every step to pieces of text, the same for every kind of generator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lightune.runtime.constraints import make_constraint
from lightune.runtime.generation import Generated, GenerationOptions, Piece
from lightune.runtime.sampling import Sampler
from lightune.runtime.stopping import Stopper
from lightune.runtime.token_table import TokenTable


class Draft:
    """One answer while it is made.

    Args:
        prompt: token ids [s]. room: most tokens that the model's context leaves for the answer. seed: see `sampling.seeds`.
        alone: the answer is a text of its own, and does not go on from the prompt: the blank that SentencePiece puts before a text is left out.

    tokens: the answer so far, without its end token. finish: why it ended, None while it has not.
    """

    def __init__(
        self,
        prompt: np.ndarray,
        options: GenerationOptions,
        table: TokenTable,
        room: int,
        seed: Sequence[int] | None = None,
        *,
        alone: bool = False,
    ) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.finish: str | None = None
        self._table, self._alone = table, alone
        self._most = min(options.max_tokens, room)
        self._sampler = Sampler(options, prompt, seed)
        self._stopper = Stopper((*options.stop, *table.stop))
        self._constraint = make_constraint(options, table)
        self._allowed = self._constraint.allowed(()) if self._constraint else None

    def add(self, logits: np.ndarray) -> Piece:
        """Pick the next token from the logits [v] after the prompt and the tokens so far."""
        token = self._sampler.pick(logits, self._allowed)
        if token in self._table.ends:
            return self._end("stop")
        self.tokens.append(token)
        piece = self._table.piece(token)
        text = self._stopper.push(piece.removeprefix(b" ") if self._alone and len(self.tokens) == 1 else piece)
        if self._stopper.stopped:
            self.finish = "stop"
            return Piece(text, 1, self.finish)
        if self._constraint:
            self._allowed = self._constraint.allowed(self.tokens)
            if not len(self._allowed):
                return self._end("stop", text, 1)
        return self._end("length", text, 1) if len(self.tokens) == self._most else Piece(text, 1)

    def cancel(self) -> Piece:
        """The last piece of an answer that nobody waits for any more."""
        return self._end("cancelled")

    def _end(self, finish: str, text: str = "", tokens: int = 0) -> Piece:
        self.finish = finish
        return Piece(text + self._stopper.push(b"", last=True), tokens, finish)


def collect(prompt_tokens: int, pieces: Iterable[Piece]) -> Generated:
    """The whole answer from its pieces, the last of which says why it ended."""
    parts = list(pieces)
    return Generated(
        "".join(part.text for part in parts), prompt_tokens, sum(part.tokens for part in parts), parts[-1].finish or "cancelled"
    )
