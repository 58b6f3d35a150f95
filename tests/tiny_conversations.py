"""A random decoder as transformers saves one, questions that it can learn to answer, and how `fit` is quick with both."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tiny_generators import make_language

from lightune.exports import find_generative

QUICK: dict[str, Any] = {
    "task": "generate", "epochs": 12.0, "batch_size": 8, "rate": 0.01, "threads": 1, "precision": "fp32", "device": "cpu", "score_rows": 10,
    "max_tokens": 8, "samples": 1, "checkpoint_seconds": 0.0,
}  # fmt: skip
COLOURS = ("lower", "newer", "wider", "film")


def write_base(folder: Path, **changes: Any) -> Path:
    """A random Llama, some sizes of its configuration changed."""
    return find_generative("hf").write(make_language("llama", tied=True, **changes), folder)


def write_echoes(path: Path, count: int = 96, seed: int = 0) -> Path:
    """Questions whose answers say their own word again."""
    draw = random.Random(seed)
    words = [draw.choice(COLOURS) for _ in range(count)]
    rows = [{"prompt": f"{number} {word}", "completion": word} for number, word in enumerate(words)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def flags(**options: Any) -> list[str]:
    """Options as the command line takes them."""
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
