"""What a teacher expects is kept whole enough, and the student's loss and gradients are those of the plain formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_generators import make_language, make_words
from torch.nn import functional

from lightune import token_distillation as module
from lightune import token_losses
from lightune.recipes import DistillOptions
from lightune.token_distillation import Expected, describe_reading, imitation_losses, observe_tokens

COUNTS = np.array([3, 5, 2])
TEMPERATURE = 2.0


@pytest.fixture(scope="module")
def network() -> Any:
    return make_language("llama", tied=False).network


def vectors(rows: Any, seed: int = 0) -> torch.Tensor:
    return torch.cat([torch.randn(int(COUNTS[row]), 64, generator=torch.Generator().manual_seed(seed + int(row))) for row in rows])


def expect(network: Any, folder: Path, key: str = "one", reads: list[int] | None = None) -> Expected:
    def read() -> Any:
        (reads if reads is not None else []).append(1)
        with torch.no_grad():
            for rows in ([2, 0], [1]):  # in any order
                yield np.array(rows), vectors(rows)

    return observe_tokens(network, COUNTS, key, read, folder, TEMPERATURE)


def test_the_likeliest_tokens_and_the_rest_are_all_there_is(network: Any, tmp_path: Path) -> None:
    expected = expect(network, tmp_path)
    ids, chances = expected.of([1, 2], torch.device("cpu"))
    assert ids.shape == (7, module.KEPT)
    assert chances.shape == (7, module.KEPT + 1)
    whole = (network.head(vectors([1, 2])) / TEMPERATURE).log_softmax(1)
    top = whole.topk(module.KEPT, dim=1)
    assert torch.equal(ids, top.indices)
    assert torch.allclose(chances[:, :-1], top.values, atol=0.01)
    assert torch.allclose(chances[:, -1].exp(), 1 - top.values.exp().sum(1), atol=1e-4)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npy")) == 10 * (module.KEPT * 6 + 4) + 3 * 128


def test_what_was_read_is_not_read_again(network: Any, tmp_path: Path) -> None:
    reads: list[int] = []
    first, again = (expect(network, tmp_path, reads=reads) for _ in range(2))
    assert reads == [1]
    assert np.array_equal(first.chances, again.chances)
    expect(network, tmp_path, key="another", reads=reads)
    assert reads == [1, 1]


def test_the_key_tells_weights_and_rows(network: Any) -> None:
    rows = [np.array([1, 2, 3], dtype=np.int32)]
    other = make_language("llama", tied=False)
    key = describe_reading(network, rows)
    assert key == describe_reading(other.network, rows)
    assert key != describe_reading(network, [rows[0] + 1])
    with torch.no_grad():
        other.network.head.weight.mul_(1.01)
    assert key != describe_reading(other.network, rows)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("weights", [(1.0, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_loss_and_gradients_are_those_of_the_formula(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: tuple[float, float], frozen: bool
) -> None:
    monkeypatch.setattr(token_losses, "CHUNK", 4)
    options = DistillOptions(logits_weight=weights[0], labels_weight=weights[1])
    ids, theirs = expect(network, tmp_path).of([0, 1, 2], torch.device("cpu"))
    labels, share = torch.arange(10) * 7, torch.rand(10, generator=torch.Generator().manual_seed(1))
    hidden = vectors([0, 1, 2], seed=9).requires_grad_()
    head = network.head.requires_grad_(not frozen)
    found = []
    for own in (True, False):
        if own:
            losses = imitation_losses(network, hidden, labels, (ids, theirs), TEMPERATURE, options)
        else:
            ours = (head(hidden) / TEMPERATURE).log_softmax(1)
            outcomes = torch.cat([ours.gather(1, ids), ours.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True)], 1)
            gaps = functional.kl_div(outcomes, theirs, log_target=True, reduction="none").sum(1)
            plain = functional.cross_entropy(head(hidden), labels, reduction="none")
            losses = weights[0] * TEMPERATURE**2 * gaps + weights[1] * plain
        parts = [hidden] if frozen else [hidden, head.weight]
        found.append([losses.detach(), *torch.autograd.grad((losses * share).sum(), parts)])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
        assert one.abs().max() > 1e-3


def test_the_teacher_itself_has_nothing_to_learn(network: Any, tmp_path: Path) -> None:
    hidden = vectors([0, 1, 2]).requires_grad_()
    expected = expect(network, tmp_path).of([0, 1, 2], torch.device("cpu"))
    losses = imitation_losses(network, hidden, torch.zeros(10, dtype=torch.int64), expected, TEMPERATURE, DistillOptions(labels_weight=0.0))
    assert losses.abs().max() < 1e-3
    (slope,) = torch.autograd.grad(losses.sum(), hidden)
    assert slope.abs().max() < 1e-2


def test_a_small_vocabulary_is_kept_whole_but_for_one(tmp_path: Path) -> None:
    small = make_language("llama", tokenizer=make_words(), hidden_size=64).network
    small.head.weight.data = small.head.weight.data[:20].clone()
    assert expect(small, tmp_path).ids.shape == (10, 19)
