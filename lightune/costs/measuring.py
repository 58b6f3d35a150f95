"""Time a folder of probes with the runtime alone: numpy, onnxruntime and tokenizers.

The folder, which `lightune.probes` writes and which can be carried to another machine, holds

    probes.json     texts, answers, the tokenizer's settings; of each probe its shape, the bytes of its model file (of an artefact's other
                    files too: rest), and its file if it is timed
    tokenizer.json  the base's own
    N.onnx          untrained networks with few tokens: a text's ids are folded into them, so that text to logits is timed as for a real model
    manifest.json   bytes and sha256 of every file
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightune import benchmarking
from lightune.costs.shapes import Shape
from lightune.costs.tables import CostTable, Probe
from lightune.errors import InputError, IntegrityError
from lightune.runs import processor_name
from lightune.runtime import Predictor, manifest
from lightune.runtime.answers import Answers
from lightune.runtime.predictor import open_session
from lightune.runtime.tokenization import Encoder

FORMAT = 1
PROBES, TOKENIZER = "probes.json", "tokenizer.json"
RUNS, WARMUP = 32, 4  # batches of each probe in a round
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 5, 25, 20.0
CALM = 0.1  # repeated timings of an idle machine lie closer together

Tell = Callable[[str], None]


class _Folded:
    """A session that takes the ids of a larger vocabulary, and no more inputs than its network has."""

    def __init__(self, session: Any, tokens: int) -> None:
        self.session = session
        self.tokens = tokens
        self.names = {item.name for item in session.get_inputs()}

    def run(self, outputs: list[str], feeds: dict[str, np.ndarray]) -> Any:
        feeds["input_ids"] %= self.tokens
        return self.session.run(outputs, {name: value for name, value in feeds.items() if name in self.names})


def measure_probes(
    folder: str | Path, *, threads: int = 1, batch: int = 1, length: int | None = None, tell: Tell = lambda _: None
) -> CostTable:
    """The cost table of this machine for the architecture whose probes lie in a folder.

    Args:
        threads, batch: how models will run.
        length: tokens of each text; by default the folder's own texts are timed as they are.

    Raises:
        InputError: there is no such folder, or the length is more than the model takes. IntegrityError: its files are damaged.
    """
    folder = Path(folder)
    facts = read_probes(folder)
    timed = [entry for entry in facts["probes"] if entry["file"]]
    predictors = [open_probe(folder / entry["file"], threads) for entry in timed]
    texts = facts["texts"] if length is None else [stretch_text(predictors[0].encoder, facts["texts"], length, facts["answers"])]
    tell(f"Timing {len(timed)} probes on {threads} thread{'s' * (threads > 1)}, about {SECONDS:.0f} s")
    p50, p95, tokens, spread = time_interleaved(predictors, texts, batch)
    if spread > CALM:
        tell(f"This machine is busy: repeated timings differ by {spread:.0%}. Stop what else runs here, then measure again.")
    seen: dict[str, dict[str, Any]] = {entry["file"]: {"p50": p50[place], "p95": p95[place]} for place, entry in enumerate(timed)}
    for pick in (min, max):
        file = pick(timed, key=lambda entry: entry["bytes"])["file"]
        seen[file]["resident"] = benchmarking.resident_bytes(folder / file, texts, threads, opener=f"{__name__}.open_probe")
    probes = tuple(Probe(Shape(**entry["shape"]), entry["bytes"], **seen.get(entry["file"], {})) for entry in facts["probes"])
    tokenizer = tuple((count, size) for count, size in facts["tokenizer_bytes"])
    table = CostTable(describe_machine(), threads, batch, tokens, probes, tokenizer, timed[0]["rest"], round(spread, 4))
    tell(f"The table tells the time of its own probes to {table.error:.0%}")
    return table


def read_probes(folder: Path) -> dict[str, Any]:
    """The description of a folder of probes, after every file was compared with its sha256."""
    manifest.check(folder, (PROBES, TOKENIZER))
    facts = manifest.read_json(folder / PROBES)
    if facts.get("format") != FORMAT:
        raise IntegrityError(f"{folder / PROBES} has the format {facts.get('format')!r}, expected {FORMAT}. Write the probes again.")
    return facts


def open_probe(path: str | Path, threads: int = 1) -> Predictor:
    """A probe's file as something that answers texts."""
    path = Path(path)
    facts = manifest.read_json(path.parent / PROBES)
    entry = next(entry for entry in facts["probes"] if entry["file"] == path.name)
    encoder = Encoder.from_file(path.parent / TOKENIZER, **facts["tokenizer"])
    session = _Folded(open_session(path, threads), entry["shape"]["vocabulary"])
    return Predictor(session, path.parent, Answers.from_dict(facts["answers"]), encoder, {"name": path.name})


def stretch_text(encoder: Encoder, texts: Sequence[Sequence[Any]], length: int, answers: dict[str, Any]) -> list[Any]:
    """One example [text, pair] of as many tokens, or one or two less where a word ends so, made of the beginning of the given texts.

    Raises:
        InputError: fewer tokens than the tokenizer adds, or more than the model takes.
    """
    pair = "" if answers["kind"] == "pair" else None
    least = int(encoder.encode([""], [pair]).lengths[0])
    if not least < length <= encoder.max_length:
        raise InputError(f"length is {length}, expected {least + 1} to {encoder.max_length} tokens, special tokens included.")
    whole = " ".join(text for text, _ in texts) + " "
    whole *= 1 + length * 16 // len(whole)
    low, high = 0, len(whole)
    while low < high:  # the longest beginning that is not too long
        middle = (low + high + 1) // 2
        fits = int(encoder.encode([whole[:middle]], [pair]).lengths[0]) <= length
        low, high = (middle, high) if fits else (low, middle - 1)
    return [whole[:low], pair]


def describe_machine() -> dict[str, Any]:
    """What a time depends on beside the model: processor, cores and the runtime's version."""
    import onnxruntime

    return {"cpu": processor_name(), "cores": os.cpu_count(), "onnxruntime": onnxruntime.__version__}


def time_interleaved(predictors: Sequence[Any], texts: Sequence[Any], batch: int = 1) -> tuple[list[float], list[float], int, float]:
    """Milliseconds of each predictor over rounds in which all take turns, so that a slow minute slows them all.

    Of the rounds the lower quartile counts: what else runs on a machine only adds time.

    Returns:
        Medians and 95th percentiles over the texts, the texts' tokens, and the share by which the middle half of the rounds lies apart.
    """
    rounds: list[list[benchmarking.Latency]] = []
    start = time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < MOST_ROUNDS and time.perf_counter() - start < SECONDS):
        rounds.append([benchmarking.latency(each, texts, runs=RUNS, warmup=WARMUP, batch=batch) for each in predictors])
    p50, p95 = (np.array([[getattr(found, name) for found in each] for each in rounds]) for name in ("p50", "p95"))
    low, middle, high = np.percentile(p50, [25, 50, 75], axis=0)
    spread = float(np.median((high - low) / middle))
    return low.round(4).tolist(), np.percentile(p95, 25, axis=0).round(4).tolist(), rounds[0][0].length, spread
