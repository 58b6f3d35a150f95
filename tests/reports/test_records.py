import json
import math

import pytest
from made_runs import make_run

from lightune.errors import InputError, IntegrityError
from lightune.reports.records import drop_primary, printable, read_bounds, read_record


def test_every_file_is_read(run):
    record = read_record(run)
    assert record.name == "trec-full"
    assert record.primary == "accuracy"
    assert next(iter(record.scores)) == "accuracy"
    assert len(record.steps) == 640
    assert [check["step"] for check in record.checks][:2] == [71, 142]
    assert record.recipe.startswith("task =")


def test_a_missing_file_is_an_empty_value(tmp_path):
    record = read_record(make_run(tmp_path / "run", without=("run.json", "steps.jsonl", "recipe.toml")))
    assert (record.run, record.steps, record.recipe) == ({}, (), "")
    assert record.name == "run"
    assert record.scores  # from evaluation.json


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"lightune fit"):
        read_record(tmp_path / name)


def test_half_a_json_file_is_refused_with_its_line(run):
    (run / "run.json").write_text('{"name": "x",\n "scores":', encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"run\.json.*line 2"):
        read_record(run)


def test_a_json_file_that_holds_no_object_is_refused(run):
    (run / "data.json").write_text("[]", encoding="utf-8")
    with pytest.raises(IntegrityError, match="list"):
        read_record(run)


def test_half_a_last_line_is_left_out_but_a_broken_one_inside_is_refused(run):
    lines = (run / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "steps.jsonl").write_text("\n".join([*lines[:10], lines[10][:20]]), encoding="utf-8")
    assert len(read_record(run).steps) == 10
    (run / "steps.jsonl").write_text("\n".join([lines[0], lines[1][:20], lines[2]]), encoding="utf-8")
    with pytest.raises(IntegrityError, match="line 2"):
        read_record(run)


def test_a_step_that_is_told_twice_counts_once_with_its_later_value(run):
    lines = [{"kind": "step", "step": step, "loss": loss} for step, loss in ((1, 3.0), (2, 2.0), (3, 9.0), (2, 1.5), (3, 1.0))]
    (run / "steps.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    assert [(entry["step"], entry["loss"]) for entry in read_record(run).steps] == [(1, 3.0), (2, 1.5), (3, 1.0)]


def test_unprintable_characters_are_replaced_everywhere():
    value = json.loads('{"a\\u0000": ["x\\ud800y", "tab\\tand\\nline", {"b": "\\u001b[0m"}], "emoji": "\\ud83d\\ude00"}')
    assert printable(value) == {"a\ufffd": ["x\ufffdy", "tab\tand\nline", {"b": "\ufffd[0m"}], "emoji": "😀"}


def test_scores_without_their_bounds():
    assert list(drop_primary({"mcc": 1, "primary": "f1", "f1": 2})) == ["f1", "mcc"]
    assert drop_primary(None) == {}
    assert read_bounds({"value": 0.5, "low": 0.4, "high": 0.6}) == (0.5, 0.4, 0.6)
    assert read_bounds({"value": 0.5, "low": math.nan, "high": 0.6}) is None
