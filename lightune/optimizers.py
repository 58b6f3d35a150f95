"""What moves the weights: torch's optimizers by name, rates over time, and what a checkpoint keeps of them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightune import architectures
from lightune.errors import InputError, unknown
from lightune.options import parse_spec

CLOSURE = ("LBFGS",)  # needs to evaluate the loss itself
OPTIMIZERS = {
    name.lower(): cls
    for name, cls in vars(torch.optim).items()
    if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and name not in ("Optimizer", "SparseAdam", "Muon", *CLOSURE)
}
LAZY = {"adam", "adamw"}  # have a row-wise form for embedding tables


class Optimizer:
    """One or two torch optimizers behind one step: the second moves only the embedding rows that a batch touched.

    On a CPU a step of Adam over a whole token table costs more than its forward pass, though a batch touches a few hundred rows.
    Rows that are not touched keep their values and moments (lazy Adam, as torch.optim.SparseAdam).

    multiple: the factor of the rate for a parameter, by its name; that of a sparse table stays 1.
    """

    def __init__(
        self, spec: str, network: nn.Module, rate: float, decay: float, multiple: Callable[[str], float] = lambda name: 1.0
    ) -> None:
        name, values = parse_spec(spec)
        cls = find_optimizer(name)
        tables = _private_tables(network) if name in LAZY and not values else []
        for table in tables:
            table.sparse = True
        rows = {id(table.weight) for table in tables}
        moved = [(title, item) for title, item in network.named_parameters() if item.requires_grad and id(item) not in rows]
        accepted = inspect.signature(cls).parameters
        groups = _group(moved, decay if "weight_decay" in accepted else None, multiple)
        if "fused" in accepted and "fused" not in values and moved and moved[0][1].device.type in ("cpu", "cuda"):
            values["fused"] = True
        try:
            self.parts: list[torch.optim.Optimizer] = [cls(groups, **{"lr": rate, **values})]
        except (TypeError, ValueError) as error:
            raise InputError(f"The optimizer {spec!r} is not possible: {error}. See torch.optim.{cls.__name__} for its options.") from None
        self.tables = [table.weight for table in tables]  # whose gradients are sparse
        if tables:
            self.parts.append(torch.optim.SparseAdam(self.tables, lr=rate))
        self.parameters = [item for part in self.parts for group in part.param_groups for item in group["params"]]

    def set_rate(self, rate: float) -> None:
        """Give every group the same rate, times its own multiple."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate * group.get("multiple", 1.0)

    def clip(self, largest: float) -> float:
        """The norm of the whole gradient, after which it is scaled down to `largest` (0: left alone)."""
        values = []
        for item in self.parameters:
            if item.grad is not None:
                if item.grad.is_sparse:
                    item.grad = item.grad.coalesce()
                values.append(item.grad._values() if item.grad.is_sparse else item.grad)
        norm = float(nn.utils.get_total_norm(values))
        if largest and norm > largest and math.isfinite(norm):
            torch._foreach_mul_(values, largest / norm)
        return norm

    def step(self) -> None:
        """Move the weights and forget the gradient."""
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Every moment and counter as a tensor, by place."""
        found = {}
        for number, part in enumerate(self.parts):
            for place, values in part.state_dict()["state"].items():
                for key, value in values.items():
                    if value is not None:
                        found[f"{number}.{place}.{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        return found

    def restore(self, stored: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for number, part in enumerate(self.parts):
            whole, state = part.state_dict(), dict[int, dict[str, Any]]()
            for name, value in stored.items():
                owner, place, key = name.split(".", 2)
                if int(owner) == number:
                    state.setdefault(int(place), {})[key] = (
                        value if isinstance(part, torch.optim.SparseAdam) is False or value.ndim else int(value)
                    )
            part.load_state_dict({"state": state, "param_groups": whole["param_groups"]})


def _group(moved: Sequence[tuple[str, nn.Parameter]], decay: float | None, multiple: Callable[[str], float]) -> list[dict[str, Any]]:
    """Parameters with the same decay and the same multiple of the rate together, matrices first; norms, biases and embeddings do not decay."""
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for decays in (True, False):
        for title, item in moved:
            if decays == (item.ndim >= 2 and "embedding" not in title.lower()):
                factor = multiple(title)
                shared = {"params": [], "multiple": factor, **({} if decay is None else {"weight_decay": decay if decays else 0.0})}
                groups.setdefault((decays, factor), shared)["params"].append(item)
    return list(groups.values())


def find_optimizer(name: str) -> type[torch.optim.Optimizer]:
    """An optimizer class of torch.optim by its name in small letters."""
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name]


def _private_tables(network: nn.Module) -> list[nn.Embedding]:
    """The trained token table, unless another layer shares its weight."""
    table = architectures.word_embedding(network.backbone)  # type: ignore[arg-type]
    owners = sum(any(item is table.weight for item in module.parameters(recurse=False)) for module in network.modules())
    return [table] if table.weight.requires_grad and owners == 1 and table.weight.device.type == "cpu" else []


def rate_share(schedule: str, step: int, total: int, warmup: int) -> float:
    """The share of the peak rate at a step (0-based): linear rise over `warmup` steps, then the schedule's fall over the rest.

    plateau is constant here: the loop lowers its peak when the metric stops rising.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(total - warmup, 1)
    if schedule == "linear":
        return max(0.0, 1.0 - done)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    if schedule == "inverse_sqrt":
        return math.sqrt(max(warmup, 1) / (step + 1))
    return 1.0
