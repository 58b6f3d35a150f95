"""Plain ways to make a fine-tuned model smaller, each with a tool's own defaults; scored and timed by Lightune's code, so that only the way differs."""

import dataclasses
import shutil

import torch
import torch.nn.utils.prune
from onnx import TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic

from lightune import __version__, benchmarking, models
from lightune.evaluation import evaluate
from lightune.exports import onnx
from lightune.precision import FP32, INT8
from lightune.preparation import read_all
from lightune.recipes import TrainOptions, read_recipe, resolve
from lightune.runtime import load, manifest
from lightune.steps import make_step
from lightune.training import Training

EPOCHS = 4  # of the student without a teacher


def run(folder, place):
    """Name → bytes, milliseconds, test score and artefact of each way, for a finished run with test rows; the artefacts stay below a place."""
    recipe = resolve(read_recipe(folder / "recipe.toml"), {})
    parts = read_all(recipe, recipe.data.train).parts
    test = parts["test"]
    found = {}
    for name, make in (
        ("onnxruntime dynamic int8", dynamic_int8),
        ("half the layers, labels alone", half_depth),
        ("magnitude pruning 50 %", pruned),
    ):
        artifact = make(models.load(folder / "model"), parts["train"], place / "".join(item if item.isalnum() else "-" for item in name))
        predictor = load(artifact, threads=1)
        scores = evaluate(predictor, test, resamples=0)
        latency = benchmarking.latency(predictor, test[:256])
        found[name] = {
            "bytes": benchmarking.folder_bytes(artifact), "milliseconds": latency.p50, "test": scores[scores.primary],
            "artifact": str(artifact),
        }  # fmt: skip
    return found


def write(model, folder, precision):
    """A model as an artefact folder."""
    return onnx.write(model.network.eval(), model.answers, model.encoder, folder, precision=precision, base=model.base.name, name="peer")


def dynamic_int8(model, train, folder):
    """The whole model through onnxruntime's quantize_dynamic, matrices and tables, signed 8 bits with reduced range as CPUs without VNNI need."""
    write(model, folder, FP32)
    path = folder / "model.onnx"
    shutil.move(path, folder / "fp32.onnx")
    quantize_dynamic(
        folder / "fp32.onnx",
        path,
        weight_type=QuantType.QInt8,
        reduce_range=True,
        op_types_to_quantize=["MatMul", "Gather", "Gemm"],
        extra_options={"DefaultTensorType": TensorProto.FLOAT},
    )
    (folder / "fp32.onnx").unlink()
    manifest.write(folder, __version__)
    return folder


def half_depth(model, train, folder):
    """Every second layer, trained on the labels alone."""
    layers = model.network.backbone.config.num_hidden_layers
    step = make_step(f"depth={layers // 2}")
    model.shrink(dataclasses.replace(step, layers=tuple(range(0, layers, 2))), None)
    for _ in Training(model, train, [], TrainOptions(epochs=EPOCHS)).steps():
        pass
    return write(model, folder, INT8)


def pruned(model, train, folder):
    """Half of every weight matrix set to zero by magnitude (torch's l1_unstructured), then int8."""
    for module in model.network.backbone.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.utils.prune.l1_unstructured(module, "weight", 0.5)
            torch.nn.utils.prune.remove(module, "weight")
    return write(model, folder, INT8)
