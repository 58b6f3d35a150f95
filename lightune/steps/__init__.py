"""How a model is made smaller. A step is one file with one class, named in STEPS; flags, docs and contract tests follow from the table.

The contract of a step class (a frozen dataclass of options):

    keep                                how much stays: a count, or a share below 1
    plan(model, importance) -> step     the same class with everything explicit: which layers, neurons, heads, dimensions, tokens
    apply(network) -> network           in place; an explicit step always gives the same structure, on trained weights and, when a saved
                                        model is loaded, on an untrained copy of the base whose tensors are filled afterwards
    reencode(encoder) -> encoder        only where the tokens change
    narrow(importance) -> importance    where it makes the model's shape another: the importance of what an explicit step leaves, so that
                                        one measurement serves several steps

Steps follow one another in any order that `check_order` allows.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from lightune.errors import InputError, unknown
from lightune.options import build, parse_spec

STEPS: dict[str, str] = {
    "depth": "Depth", "ffn": "FFN", "heads": "Heads", "hidden": "Hidden", "pool": "Pool", "vocab": "Vocab",
    "factor": "Factor", "magnitude": "Magnitude", "static": "Static",
}  # fmt: skip
UNWEIGHED = ("pool", "magnitude", "static")  # that do not ask for an importance
FINAL = {
    "pool": "it counts the final layers",
    "magnitude": "its zeros are chosen on the final shapes",
    "static": "it leaves nothing of the base but token vectors",
}
AFTER_FINAL: dict[str, tuple[str, ...]] = {  # what may still follow
    "pool": ("ffn", "heads", "hidden", "vocab", "factor", "magnitude"), "magnitude": ("magnitude",), "static": (),
}  # fmt: skip


def find_step(name: str) -> Any:
    """The class of a step by its name."""
    if name not in STEPS:
        raise unknown("shrink step", name, STEPS)
    return getattr(importlib.import_module(f"lightune.steps.{name}"), STEPS[name])


def make_step(spec: str) -> Any:
    """A step from its spec: ``depth=3``, ``ffn=1/2``, ``vocab:keep=8000,positions=64``."""
    head, _, rest = spec.partition(":")
    name, equals, keep = head.partition("=")
    where, values = parse_spec(f"{name}:{f'keep={keep}' if equals else ''}{',' if equals and rest else ''}{rest}")
    if isinstance(share := values.get("keep"), str):
        try:
            values["keep"] = float(Fraction(share))
        except (ValueError, ZeroDivisionError):
            raise InputError(f"keep is {share!r} in {spec!r}, expected a count or a share such as 1/2 or 0.25.") from None
    return build(find_step(where), values, f"the step {where}")


def step_name(step: Any) -> str:
    """The name under which a step stands in the table."""
    return next(name for name, title in STEPS.items() if title == type(step).__name__)


def check_order(changes: Sequence[Any], step: Any) -> None:
    """Refuse a step that cannot follow what was done before.

    changes: methods and steps in the order in which they were applied; a method that adds layers to the base must be merged first.

    Raises:
        InputError: with the reason.
    """
    name = step_name(step)
    check_lasting(changes)
    for change in changes:
        before = type(change).__name__
        if hasattr(change, "merge"):
            raise InputError(
                f"{name} cannot cut a base that still carries {before}: its layers would no longer fit. Merge the model first."
            )
        earlier = next((known for known, title in STEPS.items() if title == before), None)
        if earlier in FINAL and name not in AFTER_FINAL[earlier]:
            raise InputError(f"{name} cannot follow {earlier}, because {FINAL[earlier]}. Put {earlier} last.")


def check_lasting(changes: Sequence[Any]) -> None:
    """Refuse to make a model smaller that carries parts which cannot be folded into its weights.

    Raises:
        InputError: naming the method.
    """
    for change in changes:
        if getattr(change, "leaves", None) is not None:
            raise InputError(
                f"A model that was adapted with {type(change).__name__} cannot be made smaller: what the method added stays beside the weights "
                "that would be cut. Adapt the base with full, freeze, bitfit, norms, ia3 or lora."
            )


def strongest(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """The places of the `count` highest scores, in their own order; of equal scores the first."""
    return tuple(sorted(sorted(range(len(scores)), key=lambda place: -scores[place])[:count]))


def scores_for(step: str, importance: Any, name: str, sizes: Sequence[int]) -> tuple[Any, ...]:
    """What a step chooses by: one array of scores for each part of a model, of these sizes.

    name: the attribute of `importance.Importance`.

    Raises:
        InputError: there is no importance, or it is that of another shape.
    """
    if importance is None:
        raise InputError(f"{step} must know what matters. Give it importance.measure(model, examples), or say exactly what stays.")
    scores = getattr(importance, name)
    parts = scores if isinstance(scores, tuple) else (scores,)
    if [len(part) for part in parts] != list(sizes):
        raise InputError(f"The importance that {step} was given is that of another shape than the model has. Measure it again.")
    return parts


def kept_count(keep: float, whole: int, what: str, multiple: int = 1) -> int:
    """How many of `whole` stay for a `keep` that is a count or a share below 1; rounded up to a multiple where there is room.

    Raises:
        InputError: a count beyond the whole, or nothing left.
    """
    count = round(keep * whole) if keep < 1 else int(keep)
    if keep <= 0 or count > whole or (keep > 1 and keep != int(keep)):
        raise InputError(f"{what} is {keep:g}, expected a count from 1 to {whole} or a share between 0 and 1.")
    return min(whole, max(multiple, -(-count // multiple) * multiple))
