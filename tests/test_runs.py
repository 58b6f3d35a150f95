import json
from pathlib import Path

import pytest

from lightune.errors import InputError, IntegrityError
from lightune.runs import describe_environment, free_name, new_run, open_run


def test_a_new_run_is_empty_and_keeps_what_is_written(tmp_path: Path) -> None:
    run = new_run(tmp_path / "deep" / "run")
    run.write("recipe.toml", "model = 'x'")
    run.write("run.json", {"ü": 1})
    assert open_run(run.folder).record == {"ü": 1}
    assert (run.folder / "recipe.toml").read_text() == "model = 'x'\n"
    assert sorted(path.name for path in run.folder.iterdir()) == ["recipe.toml", "run.json"]


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("work of years")
    with pytest.raises(InputError, match=r"exists and is not empty.*--out.*--resume.*--overwrite"):
        new_run(tmp_path)
    new_run(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "work of years"
    with pytest.raises(InputError, match="exists and is not empty"):
        new_run(tmp_path / "thesis.txt")


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        new_run(tmp_path / "file" / "run")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.write("run.json", {"old": True})
    with pytest.raises(TypeError):
        run.write("run.json", {"new": object()})
    (run.folder / ".run.json.writing").mkdir()
    with pytest.raises(InputError, match="Cannot write"):
        run.write("run.json", {"new": True})
    assert run.record == {"old": True}


def test_missing_and_damaged_files_are_told(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"has no run.json.*lightune fit --resume"):
        _ = run.record
    (run.folder / "run.json").write_text('{"half":')
    with pytest.raises(IntegrityError, match="cannot be read"):
        _ = run.record
    with pytest.raises(InputError, match=r"is no run folder: it has no recipe.toml"):
        open_run(run.folder)


def test_steps_after_the_checkpoint_and_a_half_written_line_are_forgotten(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    for step in (1, 2, 3):
        run.append("steps.jsonl", {"kind": "step", "step": step})
    with open(run.folder / "steps.jsonl", "a") as file:
        file.write('{"kind": "step", "st')
    run.cut_steps(2)
    run.append("steps.jsonl", {"kind": "step", "step": 3, "again": True})
    found = [json.loads(line) for line in (run.folder / "steps.jsonl").read_text().splitlines()]
    assert [fact["step"] for fact in found] == [1, 2, 3]
    assert "again" in found[2]
    run.cut_steps(0)
    assert (run.folder / "steps.jsonl").read_text().strip() == ""


def test_cutting_steps_where_none_were_written_is_harmless(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    run.cut_steps(0)
    assert not (run.folder / "steps.jsonl").exists()


def test_free_names_are_clean_and_new(tmp_path: Path) -> None:
    assert free_name("my data (1)", tmp_path) == tmp_path / "my-data-1"
    (tmp_path / "trec").mkdir()
    (tmp_path / "trec-2").mkdir()
    assert free_name("trec", tmp_path) == tmp_path / "trec-3"
    assert free_name("../..", tmp_path) == tmp_path / "run"


def test_the_environment_is_described() -> None:
    facts = describe_environment(7)
    assert facts["seed"] == 7
    assert facts["cores"] >= 1
    assert "numpy" in facts["packages"]
    json.dumps(facts)
