"""A model: its base, the ordered list of changes, and the tensors that differ.

Loading replays the changes on the base and then fills the tensors strictly, so every method saves, loads and merges the same way.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForTextEncoding,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from lightune import __version__, architectures, kernels, sources
from lightune.errors import InputError, IntegrityError
from lightune.headers import read_gguf
from lightune.methods import METHODS, find_method, method_name
from lightune.networks import LanguageNetwork, Network, TranslationNetwork, tensors
from lightune.options import as_dict, build, format_spec
from lightune.runtime.answers import Answers
from lightune.runtime.chat import ChatFormat, chat_format, make_format, source_format
from lightune.runtime.tokenization import Encoded, Encoder, batches, texts_and_pairs
from lightune.steps import STEPS, check_order, find_step, step_name
from lightune.tasks import GENERATIVE, task_for

T = TypeVar("T")
FORMAT = 1
BATCH = 64  # most rows of one prediction pass


@dataclass(frozen=True)
class Base:
    """Which pretrained weights a model started from: its name, pinned revision, weights' sha256 and configuration."""

    name: str
    revision: str | None
    sha256: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Merged:
    """Stands in the list of changes for those that were folded into the base's weights; the names of these are kept."""

    was: tuple[str, ...]


class Model:
    """A network with its task, encoder, base and changes.

    Attributes:
        network: the module that gives logits.
        task: one of the classes of `lightune.tasks`, with its labels and calibration.
        encoder: texts to token ids.
        changes: the methods applied so far, in order; a `Merged` first where some were folded in.
        chat: how a model that generates writes a conversation; None for the others.
    """

    def __init__(
        self, network: Any, task: Any, encoder: Encoder, base: Base, changes: Sequence[Any], chat: ChatFormat | None = None
    ) -> None:
        self.network = network
        self.task = task
        self.encoder = encoder
        self.base = base
        self.changes = tuple(changes)
        self.chat = chat
        self.truncated_tokens = 0  # cut from too long texts since it was made

    @property
    def answers(self) -> Answers:
        """How the logits become answers."""
        return self.task.answers

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.head.weight.device

    def copy(self) -> Model:
        """A model of its own with equal weights."""
        return Model(copy.deepcopy(self.network), self.task, self.encoder, self.base, self.changes, self.chat)

    def logits(self, examples: Sequence[Any]) -> np.ndarray:
        """Float32 [n, k] for examples, texts or (text, pair) tuples, in their order."""
        encoded = self.encoder.encode(*texts_and_pairs(examples))
        self.truncated_tokens += encoded.truncated_tokens
        found = np.zeros((len(encoded), self.answers.outputs), dtype=np.float32)
        for rows, logits in self.read(encoded, lambda batch: self.network(**batch)):
            found[rows] = logits.cpu().numpy()
        return found

    def read(self, encoded: Encoded, ask: Callable[[dict[str, torch.Tensor]], T]) -> Iterator[tuple[np.ndarray, T]]:
        """The places of some rows and what `ask` gives for their padded batch, until all rows were read; in eval mode, without gradients."""
        was_training = self.network.training
        self.network.eval()
        with torch.inference_mode():
            for rows in batches([len(ids) for ids in encoded.ids], BATCH):
                yield rows, ask(tensors(self.encoder.pad(encoded, rows), self.device))
        self.network.train(was_training)

    def predict(self, texts: Sequence[Any]) -> list[dict[str, Any]]:
        """One JSON-ready answer for each text or (text, pair) tuple: see `Answers.explain`."""
        return self.answers.explain(self.logits(texts))

    def predict_proba(self, texts: Sequence[Any]) -> np.ndarray:
        """Calibrated probabilities [n, k] (values for regress)."""
        return self.answers.probabilities(self.logits(texts))

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training changes, by name."""
        return {name: item for name, item in self.network.named_parameters() if item.requires_grad}

    def apply(self, method: Any) -> Model:
        """Freeze what is there, apply one more method, and leave the head trainable. Returns self.

        Raises:
            InputError: the method does not fit the base, or needs so many positions that the encoder's texts no longer fit.
        """
        check_room(method, self.network.backbone, self.encoder.max_length)
        self.network.requires_grad_(False)
        self.network.backbone = method.apply(self.network.backbone)
        self.network.release_head()
        self.changes = (*self.changes, method)
        return self

    def shrink(self, step: Any, importance: Any = None) -> Model:
        """Make the model smaller by one step; every weight is trainable afterwards. Returns self.

        step: see `lightune.steps`; what it leaves open is chosen by `importance` (see `importance.measure`).

        Raises:
            InputError: the step cannot follow the changes before it, or does not fit the model.
        """
        check_order(self.changes, step)
        planned = step.plan(self, importance)
        self.network = planned.apply(self.network)
        if hasattr(planned, "reencode"):
            self.encoder = planned.reencode(self.encoder)
        self.network.requires_grad_(True)
        self.changes = (*self.changes, planned)
        return self

    def merge(self) -> Model:
        """Fold every change into the weights where that is exact. Returns self; answers stay equal up to rounding.

        What a method leaves in the backbone, such as a prompt, stays in the list of changes.

        Raises:
            InputError: nothing can be folded, because all parts that were added stay.
        """
        live = [change for change in self.changes if type(change).__name__ in METHODS.values()]
        left = [change.leaves for change in live if getattr(change, "leaves", None) is not None]
        if live and left == live:
            names = ", ".join(method_name(change) for change in live)
            raise InputError(f"What {names} added cannot be folded into the weights. Save or export the model as it is.")
        for change in reversed(live):
            if hasattr(change, "merge"):
                self.network.backbone = change.merge(self.network.backbone)
        was = [name for change in self.changes if isinstance(change, Merged) for name in change.was]
        steps = [change for change in self.changes if type(change).__name__ in STEPS.values()]
        folded = [format_spec(method_name(change), change) for change in live if getattr(change, "leaves", None) is not change]
        self.changes = (Merged((*was, *folded)), *steps, *left)
        self.network.requires_grad_(True)
        return self

    def save(self, folder: str | Path) -> Path:
        """Write model.json, weights.safetensors (the tensors that differ) and tokenizer.json into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stored = {name: value.detach().contiguous().cpu() for name, value in self._differing().items()}
        weights = folder / "weights.safetensors"
        save_file(stored, weights, metadata={"format": "pt"})
        os.chmod(weights, 0o666 & ~_umask())  # safetensors writes files that only their owner can read
        self.encoder.save(folder / "tokenizer.json")
        facts = {
            "format": FORMAT, "lightune": __version__, "base": dataclasses.asdict(self.base), "answers": self.answers.to_dict(),
            "tokenizer": self.encoder.to_dict(), **self.network.describe(), **({"chat": self.chat.to_dict()} if self.chat else {}),
            "changes": [_describe_change(change) for change in self.changes], "self_contained": self._self_contained(),
            "sha256": _sha256(weights),
        }  # fmt: skip
        (folder / "model.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
        return folder

    def _self_contained(self) -> bool:
        """Whether the base's own weights are saved too: all are trained, or changes have moved some that are not."""
        edited = any(getattr(change, "edits_base", False) for change in self.changes)
        return edited or len(self.changes) > 1 or all(item.requires_grad for item in self.network.parameters())

    def _differing(self) -> dict[str, torch.Tensor]:
        """What `weights.safetensors` holds: the whole state of a self-contained model, else the trained parameters; shared ones once."""
        if not self._self_contained():
            return dict(self.trainable())
        state, seen = {}, set()
        for name, value in self.network.state_dict().items():
            if value.data_ptr() not in seen or value.numel() == 0:
                state[name] = value
                seen.add(value.data_ptr())
        return state


def start(source: sources.Source, task: Any, *, max_length: int, pooling: str = "auto", seed: int = 0) -> Model:
    """A new model on pretrained weights, with a fresh head drawn from the seed; nothing is adapted yet.

    Raises:
        InputError: the source holds no model or tokenizer that transformers can read without remote code.
    """
    backbone = load_backbone(source)
    tokenizer, pad_id = _tokenizer(source)
    inputs = tuple(name for name in ("input_ids", "attention_mask", "token_type_ids") if _takes(backbone, name))
    if (limit := architectures.longest_input(backbone.config)) and max_length > limit:
        raise InputError(f"max-length is {max_length}, but {source.name} takes at most {limit} tokens. Give max-length {limit} or less.")
    encoder = Encoder(tokenizer, max_length, pad_id, inputs)
    chosen = pooling if pooling != "auto" else "last" if architectures.is_decoder(backbone) else "mean"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Network(backbone, task.answers.outputs, chosen, inputs)
    name = str(source.folder.resolve() / (source.file or "")) if source.kind in ("folder", "gguf") else source.name
    base = Base(name, source.revision, source.sha256, _config_dict(backbone.config))
    return Model(network, task, encoder, base, ())


def load(folder: str | Path) -> Model:
    """A saved model; its base is looked up again where only the differing tensors were saved.

    Raises:
        InputError: the folder is no model, or the base's weights are no longer those it was trained on.
        IntegrityError: a file is missing, truncated, changed, or from another format.
    """
    folder = Path(folder)
    facts = _read_facts(folder)
    weights = folder / "weights.safetensors"
    try:
        stored = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{weights} cannot be read ({error}). Copy the whole folder again.") from None
    if _sha256(weights) != facts["sha256"]:
        raise IntegrityError(f"{weights} is not the file that was saved: its sha256 differs. Copy the whole folder again.")
    base = Base(**facts["base"])
    encoder = Encoder.from_file(folder / "tokenizer.json", **facts["tokenizer"])
    answers = Answers.from_dict(facts["answers"])
    network = _network(base, answers, encoder, facts)
    chat = ChatFormat.from_dict(facts["chat"]) if "chat" in facts else None
    model = Model(network, task_for(answers), encoder, base, (), chat)
    for change in facts["changes"]:
        if "merged" in change:
            model.changes = (Merged(tuple(change["merged"])),)
            network.requires_grad_(True)
        elif change["name"] in STEPS:
            _replay(model, build(find_step(change["name"]), change["options"], change["name"]))
        else:
            model.apply(build(find_method(change["name"]), change["options"], change["name"]))
    _fill(model, stored, weights)
    network.eval()
    return model


def start_language(source: sources.Source, task: Any, *, max_length: int, template: str | None = None) -> Model:
    """A new model that generates, on a pretrained decoder with its own language head, or for the task translate an encoder and a decoder;
    nothing is adapted yet.

    template: a chat template in place of the tokenizer's own; of an encoder and a decoder, what writes the source.

    Raises:
        InputError: the source holds no such model with a language head that transformers can read without remote code.
    """
    kind = NETWORKS[task.kind]
    backbone, head = kind.load(source)
    found, pad_id = _load_tokenizer(source)
    chat = kind.format(found, template)
    inputs = tuple(name for name in ("input_ids", "attention_mask") if _takes(backbone, name))
    encoder = Encoder(Tokenizer.from_str(found.backend_tokenizer.to_str()), max_length, pad_id, inputs)
    name = str(source.folder.resolve() / (source.file or "")) if source.kind in ("folder", "gguf") else source.name
    base = Base(name, source.revision, source.sha256, _config_dict(backbone.config))
    return Model(kind.network(backbone, head, inputs), task, encoder, base, (), chat)


def _decoder_format(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ChatFormat:
    """How conversations are written for a decoder: by a template, or by the tokenizer's own."""
    chat = chat_format(tokenizer)
    if template is None:
        return chat
    return make_format(template, bos=chat.bos, eos=chat.eos, tokens=tokenizer.get_added_vocab())


def _source_format(tokenizer: PreTrainedTokenizerFast, template: str | None) -> ChatFormat:
    """How conversations are written for an encoder: by a template, or by the tokenizer's own, or the turns as they are."""
    return source_format(template or tokenizer.chat_template, eos=tokenizer.eos_token or "")


def _network(base: Base, answers: Answers, encoder: Encoder, facts: dict[str, Any]) -> Network | LanguageNetwork:
    """The network of a saved model before its changes: on the base's weights, or untrained where all weights were saved."""
    if answers.kind not in GENERATIVE:
        backbone = _quietly(lambda: bare_backbone(base.config)) if facts["self_contained"] else load_base(base)
        network = Network(backbone, answers.outputs, facts["pooling"], encoder.inputs)
        network.set_head_dropout(facts["head_dropout"])
        return network
    kind = NETWORKS[answers.kind]
    if not facts["self_contained"]:
        return kind.network(*kind.load(_base_source(base)), encoder.inputs)
    backbone = _quietly(lambda: bare_backbone(base.config, AutoModel))
    table = architectures.word_embedding(backbone)
    head = torch.nn.Linear(table.embedding_dim, table.num_embeddings, bias=facts["head_bias"])
    if facts["tied"]:
        head.weight = table.weight
    return kind.network(backbone, head, encoder.inputs)


def load_decoder(source: sources.Source) -> tuple[torch.nn.Module, torch.nn.Linear]:
    """The pretrained decoder of a source in fp32 and its language head.

    Raises:
        InputError: transformers cannot read it without remote code, it is no decoder, or it does more than a matrix product at its end.
    """
    options: dict[str, Any] = {"gguf_file": source.file} if source.file else {}
    try:
        whole = _quietly(
            lambda: AutoModelForCausalLM.from_pretrained(source.folder, trust_remote_code=False, dtype=torch.float32, **options)
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{source.name!r} cannot be loaded as a model that generates: {first} Choose a decoder, such as smollm2-135m."
        ) from None
    backbone, head = whole.base_model, whole.get_output_embeddings()
    softens = [name for name in SOFTENERS if getattr(backbone.config, name, None) not in (None, 1.0)]
    if backbone is whole or not isinstance(head, torch.nn.Linear) or softens or not architectures.is_decoder(backbone):
        what = f"its logits go through {', '.join(softens)}" if softens else f"{type(whole).__name__} has no plain language head"
        raise InputError(f"{source.name!r} cannot be taught to generate: {what}. Choose a Llama, Qwen, SmolLM or GPT-2 model.")
    return backbone, head


def load_translator(source: sources.Source) -> tuple[torch.nn.Module, torch.nn.Linear]:
    """The pretrained encoder and decoder of a source in fp32, as one backbone, and their language head.

    Raises:
        InputError: transformers cannot read it without remote code, or it is no T5.
    """
    try:
        kind = "a GGUF file" if source.file else AutoConfig.from_pretrained(source.folder, trust_remote_code=False).model_type
        if kind not in TWO_STACKS:
            raise ValueError(f"it is {kind}, expected one of {', '.join(TWO_STACKS)}.")
        whole = _quietly(lambda: AutoModelForSeq2SeqLM.from_pretrained(source.folder, trust_remote_code=False, dtype=torch.float32))
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{source.name!r} cannot be loaded as an encoder with a decoder: {first} Choose a T5, such as title-t5, or the task generate."
        ) from None
    with torch.device("meta"):
        backbone = AutoModel.from_config(whole.config)
    for name, _ in list(backbone.named_children()):
        setattr(backbone, name, getattr(whole, name))
    return backbone, whole.get_output_embeddings()


@dataclass(frozen=True)
class _Kind:
    """What a task that generates is built of: its network, what loads the backbone and the head of a source, and how its conversations are
    written, by a tokenizer and perhaps a template."""

    network: type[LanguageNetwork]
    load: Callable[[sources.Source], tuple[torch.nn.Module, torch.nn.Linear]]
    format: Callable[[PreTrainedTokenizerFast, str | None], ChatFormat]


NETWORKS = {
    "generate": _Kind(LanguageNetwork, load_decoder, _decoder_format),
    "translate": _Kind(TranslationNetwork, load_translator, _source_format),
}
SOFTENERS = ("final_logit_softcapping", "logit_scale", "logits_scaling")  # what some families do to logits after the head


def check_room(method: Any, backbone: torch.nn.Module, max_length: int) -> None:
    """Refuse texts of up to `max_length` tokens where a method's own tokens leave less room, and such methods where two stacks read a text.

    Raises:
        InputError: with the length that fits.
    """
    limit, taken = architectures.longest_input(backbone.config), getattr(method, "taken", 0)
    if taken and len(architectures.stacks(backbone)) > 1:
        raise InputError(
            f"{method_name(method)} puts vectors before a text, which an encoder and a decoder share out. Use lora, pfeiffer, ia3 or full."
        )
    if limit and taken and max_length + taken > limit:
        raise InputError(
            f"max-length is {max_length} and {method_name(method)} puts {taken} tokens before every text, but the base takes {limit} in all. "
            f"Give max-length {limit - taken} or less, or fewer tokens."
        )


def _replay(model: Model, step: Any) -> None:
    """Give the network the structure that an explicit step left; the saved tokenizer has been read already."""
    model.network = step.apply(model.network).requires_grad_(True)
    model.changes = (*model.changes, step)


def _fill(model: Model, stored: dict[str, torch.Tensor], path: Path) -> None:
    """Copy the saved tensors into the network; every expected name must be there, with its shape, and no other."""
    expected = model._differing()
    wrong = sorted(set(expected) ^ set(stored)) or [name for name in stored if stored[name].shape != expected[name].shape]
    if wrong:
        raise IntegrityError(
            f"{path} does not fit the model's description: {', '.join(wrong[:3])} ({len(wrong)} tensors). Save the model again."
        )
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(stored[name])


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{str(folder)!r} is no saved model: it has no model.json. Give a RUN/model folder or a RUN.") from None
    except ValueError as error:
        raise IntegrityError(f"{folder / 'model.json'} is damaged ({error}). Copy the whole folder again.") from None
    if facts.get("format") != FORMAT:
        raise IntegrityError(
            f"{folder} has the format {facts.get('format')!r}, this Lightune reads {FORMAT}. Install the Lightune that wrote it."
        )
    return facts


def load_backbone(source: sources.Source) -> torch.nn.Module:
    """The pretrained transformers model of a source, in fp32, without any head.

    Raises:
        InputError: transformers cannot read it without remote code.
    """
    options: dict[str, Any] = {"gguf_file": source.file} if source.file else {}
    attention = kernels.register_attention()
    try:
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, **options)
        options |= {"add_pooling_layer": False} if config.model_type in WITH_POOLER else {}
        options |= {"config": config, "attn_implementation": _attention(config, attention), "dtype": torch.float32}
        backbone = _quietly(lambda: _reader(config).from_pretrained(source.folder, trust_remote_code=False, **options))
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"The model {source.name!r} cannot be loaded: {first} Check the folder, or choose another base.") from None
    return backbone


def load_language_model(source: sources.Source) -> torch.nn.Module | None:
    """The pretrained model of a source with its masked language model's head; None where the checkpoint has none."""
    try:
        found, report = _quietly(
            lambda: AutoModelForMaskedLM.from_pretrained(
                source.folder, trust_remote_code=False, output_loading_info=True, dtype=torch.float32
            )
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError):
        return None
    return None if report["missing_keys"] else found.eval()


DIGITS_APART = ("smollm", "refact", "starcoder", "command-r", "codeshell")  # how GGUF files call tokenizers that split every digit off
WITH_POOLER = ("bert", "roberta", "xlm-roberta", "camembert", "albert", "mpnet", "data2vec-text", "ernie")  # their poolers are never used
TWO_STACKS = ("t5", "mt5", "umt5")  # only their encoders are used, but for translate


def _reader(config: Any) -> Any:
    """The class of transformers that makes the part of a model which reads text."""
    return AutoModelForTextEncoding if config.model_type in TWO_STACKS else AutoModel


def _attention(config: Any, fast: str) -> str | None:
    """Our attention for encoders that call transformers' attention interface, the model's own choice elsewhere."""
    return fast if architectures.is_plain_encoder(config) else None


def bare_backbone(values: dict[str, Any], reader: Any = None) -> torch.nn.Module:
    """An untrained backbone of a configuration, made by a class of transformers, by default what reads text."""
    config = AutoConfig.for_model(**values)
    options = {"add_pooling_layer": False} if config.model_type in WITH_POOLER else {}
    return (reader or _reader(config)).from_config(
        config, attn_implementation=_attention(config, kernels.register_attention()), dtype=torch.float32, **options
    )


def load_base(base: Base) -> torch.nn.Module:
    """The pretrained backbone that a model started from.

    Raises:
        InputError: it is not here any more, or has other weights.
    """
    return load_backbone(_base_source(base))


def _base_source(base: Base) -> sources.Source:
    """Where a model's base lies, with the very weights that it was trained on."""
    source = sources.resolve_model(base.name, revision=base.revision)
    if source.sha256 != base.sha256:
        raise InputError(
            f"The base {base.name!r} has other weights (sha256 {source.sha256[:12]}…) than those the model was trained on "
            f"({base.sha256[:12]}…). Bring back that base, or merge the model where it was trained."
        )
    return source


def _tokenizer(source: sources.Source) -> tuple[Tokenizer, int]:
    """The fast tokenizer of a source and its padding id."""
    found, pad_id = _load_tokenizer(source)
    return Tokenizer.from_str(found.backend_tokenizer.to_str()), pad_id


def _load_tokenizer(source: sources.Source) -> tuple[PreTrainedTokenizerFast, int]:
    options = {"gguf_file": source.file} if source.file else {}
    try:
        found = _quietly(lambda: AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, **options))
    except Exception as error:  # tokenizers and transformers raise many kinds for a bad file
        raise InputError(f"The tokenizer of {source.name!r} cannot be loaded: {error}. Put its tokenizer.json into the folder.") from None
    if not isinstance(found, PreTrainedTokenizerFast):
        raise InputError(
            f"The tokenizer of {source.name!r} is {type(found).__name__}, which has no fast form. Choose a base with a tokenizer.json."
        )
    if source.file and read_gguf(source.folder / source.file).split in DIGITS_APART:  # transformers forgets it
        found.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    pad = found.pad_token_id if found.pad_token_id is not None else found.eos_token_id
    return found, int(pad or 0)


def _takes(backbone: torch.nn.Module, name: str) -> bool:
    types = getattr(backbone.config, "type_vocab_size", 0)  # GPT-2 takes types too, but looks them up among its words
    return name in inspect.signature(backbone.forward).parameters and (name != "token_type_ids" or types > 1)


def _config_dict(config: Any) -> dict[str, Any]:
    values = config.to_dict()
    return {
        key: values[key]
        for key in values
        if not key.startswith("_") and key not in ("quantization_config", "transformers_version", "dtype")
    }


def _describe_change(change: Any) -> dict[str, Any]:
    if isinstance(change, Merged):
        return {"merged": list(change.was)}
    return {"name": step_name(change) if type(change).__name__ in STEPS.values() else method_name(change), "options": as_dict(change)}


def _quietly(make: Any) -> Any:
    """Run `make` without transformers' progress bars, some of which know no switch, and load reports."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()):
            return make()
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
