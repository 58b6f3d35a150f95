import os
from pathlib import Path

import pytest

from lightune.errors import InputError
from lightune.exports.staging import staged
from lightune.runtime import manifest


def fill(draft: Path, content: str) -> None:
    (draft / "model.onnx").write_text(content)
    manifest.write(draft, "0.0.0")


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "artifact"
    with staged(folder) as draft:
        assert not folder.exists()
        assert draft.parent == folder.parent
        fill(draft, "new")
    assert (folder / "model.onnx").read_text() == "new"
    assert [path.name for path in folder.parent.iterdir()] == ["artifact"]


def test_it_replaces_an_earlier_export(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with staged(tmp_path / "artifact") as draft:
            fill(draft, content)
    assert (tmp_path / "artifact" / "model.onnx").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def fill_half(folder: Path, error: BaseException) -> None:
    with staged(folder) as draft:
        fill(draft, "half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_one_and_no_litter(tmp_path: Path, error: BaseException) -> None:
    folder = tmp_path / "artifact"
    with staged(folder) as draft:
        fill(draft, "old")
    with pytest.raises(type(error)):
        fill_half(folder, error)
    assert (folder / "model.onnx").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    with staged(tmp_path / "artifact") as draft:
        fill(draft, "new")
    assert (tmp_path / "artifact" / "model.onnx").exists()


def test_a_stage_within_a_stage(tmp_path: Path) -> None:
    with staged(tmp_path / "artifact") as outer:
        with staged(outer) as inner:
            fill(inner, "new")
        assert (outer / "model.onnx").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_what_no_export_wrote_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds thesis\.txt"), staged(folder):
        pass
    manifest.write(folder, "0.0.0")
    (folder / "notes.txt").write_text("mine too")
    with pytest.raises(InputError, match=r"holds notes\.txt"), staged(folder):
        pass
    assert (folder / "thesis.txt").read_text() == "mine"


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "artifact").write_text("mine")
    with pytest.raises(InputError, match="is no folder"), staged(tmp_path / "artifact"):
        pass
    with pytest.raises(InputError, match="cannot be written"), staged(tmp_path / "artifact" / "below"):
        pass
    assert (tmp_path / "artifact").read_text() == "mine"


def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"), staged(tmp_path / "artifact"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"), staged(tmp_path / "artifact"):
        pass
