"""How long each part of a network takes where it will run: onnxruntime's own profile, told by the modules that its operators come from."""

from __future__ import annotations

import ast
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from lightune import benchmarking
from lightune.exports import find_export
from lightune.runtime import load
from lightune.runtime.predictor import open_session, session_options
from lightune.runtime.tokenization import Encoder

SCOPES = "pkg.torch.onnx.name_scopes"  # where torch's exporter notes the modules around an operator, the outermost first
RUNS, WARMUP = 30, 3
ROUNDS = 3
KERNEL = "_kernel_time"


@dataclass(frozen=True)
class Setting:
    """What is timed: a (text, pair), how many of it at once, and on how many threads."""

    example: Sequence[Any]
    batch: int = 1
    threads: int = 1

    def encode(self, encoder: Encoder) -> dict[str, np.ndarray]:
        """The batch as a model takes it, int64 [b, s] each."""
        text, pair = self.example
        return encoder.pad(encoder.encode([text] * self.batch, [pair] * self.batch), np.arange(self.batch))

    def to_dict(self, encoder: Encoder) -> dict[str, Any]:
        """The setting in numbers, ready for JSON."""
        length = int(self.encode(encoder)["input_ids"].shape[1])
        return {"length": length, "batch": self.batch, "threads": self.threads, "runtime": f"onnxruntime {onnxruntime.__version__}"}


def measure_export(model: Any, graph: ir.Model, target: str, setting: Setting) -> tuple[int, float]:
    """Bytes of the whole artefact folder and median milliseconds from text to logits, of an export that is thrown away.

    Of several rounds the fastest counts: what else runs on the machine only adds.

    Args:
        model: it has answers, an encoder and a base. graph: its network, from `exports.onnx.trace`.
    """
    with TemporaryDirectory() as passing:
        folder = find_export(target).write(model, Path(passing) / "artifact", graph=graph)
        predictor, example = load(folder, threads=setting.threads), [tuple(setting.example)]
        rounds = [benchmarking.latency(predictor, example, runs=RUNS, warmup=WARMUP, batch=setting.batch).p50 for _ in range(ROUNDS)]
        return benchmarking.folder_bytes(folder), min(rounds)


def time_tokenizer(encoder: Encoder, setting: Setting) -> float:
    """Median milliseconds from the texts of a batch to its arrays."""
    seconds = []
    for _ in range(WARMUP + RUNS):
        start = time.perf_counter()
        setting.encode(encoder)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[WARMUP:])


def read_scopes(graph: ir.Graph) -> dict[str, tuple[str, ...]]:
    """For every value of a graph as torch exported it, the names of the modules that it was computed in, the outermost first."""
    return {str(value.name): tuple(ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))) for node in graph for value in node.outputs}


def profile(
    path: Path, feeds: Mapping[str, np.ndarray], scopes: Mapping[str, tuple[str, ...]], folder: Path, threads: int = 1
) -> dict[tuple[str, ...], float]:
    """Milliseconds of one run by the modules around an operator: the median of each operator over the runs, added up.

    onnxruntime fuses operators when it opens a file. A fused one keeps the name of the value that it gives, and so its modules.

    Args:
        path: a model.onnx. feeds: its inputs. scopes: from `read_scopes`. folder: an empty one for what onnxruntime writes.
    """
    options = session_options(threads)
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")  # beyond 2 GB
    session = open_session(path, threads, options)
    for _ in range(WARMUP + RUNS):
        session.run(["logits"], dict(feeds))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    spent = _kernel_times(events)
    found: dict[tuple[str, ...], float] = defaultdict(float)
    for node in ir.load(folder / "optimized.onnx").graph:
        scope = next((scopes[name] for name in (str(value.name) for value in node.outputs) if name in scopes), ())
        found[scope] += spent.get(str(node.name), 0.0)
    return dict(found)


def _kernel_times(events: list[dict[str, object]]) -> dict[str, float]:
    """The median milliseconds of each operator by its name, without the runs that warm up."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = str(event["name"])
        if event.get("cat") == "Node" and name.endswith(KERNEL):
            times[name.removesuffix(KERNEL)].append(float(str(event["dur"])) / 1000)
    return {name: statistics.median(values[WARMUP:] or values) for name, values in times.items()}
