"""How weights are adapted. A method is one file with one class, named in METHODS; flags, docs and contract tests follow from the table.

The contract of a method class (a frozen dataclass of options):

    rate                        its own default learning rate
    apply(backbone) -> backbone the backbone arrives frozen: add parts or unfreeze; the same options always give the same structure
    merge(backbone) -> backbone only where the change can be folded into the weights exactly
    leaves -> method            only where it adds what cannot be folded: the method whose parts stay after merging, mostly itself
    taken -> int                only where it puts tokens of its own before every text: how many positions of the longest input these need
    read(text) -> dict          only where its spec has another form than key=value: its options in what follows the name
    edits_base -> bool          only where frozen weights are changed too: whether a saved model must hold them all
    rate_multiple(name) -> float  only where some parameters have rates of their own: by what the rate is multiplied, by the parameter's name
    plan(model, examples)       only where it must see the tokenizer or the data: gives the same class with everything explicit, which is
                                what is applied and saved

The task's head is always trained, whatever the method.
"""

from __future__ import annotations

import importlib
from typing import Any

from lightune.errors import unknown
from lightune.options import build, parse_spec

METHODS: dict[str, str] = {
    "full": "Full", "head": "Head", "freeze": "Freeze", "bitfit": "BitFit", "norms": "Norms", "lora": "LoRA", "ia3": "IA3",
    "houlsby": "Houlsby", "pfeiffer": "Pfeiffer", "parallel": "Parallel", "reft": "ReFT", "prompt": "Prompt", "ptuning": "PTuning",
    "prefix": "Prefix", "peft": "PEFT",
}  # fmt: skip


def find_method(name: str) -> Any:
    """The class of a method by its name."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return getattr(importlib.import_module(f"lightune.methods.{name}"), METHODS[name])


def make_method(spec: str) -> Any:
    """A method from its spec, such as ``lora:rank=16``."""
    name, values = read_spec(spec)
    return build(find_method(name), values, f"the method {name}")


def read_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and options in a method's spec; a method with `read` has a form of its own, such as ``peft:loha:r=4``."""
    name, _, rest = spec.partition(":")
    found = find_method(name.strip())
    return name.strip(), found.read(rest) if hasattr(found, "read") else parse_spec(spec)[1]


def method_name(method: Any) -> str:
    """The name under which a method stands in the table."""
    return next(name for name, title in METHODS.items() if title == type(method).__name__)
