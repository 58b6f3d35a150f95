"""ONNX: a network becomes a folder that `lightune.runtime` runs without torch."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from transformers import PreTrainedModel

from lightune import __version__
from lightune.errors import InputError
from lightune.exports.attention import choose_attention
from lightune.exports.calibration import find_ranges
from lightune.exports.fusion import simplify
from lightune.exports.quantization import quantize
from lightune.exports.rounding import round_weights
from lightune.exports.smoothing import find_smoothing
from lightune.exports.staging import staged
from lightune.precision import FP32, Precision
from lightune.runtime import manifest, predictor
from lightune.runtime.answers import Answers
from lightune.runtime.tokenization import INPUTS, Encoder

OPSET = 20  # the first with Gelu; onnxruntime runs nothing faster from a later one
MOST_BYTES = 2**31 - 2**24  # a protobuf file ends at 2 GiB; beyond, the weights lie beside it
LOUD = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def write(
    network: torch.nn.Module | ir.Model,
    answers: Answers,
    encoder: Encoder,
    folder: str | Path,
    *,
    precision: Precision = FP32,
    sample: Sequence[Any] = (),
    base: str,
    name: str,
) -> Path:
    """Write a network as an artefact folder: model.onnx, tokenizer.json, task.json, manifest.json. A folder appears whole or not at all.

    Args:
        network: in eval mode, `forward(input_ids, attention_mask[, token_type_ids])`, int64 [b, s] each, gives float32 logits [b, k];
            or what `trace` made of it, so that several precisions cost one trace.
        precision: the bits of weights and embedding tables.
        sample: examples from which the ranges of quantized activations are seen (see `smoothing`).
        base, name: what the model was made from and what it is called, for those who find the folder later.

    Raises:
        InputError: a matrix to keep that is not there, a network that cannot be traced, or a folder that cannot be written or holds something
            else.
    """
    with staged(folder) as draft:
        model = network if isinstance(network, ir.Model) else trace(network, encoder.inputs)
        save(quantize_seen(model, encoder, sample, precision), draft / "model.onnx")
        encoder.save(draft / "tokenizer.json")
        facts = {"format": predictor.FORMAT, "answers": answers.to_dict(), "tokenizer": encoder.to_dict()}
        text = json.dumps(facts | {"base": base, "name": name, "precision": precision.label}, ensure_ascii=False, indent=1)
        (draft / "task.json").write_text(text, encoding="utf-8")
        manifest.write(draft, __version__)
    return Path(folder)


def quantize_seen(model: ir.Model, encoder: Encoder, sample: Sequence[Any], precision: Precision) -> ir.Model:
    """A copy of an fp32 model in a precision, with all that a sample of what it reads can say: see `smoothing`, `rounding`, `calibration`.

    Raises:
        InputError: a matrix to keep that is not there, or no sample where the precision needs one.
    """
    if not precision.quantizes:
        return model
    smoothing = find_smoothing(model, encoder, sample, precision)
    ranges = find_ranges(model, encoder, sample, precision, smoothing) if precision.multiplies_static else {}
    return quantize(round_seen(model, encoder, sample, precision, smoothing), precision, smoothing, ranges)


def round_seen(
    model: ir.Model, encoder: Encoder, sample: Sequence[Any], precision: Precision, smoothing: Mapping[str, np.ndarray] | None = None
) -> ir.Model:
    """A copy of an fp32 model whose matrices lie where the rounding of a precision puts them; the model itself where that is the nearest."""
    if precision.rounding == "auto":
        precision = dataclasses.replace(precision, rounding="gptq" if precision.weights == 4 and len(sample) else "nearest")
    if precision.weights == 32 or precision.rounding == "nearest":
        return model
    return round_weights(model, encoder, sample, precision, smoothing)


def trace(network: torch.nn.Module, inputs: Sequence[str]) -> ir.Model:
    """The network's graph in fp32, for any batch and any length; equal weights are held once.

    Raises:
        InputError: torch cannot export this network.
    """
    return tidy(capture(network, inputs))


def capture(network: torch.nn.Module, inputs: Sequence[str]) -> ir.Model:
    """The graph as torch exports it: every operator still tells the modules that it comes from.

    Raises:
        InputError: torch cannot export this network.
    """
    filled = {"input_ids": 2, "attention_mask": 1, "token_type_ids": 0}
    example = {name: torch.full((2, 8), filled[name], dtype=torch.int64) for name in inputs}
    return capture_call(network, example, dict.fromkeys(inputs, (0, 1)), ["logits"])


def capture_call(
    network: torch.nn.Module,
    example: Mapping[str, torch.Tensor | Sequence[torch.Tensor]],
    axes: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
) -> ir.Model:
    """The graph of one call of a network, as torch exports it.

    Args:
        example: what `forward` is given by name: tensors, or lists of tensors, which the graph calls by their name and number (past_0).
        axes: for each of them the axes that may have any size.
        outputs: what the graph calls its outputs.

    Raises:
        InputError: torch cannot export this network.
    """
    free = {name: dict.fromkeys(axes[name], torch.export.Dim.DYNAMIC) for name in example}
    lone = {name: isinstance(value, torch.Tensor) for name, value in example.items()}
    inputs = [
        each for name, value in example.items() for each in ([name] if lone[name] else [f"{name}_{place}" for place in range(len(value))])
    ]
    try:
        with _quiet(), _any_shape(network) as traceable:
            program = torch.onnx.export(
                traceable,
                kwargs=dict(example),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes={name: free[name] if lone[name] else [free[name]] * len(value) for name, value in example.items()},
                input_names=inputs,
                output_names=list(outputs),
                verbose=False,
            )
    except Exception as error:  # whatever torch trips over is the network's fault to the caller
        raise InputError(f"This network cannot be exported to ONNX: {str(error).strip().splitlines()[0]}") from error
    assert program is not None
    _name_weights(program.model.graph, network)
    return program.model


def tidy(model: ir.Model) -> ir.Model:
    """The model, changed in place, without what only its makers need: torch's stack traces, shapes of inner values, weights kept twice,
    detours."""
    simplify(model.graph)
    RemoveUnusedNodesPass()(model)
    ClearMetadataAndDocStringPass()(model)
    _share_equal_weights(model.graph)
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape, value.type = None, None
    for value in model.graph.inputs:
        if value.name in INPUTS:
            value.shape = ir.Shape(["batch", "length"])
    return model


def _name_weights(graph: ir.Graph, network: torch.nn.Module) -> None:
    """The exporter turns the matrices of linear layers and numbers them: name them by their parameters."""
    matrices = {name: item.detach().cpu().float().numpy() for name, item in network.named_parameters() if item.ndim == 2}
    turned = {_identity(array.T): name for name, array in matrices.items() if name not in graph.initializers}
    for value in tuple(graph.initializers.values()):
        tensor = value.const_value
        assert tensor is not None  # the exporter fills every initializer
        name = turned.get(_identity(tensor.numpy())) if len(tensor.shape) == 2 and value.name not in matrices else None
        if name is not None and name in graph.initializers:  # the copy that another layer got of a shared matrix
            value.replace_all_uses_with(graph.initializers[name])
        elif name is not None:
            value.name = name


def _identity(array: np.ndarray) -> tuple[object, ...]:
    """What two tensors have in common only if they are equal."""
    return array.dtype, array.shape, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def _share_equal_weights(graph: ir.Graph) -> None:
    """Layers that share a weight get one copy each from the exporter: keep the first."""
    first: dict[tuple[object, ...], ir.Value] = {}
    for name, value in tuple(graph.initializers.items()):
        assert value.const_value is not None
        kept = first.setdefault(_identity(value.const_value.numpy()), value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            del graph.initializers[name]


def save(model: ir.Model, path: Path) -> None:
    """Write model.onnx; beyond 2 GiB its weights lie beside it."""
    bytes_of_weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if bytes_of_weights > MOST_BYTES else None)


@contextmanager
def _any_shape(network: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The network on the CPU in fp32, with attention that can be traced: faster kernels choose by shape, a graph serves any shape."""
    tensors = [*network.parameters(), *network.buffers()]
    if any(tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32) for tensor in tensors):
        network = copy.deepcopy(network).to("cpu", torch.float32)
    backbones = [module for module in network.modules() if isinstance(module, PreTrainedModel)]
    former = [backbone.config._attn_implementation for backbone in backbones]
    try:
        for backbone in backbones:
            backbone.set_attn_implementation(choose_attention(backbone))
        yield network
    finally:
        for backbone, name in zip(backbones, former, strict=True):
            backbone.set_attn_implementation(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines from the exporter: what it says concerns its own innards."""
    loggers = [logging.getLogger(name) for name in LOUD]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
