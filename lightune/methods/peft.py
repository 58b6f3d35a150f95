"""Any other method of the `peft` package that puts layers into a backbone, with its own options: ``peft:vera`` or ``peft:loha:r=4,alpha=8``.

Prompts are left out: PEFT puts those around a model for one task; `prompt`, `ptuning` and `prefix` are Lightune's own.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from lightune import architectures
from lightune.errors import InputError, MissingExtra, nearest, unknown
from lightune.options import check, option, parse_spec

GUIDED = ("adalora", "poly")  # must be told the step or the task in every forward pass


@dataclass(frozen=True)
class PEFT:
    """A method of the peft package, on all weight matrices of the blocks unless target_modules says otherwise."""

    name: str = option("vera", "which: vera, loha, lokr, oft, boft, fourierft, hra, randlora, … as PEFT calls them")
    options: str = option("", "its own options, as PEFT calls them, with semicolons between: r=4;alpha=8")
    rate: ClassVar[float] = 3e-3

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def read(cls, text: str) -> dict[str, Any]:
        """The fields in what follows ``peft:`` in a spec: ``vera``, ``loha:r=4,alpha=8``, or fields by name."""
        if text.startswith(("name=", "options=")) or not text:
            return dict(part.partition("=")[::2] for part in filter(None, text.split(",")))
        name, _, options = text.partition(":" if ":" in text else ",")
        return {"name": name, "options": options.replace(",", ";")}

    @property
    def leaves(self) -> Any:
        """The method itself where PEFT cannot merge it."""
        layer = self.tuner().tuner_layer_cls
        from peft.tuners.tuners_utils import BaseTunerLayer

        kinds: list[Any] = [kind for kind in vars(inspect.getmodule(layer)).values() if inspect.isclass(kind) and issubclass(kind, layer)]
        return None if any(kind.merge is not BaseTunerLayer.merge for kind in kinds) else self

    def tuner(self) -> Any:
        """PEFT's class of models for this method.

        Raises:
            MissingExtra: PEFT is not installed. InputError: it has no such method.
        """
        try:
            from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
        except ImportError:
            raise MissingExtra(f"the method peft:{self.name}", "peft", "peft") from None
        known = {kind.value.lower(): found for kind, found in PEFT_TYPE_TO_TUNER_MAPPING.items() if getattr(found, "tuner_layer_cls", None)}
        known = {name: found for name, found in known.items() if name not in GUIDED}
        if self.name not in known:
            raise unknown("method of peft", self.name, known)
        return known[self.name]

    def configure(self, backbone: nn.Module) -> Any:
        """PEFT's configuration.

        Raises:
            InputError: an option that PEFT does not know or refuses.
        """
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        kind = next(found for name, found in PEFT_TYPE_TO_CONFIG_MAPPING.items() if name.value.lower() == self.name)
        values = parse_spec(f"peft:{self.options.replace(';', ',')}")[1]
        fields = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
        for key in values:
            if key not in fields:
                raise InputError(f"PEFT's {self.name} has no option {key!r}.{nearest(key, fields)}")
        if isinstance(values.get("target_modules"), str):
            values["target_modules"] = [values["target_modules"]]
        inside = {layer for block in architectures.blocks(backbone) for _, layer in architectures.linears(block)}
        every = [name for name, part in backbone.named_modules() if part in inside]
        if self.name == "ln_tuning":
            every = [name for name, part in backbone.named_modules() if part in set(architectures.norms(backbone))]
        return kind(**{"target_modules": every, **values})

    def apply(self, backbone: nn.Module) -> nn.Module:
        """Put PEFT's layers in. What it draws, it draws from a fixed seed: some of its matrices are never trained and never saved.

        Raises:
            MissingExtra: PEFT is not installed. InputError: PEFT refuses the options or the base's layers.
        """
        self.tuner()
        from peft import get_peft_model

        with _quietly(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                return get_peft_model(backbone, self.configure(backbone)).base_model.model  # type: ignore
            except (TypeError, ValueError, RuntimeError, NotImplementedError, AssertionError) as error:
                first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise InputError(
                    f"PEFT cannot put {self.name} into {type(backbone).__name__}: {first} Give other options, or use lora."
                ) from None

    def merge(self, backbone: nn.Module) -> nn.Module:
        """Let PEFT fold what it can into the weights."""
        kind: Any = self.tuner().tuner_layer_cls
        if self.leaves is None:
            new: dict[nn.Module, nn.Module] = {}
            with _quietly():
                for part in [part for part in backbone.modules() if isinstance(part, kind)]:
                    part.merge()
                    new[part] = part.get_base_layer()
            architectures.exchange(backbone, new)
        return backbone


@contextmanager
def _quietly() -> Iterator[None]:
    """PEFT's warnings left out: they speak of its own classes and options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
