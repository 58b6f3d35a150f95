"""Run an exported model on the CPU: what it needs is numpy, onnxruntime and tokenizers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lightune.errors import InputError, IntegrityError
from lightune.runtime import manifest
from lightune.runtime.answers import Answers
from lightune.runtime.tokenization import Encoded, Encoder, batches, texts_and_pairs

FILES = ("model.onnx", "tokenizer.json", "task.json")
FORMAT = 1


class Predictor:
    """An exported model, ready to answer; made by `load`. Threads may share it.

    answers, encoder: what logits mean and how texts become tokens. folder: where it lies.
    base, name, precision: the model it was made from, its own name, and fp32 or int8.
    truncated_tokens: how many tokens it has cut from too long texts since it was loaded.
    """

    def __init__(self, session: Any, folder: Path, answers: Answers, encoder: Encoder, facts: dict[str, Any]) -> None:
        self.session = session
        self.folder = folder
        self.answers = answers
        self.encoder = encoder
        self.base = facts.get("base")
        self.name = facts.get("name")
        self.precision = facts.get("precision")
        self.truncated_tokens = 0

    def encode(self, examples: Iterable[Any]) -> Encoded:
        """Token ids of examples: texts, (text, pair) tuples, or objects with .text and .pair.

        Raises:
            InputError: something that is no example, or one text where the model compares two.
        """
        texts, pairs = texts_and_pairs(examples)
        if self.answers.kind == "pair" and texts and (pairs is None or None in pairs):
            place = 0 if pairs is None else pairs.index(None)
            raise InputError(f"Example {place} is one text, {texts[place][:40]!r}, but this model compares two. Give (text, pair).")
        encoded = self.encoder.encode(texts, pairs)
        self.truncated_tokens += encoded.truncated_tokens
        return encoded

    def forward(self, encoded: Encoded, batch: int = 32) -> np.ndarray:
        """Logits, float32 [n, k], in the order of what was encoded; it runs sorted by length, `batch` rows at a time."""
        if len(encoded) == 1:  # what follows would take as long as a small model
            return self.session.run(["logits"], self.encoder.pad(encoded))[0]
        logits = np.zeros((len(encoded), self.answers.outputs), dtype=np.float32)
        for rows in batches([len(ids) for ids in encoded.ids], batch):
            (logits[rows],) = self.session.run(["logits"], self.encoder.pad(encoded, rows))
        return logits

    def logits(self, examples: Iterable[Any], batch: int = 32) -> np.ndarray:
        """Logits of examples, float32 [n, k], in their order."""
        return self.forward(self.encode(examples), batch)

    def predict(self, examples: Iterable[Any], batch: int = 32) -> list[dict[str, Any]]:
        """One answer for each example, as `Answers.explain` gives it."""
        return self.answers.explain(self.logits(examples, batch))

    def stream(self, examples: Iterable[Any], chunk: int = 1024) -> Iterator[dict[str, Any]]:
        """The answers of any number of examples, in their order; at most `chunk` examples are held at a time."""
        remaining = iter(examples)
        while block := list(islice(remaining, chunk)):
            yield from self.predict(block)


def load(folder: str | Path, threads: int | None = None, verify: bool = True) -> Predictor:
    """The exported model in a folder.

    Args:
        threads: how many it computes with; None means every core this process may use.
        verify: compare every file with its sha256 first; without it only sizes are compared.

    Raises:
        InputError: there is no such folder, or `threads` is no positive number.
        IntegrityError: files are missing, truncated or altered, or do not belong together.
    """
    folder = check_folder(folder, threads, verify)
    facts = manifest.read_json(folder / "task.json")
    answers, encoder = _described(folder, facts)
    session = open_session(folder / "model.onnx", threads or usable_cores())
    _fits(folder, session, answers, encoder)
    return Predictor(session, folder, answers, encoder, facts)


def check_folder(folder: str | Path, threads: int | None, verify: bool) -> Path:
    """The folder of a graph, once it and the threads that were asked for are known to be in order: see `load`."""
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}, expected at least 1.")
    manifest.check(Path(folder), FILES, contents=verify)
    return Path(folder)


def _described(folder: Path, facts: dict[str, Any]) -> tuple[Answers, Encoder]:
    if facts.get("format") != FORMAT:
        raise IntegrityError(
            f"{folder / 'task.json'} has the format {facts.get('format')!r}, expected {FORMAT}. Export with this version of Lightune."
        )
    try:
        return Answers.from_dict(facts["answers"]), Encoder.from_file(folder / "tokenizer.json", **facts["tokenizer"])
    except (KeyError, TypeError, InputError) as error:
        raise IntegrityError(f"{folder / 'task.json'} does not describe a task ({error}). {manifest.CURE}") from error


def session_options(threads: int) -> Any:
    """onnxruntime's options as Lightune's graphs run fastest with them."""
    import onnxruntime  # here, so that importing the runtime stays quick

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return options


def open_session(path: Path, threads: int, options: Any = None) -> Any:
    """An onnxruntime session of a file; `options` replace those of `session_options`.

    Raises:
        IntegrityError: this onnxruntime cannot load it.
    """
    import onnxruntime

    try:
        # The fused Skip + LayerNormalization kernel is slower than Add and LayerNormalization apart: a tenth of a whole int8 run.
        return onnxruntime.InferenceSession(
            str(path), options or session_options(threads), providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
        )
    except Exception as error:  # onnxruntime raises classes of its own that share no root
        version = onnxruntime.__version__
        raise IntegrityError(
            f"onnxruntime {version} cannot load {path} ({error}). Update it (pip install -U onnxruntime), or export again."
        ) from error


def _fits(folder: Path, session: Any, answers: Answers, encoder: Encoder) -> None:
    """Refuse a network whose inputs or outputs are not those that task.json describes."""
    inputs = {item.name for item in session.get_inputs()}
    columns = [item.shape[-1] for item in session.get_outputs() if item.name == "logits"]
    if inputs != set(encoder.inputs) or columns != [answers.outputs]:
        found = f"inputs {sorted(inputs)} and logits {columns}"
        expected = f"inputs {sorted(encoder.inputs)} and logits [{answers.outputs}]"
        raise IntegrityError(f"{folder / 'model.onnx'} has {found}, task.json describes {expected}. {manifest.CURE}")


def usable_cores() -> int:
    """The processor cores that this process may use: those of its affinity, which a container or scheduler may narrow."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
