"""PEFT's folders: what a method has trained, as `adapter_config.json` and `adapter_model.safetensors`, which PEFT loads on the same base.

What goes into a folder is the base's change alone: PEFT knows nothing of a task's head. Reading puts the change on a model of the same base
and leaves its head as it is.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightune import architectures
from lightune.errors import InputError, IntegrityError
from lightune.methods import method_name
from lightune.methods.ia3 import IA3, ScaledInput, ScaledOutput
from lightune.methods.lora import LoRA
from lightune.methods.lowrank import LowRank
from lightune.methods.norms import Norms
from lightune.methods.prefix import Prefix
from lightune.methods.prompt import Prompt
from lightune.models import Merged, Model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WHOLE = "base_model.model."  # before every name of the base's own
PARTS = {"down": "lora_A.weight", "up": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
Names = Mapping[str, tuple[str, ...]]  # PEFT's name of a tensor → our parameters that lie beside one another in it


@dataclass(frozen=True)
class Format:
    """How PEFT writes a method.

    kind: its `peft_type`. describe: the entries of its configuration, from the method and the backbone that carries it.
    name: PEFT's names for what the backbone trains. read: the method, from a configuration, PEFT's tensors and the plain backbone.
    """

    kind: str
    describe: Callable[[Any, nn.Module], dict[str, Any]]
    name: Callable[[nn.Module], Names]
    read: Callable[[dict[str, Any], Mapping[str, Tensor], nn.Module], Any]


def write_adapter(model: Model, folder: str | Path) -> Path:
    """Write what a model's method has trained in PEFT's format.

    Raises:
        InputError: a method that PEFT does not have in this form, or a base that is no longer the pretrained one.
    """
    live = [change for change in model.changes if not isinstance(change, Merged)]
    name = method_name(live[-1]) if live and type(live[-1]).__name__ in {cls.__name__ for cls in FORMATS} else None
    if name is None or len(model.changes) > 1 or getattr(live[-1], "edits_base", False):
        raise InputError(
            f"PEFT's format holds what {', '.join(sorted(method_name(cls()) for cls in FORMATS))} trained on the pretrained base, and nothing else. "
            "Save the model itself, or export it."
        )
    found, backbone = FORMATS[type(live[-1])], model.network.backbone
    own = dict(backbone.named_parameters())
    tensors = {theirs: _shaped(backbone, theirs, [own[ours] for ours in names]) for theirs, names in found.name(backbone).items()}
    facts = {"peft_type": found.kind, "task_type": "FEATURE_EXTRACTION", "base_model_name_or_path": model.base.name, "inference_mode": True}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(facts | found.describe(live[-1], backbone), indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    return folder


def read_adapter(model: Model, folder: str | Path) -> Model:
    """Put what a folder of PEFT's holds on a model of the same base that was not adapted yet. Returns the model.

    Raises:
        InputError: no such folder, a method that has no counterpart here, or another base's. IntegrityError: a damaged file.
    """
    config, stored = _read(Path(folder))
    kind = next((cls for cls, found in FORMATS.items() if found.kind == config.get("peft_type")), None)
    if kind is None:
        known = ", ".join(found.kind for found in FORMATS.values())
        raise InputError(f"{folder} holds the PEFT method {config.get('peft_type')!r}. Known: {known}.")
    if model.changes:
        raise InputError("An adapter is put on a base that is not adapted yet. Start a new model, or merge into a folder first.")
    tensors = {
        _home(name, model.network.backbone): value
        for name, value in stored.items()
        if not name.endswith(("classifier.weight", "classifier.bias"))
    }
    model.apply(FORMATS[kind].read(config, tensors, model.network.backbone))
    _fill(model.network.backbone, FORMATS[kind].name(model.network.backbone), tensors, Path(folder))
    return model


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8")), load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} is no PEFT adapter: {Path(str(error.filename)).name} is not there. Give the folder that PEFT saved."
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        raise IntegrityError(f"The adapter in {folder} cannot be read ({error}). Copy the whole folder again.") from None


def _home(name: str, backbone: nn.Module) -> str:
    """PEFT's name of a tensor as it would be on the bare backbone: a model with a head holds the backbone under a name of its own."""
    inside = name.removeprefix(WHOLE)
    modules = {path for path, _ in backbone.named_modules()}
    parts = inside.split(".")
    for start in range(len(parts)):
        for stop in range(len(parts) - 1, start, -1):
            if ".".join(parts[start:stop]) in modules:
                return WHOLE + ".".join(parts[start:])
    return name


def _fill(backbone: nn.Module, names: Names, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Copy PEFT's tensors into the parameters; every one must have its place."""
    if wrong := sorted(set(names) ^ set(tensors)):
        raise InputError(
            f"The adapter in {folder} does not fit this base: {', '.join(wrong[:3])} ({len(wrong)} tensors). Load it on its own base."
        )
    own = dict(backbone.named_parameters())
    with torch.no_grad():
        for theirs, ours in names.items():
            parts = [own[name] for name in ours]
            if tensors[theirs].numel() != sum(item.numel() for item in parts):
                raise InputError(f"{theirs} in {folder} has the shape {tuple(tensors[theirs].shape)}, which does not fit this base.")
            width = tensors[theirs].shape[-1] // len(parts) if len(parts) > 1 else None
            pieces = tensors[theirs].split(width, dim=1) if width else [tensors[theirs]]
            for item, piece in zip(parts, pieces, strict=True):
                item.copy_(piece.reshape(item.shape))


def _shaped(backbone: nn.Module, theirs: str, parts: Sequence[Tensor]) -> Tensor:
    """Our parameters as PEFT holds them: beside one another, and the scales of IA³ as a column or, of inputs, as a row."""
    whole = torch.cat([item.detach().cpu() for item in parts], 1) if len(parts) > 1 else parts[0].detach().cpu()
    if theirs.endswith(".ia3_l"):
        layer = backbone.get_submodule(theirs.removeprefix(WHOLE).removesuffix(".ia3_l"))
        whole = whole[None] if isinstance(layer, ScaledInput) else whole[:, None]
    return whole.contiguous().clone()


def _layers(backbone: nn.Module, *kinds: type[nn.Module]) -> dict[str, Any]:
    return {name: part for name, part in backbone.named_modules() if isinstance(part, kinds)}


def _describe_lora(method: LoRA, backbone: nn.Module) -> dict[str, Any]:
    layers = _layers(backbone, LowRank)
    ranks = {name: len(layer.down) for name, layer in layers.items()}
    return {
        "r": method.rank, "lora_alpha": method.alpha, "lora_dropout": method.dropout, "target_modules": list(layers), "bias": "none",
        "use_rslora": method.rslora, "use_dora": method.dora, "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in layers.values()),
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != method.rank},
    }  # fmt: skip


def _name_lora(backbone: nn.Module) -> Names:
    return {
        f"{WHOLE}{where}.{PARTS[part]}": (f"{where}.{part}",)
        for where, layer in _layers(backbone, LowRank).items()
        for part in PARTS
        if hasattr(layer, part)
    }


def _read_lora(config: dict[str, Any], tensors: Mapping[str, Tensor], backbone: nn.Module) -> LoRA:
    unknown = [name for name in ("modules_to_save", "layer_replication", "alpha_pattern") if config.get(name)]
    if unknown or config.get("bias", "none") != "none":
        raise InputError(f"This LoRA also uses {', '.join([*unknown, 'bias'])}, which is not read here. Merge it with PEFT first.")
    ranks = {
        name.removeprefix(WHOLE).removesuffix(".lora_A.weight"): len(value)
        for name, value in tensors.items()
        if name.endswith("lora_A.weight")
    }
    places = {id(layer): name for name, layer in backbone.named_modules()}
    inner = {
        places[id(layer)]: name
        for block in architectures.blocks(backbone)
        for name, layer in architectures.linears(block)
        if places[id(layer)] in ranks
    }
    targets = tuple(dict.fromkeys(inner.values()))
    scale: float = config["lora_alpha"]
    made = LoRA(
        rank=int(config["r"]), alpha=float(scale), dropout=float(config.get("lora_dropout", 0.0)), targets=targets,
        rslora=bool(config.get("use_rslora")), dora=bool(config.get("use_dora")),
    )  # fmt: skip
    chosen = [places[id(layer)] for layer in made.choose(backbone)] if targets else []
    if set(chosen) != set(ranks):
        odd = sorted(set(ranks) ^ set(chosen))
        raise InputError(f"This LoRA changes {', '.join(odd[:3])} but not the like of it in every block. Merge it with PEFT first.")
    spelled = tuple(ranks[name] for name in chosen)
    return made if set(spelled) == {made.rank} else dataclasses.replace(made, ranks=spelled)


def _describe_ia3(method: IA3, backbone: nn.Module) -> dict[str, Any]:
    inputs, outputs = _layers(backbone, ScaledInput), _layers(backbone, ScaledOutput)
    if partly := [name for name, layer in outputs.items() if layer.stop - layer.start != architectures.features(layer.base)[1]]:
        raise InputError(f"PEFT's IA3 scales whole matrices; {partly[0]} also holds queries here. Save the model itself, or export it.")
    return {"target_modules": [*outputs, *inputs], "feedforward_modules": list(inputs)}


def _name_ia3(backbone: nn.Module) -> Names:
    return {f"{WHOLE}{where}.ia3_l": (f"{where}.scale",) for where in _layers(backbone, ScaledInput, ScaledOutput)}


def _norm_names(backbone: nn.Module) -> list[str]:
    kept = {id(part) for part in architectures.norms(backbone)}
    return [name for name, part in backbone.named_modules() if id(part) in kept]


def _name_norms(backbone: nn.Module) -> Names:
    return {
        f"{WHOLE}{where}.ln_tuning_layers.{part}": (f"{where}.{part}",)
        for where in _norm_names(backbone)
        for part, _ in backbone.get_submodule(where).named_parameters(recurse=False)
    }


def _describe_prompt(method: Prompt, backbone: nn.Module) -> dict[str, Any]:
    config: Any = backbone.config
    width = backbone.get_parameter("prompt.embedding").shape[1]
    return {
        "num_virtual_tokens": method.taken, "token_dim": width, "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads, "num_transformer_submodules": 1,
    }  # fmt: skip


def _name_prompt(backbone: nn.Module) -> Names:
    return {"prompt_embeddings": ("prompt.embedding",)}


def _describe_prefix(method: Prefix, backbone: nn.Module) -> dict[str, Any]:
    config: Any = backbone.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = sum(item.shape[1] for name, item in backbone.named_parameters() if name.endswith(".entries")) // (2 * config.num_hidden_layers)
    return {
        "num_virtual_tokens": method.tokens, "num_layers": config.num_hidden_layers, "num_attention_heads": heads, "token_dim": width,
        "encoder_hidden_size": width, "num_transformer_submodules": 1, "prefix_projection": False,
    }  # fmt: skip


def _name_prefix(backbone: nn.Module) -> Names:
    entries = [name for name, _ in backbone.named_parameters() if name.endswith(".entries")]
    return {"prompt_embeddings": tuple(sorted(entries, key=lambda name: [int(digits) for digits in re.findall(r"\.(\d+)\.", name)]))}


FORMATS: dict[type, Format] = {
    LoRA: Format("LORA", _describe_lora, _name_lora, _read_lora),
    IA3: Format("IA3", _describe_ia3, _name_ia3, lambda config, tensors, backbone: IA3()),
    Norms: Format(
        "LN_TUNING", lambda method, backbone: {"target_modules": _norm_names(backbone)}, _name_norms, lambda config, tensors, backbone: Norms()
    ),
    Prompt: Format(
        "PROMPT_TUNING",
        _describe_prompt,
        _name_prompt,
        lambda config, tensors, backbone: Prompt(tokens=int(config["num_virtual_tokens"])),
    ),
    Prefix: Format(
        "PREFIX_TUNING", _describe_prefix, _name_prefix, lambda config, tensors, backbone: Prefix(tokens=int(config["num_virtual_tokens"]))
    ),
}  # fmt: skip
