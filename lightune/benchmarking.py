"""How fast, how large: measured from text to logits, for an artefact or a model alike (both have `logits` and `encoder`)."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from lightune.errors import CheckFailed, InputError
from lightune.runtime.generation import GenerationOptions, Generator
from lightune.runtime.tokenization import texts_and_pairs

MOST_SECONDS = 10.0  # no single measurement takes longer, once it has its least number of runs
LEAST_RUNS = 10
BATCH = 32
RESIDENT_ROWS = 8

_RESIDENT = """
import importlib, json, sys
sys.path[:0] = json.loads(sys.argv[2])
module, _, name = sys.argv[4].rpartition(".")
predictor = getattr(importlib.import_module(module), name)(sys.argv[1], threads=int(sys.argv[3]))
for text, pair in json.load(sys.stdin):
    predictor.predict([(text, pair)])
from lightune.benchmarking import peak_bytes
print(peak_bytes())
"""


_GENERATING = """
import json, sys
sys.path[:0] = json.loads(sys.argv[2])
from lightune.benchmarking import peak_bytes
from lightune.runtime.generation import GenerationOptions
from lightune.runtime.written import load_written
from pathlib import Path
generator = load_written(Path(sys.argv[1]))
if generator is None:
    from lightune.exporting import open_written
    generator = open_written(Path(sys.argv[1]))
generator.generate([sys.argv[3]], GenerationOptions(max_tokens=16))
print(peak_bytes())
"""
OPENING = "Once upon a time"


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one batch, from text to logits: the median and the 95th percentile.

    batch: examples in it. length: the median number of tokens of an example, special tokens included.
    """

    p50: float
    p95: float
    batch: int
    length: int


def latency(predictor: Any, examples: Sequence[Any], *, runs: int = 200, warmup: int = 20, batch: int = 1) -> Latency:
    """Time `runs` batches, after `warmup` that do not count, going round the examples as often as needed.

    Raises:
        InputError: no examples.
    """
    seconds = _time(predictor, examples, warmup, runs, batch)
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    lengths = predictor.encoder.encode(*texts_and_pairs(examples)).lengths.clip(max=predictor.encoder.max_length)
    return Latency(round(float(p50), 4), round(float(p95), 4), batch, int(np.median(lengths)))


def throughput(predictor: Any, examples: Sequence[Any], batch: int = BATCH, *, runs: int = 8) -> float:
    """Examples per second over `runs` full batches, going round the examples as often as needed.

    Raises:
        InputError: no examples.
    """
    seconds = _time(predictor, examples, 1, runs, batch)
    return batch * len(seconds) / sum(seconds)


def resident_bytes(folder: str | Path, examples: Sequence[Any], threads: int = 1, opener: str = "lightune.runtime.load") -> int:
    """Peak resident memory of a fresh process that opens an artefact with `lightune.runtime` alone and answers a few examples one by one.

    opener: the function, by its dotted name, that opens the artefact.

    Raises:
        InputError: no examples. CheckFailed: the process did not end well; the message holds its last line.
    """
    texts, pairs = texts_and_pairs(islice(examples, RESIDENT_ROWS))
    if not texts:
        raise InputError("Got no examples to measure with, expected at least one.")
    rows = json.dumps(list(zip(texts, pairs or [None] * len(texts), strict=True)))
    command = [sys.executable, "-c", _RESIDENT, str(folder), json.dumps(sys.path), str(threads), opener]
    done = subprocess.run(command, input=rows, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode != 0:
        raise CheckFailed(f"{folder} could not be opened in a fresh process: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def generator_resident_bytes(folder: Path) -> int:
    """Peak resident memory of a fresh process that opens an exported generator, a folder or a .gguf file, and writes 16 tokens.

    Raises:
        CheckFailed: the process did not end well; the message holds its last line.
    """
    done = subprocess.run(
        [sys.executable, "-c", _GENERATING, str(folder), json.dumps(sys.path), OPENING], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise CheckFailed(f"{folder} could not be opened in a fresh process: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def generation_speed(generator: Generator, prompts: Sequence[Any], *, most: int = 8, tokens: int = 64) -> dict[str, float]:
    """Tokens a second of reading a prompt and of writing an answer, one prompt at a time: medians over at most so many prompts.

    Answers of fewer than three tokens say nothing of writing; where all are so short, a text is continued instead.
    """
    options = GenerationOptions(max_tokens=tokens)
    reading: list[float] = []
    writing: list[float] = []
    for prompt in [*islice(prompts, most), OPENING]:
        if isinstance(prompt, str) and writing:
            continue
        start = time.perf_counter()
        stream, count, first = generator.stream(prompt, options), 0, 0.0
        for piece in stream:
            first = first or time.perf_counter() - start
            count += piece.tokens
        reading.append(generator.count_tokens(prompt) / first)
        if count > 2:
            writing.append((count - 1) / (time.perf_counter() - start - first))
    return {"prompt": round(float(np.median(reading)), 1), "generation": round(float(np.median(writing)), 1) if writing else 0.0}


def measure_writing(generator: Generator, prompts: Sequence[Any], place: Path, *, exported: bool = True) -> dict[str, Any]:
    """Every figure of a generator that lies in a folder or .gguf file; the memory of one that was not exported is None.

    Returns:
        tokens_per_second {prompt, generation}, resident_bytes, bytes.
    """
    return {
        "tokens_per_second": generation_speed(generator, prompts), "resident_bytes": generator_resident_bytes(place) if exported else None,
        "bytes": folder_bytes(place),
    }  # fmt: skip


def peak_bytes() -> int:
    """Peak resident memory of this process alone. On Linux VmHWM, which starts anew with each program; getrusage also counts the parent that
    forked it."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def folder_bytes(folder: str | Path) -> int:
    """Bytes of every file in a folder, or of one file."""
    return sum(path.stat().st_size for path in (Path(folder), *Path(folder).rglob("*")) if path.is_file())


def measure(predictor: Any, examples: Sequence[Any], folder: str | Path | None = None, threads: int = 1) -> dict[str, Any]:
    """Every figure of a predictor as `run.json` holds them; memory and bytes are those of the artefact's folder, None without one.

    Returns:
        milliseconds {p50, p95, batch, length}, examples_per_second {value, batch}, resident_bytes, bytes.
    """
    return {
        "milliseconds": asdict(latency(predictor, examples)),
        "examples_per_second": {"value": round(throughput(predictor, examples), 2), "batch": BATCH},
        "resident_bytes": None if folder is None else resident_bytes(folder, examples, threads),
        "bytes": None if folder is None else folder_bytes(folder),
    }


def _time(predictor: Any, examples: Sequence[Any], warmup: int, runs: int, batch: int) -> list[float]:
    """Seconds of each run of one batch; fewer runs than asked where they would take longer than MOST_SECONDS."""
    if not len(examples):
        raise InputError("Got no examples to measure with, expected at least one.")
    source = cycle(examples)
    seconds: list[float] = []
    while len(seconds) < warmup + runs and (len(seconds) < warmup + LEAST_RUNS or sum(seconds) < MOST_SECONDS):
        block = list(islice(source, batch))
        start = time.perf_counter()
        predictor.logits(block)
        seconds.append(time.perf_counter() - start)
    return seconds[warmup:]
