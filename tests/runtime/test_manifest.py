import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_artifacts import make_artifact

from lightune.errors import InputError, IntegrityError
from lightune.runtime import load, manifest
from lightune.runtime.predictor import FILES


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("damage", "told"), [(flip, "was altered"), (truncate, "bytes, expected"), (Path.unlink, "is missing")])
def test_damage_is_refused_by_name(tmp_path: Path, name: str, damage: Callable[[Path], None], told: str) -> None:
    folder = make_artifact(tmp_path / "artifact")
    damage(folder / name)
    with pytest.raises(IntegrityError, match=rf"{name}.*{told}.*export the model again"):
        load(folder)


def test_every_damaged_file_is_told_at_once(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    flip(folder / "model.onnx")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(IntegrityError, match=r"model\.onnx was altered.*tokenizer\.json is missing"):
        load(folder)


def test_without_verification_sizes_still_count(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    truncate(folder / "model.onnx")
    with pytest.raises(IntegrityError, match="bytes, expected"):
        load(folder, verify=False)


def test_no_manifest(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    (folder / manifest.NAME).unlink()
    with pytest.raises(IntegrityError, match=r"has no manifest\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda values: values.update(format=2), "format 2, expected 1"),
        (lambda values: values.pop("format"), "format None"),
        (lambda values: values.pop("files"), "lists no files"),
        (lambda values: values.update(files=[]), "lists no files"),
        (lambda values: values["files"].pop("task.json"), r"task\.json is not in manifest\.json"),
        (lambda values: values["files"].update({"../task.json": {}}), "lists no files of this folder"),
        (lambda values: values["files"].update({"task.json": None}), r"task\.json has no size"),
        (lambda values: values["files"]["model.onnx"].update(sha256="0" * 64), r"model\.onnx was altered"),
        (lambda values: values["files"]["model.onnx"].update(bytes=1), r"model\.onnx has \d+ bytes, expected 1"),
    ],
)
def test_an_edited_manifest(tmp_path: Path, edit: Callable[[dict], object], told: str) -> None:
    folder = make_artifact(tmp_path / "artifact")
    values = json.loads((folder / manifest.NAME).read_text())
    edit(values)
    (folder / manifest.NAME).write_text(json.dumps(values))
    with pytest.raises(IntegrityError, match=told):
        load(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_a_manifest_that_is_no_json_object(tmp_path: Path, content: str) -> None:
    folder = make_artifact(tmp_path / "artifact")
    (folder / manifest.NAME).write_text(content)
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        load(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder"):
        load(tmp_path / "file")


def test_other_files_do_no_harm(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    (folder / "README.txt").write_text("mine")
    assert len(load(folder).predict(["good"])) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    folder = make_artifact(tmp_path / "artifact")
    (folder / manifest.NAME).chmod(0)
    with pytest.raises(InputError, match="may not be read"):
        load(folder)
