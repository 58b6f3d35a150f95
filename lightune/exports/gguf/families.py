"""Which decoders llama.cpp can run, and where their tensors and sizes stand in a GGUF file.

A family says what llama.cpp computes for an architecture; a configuration that says anything else is refused, and so is a tensor without a
place.
Sizes come from the tensors, so models of which layers, neurons, heads, dimensions or tokens were cut are written as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lightune import architectures
from lightune.errors import InputError
from lightune.exports.gguf.recipes import HEAD, POSITIONS, TABLE
from lightune.networks import LanguageNetwork

ROTATIONS = "rope_freqs.weight"  # what each rotation's wavelength is multiplied with
_BLOCK = "blk.0."
GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # the tanh form, which llama.cpp computes


@dataclass(frozen=True)
class Family:
    """A family of decoders.

    Attributes:
        architecture: its name in GGUF.
        prefix: what stands before the backbone's parameter names in the whole model.
        pairs: whether llama.cpp rotates neighbouring entries of a head, where transformers rotates entry i with entry i + width / 2.
        shift: what is added to the weights of norms (Gemma's norms multiply by 1 + weight).
        own_head: whether the head may be another matrix than the token table.
        says: what the configuration must say, by attribute: one of these values, where it says anything.
    """

    architecture: str
    prefix: str = "model."
    pairs: bool = False
    shift: float = 0.0
    own_head: bool = True
    says: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


GEMMA = {"hidden_act": ("gelu", *GELU), "hidden_activation": (None, *GELU), "attention_bias": (None, False)}
GPT2 = {
    "activation_function": GELU, "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
}  # fmt: skip
SILU = {"hidden_act": ("silu", "swish"), "partial_rotary_factor": (None, 1.0)}
FAMILIES: dict[str, Family] = {
    "llama": Family("llama", pairs=True, says={**SILU, "pretraining_tp": (None, 1)}),
    "mistral": Family("llama", pairs=True, says=SILU),
    "qwen2": Family("qwen2", says={**SILU, "use_sliding_window": (None, False)}),
    "qwen3": Family("qwen3", says={**SILU, "use_sliding_window": (None, False), "attention_bias": (None, False)}),
    "gemma": Family("gemma", shift=1.0, own_head=False, says=GEMMA),
    "gpt2": Family("gpt2", prefix="transformer.", says=GPT2),
}


def find_family(backbone: nn.Module) -> Family:
    """The family of a backbone.

    Raises:
        InputError: an unknown one, or a configuration that asks for what llama.cpp does not compute.
    """
    config: Any = backbone.config
    kind = str(config.model_type)
    if kind not in FAMILIES:
        raise InputError(
            f"GGUF export does not know models of the type {kind!r}, expected one of {', '.join(FAMILIES)}. Export hf instead."
        )
    family = FAMILIES[kind]
    wrong = [
        f"{name} is {value!r}, expected {' or '.join(map(repr, known))}"
        for name, known in family.says.items()
        if (value := getattr(config, name, known[0])) not in known
    ]
    rope = _rope(config).get("rope_type", "default")
    if rope not in ("default", "linear") and not (rope == "llama3" and family.architecture == "llama"):
        wrong.append(f"rope_type is {rope!r}, expected default or linear, or llama3 in a llama")
    if wrong:
        raise InputError(f"llama.cpp does not compute what this {kind} is configured for: {'; '.join(wrong)}. Export hf instead.")
    return family


def collect_tensors(network: LanguageNetwork, family: Family) -> dict[str, Tensor]:
    """Every tensor of a language network by its name in GGUF, as llama.cpp wants it: matrices are [outputs, inputs], fp32.

    A head that is the token table itself is left out: llama.cpp then reads the table.

    Raises:
        InputError: tensors that have no place in the file, such as those of an adapter, or of a shape that the architecture cannot have.
    """
    backbone = network.backbone
    names = tensor_names(backbone, family)
    found, homeless = {}, []
    for name, value in backbone.named_parameters():
        place = names.get(name)
        if place is None:
            homeless.append(name)
        else:
            found[place] = _arranged(backbone, name, value.detach().float().cpu(), family)
    if homeless:
        raise InputError(
            f"GGUF has no place for {', '.join(homeless[:3])} ({len(homeless)} tensors) of a {family.architecture}. Merge what was added first."
        )
    if not network.tied:
        if not family.own_head:
            raise InputError(f"This {family.architecture} has a head of its own, but llama.cpp reads the token table. Export hf instead.")
        found[HEAD] = network.head.weight.detach().float().cpu()
    if getattr(network.head, "bias", None) is not None and bool(network.head.bias.detach().any()):
        raise InputError("The head has a bias, for which GGUF has no place. Train a head without one.")
    if (factors := _rotation_factors(backbone)) is not None:
        found[ROTATIONS] = factors
    _check_shapes(found, family)
    return found


def tensor_names(backbone: nn.Module, family: Family) -> dict[str, str]:
    """The name in GGUF of every parameter of a backbone that has one there."""
    import gguf

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.architecture)
    known = gguf.get_tensor_name_map(architecture, len(architectures.blocks(backbone)))
    pairs = ((name, known.get_name(family.prefix + name, (".weight", ".bias"))) for name, _ in backbone.named_parameters())
    return {name: place for name, place in pairs if place is not None}


def describe_sizes(backbone: nn.Module, family: Family, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The metadata that llama.cpp reads, by key without the architecture: sizes from the tensors, the rest from the configuration."""
    config: Any = backbone.config
    rows, hidden = tensors[TABLE].shape
    width = head_width(backbone)
    fused = f"{_BLOCK}attn_qkv.weight" in tensors
    queries, keys = (hidden, hidden) if fused else (len(tensors[f"{_BLOCK}attn_{part}.weight"]) for part in "qk")
    facts: dict[str, Any] = {
        "vocab_size": rows,
        "context_length": context_length(config, tensors),
        "embedding_length": hidden,
        "block_count": len(architectures.blocks(backbone)),
        "feed_forward_length": len(tensors[f"{_BLOCK}ffn_up.weight"]),
        "attention.head_count": queries // width,
        "attention.head_count_kv": keys // width,
        "attention.key_length": width,
        "attention.value_length": width,
    }
    if POSITIONS in tensors:
        return facts | {"attention.layer_norm_epsilon": float(config.layer_norm_epsilon)}
    rope = _rope(config)
    facts |= {
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": width,
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
    }
    if rope.get("rope_type") == "linear":
        facts |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    return facts


def context_length(config: Any, tensors: Mapping[str, Tensor]) -> int:
    """Most tokens that the exported model sees at once; one that looks back over a window alone sees no more than that."""
    if POSITIONS in tensors:
        return len(tensors[POSITIONS])
    limit, window = int(config.max_position_embeddings), getattr(config, "sliding_window", None)
    return min(limit, int(window)) if window else limit


def head_width(backbone: nn.Module) -> int:
    """Entries of one attention head, as the attention modules say."""
    widths = {width for part in backbone.modules() if isinstance(width := getattr(part, "head_dim", None), int)}
    if len(widths) != 1:
        raise InputError(
            f"The attentions of {type(backbone).__name__} have heads of {sorted(widths)} entries, expected one width. Export hf instead."
        )
    return widths.pop()


def _arranged(backbone: nn.Module, name: str, value: Tensor, family: Family) -> Tensor:
    """A parameter as llama.cpp wants it."""
    owner, _, kind = name.rpartition(".")
    if isinstance(backbone.get_submodule(owner), Conv1D) and kind == "weight":
        return value.T.contiguous()
    if family.shift and owner.endswith("norm"):
        return value + family.shift
    if family.pairs and owner.endswith(("q_proj", "k_proj")):
        return interleave(value, head_width(backbone))
    return value


def interleave(value: Tensor, width: int) -> Tensor:
    """Rows of heads of `width` entries, the two halves of each head taken in turn: entry i beside entry i + width / 2."""
    return value.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).reshape(value.shape).contiguous()


def _rope(config: Any) -> Mapping[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _rotation_factors(backbone: Any) -> Tensor | None:
    """Llama 3's longer wavelengths as multiples of the plain ones, [width / 2]; None where they are plain."""
    rope = _rope(backbone.config)
    if rope.get("rope_type") != "llama3":
        return None
    width = head_width(backbone)
    plain = rope["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    return plain / backbone.rotary_emb.inv_freq.float().cpu()


def _check_shapes(tensors: Mapping[str, Tensor], family: Family) -> None:
    """Refuse shapes that differ between blocks, and GPT-2 with fewer heads than its width holds, which llama.cpp cannot read."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for name, value in tensors.items():
        if name.startswith("blk."):
            shapes.setdefault(name.split(".", 2)[2], set()).add(tuple(value.shape))
    mixed = [name for name, found in shapes.items() if len(found) > 1]
    hidden = tensors[TABLE].shape[1]
    if mixed:
        raise InputError(
            f"Blocks differ in the shapes of {', '.join(mixed)}, which a GGUF of a {family.architecture} cannot tell. Export hf instead."
        )
    if any(shape != (3 * hidden, hidden) for shape in shapes.get("attn_qkv.weight", ())):
        raise InputError(
            "A GPT-2 in GGUF has as many heads as fill its width, and this one has fewer. Cut hidden with its heads (hidden:keep=...)."
        )
