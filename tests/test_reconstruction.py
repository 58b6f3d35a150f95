from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny_models
import torch

from lightune import architectures, importance, reconstruction
from lightune.models import Model
from lightune.networks import tensors
from lightune.reconstruction import can_reconstruct, reconstruct
from lightune.runtime.tokenization import Encoded
from lightune.sources import Source
from lightune.steps import make_step
from lightune.steps.ffn import FFN
from lightune.steps.pool import pool_pairs

ROWS = tiny_models.make_rows(60)
FAMILIES = tuple(name for name in (*tiny_models.FAMILIES, *tiny_models.TWO_STACKS) if name != "albert")
STEPS = ("depth=1", "ffn=1/3", "heads=1/2", "hidden=1/2")


@pytest.fixture
def start(tiny_source: Callable[[str], Source]) -> Callable[[str], Model]:
    return lambda family: tiny_models.start(tiny_source(family), ROWS)


def encode(model: Model) -> Encoded:
    return model.encoder.encode([row.text for row in ROWS])


def cut(before: Model, *specs: str) -> Model:
    student = before.copy()
    for spec in specs:
        student.shrink(make_step(spec), importance.measure(student, ROWS))
    return student


def stream(model: Model) -> torch.Tensor:
    """The token vectors that leave the blocks, [tokens, d]."""
    batch = tensors(model.encoder.pad(encode(model)))
    found = []
    handle = architectures.blocks(model.network.backbone)[-1].register_forward_hook(
        lambda block, inputs, output: found.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model.network.eval()(**batch)
    handle.remove()
    return found[0][batch["attention_mask"].bool()]


def distance(student: Model, before: Model) -> float:
    """How far the student's stream is from the model's, in the dimensions that it has, as a share of how much that varies."""
    goal = stream(before)
    for step in student.changes[len(before.changes) :]:
        goal = goal[:, list(getattr(step, "dimensions", range(goal.shape[1])))]
    return float((stream(student) - goal).square().mean() / (goal - goal.mean(0)).square().mean())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", STEPS)
def test_what_stays_comes_nearer_to_what_the_model_gave(family: str, spec: str, start: Callable[[str], Model]) -> None:
    before = start(family)
    student = cut(before, spec)
    assert can_reconstruct(before, student.changes[len(before.changes) :])
    plain = distance(student, before)
    assert reconstruct(student, before, encode(before)) is student
    assert distance(student, before) < 0.9 * plain


@pytest.mark.parametrize("family", FAMILIES)
def test_twins_of_what_stays_are_missed_by_nobody(family: str, start: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neurons that always fire as others do can go: what they wrote is written by the others."""
    monkeypatch.setattr(reconstruction, "RIDGE", 1e-7)
    before = start(family)
    student = before.copy()
    with torch.no_grad():
        for model in (before, student):
            for block in architectures.blocks(model.network.backbone):
                *readers, _ = architectures.feed_forward(block)
                for part in readers:
                    for item in part.parameters(recurse=False):
                        turned = item.T if item.ndim == 2 and item.shape[1] % 48 == 0 and item.shape[0] == 32 else item  # GPT-2's
                        for half in turned.split(48):
                            half[24:] = half[:24]
    student.shrink(FFN(neurons=(tuple(range(24)),) * len(architectures.blocks(before.network.backbone))))
    assert distance(student, before) > 1e-3
    reconstruct(student, before, encode(before))
    assert distance(student, before) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_make_up_for_a_thinner_token_table(family: str, start: Callable[[str], Model]) -> None:
    before = start(family)
    student = cut(before, "factor=6")
    assert can_reconstruct(before, student.changes[len(before.changes) :])
    plain = distance(student, before)
    assert distance(reconstruct(student, before, encode(before)), before) < plain


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in architectures.PLAIN_POSITIONS])
@pytest.mark.parametrize("specs", [("ffn=1/3", "pool=1"), ("hidden=1/2", "ffn=1/3", "pool=1")])
def test_layers_that_read_pairs_aim_at_the_means_of_pairs(family: str, specs: tuple[str, ...], start: Callable[[str], Model]) -> None:
    before = start(family)
    student = cut(before, *specs)
    kept = next((list(step.dimensions) for step in student.changes if hasattr(step, "dimensions")), list(range(32)))
    batch = tensors(before.encoder.pad(encode(before)))
    inside = batch["attention_mask"].bool()

    def gap() -> float:
        with torch.no_grad():
            own, goal = (model.network.eval().read(**batch).last_hidden_state for model in (student, before))
        return float((pool_pairs(own - goal[..., kept], inside)[inside[:, ::2]]).square().mean())

    plain = gap()
    assert can_reconstruct(before, student.changes[len(before.changes) :])
    reconstruct(student, before, encode(before))
    assert gap() < 0.95 * plain


def test_steps_may_follow_one_another(start: Callable[[str], Model]) -> None:
    before = start("bert")
    student = cut(before, "depth=1", "hidden=3/4", "ffn=1/2")
    plain = distance(student, before)
    assert distance(reconstruct(student, before, encode(before)), before) < 0.9 * plain


def test_both_are_left_in_the_mode_they_were_in_and_the_model_before_is_as_it_was(start: Callable[[str], Model]) -> None:
    before = start("bert")
    weights = {name: value.clone() for name, value in before.network.state_dict().items()}
    student = cut(before, "ffn=1/2")
    student.network.train()
    before.network.eval()
    reconstruct(student, before, encode(before))
    assert student.network.training
    assert not before.network.training
    assert all(torch.equal(value, weights[name]) for name, value in before.network.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for model in (student, before) for part in model.network.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_in_chunks_are_the_same_rows(family: str, start: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch) -> None:
    before = start(family)
    students = []
    for size in (50, 100_000):
        monkeypatch.setattr(reconstruction, "CHUNK", size)
        students.append(reconstruct(cut(before, "hidden=1/2", "ffn=1/2"), before, encode(before)))
    for one, other in zip(*(student.network.state_dict().items() for student in students), strict=True):
        assert torch.allclose(one[1], other[1], atol=2e-3), one[0]


def test_the_sample_is_as_large_as_the_effort_and_spread_over_all_rows(
    start: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = start("bert")
    encoded = encode(before)
    monkeypatch.setattr(reconstruction, "LEAST", 1)
    weights = sum(
        part.weight.numel() for block in architectures.blocks(before.network.backbone) for _, part in architectures.linears(block)
    )
    monkeypatch.setattr(reconstruction, "WORK", float(encoded.lengths.sum()) * weights)
    for effort, rows in ((1.0, 60), (0.5, 30), (1e-9, 1)):
        batches = list(reconstruction._sample(before, encoded, effort))
        masks = [batch.get("attention_mask", torch.ones_like(batch["input_ids"])) for batch in batches]
        read = sorted(int(row.sum()) for mask in masks for row in mask)
        assert len(read) == rows
        assert rows < 60 or read == sorted(encoded.lengths.tolist())
    monkeypatch.setattr(reconstruction, "LEAST", 10**9)
    assert sum(len(batch["input_ids"]) for batch in reconstruction._sample(before, encoded, 0.1)) == 60


def test_one_row_is_enough(start: Callable[[str], Model]) -> None:
    before = start("bert")
    student = cut(before, "hidden=1/2")
    reconstruct(student, before, before.encoder.encode(["a"]))
    assert all(item.isfinite().all() for item in student.network.parameters())


@pytest.mark.parametrize(("family", "specs"), [("albert", ["ffn=1/2"]), ("bert", ["ffn=1/2", "magnitude=1/2"]), ("bert", [])])
def test_what_it_cannot_do_is_told(family: str, specs: list[str], start: Callable[[str], Model]) -> None:
    before = start(family)
    assert not can_reconstruct(before, [make_step(spec) for spec in specs])
