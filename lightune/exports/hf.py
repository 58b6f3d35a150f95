"""A Hugging Face folder: a language network becomes what plain transformers loads, with the chat template and the end tokens in their places."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from lightune import __version__
from lightune.dimensions import is_native
from lightune.errors import InputError
from lightune.exports.generative import Storage, describe
from lightune.exports.staging import staged
from lightune.networks import LanguageNetwork, TranslationNetwork
from lightune.runtime import manifest
from lightune.runtime.chat import ChatFormat
from lightune.runtime.tokenization import Encoder

TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def write(
    network: LanguageNetwork,
    encoder: Encoder,
    chat: ChatFormat,
    folder: str | Path,
    *,
    base: str,
    name: str,
    options: Storage,
    sample: Sequence[Any] = (),
) -> Path:
    """Write a language network as a folder for AutoModelForCausalLM (or AutoModelForSeq2SeqLM) and AutoTokenizer, with task.json and a manifest beside.

    Args:
        chat: the template, and the tokens that end an answer: the eos tokens of the generation configuration.
        sample: not looked at; weights are stored, not rounded to few bits.

    Raises:
        InputError: a network of a shape that no configuration of transformers can tell, or a folder that cannot be written.
    """
    kind = _language_class(network.backbone)
    config = _configured(network, kind, TYPES[options.type])
    tensors = _collect(network, kind, config)
    with staged(folder) as draft:
        config.to_json_file(draft / "config.json")
        save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
        os.chmod(
            draft / "model.safetensors", (draft / "config.json").stat().st_mode
        )  # safetensors writes files that only their owner can read
        _save_tokenizer(encoder, chat, draft)
        _generation(network, encoder, chat).save_pretrained(draft)
        task = describe(encoder, chat, base=base, name=name, quantization=options.type, kind=_task(network))
        (draft / "task.json").write_text(json.dumps(task, ensure_ascii=False, indent=1), encoding="utf-8")
        manifest.write(draft, __version__)
    return Path(folder)


def _task(network: LanguageNetwork) -> str:
    return "translate" if isinstance(network, TranslationNetwork) else "generate"


def _language_class(backbone: nn.Module) -> Any:
    """The class of transformers that puts a head on this kind of backbone."""
    config: Any = backbone.config
    two_stacks = getattr(config, "is_encoder_decoder", False)
    kind = (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if two_stacks else MODEL_FOR_CAUSAL_LM_MAPPING).get(type(config), None)
    if kind is None:
        raise InputError(f"transformers has no language model of the type {config.model_type!r}. Choose a base that generates text.")
    if not is_native(backbone):
        raise InputError(
            f"No configuration of {config.model_type!r} tells the shape of this model, so plain transformers could not load it. "
            "Merge what was added; cut hidden with its heads (hidden:keep=...) in place of heads alone."
        )
    return kind


def _configured(network: LanguageNetwork, kind: Any, dtype: torch.dtype) -> Any:
    """The backbone's configuration for the whole model; what it was loaded from no longer counts."""
    config: Any = copy.deepcopy(network.backbone.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures, config.dtype = [kind.__name__], dtype
    config.tie_word_embeddings, config.use_cache = network.tied, True
    return config


def _collect(network: LanguageNetwork, kind: Any, config: Any) -> dict[str, Tensor]:
    """Every tensor under the name and in the shape that transformers expects; shared ones once."""
    with torch.device("meta"):
        whole = kind(config)
    prefix, head = f"{whole.base_model_prefix}." if whole.base_model is not whole else "", whole.get_output_embeddings()
    head_name = next(name for name, part in whole.named_modules() if part is head)
    found = {f"{prefix}{name}": value for name, value in network.backbone.state_dict().items()}
    if not config.tie_word_embeddings:
        found |= {f"{head_name}.{name}": value for name, value in network.head.state_dict().items()}
    expected = {name: value.shape for name, value in whole.state_dict().items()}
    wrong = [name for name in found if expected.get(name) != found[name].shape]
    wrong += [name for name in expected if name not in found and not (config.tie_word_embeddings and name == f"{head_name}.weight")]
    if wrong:
        raise InputError(
            f"{kind.__name__} does not have the tensors of this model: {', '.join(wrong[:3])} ({len(wrong)}). Merge what was added."
        )
    firsts = {value.data_ptr(): name for name, value in reversed(found.items())}  # a T5's table has three names
    return {
        name: value.detach().to("cpu", config.dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in found.items()
        if firsts[value.data_ptr()] == name
    }


def _save_tokenizer(encoder: Encoder, chat: ChatFormat, folder: Path) -> None:
    """tokenizer.json with its configuration and chat template."""
    pad = encoder.tokenizer.id_to_token(encoder.pad_id)
    named = {"bos_token": chat.bos, "eos_token": chat.eos or next(iter(chat.stop), ""), "pad_token": pad}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(encoder.tokenizer.to_str()),
        model_max_length=encoder.max_length,
        **{key: text for key, text in named.items() if text},
    )
    tokenizer.chat_template = chat.template
    tokenizer.save_pretrained(folder)


def _generation(network: LanguageNetwork, encoder: Encoder, chat: ChatFormat) -> GenerationConfig:
    """Greedy by default, and ended by every stop that is a token."""
    ids = [encoder.tokenizer.token_to_id(text) for text in chat.stop]
    ends = [number for number in ids if number is not None]
    if not ends:
        raise InputError(
            f"None of the texts that end an answer ({', '.join(map(repr, chat.stop)) or 'there are none'}) is a token. Give another template."
        )
    begin = encoder.tokenizer.token_to_id(chat.bos) if chat.bos else None
    start = {"decoder_start_token_id": network.start} if isinstance(network, TranslationNetwork) else {}
    return GenerationConfig(eos_token_id=ends, bos_token_id=begin, pad_token_id=encoder.pad_id, do_sample=False, **start)
