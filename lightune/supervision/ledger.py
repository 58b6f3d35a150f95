"""Ledger: what became of the rows, all counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Ledger:
    """Counts of one call of `supervise`; a row is a conversation, or one answer of it where `rewritten_rows` counts it.

    rows: conversations that came in. made: rows that came out. tokens, supervised: tokens of the rows that came out, and those of them
    that are learned. cut_rows: rows that lost tokens; cut_tokens: how many; cut_supervised: how many of these would have been learned.
    split_rows: rows that became several. dropped_rows: left out because they are too long. unsupervised_rows: left out because no token
    of them, or of what is left of them, is learned. endless_rows: no end token follows their last answer. rewritten_rows: conversations
    of which every answer became its own row, because the template changes earlier turns. longest: tokens of the longest row before any cut.
    """

    rows: int = 0
    made: int = 0
    tokens: int = 0
    supervised: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    cut_supervised: int = 0
    split_rows: int = 0
    dropped_rows: int = 0
    unsupervised_rows: int = 0
    endless_rows: int = 0
    rewritten_rows: int = 0
    longest: int = 0

    def to_dict(self) -> dict[str, int]:
        """The counts, ready for JSON."""
        return asdict(self)

    @property
    def told(self) -> list[str]:
        """The sentences that a user should see: what there is, then `warnings`."""
        share = 100 * self.supervised / max(1, self.tokens)
        return [f"{self.made:,} rows of {self.tokens:,} tokens, of which {self.supervised:,} ({share:.1f} %) are learned.", *self.warnings]

    @property
    def warnings(self) -> list[str]:
        """A sentence for everything that was lost, or that should not be."""
        found = []
        if self.cut_rows:
            found.append(
                f"{self.cut_rows:,} rows were too long and lost {self.cut_tokens:,} tokens, {self.cut_supervised:,} of them of answers."
            )
        counts = {name: getattr(self, name) for name in SENTENCES}
        return found + [SENTENCES[name].format(f"{count:,}") for name, count in counts.items() if count]


SENTENCES = {
    "split_rows": "{} rows were too long and were split.",
    "dropped_rows": "{} rows were too long and were left out.",
    "unsupervised_rows": "{} rows had no token to learn and were left out.",
    "endless_rows": "{} rows have no end token after their last answer: from them the model does not learn to stop.",
    "rewritten_rows": "In {} conversations the template changes earlier turns, so every answer became a row of its own.",
}
