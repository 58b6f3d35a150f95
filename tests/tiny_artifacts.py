"""An artefact made by hand: the mean of two or three numbers for each of a few words. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lightune.runtime import manifest
from lightune.runtime.answers import Answers
from lightune.runtime.tokenization import Encoder

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "room", "the", "a", "was", "😀", "שלום")
LABELS = ("no", "perhaps", "yes")


def make_tokenizer() -> Tokenizer:
    """One token for each of WORDS; texts stand between [CLS] and [SEP]."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def make_table(columns: int) -> np.ndarray:
    """Float32 [words, columns]: what each word says for each label."""
    return np.random.default_rng(1).normal(size=(len(WORDS), columns)).astype(np.float32)


def make_artifact(folder: Path, answers: Answers | None = None, *, max_length: int = 16, types: bool = False) -> Path:
    """Write the artefact: logits are the mean of the table's rows over a text's tokens, plus the mean token type where `types`."""
    answers = answers or Answers("classify", LABELS)
    inputs = ("input_ids", "attention_mask", "token_type_ids")[: 3 if types else 2]
    folder.mkdir(parents=True)
    save(_network(make_table(answers.outputs), inputs), folder / "model.onnx")
    encoder = Encoder(make_tokenizer(), max_length, 0, inputs)
    encoder.save(folder / "tokenizer.json")
    facts: dict[str, Any] = {"format": 1, "answers": answers.to_dict(), "tokenizer": encoder.to_dict(), "base": "words", "name": "tiny"}
    (folder / "task.json").write_text(json.dumps(facts | {"precision": "fp32"}), encoding="utf-8")
    manifest.write(folder, "0.0.0")
    return folder


def _network(table: np.ndarray, inputs: tuple[str, ...]) -> Any:
    axis = numpy_helper.from_array(np.array([1]), "axis")
    deep = numpy_helper.from_array(np.array([2]), "deep")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "deep"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "axis"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean" if len(inputs) == 3 else "logits"]),
    ]
    if len(inputs) == 3:
        nodes += [
            helper.make_node("Cast", ["token_type_ids"], ["types"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["types", "axis"], ["second"], keepdims=1),
            helper.make_node("Div", ["second", "count"], ["share"]),
            helper.make_node("Add", ["mean", "share"], ["logits"]),
        ]
    taken = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in inputs]
    given = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", table.shape[1]])]
    graph = helper.make_graph(nodes, "words", taken, given, [numpy_helper.from_array(table, "table"), axis, deep])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
