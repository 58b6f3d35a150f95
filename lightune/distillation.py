"""A small model learns from what a larger one answers: logits, token vectors, and relations between them.

A teacher reads every row once; what it says is kept on disk, so that every epoch and every candidate reuses it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightune import architectures
from lightune.errors import InputError
from lightune.halves import Halves
from lightune.models import Model
from lightune.networks import Network
from lightune.recipes import DistillOptions
from lightune.runtime.tokenization import Encoded
from lightune.training import Objective, bf16_is_faster

READERS = ("queries", "keys", "values")  # of the last block: what MiniLM's relations compare
WIDE = 128  # a teacher that is narrower gains nothing by bf16, and a measured choice would not repeat


@dataclass(frozen=True)
class Observed:
    """What a teacher said about n rows.

    logits: float32 [n, k]. offsets: int64 [n + 1], where a row's tokens begin in the states. states: by name, float16 [tokens, d]:
    "hidden.L" for the vectors after block L, and `READERS`. blocks: how many blocks the teacher has.
    """

    logits: np.ndarray
    offsets: np.ndarray
    states: dict[str, np.ndarray]
    blocks: int

    def of(self, name: str, places: np.ndarray) -> Tensor:
        """The states of some rows' tokens, one row after another, float32 [tokens, d]."""
        state = self.states[name]
        return torch.from_numpy(np.concatenate([state[self.offsets[row] : self.offsets[row + 1]] for row in places]).astype(np.float32))


def observe(teachers: Sequence[Model], encoded: Encoded, folder: Path, *, states: Sequence[str] = ()) -> Observed:
    """Let teachers read rows, or take from the folder what the same teachers have said about the same rows before.

    Logits are averaged over the teachers; states are those of the first.

    Raises:
        InputError: teachers with different labels.
    """
    if any(teacher.answers.labels != teachers[0].answers.labels for teacher in teachers):
        raise InputError("The teachers have different labels. Give teachers that were trained on the same labels.")
    key = _key(teachers, encoded, states)
    blocks = _count_blocks(teachers[0])
    if not (folder / "key.txt").exists() or (folder / "key.txt").read_text() != key:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "key.txt").unlink(missing_ok=True)
        _record(teachers, encoded, folder, states)
        (folder / "key.txt").write_text(key)
    kept = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in states}
    return Observed(np.load(folder / "logits.npy"), _offsets(encoded), kept, blocks)


def read_logits(teachers: Sequence[Model], encoded: Encoded) -> np.ndarray:
    """The mean logits of teachers for rows, float32 [n, k]."""
    logits = np.zeros((len(encoded), teachers[0].answers.outputs), dtype=np.float32)
    for teacher in teachers:
        with hurried(teacher.network):
            for rows, found in teacher.read(encoded, partial(_read, teacher.network, states=())):
                logits[rows] += found["logits"].cpu().numpy() / len(teachers)
    return logits


def imitate(
    student: Model, observed: Observed, options: DistillOptions, labelled: np.ndarray | None = None, smoothing: float = 0.0
) -> Objective:
    """The loss of a student for every example: the task's own on labelled rows, and its distance from what the teacher said.

    Args:
        labelled: bool [n], which rows have a target of their own; all by default.

    Raises:
        InputError: states that this student cannot be compared with.
    """
    if architectures.pooled_layers(student.network.backbone) and not compares_ends(options):
        raise InputError(
            "A student whose upper layers read pairs of tokens has no vectors of single tokens inside them. Leave relations-weight at 0 and "
            "compare at last, or the step pool out."
        )
    kept = _kept_dimensions(student)
    mapping = _match_layers(_count_blocks(student), observed) if options.hidden_weight else {}
    task, known = student.task, np.ones(len(observed.logits), dtype=bool) if labelled is None else labelled

    def losses(network: Network, batch: dict[str, Tensor], targets: Tensor, places: np.ndarray) -> Tensor:
        with _watched(network, options.relations_weight > 0) as seen:
            output = network.read(**batch, output_hidden_states=True) if len(mapping) > 1 else network.read(**batch)
        mask = batch.get("attention_mask")
        logits = network.answer(output.last_hidden_state, mask)
        teacher = torch.from_numpy(observed.logits[places]).to(logits.device)
        total = options.logits_weight * task.imitate(logits, teacher, options.temperature)
        if options.labels_weight:
            total = total + options.labels_weight * task.losses(logits, targets, smoothing) * torch.from_numpy(known[places]).to(
                logits.device
            )
        lengths = np.diff(observed.offsets)[places]
        for own, name in mapping.items():
            vectors = output.last_hidden_state if len(mapping) == 1 else output.hidden_states[own]
            total = total + options.hidden_weight / len(mapping) * _distances(vectors, mask, observed.of(name, places), kept, lengths)
        for name in READERS if options.relations_weight else ():
            total = total + options.relations_weight / 3 * _relation(seen[name], mask, observed.of(name, places), lengths, network)
        return total

    return losses


def compares_ends(options: DistillOptions) -> bool:
    """Whether a student is compared by its answers and last token vectors alone, not by what single tokens are inside it."""
    return not options.relations_weight and (options.compare == "last" or not options.hidden_weight)


def needed_states(options: DistillOptions, teacher: Model, blocks: int) -> tuple[str, ...]:
    """The names of the states that a student of so many blocks is compared with.

    Raises:
        InputError: relations of a base whose queries, keys and values are one matrix.
    """
    count = _count_blocks(teacher)
    compared = _compared_blocks(options, blocks) if options.hidden_weight else ()
    hidden = dict.fromkeys(f"hidden.{_teacher_block(own, blocks, count)}" for own in compared)
    if options.relations_weight and _readers(teacher.network) is None:
        raise InputError(
            "relations need separate matrices for queries, keys and values, which this base does not have. Set relations to 0 and use hidden."
        )
    return (*hidden, *(READERS if options.relations_weight else ()))


def check_teacher(teacher: Model, student: Model) -> None:
    """Refuse a teacher that reads or answers differently from the student.

    Raises:
        InputError: another tokenizer, other labels or another task.
    """
    if teacher.answers.kind != student.answers.kind or teacher.answers.labels != student.answers.labels:
        raise InputError(
            f"The teacher answers {teacher.answers.kind} with {len(teacher.answers.labels)} labels, the student {student.answers.kind} with "
            f"{len(student.answers.labels)}. Train the teacher on the same data."
        )
    if teacher.encoder.tokenizer.get_vocab() != student.encoder.tokenizer.get_vocab():
        raise InputError(
            f"The teacher {teacher.base.name} has another tokenizer than the student {student.base.name}. Choose a teacher with the same "
            "tokenizer, or let it label texts first (lightune predict) and train on these labels."
        )


def _record(teachers: Sequence[Model], encoded: Encoded, folder: Path, states: Sequence[str]) -> None:
    """Read every row once and write logits.npy and one file for each state."""
    offsets, first = _offsets(encoded), teachers[0]
    logits = np.zeros((len(encoded), first.answers.outputs), dtype=np.float32)
    width: Any = first.network.backbone.config
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float16, (int(offsets[-1]), width.hidden_size)) for name in states
    }
    for teacher in teachers:
        with hurried(teacher.network):
            for rows, found in teacher.read(encoded, partial(_read, teacher.network, states=states if teacher is first else ())):
                logits[rows] += found.pop("logits").cpu().numpy() / len(teachers)
                for name, vectors in found.items():
                    values = vectors.float().cpu().numpy()
                    for place, row in enumerate(rows):
                        begin, end = offsets[row], offsets[row + 1]
                        files[name][begin:end] = values[place, : end - begin]
    for name in tuple(files):
        files.pop(name).flush()
    np.save(folder / "logits.npy", logits)


@contextmanager
def hurried(network: Network) -> Iterator[None]:
    """bf16 for what a teacher reads, where this device is faster with it: what it says moves by far less than a student misses it by."""
    if not hurries(network):
        yield
        return
    with Halves(network).used(), torch.autocast(next(network.parameters()).device.type, torch.bfloat16):
        yield


def hurries(network: Network) -> bool:
    """Whether a network is read in bf16 where its answers need not be exact: it is wide enough to gain by it, on this device."""
    width: Any = network.backbone.config.hidden_size  # type: ignore[union-attr]
    return width >= WIDE and bf16_is_faster(next(network.parameters()).device, width)


def _read(network: Network, batch: dict[str, Tensor], states: Sequence[str]) -> dict[str, Tensor]:
    """Logits [b, k] and the named states [b, s, d] of one batch."""
    wanted = [name for name in states if name.startswith("hidden.")]
    with _watched(network, any(name in READERS for name in states)) as seen:
        output = network.read(**batch, output_hidden_states=True) if wanted else network.read(**batch)
    found = {name: output.hidden_states[int(name.removeprefix("hidden."))] for name in wanted}
    last = f"hidden.{len(output.hidden_states) - 1}" if wanted else ""
    if last in found:
        found[last] = output.last_hidden_state  # after a final norm, where there is one
    return {"logits": network.answer(output.last_hidden_state, batch.get("attention_mask")), **found, **seen}


@contextmanager
def _watched(network: Network, wanted: bool) -> Iterator[dict[str, Tensor]]:
    """What the last block's query, key and value matrices give while the network reads."""
    seen: dict[str, Tensor] = {}
    layers = (_readers(network) or []) if wanted else []

    def keep(name: str) -> Any:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    handles = [layer.register_forward_hook(keep(name)) for name, layer in zip(READERS, layers, strict=False)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _readers(network: Network) -> list[nn.Module] | None:
    """The query, key and value matrices of the last block; None where they are one matrix."""
    layers = next(iter(architectures.attentions(architectures.blocks(network.backbone)[-1]).values()))
    return layers[:3] if len(layers) >= 4 else None


def _distances(vectors: Tensor, mask: Tensor | None, target: Tensor, kept: Tensor | None, lengths: np.ndarray) -> Tensor:
    """Squared distance of each row's token vectors from the teacher's, as a share of the teacher's squared length, [b].

    vectors: [b, s, d]; target: [tokens, d], or of more columns of which the student has kept some.
    """
    target = target.to(vectors.device) if kept is None else target[:, kept].to(vectors.device)
    vectors = vectors.float()  # a network in bf16 is compared in fp32
    own = vectors[mask.bool()] if mask is not None else vectors.reshape(-1, vectors.shape[-1])
    row = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(vectors.device)
    gap = vectors.new_zeros(len(lengths)).index_add(0, row, ((own - target) ** 2).sum(-1))
    size = vectors.new_zeros(len(lengths)).index_add(0, row, (target**2).sum(-1))
    return gap / size.clamp(min=1e-6)


def _relation(own: Tensor, mask: Tensor | None, target: Tensor, lengths: np.ndarray, network: Network) -> Tensor:
    """KL divergence of how a row's vectors relate to each other, mean over heads and tokens, [b] (MiniLMv2, Wang et al. 2021, eq. 5-6).

    own: [b, s, d] of the student; target: [tokens, D] of the teacher. Both are divided into as many relation heads as the student has.
    """
    own, heads = own.float(), int(network.backbone.config.num_attention_heads)  # type: ignore[union-attr, arg-type]
    size = own.shape[1]
    theirs = own.new_zeros((len(lengths), size, target.shape[-1]))
    inside = torch.from_numpy(np.arange(size)[None] < lengths[:, None]).to(own.device)
    theirs[inside] = target.to(own.device)

    def relate(vectors: Tensor) -> Tensor:
        parts = vectors.unflatten(-1, (heads, -1)).transpose(1, 2)  # [b, h, s, d / h]
        scores = parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5
        return scores.masked_fill(~inside[:, None, None, :], torch.finfo(scores.dtype).min).log_softmax(-1)

    with torch.no_grad():
        goal = relate(theirs)
    each = (goal.exp() * (goal - relate(own))).sum(-1).mean(1)  # [b, s]
    return (each * inside).sum(-1) / inside.sum(-1)


def _kept_dimensions(student: Model) -> Tensor | None:
    """Which of the teacher's hidden dimensions the student still has; None for all."""
    kept: np.ndarray | None = None
    for change in student.changes:
        if type(change).__name__ == "Hidden":
            dimensions = np.array(change.dimensions)
            kept = dimensions if kept is None else kept[dimensions]
    return None if kept is None else torch.from_numpy(kept)


def _compared_blocks(options: DistillOptions, blocks: int) -> range:
    """The student's blocks whose vectors are compared, counted from 1: the last, or all."""
    return range(1, blocks + 1) if options.compare == "all" else range(blocks, blocks + 1)


def _teacher_block(own: int, blocks: int, teacher: int) -> int:
    """The teacher's block that stands as far along as block `own` of so many, counted from 1 (TinyBERT's uniform mapping)."""
    return -(-own * teacher // blocks)


def _match_layers(blocks: int, observed: Observed) -> dict[int, str]:
    """The student's place in `hidden_states` of each block that is compared, and the teacher's state."""
    names = {_teacher_block(own, blocks, observed.blocks): own for own in range(1, blocks + 1)}
    return {names[int(name.removeprefix("hidden."))]: name for name in observed.states if name.startswith("hidden.")}


def _count_blocks(model: Model) -> int:
    backbone = model.network.backbone
    return int(getattr(backbone.config, "num_hidden_layers", 0) or len(architectures.blocks(backbone)))  # type: ignore[arg-type]


def _offsets(encoded: Encoded) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(ids) for ids in encoded.ids])]).astype(np.int64)


def _key(teachers: Sequence[Model], encoded: Encoded, states: Sequence[str]) -> str:
    """What the cached answers depend on."""
    digest = hashlib.sha256(json.dumps(sorted(states)).encode())
    for ids in encoded.ids:
        digest.update(ids.tobytes())
    for teacher in teachers:
        for item in teacher.network.state_dict().values():
            digest.update(np.ascontiguousarray(item.detach().cpu().flatten()[:: max(1, item.numel() // 4096)].float().numpy()).tobytes())
    return digest.hexdigest()
