"""Probes: small untrained networks of a base's architecture, exported as its models will be, from which a cost table is measured.

What a graph costs does not depend on what its weights are, so nothing is trained: a probe is the base's configuration with fewer layers,
of which heads, neurons and stream are cut. Thirteen of them, between the base and a fourth of it, tell what every shape between costs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from transformers import AutoConfig

from lightune import __version__, benchmarking, dimensions, exports, models
from lightune.costs import CostTable, Shape, measure_probes
from lightune.costs.measuring import CALM, FORMAT, PROBES, TOKENIZER, describe_machine
from lightune.costs.tables import runs_as
from lightune.errors import InputError, LightuneError
from lightune.exports import onnx
from lightune.exports.staging import staged
from lightune.networks import Network
from lightune.precision import Precision
from lightune.runtime import manifest
from lightune.runtime.tokenization import Encoder, texts_and_pairs
from lightune.steps.pool import Pool, can_pool
from lightune.steps.static import Static
from lightune.wheels import cache_folder

# Layers (0: as many as the base), share of the heads and the stream, share of the feed-forward neurons, layers that read pairs of tokens.
DESIGN: tuple[tuple[int, float, float, int], ...] = (
    (0, 1, 1, 0), (2, 1, 1, 0), (2, 1, 1 / 4, 0), (1, 1, 1 / 2, 0), (2, 1 / 2, 1, 0), (3, 1 / 2, 1 / 4, 0), (1, 1 / 2, 1 / 2, 0),
    (4, 1 / 4, 1 / 2, 0), (1, 1 / 4, 1, 0), (1, 1 / 4, 1 / 8, 0), (4, 3 / 4, 1 / 3, 3), (4, 1 / 2, 1 / 2, 2),
)  # fmt: skip
PRECISIONS = (Precision(weights=8, tables=8), Precision(weights=8, tables=4), Precision(weights=4, tables=4))
TOKENS = (512, 2048)  # rows of the probes' token tables, in turn, so that sizes tell what a row costs
POSITIONS = 256  # as many more rows of the position table, in two probes of four
SPARE = 8  # positions beyond the longest text, which some families keep for padding
ROUNDED = 8  # neurons
WIDTH = 64  # of the static student
TEXTS = 32
MODEL = "model.onnx"
CURVE = 32  # points at which the tokenizer's size is told

Tell = Callable[[str], None]


def measure_table(
    model: models.Model,
    examples: Sequence[Any],
    *,
    threads: int = 1,
    batch: int = 1,
    length: int | None = None,
    precisions: Sequence[Precision] = PRECISIONS,
    tell: Tell = lambda _: None,
) -> CostTable:
    """What models of this model's architecture cost on this machine, for texts like the examples or of a given length in tokens.

    Probes and tables are kept in Lightune's cache; a table that was measured on a busy machine is not.

    Raises:
        InputError: no examples, an architecture that cannot be cut or exported, or a length that it does not take.
    """
    key = _digest(_describe(model, examples, precisions))
    folder = cache_folder() / "costs" / f"probes-{key}"
    try:
        manifest.check(folder, (PROBES,))
    except LightuneError:
        write_probes(model, folder, examples, precisions=precisions, tell=tell)
    setting = {"machine": describe_machine(), "threads": threads, "batch": batch, "length": length, "version": __version__}
    path = folder.with_name(f"table-{key}-{_digest(setting)}.json")
    if path.is_file():
        return CostTable.from_dict(json.loads(path.read_text(encoding="utf-8")))
    table = measure_probes(folder, threads=threads, batch=batch, length=length, tell=tell)
    if table.spread <= CALM:
        passing = path.with_name(f".{path.name}.{os.getpid()}")
        passing.write_text(json.dumps(table.to_dict()), encoding="utf-8")
        passing.replace(path)
    return table


def write_probes(
    model: models.Model,
    folder: str | Path,
    examples: Sequence[Any],
    *,
    precisions: Sequence[Precision] = PRECISIONS,
    tell: Tell = lambda _: None,
) -> Path:
    """Write the probes of a model's architecture into a folder that `costs.measure_probes` times, here or on another machine.

    The folder holds up to 32 of the examples' texts, which are what is timed. Of precisions that run alike one file is kept, the
    others are written for their size alone.

    Raises:
        InputError: no examples, an architecture that cannot be cut or exported, or a folder that holds something else.
    """
    folder = Path(folder)
    texts = choose_texts(model.encoder, examples)
    with staged(folder) as draft:
        model.encoder.save(draft / TOKENIZER)
        entries: list[dict[str, Any]] = []
        design = [probe for probe in DESIGN if not probe[-1] or can_pool(model.network.backbone)]
        for number in range(len(design) + 1):
            tell(f"Exporting probe {number + 1} of {len(design) + 1}")
            network = make_network(model, *design[number], number) if number < len(design) else make_static(model)
            entries += _export(model, network, precisions, draft, number)
        facts = {
            "format": FORMAT, "base": model.base.name, "answers": model.answers.to_dict(), "tokenizer": model.encoder.to_dict(),
            "texts": texts, "tokenizer_bytes": measure_tokenizer(draft / TOKENIZER), "probes": entries,
        }  # fmt: skip
        (draft / PROBES).write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
        manifest.write(draft, __version__)
    return folder


def make_network(model: models.Model, layers: int, stream: float, ffn: float, pooled: int, number: int) -> Network:
    """An untrained network of the model's architecture, ready to export.

    Args:
        layers: how many; 0 for as many as the base has.
        stream, ffn: the share of the heads and the stream, and of the feed-forward neurons, that stays.
        pooled: layers that read pairs of tokens.
        number: which probe it is; the sizes of the tables alternate.
    """
    rows = model.encoder.max_length + SPARE + POSITIONS * (number // 2 % 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        backbone = models.bare_backbone(_configure(model.base.config, layers, TOKENS[number % 2], rows))
        found = dimensions.describe(backbone)
        units = max(1, round(stream * found.heads[0].size))
        for dimension in found.heads:
            dimensions.cut(dimension, range(units))
        for dimension in found.ffn:
            dimensions.cut(dimension, range(min(dimension.size, max(1, round(ffn * dimension.size / ROUNDED)) * ROUNDED)))
        dimensions.cut(found.hidden, range(found.hidden.size * units // found.heads[0].size))
        network = Network(backbone, model.answers.outputs, model.network.pooling, model.encoder.inputs)
        _disperse(network)
    return (Pool(layers - pooled).apply(network) if pooled else network).eval()


def make_static(model: models.Model) -> Network:
    """An untrained static student for the model's task, ready to export."""
    network = make_network(model, 1, 1, 1, 0, 0)
    step = Static(keep=min(WIDTH, network.head.in_features)).plan(model, None)
    return step.apply(network).eval()


def choose_texts(encoder: Encoder, examples: Sequence[Any]) -> list[list[Any]]:
    """At most 32 examples as [text, pair], as short and long ones as occur, in an order without meaning.

    Raises:
        InputError: no examples.
    """
    texts, pairs = texts_and_pairs(examples)
    if not texts:
        raise InputError("Got no examples to time, expected at least one.")
    order = np.argsort(encoder.encode(texts, pairs).lengths, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(TEXTS, len(order))).round().astype(int)]
    return [[texts[place], pairs[place] if pairs else None] for place in np.random.default_rng(0).permutation(chosen)]


def measure_tokenizer(path: Path) -> list[tuple[int, int]]:
    """Bytes of a tokenizer.json if its first n tokens are kept, as points (n, bytes): vocabularies begin with what is common and short.

    Merges of a BPE tokenizer are kept in the same share.
    """
    facts = json.loads(path.read_text(encoding="utf-8"))["model"]
    vocabulary = facts["vocab"]
    items = sorted(vocabulary.items(), key=lambda item: item[1]) if isinstance(vocabulary, dict) else [tuple(item) for item in vocabulary]
    extra = 1 if isinstance(vocabulary, list) else -1  # ["text",7] is an entry "text":7, of a dictionary
    sizes = np.cumsum([0, *(len(_compact(list(item)).encode()) + extra for item in items)])
    merges = len(_compact(facts.get("merges") or []).encode())
    fixed = path.stat().st_size - int(sizes[-1]) - merges
    counts = np.unique(np.linspace(0, len(items), CURVE + 1).round().astype(int))
    return [(int(count), round(fixed + int(sizes[count]) + merges * count / len(items))) for count in counts]


def _configure(values: dict[str, Any], layers: int, tokens: int, rows: int) -> dict[str, Any]:
    """The base's configuration with other numbers of layers, tokens and positions; lists that say something of each layer go."""
    config = AutoConfig.for_model(**values)
    sizes = {"num_hidden_layers": layers or config.num_hidden_layers, "vocab_size": tokens, "max_position_embeddings": rows}
    kept = {name: value for name, value in values.items() if not (isinstance(value, list) and "layer" in name)}
    ids = {name: min(value, tokens - 1) for name, value in kept.items() if name.endswith("_token_id") and isinstance(value, int)}
    return {**kept, **ids, **{config.attribute_map.get(name, name): size for name, size in sizes.items()}}


def _disperse(network: Network) -> None:
    """Make every vector differ from all others, as after training: the exporter keeps equal ones once."""
    with torch.no_grad():
        for item in network.parameters():
            if item.ndim == 1:
                item.add_(torch.randn_like(item), alpha=0.02)


def _export(model: models.Model, network: Network, precisions: Sequence[Precision], folder: Path, number: int) -> list[dict[str, Any]]:
    """Write a network in every precision, and keep the first file of each speed: its entries of probes.json."""
    graph, shape = onnx.trace(network, network.inputs), Shape.of(SimpleNamespace(network=network))
    entries: list[dict[str, Any]] = []
    for precision in precisions:
        exact = dataclasses.replace(shape, weights=precision.weights, tables=precision.tables)
        alike = any(runs_as(entry["shape"]["weights"]) == runs_as(precision.weights) for entry in entries)
        file = None if alike else f"{number}-{precision.label}.onnx"
        entries.append({"shape": dataclasses.asdict(exact), "file": file, **_write(model, graph, precision, folder, file)})
    return entries


def _write(model: models.Model, graph: ir.Model, precision: Precision, folder: Path, file: str | None) -> dict[str, int]:
    """Write a graph as an artefact, keep its model under the name of `file`, and tell bytes: the model's, and the rest but the tokenizer."""
    base = model.base.name
    with tempfile.TemporaryDirectory(dir=folder) as passing:
        place = Path(passing) / "artifact"
        onnx.write(graph, model.answers, model.encoder, place, precision=precision, base=base, name=base)
        size, tokenizer = ((place / name).stat().st_size for name in (MODEL, TOKENIZER))
        rest = benchmarking.folder_bytes(place) - size - tokenizer
        if file:
            (place / MODEL).rename(folder / file)
    return {"bytes": size, "rest": rest}


def _describe(model: models.Model, examples: Sequence[Any], precisions: Sequence[Precision]) -> dict[str, Any]:
    """All that the probes of a model depend on."""
    return {
        "config": model.base.config, "answers": model.answers.to_dict(), "encoder": model.encoder.to_dict(), "pooling": model.network.pooling,
        "tokenizer": model.encoder.tokenizer.to_str(), "texts": choose_texts(model.encoder, examples),
        "precisions": [repr(precision) for precision in precisions], "torch": torch.__version__,
        "exporter": [hashlib.sha256(path.read_bytes()).hexdigest() for path in (Path(__file__), *sorted(Path(exports.__file__).parent.glob("*.py")))],
    }  # fmt: skip


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(_compact(facts).encode()).hexdigest()[:16]


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
