"""What a model is made of: parameters, bytes, FLOPs and measured milliseconds of each part, and which parts its task can spare."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from lightune import architectures, importance, knobs, models, profiling, sources
from lightune.costs.measuring import stretch_text
from lightune.data import Example
from lightune.errors import InputError
from lightune.exporting import fold
from lightune.exports.onnx import capture, save, tidy
from lightune.models import Model
from lightune.networks import Network, tensors
from lightune.predictors import SENTENCE, find_folder
from lightune.profiling import Setting
from lightune.runtime.answers import Answers
from lightune.tasks import task_for

REST = "head and rest"
TOKENIZER = "tokenizer"
PARTS = ("token table", "other embeddings", "attention", "feed-forward", "norms", REST, TOKENIZER)
LENGTH = 32  # tokens of the text that is timed, where nobody says
LEAST_LENGTH = 16  # tokens, until the base is loaded and says what it can take
LONGEST = 512
ROWS = 256  # from which importance is measured
CALM = 0.1  # timings of the same file on an idle machine lie closer together
SAMPLE = 32  # texts of the data from which the one that is timed is made

Tell = Callable[[str], None]


@dataclass
class Findings:
    """What was measured of a model: FLOPs and milliseconds by part, importance, what each knob saves."""

    work: dict[str, int]
    spent: dict[str, float] | None = None
    known: importance.Importance | None = None
    savings: list[knobs.Saving] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def open_model(target: str) -> Model:
    """A saved model, the model of a run or of the run that an artefact belongs to, or a base with a head that nobody trained.

    Raises:
        InputError: the target is none of these.
    """
    try:
        folder = find_folder(target)
    except InputError:
        source = sources.resolve_model(target)
        model = models.start(source, task_for(Answers("classify", ("no", "yes"))), max_length=LEAST_LENGTH)
        model.encoder.max_length = min(architectures.longest_input(model.network.backbone.config) or LONGEST, LONGEST)
        return model
    return models.load(folder if (folder / "model.json").exists() else folder.parents[1] / "model")


def describe_model(
    model: Model,
    name: str,
    *,
    examples: Sequence[Example] = (),
    rows: int = ROWS,
    length: int | None = None,
    batch: int = 1,
    threads: int = 1,
    quick: bool = False,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Facts on a model, by part.

    Args:
        name: what to call it.
        examples: labelled rows of a fine-tuned model's task, from which importance is measured; none to leave that out.
        rows: at most so many of them.
        length: tokens of the text that is timed; by default the median of the examples, else 32.
        batch, threads: how many of that text at once, on how many threads.
        quick: count only; nothing is exported or timed.

    Returns:
        name, type and sizes; parameters, bytes (fp32, with the tokenizer's file), flops and milliseconds (text to logits), in all and by
        part in `parts`; `importance` (rows, curves, blocks) or None; `savings` (see `knobs.Saving`); `notes`. What was not measured is None.

    Raises:
        InputError: examples for a base that was not fine-tuned, or a length that the model does not take.
    """
    if len(examples) and not model.changes:
        raise InputError(f"{name!r} was not fine-tuned: what its task can spare is not known yet. Give a run, or leave out the data.")
    model = fold(model)
    model.network.eval()
    setting = Setting(choose_text(model, examples, length), batch, threads)
    found = Findings(count_flops(model.network, setting.encode(model.encoder)))
    if len(examples):
        tell(f"Measuring importance on {min(rows, len(examples))} rows")
        try:
            found.known = importance.measure(model, examples, rows=rows)
        except InputError as error:  # a static student has no blocks to spare
            found.notes.append(f"Importance was not measured. {error}")
    if not quick:
        _measure(model, setting, found, tell)
    return {"name": name, **_sizes(model), **setting.to_dict(model.encoder), **_totals(model, found)}


def _sizes(model: Model) -> dict[str, Any]:
    """What the configuration and the tensors say of the whole."""
    backbone: Any = model.network.backbone
    config = backbone.config
    return {
        "type": getattr(config, "model_type", "static"), "blocks": getattr(config, "num_hidden_layers", 0), "hidden": config.hidden_size,
        "heads": getattr(config, "num_attention_heads", None), "vocabulary": architectures.word_embedding(backbone).num_embeddings,
        "longest_input": architectures.longest_input(config), "decoder": architectures.is_decoder(backbone),
    }  # fmt: skip


def choose_text(model: Model, examples: Sequence[Example], length: int | None) -> list[Any]:
    """The (text, pair) that is timed: of `length` tokens, else of as many as the median example has, else of 32.

    Raises:
        InputError: a length that the model does not take.
    """
    sample = [(row.text, row.pair) for row in examples[:SAMPLE]] or [(SENTENCE, None)]
    if length is None and len(examples):
        texts, pairs = [row.text for row in examples], [row.pair for row in examples]
        length = int(np.median(model.encoder.encode(texts, pairs).lengths.clip(max=model.encoder.max_length)))
    return stretch_text(model.encoder, sample, length or min(LENGTH, model.encoder.max_length), model.answers.to_dict())


def place_modules(network: Network) -> dict[str, str]:
    """The part that every module belongs to, by the module's name in the network."""
    backbone = network.backbone
    table, layered = architectures.word_embedding(backbone), hasattr(backbone.config, "num_hidden_layers")
    blocks = [block for stack in architectures.stacks(backbone) for block in stack] if layered else []
    before = _ids(architectures.embeddings(backbone)) if layered else set()
    attention = _ids(block.get_submodule(name) for block in blocks for name in architectures.attentions(block))
    inside = _ids(blocks) - {id(block) for block in blocks}  # what a block itself does is adding up what its parts give

    def place(name: str, part: nn.Module) -> str:
        if part is table:
            return "token table"
        if "norm" in type(part).__name__.lower():
            return "norms"
        if id(part) in inside:
            return "attention" if id(part) in attention else "feed-forward"
        return "other embeddings" if id(part) in before or "embed" in name.lower() else REST  # ALBERT widens them in its encoder

    return {name: place(name, part) for name, part in network.named_modules()}


def _ids(modules: Iterable[nn.Module]) -> set[int]:
    """Which modules these are, with all inside them."""
    return {id(part) for module in modules for part in module.modules()}


def count_parameters(model: Model) -> dict[str, int]:
    """Parameters of each part, shared ones once; the head counts where it was trained."""
    parts, count = place_modules(model.network), dict.fromkeys(PARTS, 0)
    for name, item in model.network.named_parameters():
        if model.changes or not name.startswith("head."):
            count[parts[name.rpartition(".")[0]]] += item.numel()
    return count


def count_flops(network: Network, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Floating-point operations of each part in one pass over a padded batch; two for every multiply-add of a matrix product."""
    parts, work = place_modules(network), dict.fromkeys(PARTS, 0)
    with _eagerly(network), FlopCounterMode(display=False) as counter, torch.no_grad():
        network(**tensors(feeds))
    counts = counter.get_flop_counts()
    root = type(network).__name__
    whole = {name[len(root) + 1 :]: sum(kinds.values()) for name, kinds in counts.items() if name.partition(".")[0] == root}
    for name, value in whole.items():
        work[parts[name]] += value
        if (outer := _enclosing(name, whole)) is not None:
            work[parts[outer]] -= value
    return work


@contextmanager
def _eagerly(network: Network) -> Iterator[None]:
    """Attention as plain matrix products, which are counted; fused kernels are not."""
    backbones = [module for module in network.modules() if isinstance(module, PreTrainedModel)]
    former = [backbone.config._attn_implementation for backbone in backbones]
    for backbone in backbones:
        backbone.set_attn_implementation("eager")
    try:
        yield
    finally:
        for backbone, name in zip(backbones, former, strict=True):
            backbone.set_attn_implementation(name)


def _enclosing(name: str, known: Mapping[str, Any]) -> str | None:
    """The innermost of the known modules around a module; None around the outermost."""
    while name:
        name = name.rpartition(".")[0]
        if name in known:
            return name
    return None


def _measure(model: Model, setting: Setting, found: Findings, tell: Tell) -> None:
    """Milliseconds of each part and what each knob saves, from one trace of the model."""
    tell("Exporting the model")
    graph = capture(model.network, model.encoder.inputs)
    scopes = profiling.read_scopes(graph.graph)
    graph = tidy(graph)
    tell("Timing its parts")
    found.spent = _profile(model, graph, scopes, setting)
    found.savings = list(knobs.measure_savings(model, graph, setting, found.known, tell))
    _, again = profiling.measure_export(model, graph, knobs.PLAIN, setting)
    first = found.savings[0].milliseconds or again
    if max(first, again) > (1 + CALM) * min(first, again):
        found.notes.append(
            f"This machine is busy: the same file took {first:.2f} ms and {again:.2f} ms. Stop what else runs here, then measure again."
        )


def _profile(model: Model, graph: ir.Model, scopes: dict[str, tuple[str, ...]], setting: Setting) -> dict[str, float]:
    """Milliseconds of each part in onnxruntime: every operator counts to the innermost module that it comes from."""
    parts, spent = place_modules(model.network), dict.fromkeys(PARTS, 0.0)
    with TemporaryDirectory() as passing:
        path = Path(passing) / "model.onnx"
        save(graph, path)
        times = profiling.profile(path, setting.encode(model.encoder), scopes, Path(passing), setting.threads)
    spent[TOKENIZER] = profiling.time_tokenizer(model.encoder, setting)
    for scope, milliseconds in times.items():
        spent[next((parts[name] for name in reversed(scope) if name in parts), REST)] += milliseconds
    return spent


def _totals(model: Model, found: Findings) -> dict[str, Any]:
    """The figures of all parts together and of each."""
    count = count_parameters(model)
    size = {part: 4 * number for part, number in count.items()}
    size[TOKENIZER] = tokenizer_bytes(model)
    total = sum(size.values())
    parts = [
        {
            "part": part, "parameters": count[part], "bytes": size[part], "share": size[part] / total,
            "flops": found.work[part], "milliseconds": found.spent and round(found.spent[part], 4),
        }
        for part in PARTS
    ]  # fmt: skip
    return {
        "parameters": sum(count.values()), "bytes": total, "flops": sum(found.work.values()),
        "milliseconds": found.spent and round(sum(found.spent.values()), 4), "parts": parts, "importance": _tell_importance(found.known),
        "savings": [dataclasses.asdict(saving) for saving in found.savings], "notes": found.notes,
    }  # fmt: skip


def tokenizer_bytes(model: Model) -> int:
    """Bytes of the tokenizer's file."""
    with TemporaryDirectory() as passing:
        path = Path(passing) / "tokenizer.json"
        model.encoder.save(path)
        return path.stat().st_size


def _tell_importance(known: importance.Importance | None) -> dict[str, Any] | None:
    if known is None:
        return None
    return {"rows": known.rows, "curves": knobs.trace_curves(known), "blocks": knobs.rank_blocks(known)}
