"""The cost table: what probes cost on one machine, and the formula through them that tells what any other shape costs.

Both times and bytes grow linearly with a few products of a shape's dimensions: a constant, the tables' columns, the number of blocks,
their widths and their weights. The coefficients, none of them negative, are those with the least relative error at the probes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lightune.costs.shapes import Shape
from lightune.errors import InputError
from lightune.grids import TABLE_BLOCK

FORMAT = 1
TABLES = 3  # the last products of `storage`


@dataclass(frozen=True)
class Probe:
    """What a shape was seen to cost.

    bytes: of its model file. p50, p95: median and 95th percentile of a batch's milliseconds, where it was timed.
    resident: peak memory of a process that runs it, where that was measured.
    """

    shape: Shape
    bytes: int
    p50: float | None = None
    p95: float | None = None
    resident: int | None = None


@dataclass(frozen=True)
class CostTable:
    """What models of one architecture cost on one machine, for texts of one length.

    machine: cpu, cores, onnxruntime's version. threads, batch, length: how the probes ran; length is the median number of tokens.
    tokenizer: bytes of the tokenizer's file if its first n tokens are kept, as pairs (n, bytes). rest: bytes of an artefact's other files.
    spread: how far repeated timings of one probe lay apart, as a share; beyond a tenth the machine was busy.
    """

    machine: dict[str, Any]
    threads: int
    batch: int
    length: int
    probes: tuple[Probe, ...]
    tokenizer: tuple[tuple[int, int], ...]
    rest: int
    spread: float

    def milliseconds(self, shape: Shape, percentile: int = 50) -> float:
        """Milliseconds from text to logits for a batch; the 50th or 95th percentile over the texts.

        Raises:
            InputError: no probe with weights of these bits was timed, or another percentile.
        """
        key = (runs_as(shape.weights), percentile)
        if key not in self._speeds:
            has = ", ".join(f"{bits} bits at the {rank}th percentile" for bits, rank in self._speeds)
            raise InputError(
                f"The cost table knows no times of {shape.weights}-bit weights at the {percentile}th percentile; it has {has}. Measure it."
            )
        return float(self._speeds[key] @ work(shape))

    def count_bytes(self, shape: Shape, tokenizer: int | None = None) -> int:
        """Bytes of the whole artefact folder; `tokenizer` is the size of its tokenizer.json where that is known.

        Raises:
            InputError: no probe with weights and tables of these bits was written.
        """
        files = self.tokenizer_bytes(shape.vocabulary) if tokenizer is None else tokenizer
        return round(self._model_bytes(shape)) + files + self.rest

    def tokenizer_bytes(self, tokens: int) -> int:
        """Bytes of the tokenizer's file if about the first `tokens` of its tokens stay."""
        if tokens not in self._files:
            counts, sizes = zip(*self.tokenizer, strict=True)
            self._files[tokens] = round(float(np.interp(tokens, counts, sizes)))
        return self._files[tokens]

    def resident_bytes(self, shape: Shape) -> int:
        """Peak resident memory of a process that runs the artefact alone.

        Tables lie in memory as in the file; the runtime rearranges matrices, so that they take more. The tokenizer is taken to be whole.
        """
        fixed, slope = self._memory
        tables = self._table_bytes(shape)
        matrices = (self._model_bytes(shape) - tables) * runs_as(shape.weights) / shape.weights
        return round(fixed + tables + slope * matrices)

    @property
    def precisions(self) -> tuple[tuple[int, int], ...]:
        """The bits of matrices and of tables of the models that it knows the bytes of."""
        return tuple(self._sizes)

    @property
    def error(self) -> float:
        """The largest relative error of `milliseconds` at the table's own probes."""
        timed = [probe for probe in self.probes if probe.p50 is not None]
        return max(abs(self.milliseconds(probe.shape) / float(probe.p50 or 1) - 1) for probe in timed)

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CostTable:
        """The inverse of `to_dict`.

        Raises:
            InputError: no cost table, or one of another format.
        """
        if values.get("format") != FORMAT:
            raise InputError(
                f"The cost table has the format {values.get('format')!r}, expected {FORMAT}. Measure it: lightune bench --table"
            )
        try:
            probes = tuple(Probe(**{**probe, "shape": Shape(**probe["shape"])}) for probe in values["probes"])
            sizes = tuple((int(count), int(size)) for count, size in values["tokenizer"])
            return cls(**{**{name: values[name] for name in values if name != "format"}, "probes": probes, "tokenizer": sizes})
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"This is no cost table ({error}). Measure it: lightune bench --table") from None

    def _model_bytes(self, shape: Shape) -> float:
        key = (shape.weights, shape.tables)
        if key not in self._sizes:
            has = ", ".join(f"{weights} and {tables}" for weights, tables in self._sizes)
            raise InputError(
                f"The cost table knows no sizes for {shape.weights}-bit weights with {shape.tables}-bit tables; it has {has}. Measure it."
            )
        return float(self._sizes[key] @ storage(shape))

    def _table_bytes(self, shape: Shape) -> float:
        return float(self._sizes[shape.weights, shape.tables][-TABLES:] @ storage(shape)[-TABLES:])

    @cached_property
    def _files(self) -> dict[int, int]:
        """What `tokenizer_bytes` was asked before: of thousands of shapes most share a few vocabularies."""
        return {}

    @cached_property
    def _memory(self) -> tuple[float, float]:
        """Resident bytes without a model, and for each byte of a model's matrices: the line through the probes that were looked at."""
        seen = [probe for probe in self.probes if probe.resident is not None]
        tables = [self._table_bytes(probe.shape) for probe in seen]
        matrices = np.array([probe.bytes - table for probe, table in zip(seen, tables, strict=True)])
        slope, fixed = np.polyfit(matrices, [float(probe.resident or 0) - table for probe, table in zip(seen, tables, strict=True)], 1)
        return float(fixed), max(0.0, float(slope))

    @cached_property
    def _sizes(self) -> dict[tuple[int, int], np.ndarray]:
        """The coefficients of `storage` by bits of weights and tables."""
        keys = dict.fromkeys((probe.shape.weights, probe.shape.tables) for probe in self.probes)
        return {key: _explain(storage, self._chosen(*key), "bytes") for key in keys}

    @cached_property
    def _speeds(self) -> dict[tuple[int, int], np.ndarray]:
        """The coefficients of `work` by bits of weights and percentile."""
        timed = [probe for probe in self.probes if probe.p50 is not None]
        bits = dict.fromkeys(runs_as(probe.shape.weights) for probe in timed)
        chosen = {key: [probe for probe in timed if runs_as(probe.shape.weights) == key] for key in bits}
        return {(key, rank): _explain(work, chosen[key], f"p{rank}") for key in bits for rank in (50, 95)}

    def _chosen(self, weights: int, tables: int) -> list[Probe]:
        return [probe for probe in self.probes if (probe.shape.weights, probe.shape.tables) == (weights, tables)]


def runs_as(bits: int) -> int:
    """As how many bits weights are multiplied: 4 bits are unpacked to 8 when a file is opened."""
    return max(bits, 8)


def work(shape: Shape) -> np.ndarray:
    """The products that a time is made of, float [8]: running at all (blocks, or a static student), tables, blocks, widths, weights, pooling."""
    runs, layers = shape.layers > 0, shape.full_layers
    widths = layers * (shape.hidden + shape.width)
    weights = layers * shape.block_weights + shape.other_weights
    return np.array([runs, not runs, shape.hidden, shape.layers, widths, layers * shape.ffn, weights, shape.pooled > 0], dtype=np.float64)


def storage(shape: Shape) -> np.ndarray:
    """The products that a file's size is made of, float [10]: as `work`, but a shared block is kept once, and tables count by rows."""
    runs, stored = shape.layers > 0, shape.stored_blocks
    widths = stored * (shape.hidden + shape.width)
    weights = stored * shape.block_weights + shape.other_weights
    columns = shape.embedding or shape.hidden
    positions = shape.positions * (columns if shape.narrow else shape.hidden) * runs
    scales = -(-columns // TABLE_BLOCK) if shape.tables == 8 else 1
    tables = [shape.vocabulary * columns, shape.vocabulary * scales, positions]
    return np.array([runs, not runs, shape.hidden, shape.layers, widths, stored * shape.ffn, weights, *tables], dtype=np.float64)


def _explain(products: Callable[[Shape], np.ndarray], probes: list[Probe], name: str) -> np.ndarray:
    return fit_coefficients(np.stack([products(probe.shape) for probe in probes]), np.array([getattr(probe, name) for probe in probes]))


def fit_coefficients(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients [k], none negative, with the least squared relative error of rows [n, k] @ coefficients against values [n] > 0.

    The most negative leaves until none is; which is exact enough where few leave (Lawson and Hanson 1974 could also bring some back).
    """
    relative = rows / values[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1
    free = list(range(rows.shape[1]))
    while True:
        found = np.linalg.lstsq(relative[:, free] / scale[free], np.ones(len(rows)), rcond=None)[0]
        if found.min(initial=0) >= -1e-9:
            break
        free.pop(int(found.argmin()))
    coefficients = np.zeros(rows.shape[1])
    coefficients[free] = found / scale[free]
    return coefficients
