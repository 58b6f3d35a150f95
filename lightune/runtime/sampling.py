"""From logits to a token: greedy, or drawn after the usual filters. Needs numpy alone.

The order is that of transformers: repetition penalty, temperature, top-k, top-p, min-p, draw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from lightune.runtime.generation import GenerationOptions


class Sampler:
    """Picks the tokens of one answer.

    Args:
        seen: the prompt's tokens, which the repetition penalty counts too.
        seed: what the draws start from; see `seeds`.
    """

    def __init__(self, options: GenerationOptions, seen: Sequence[int] | np.ndarray = (), seed: Sequence[int] | None = None) -> None:
        self.options = options
        self._random = np.random.default_rng(seed)
        self._seen = {int(token) for token in seen} if options.repetition_penalty != 1 else set()

    def pick(self, logits: np.ndarray, allowed: np.ndarray | None = None) -> int:
        """The next token from logits [v], float32, which stay as they are; `allowed` holds the ids it may be, all where None."""
        scores = self._penalized(logits)
        if allowed is not None:
            scores = scores[allowed]
        place = int(np.argmax(scores)) if self.options.temperature == 0 else self._draw(scores)
        token = place if allowed is None else int(allowed[place])
        if self.options.repetition_penalty != 1:
            self._seen.add(token)
        return token

    def _penalized(self, logits: np.ndarray) -> np.ndarray:
        """Logits of tokens that have occurred divided by the penalty, multiplied where negative (Keskar et al. 2019, section 4.1)."""
        if not self._seen:
            return logits
        seen, scores = np.fromiter(self._seen, dtype=np.int64), logits.copy()
        penalty, chosen = self.options.repetition_penalty, scores[seen]
        scores[seen] = np.where(chosen < 0, chosen * penalty, chosen / penalty)
        return scores

    def _draw(self, scores: np.ndarray) -> int:
        kept, shares = likeliest(scores, self.options)
        borders = np.cumsum(shares)
        return int(kept[min(np.searchsorted(borders, self._random.random() * borders[-1], side="right"), len(kept) - 1)])


def likeliest(scores: np.ndarray, options: GenerationOptions) -> tuple[np.ndarray, np.ndarray]:
    """The places in scores [n] that temperature, top-k, top-p and min-p leave, the likeliest first, and their probabilities (sum 1)."""
    count = min(options.top_k or len(scores), len(scores))
    places = np.argpartition(-scores, count - 1)[:count] if count < len(scores) else np.arange(len(scores))
    places = places[np.argsort(-scores[places], kind="stable")]
    scaled = scores[places].astype(np.float64) / options.temperature
    shares = np.exp(scaled - scaled[0])
    shares /= shares.sum()
    keep = shares >= options.min_p * shares[0]
    if options.top_p < 1:
        keep &= np.cumsum(shares) - shares < options.top_p  # the one that reaches it stays
    return places[keep], shares[keep] / shares[keep].sum()


def seeds(seed: int | None, prompts: Sequence[np.ndarray]) -> list[list[int] | None]:
    """The seed of every answer of a call: a prompt's first answer has the one it would have alone, its repetitions have their own."""
    if seed is None:
        return [None] * len(prompts)
    counts: Counter[bytes] = Counter()
    spread: list[list[int] | None] = []
    for prompt in prompts:
        key = np.asarray(prompt, dtype=np.int32).tobytes()
        spread.append([seed, counts[key]])
        counts[key] += 1
    return spread


def logprobs(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The natural-log probability of a target id in each row: logits float32 [n, v], targets int [n] → float32 [n]."""
    highest = logits.max(axis=1, keepdims=True)
    totals = np.log(np.exp(logits - highest).sum(axis=1, dtype=np.float64))
    return (logits[np.arange(len(targets)), targets] - highest[:, 0] - totals).astype(np.float32)
