"""GGUF: a language network becomes a file that llama.cpp runs, with its tokenizer and chat template inside.

What llama.cpp would compute or read otherwise, from rotations to the way in which texts are split into words, is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightune import __version__
from lightune.errors import InputError, MissingExtra
from lightune.exports.generative import Quantization, describe
from lightune.exports.gguf.blocks import pack
from lightune.exports.gguf.families import collect_tensors, describe_sizes, find_family
from lightune.exports.gguf.importance import measure_imatrix
from lightune.exports.gguf.recipes import RECIPES, TABLE, Recipe, choose_type
from lightune.exports.gguf.tokens import added_ends, check_tokens, describe_tokens
from lightune.exports.staging import staged
from lightune.networks import LanguageNetwork
from lightune.runtime import manifest
from lightune.runtime.chat import ChatFormat
from lightune.runtime.tokenization import Encoder

__all__ = ["measure_imatrix", "write"]

CHECKED_ROWS = 32  # of the sample are read by llama.cpp's tokenizer as well


def write(
    network: LanguageNetwork,
    encoder: Encoder,
    chat: ChatFormat,
    folder: str | Path,
    *,
    base: str,
    name: str,
    options: Quantization,
    sample: Sequence[np.ndarray] = (),
) -> Path:
    """Write a language network as an artefact folder: model.gguf, tokenizer.json, task.json, manifest.json; whole or not at all.

    Args:
        chat: the template, and the tokens that end an answer.
        base, name: what the model was made from and what it is called.
        sample: rows of token ids, int [s] each, from which the importance matrix is measured where the options ask for one.

    Raises:
        InputError: a model or tokenizer that llama.cpp cannot run as it is, or a folder that cannot be written.
        CheckFailed: llama.cpp reads texts otherwise than the tokenizer. MissingExtra: a package is missing.
    """
    recipe = RECIPES[options.type]
    weighs = options.imatrix and recipe.weighs and len(sample) > 0
    imatrix = measure_imatrix(network, sample) if weighs else {}
    metadata, tensors, facts = describe_file(network, encoder, chat, name, recipe, imatrix)
    with staged(folder) as draft:
        write_file(draft / "model.gguf", metadata, tensors)
        texts = [encoder.tokenizer.decode(list(row), skip_special_tokens=False) for row in sample[:CHECKED_ROWS]]
        check_tokens(draft / "model.gguf", encoder.tokenizer, texts)
        encoder.save(draft / "tokenizer.json")
        task = describe(encoder, chat, base=base, name=name, quantization=options.type, imatrix=weighs, **facts)
        (draft / "task.json").write_text(json.dumps(task, ensure_ascii=False, indent=1), encoding="utf-8")
        manifest.write(draft, __version__)
    return Path(folder)


def describe_file(
    network: LanguageNetwork, encoder: Encoder, chat: ChatFormat, name: str, recipe: Recipe, imatrix: Mapping[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, tuple[np.ndarray, str]], dict[str, Any]]:
    """What a GGUF file holds: its metadata, its tensors as (packed array, type) by name, and the facts of how they were packed.

    The facts are ``types``, how many tensors of each type, and ``fallbacks``, how many could not have the type of the recipe.
    """
    family = find_family(network.backbone)
    values = collect_tensors(network, family)
    sizes = describe_sizes(network.backbone, family, values)
    tokens = describe_tokens(encoder.tokenizer, len(values[TABLE]))
    tied, tensors, fallbacks = network.tied, {}, Counter[str]()
    for place, value in values.items():
        wanted, kind = choose_type(recipe, place, tuple(value.shape), sizes["block_count"], tied=tied, weighted=bool(imatrix))
        tensors[place] = pack(value.numpy(), kind, imatrix.get(place)), kind
        fallbacks[f"{wanted} as {kind}"] += wanted != kind
    metadata: dict[str, Any] = {"general.architecture": family.architecture, "general.type": "model", "general.name": name}
    metadata |= {"general.file_type": recipe.file, "general.quantization_version": 2}
    metadata |= {f"{family.architecture}.{key}": value for key, value in sizes.items()}
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in (tokens.metadata() | _special_ids(encoder, chat)).items()}
    metadata["tokenizer.chat_template"] = chat.template
    types = Counter(kind for _, kind in tensors.values())
    return metadata, tensors, {"types": dict(types), "fallbacks": dict(+fallbacks)}


def write_file(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[np.ndarray, str]]) -> None:
    """Write a GGUF file.

    Raises:
        MissingExtra: the package gguf is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise MissingExtra("writing GGUF", "gguf", "gguf") from error
    kinds = {item.name.lower(): item for item in gguf.GGMLQuantizationType}
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":  # the writer has written it
            _put(writer, key, value)
    for name, (packed, kind) in tensors.items():
        writer.add_tensor(name, packed, raw_dtype=kinds[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _put(writer: Any, key: str, value: Any) -> None:
    """Write one fact by its type; counts and ids are uint32, as llama.cpp reads them."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        writer.add_string(key, value)


def _special_ids(encoder: Encoder, chat: ChatFormat) -> dict[str, Any]:
    """The tokens that begin and end texts and answers, and whether the tokenizer puts them there itself.

    Raises:
        InputError: nothing that ends an answer is a token, or the tokenizer adds tokens that GGUF cannot tell.
    """
    ids = {text: encoder.tokenizer.token_to_id(text) for text in (chat.bos, chat.eos, *chat.stop) if text}
    ends = [ids[text] for text in chat.stop if ids[text] is not None]
    if not ends:
        raise InputError(
            f"None of the texts that end an answer ({', '.join(map(repr, chat.stop)) or 'there are none'}) is a token of this tokenizer, so "
            "llama.cpp would never stop. Give a template that ends its turns with a special token."
        )
    first, last = added_ends(encoder.tokenizer)
    begin, end = ids.get(chat.bos), ids.get(chat.eos)
    if first not in ((), (begin,)) or last not in ((), (end,)):
        raise InputError(
            f"The tokenizer puts the tokens {first} before and {last} after every text, which GGUF cannot tell. Export hf instead."
        )
    facts: dict[str, Any] = {
        "eos_token_id": ends[0],
        "padding_token_id": encoder.pad_id,
        "add_bos_token": bool(first),
        "add_eos_token": bool(last),
    }
    facts |= {"bos_token_id": begin} if begin is not None else {}
    return facts | ({"eot_token_id": ends[1]} if len(ends) > 1 else {})
