"""What the user's rows put through each matrix: the importance matrix by which quantized blocks are chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightune import architectures
from lightune.errors import InputError
from lightune.exports.gguf.families import find_family, tensor_names


def measure_imatrix(network: Any, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The mean square of each input of every matrix in the blocks: float32 [columns] by the tensor's name in GGUF.

    A weight's rounding error reaches the output multiplied with its input, so its square counts by the input's mean square. The table and
    the head have none, as in llama.cpp: what is rounded there is looked up as well as multiplied.

    Args:
        network: a language network. rows: token ids int [s] each, which run one by one.

    Raises:
        InputError: no rows.
    """
    if not len(rows):
        raise InputError("Got no rows for the importance matrix, expected some of the texts that the model will read.")
    backbone = network.backbone
    names = tensor_names(backbone, find_family(backbone))
    layers = {names[f"{name}.weight"]: layer for name, layer in architectures.linears(backbone) if f"{name}.weight" in names}
    sums = {name: torch.zeros(architectures.features(layer)[0], dtype=torch.float64) for name, layer in layers.items()}
    device = architectures.word_embedding(backbone).weight.device
    with _watched(layers, sums), torch.inference_mode():
        for row in rows:
            backbone(input_ids=torch.as_tensor(np.asarray(row), dtype=torch.int64, device=device)[None], use_cache=False)
    tokens = sum(len(row) for row in rows)
    return {name: (total / tokens).float().numpy() for name, total in sums.items()}


@contextmanager
def _watched(layers: dict[str, nn.Module], sums: dict[str, Tensor]) -> Iterator[None]:
    """While it is open, each layer's squared inputs are added up."""

    def adder(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            total.add_(given[0].detach().flatten(0, -2).double().square().sum(0).cpu())

        return add

    hooks = [layer.register_forward_pre_hook(adder(sums[name])) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
