"""ONNX: a network becomes a folder that `lightune.runtime` runs without torch."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from transformers import PreTrainedModel

from lightune import __version__
from lightune.errors import InputError
from lightune.exports.quantization import quantize
from lightune.exports.staging import staged
from lightune.runtime import manifest, predictor
from lightune.runtime.answers import Answers
from lightune.runtime.tokenization import Encoder

OPSET = 20  # the first with Gelu; onnxruntime runs nothing faster from a later one
MOST_BYTES = 2**31 - 2**24  # a protobuf file ends at 2 GiB; beyond, the weights lie beside it
LOUD = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


def write(
    network: torch.nn.Module | ir.Model,
    answers: Answers,
    encoder: Encoder,
    folder: str | Path,
    *,
    precision: str = "fp32",
    base: str,
    name: str,
) -> Path:
    """Write a network as an artefact folder: model.onnx, tokenizer.json, task.json, manifest.json. A folder appears whole or not at all.

    Args:
        network: in eval mode, `forward(input_ids, attention_mask[, token_type_ids])`, int64 [b, s] each, gives float32 logits [b, k];
            or what `trace` made of it, so that several precisions cost one trace.
        precision: fp32, or int8 for quantized weights and embedding tables.
        base, name: what the model was made from and what it is called, for those who find the folder later.

    Raises:
        InputError: an unknown precision, a network that cannot be traced, or a folder that cannot be written or holds something else.
    """
    if precision not in ("fp32", "int8"):
        raise InputError(f"precision is {precision!r}, expected fp32 or int8.")
    with staged(folder) as draft:
        model = network if isinstance(network, ir.Model) else trace(network, encoder.inputs)
        _save(quantize(model) if precision == "int8" else model, draft / "model.onnx")
        encoder.save(draft / "tokenizer.json")
        facts = {"format": predictor.FORMAT, "answers": answers.to_dict(), "tokenizer": encoder.to_dict()}
        text = json.dumps(facts | {"base": base, "name": name, "precision": precision}, ensure_ascii=False, indent=1)
        (draft / "task.json").write_text(text, encoding="utf-8")
        manifest.write(draft, __version__)
    return Path(folder)


def trace(network: torch.nn.Module, inputs: Sequence[str]) -> ir.Model:
    """The network's graph in fp32, for any batch and any length; equal weights are held once.

    Raises:
        InputError: torch cannot export this network.
    """
    size = torch.export.Dim.DYNAMIC
    filled = {"input_ids": 2, "attention_mask": 1, "token_type_ids": 0}
    example = {name: torch.full((2, 8), filled[name], dtype=torch.int64) for name in inputs}
    try:
        with _quiet(), _any_shape(network) as traceable:
            program = torch.onnx.export(
                traceable,
                kwargs=example,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes={name: {0: size, 1: size} for name in inputs},
                input_names=list(inputs),
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # whatever torch trips over is the network's fault to the caller
        raise InputError(f"This network cannot be exported to ONNX: {str(error).strip().splitlines()[0]}") from error
    assert program is not None
    return _tidied(program.model)


def _tidied(model: ir.Model) -> ir.Model:
    """The model without what only its makers need: torch's stack traces, shapes of inner values, weights kept twice."""
    RemoveUnusedNodesPass()(model)
    ClearMetadataAndDocStringPass()(model)
    _share_equal_weights(model.graph)
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape, value.type = None, None
    for value in model.graph.inputs:
        value.shape = ir.Shape(["batch", "length"])
    return model


def _share_equal_weights(graph: ir.Graph) -> None:
    """Layers that share a weight get one copy each from the exporter: keep the first."""
    first: dict[tuple[object, ...], ir.Value] = {}
    for name, value in tuple(graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None  # the exporter fills every initializer
        kept = first.setdefault((tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest()), value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            del graph.initializers[name]


def _save(model: ir.Model, path: Path) -> None:
    bytes_of_weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    ir.save(model, path, external_data=f"{path.name}.data" if bytes_of_weights > MOST_BYTES else None)


@contextmanager
def _any_shape(network: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The network on the CPU in fp32, with transformers' plainest attention: faster kernels choose by shape, a graph serves any shape."""
    tensors = [*network.parameters(), *network.buffers()]
    if any(tensor.device.type != "cpu" or (tensor.is_floating_point() and tensor.dtype != torch.float32) for tensor in tensors):
        network = copy.deepcopy(network).to("cpu", torch.float32)
    backbones = [module for module in network.modules() if isinstance(module, PreTrainedModel)]
    former = [backbone.config._attn_implementation for backbone in backbones]
    try:
        for backbone in backbones:
            backbone.set_attn_implementation("eager")
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
