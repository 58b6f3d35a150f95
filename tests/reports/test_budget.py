import pytest
from made_runs import change_run, make_run, make_shrunk_run

from lightune.reports.budget import list_limits, show_budget, summarise_budget, tell_kept
from lightune.reports.records import read_record


def limits_of(run, **held):
    budget = {"limits": {name: facts["limit"] for name, facts in held.items()}, "held": held}
    change_run(run, "run.json", lambda value: value.update(budget=budget))
    return {row["name"]: row for row in show_budget(read_record(run))["rows"]}


@pytest.mark.parametrize(
    ("name", "limit", "value", "told", "margin"),
    [
        ("max_mb", 4.5, 5.13, "5.13\u00a0MB", "14.0\u00a0% over"),
        ("max_mb", 4.5, 4.5, "4.50\u00a0MB", "0.0\u00a0% below"),
        ("max_ms", 0.5, 0.4, "0.40\u00a0ms", "20.0\u00a0% below"),
        ("max_ram", 64.0, 80.0, "80.0\u00a0MB", "25.0\u00a0% over"),
        ("keep", 0.99, 0.987, "98.7\u00a0%", "0.3 points short"),
        ("keep", 0.97, 0.98, "98.0\u00a0%", "1.0 points above"),
        ("time", 600.0, 300.0, "5\u00a0min 0\u00a0s", "50.0\u00a0% below"),
    ],
)
def test_each_limit_says_by_how_much_it_is_held_or_missed(run, name, limit, value, told, margin):
    (row,) = limits_of(run, **{name: {"limit": limit, "value": value, "met": True}}).values()
    assert (row["value"], row["margin"], row["verdict"]) == (told, margin, "held")
    assert row["limit"].startswith("at least" if name == "keep" else "at most")


def test_what_was_not_measured_is_neither_held_nor_missed(run):
    row = limits_of(run, max_ram={"limit": 64.0, "value": None, "met": None})["resident memory"]
    assert (row["value"], row["verdict"], row["margin"]) == ("", "not measured", "")
    assert summarise_budget(read_record(run)) == "resident memory at most 64\u00a0MB"


def test_a_missed_budget_is_summed_up_by_what_is_missed(tmp_path):
    record = read_record(make_shrunk_run(tmp_path / "run", met=False))
    assert summarise_budget(record) == "size 5.13\u00a0MB of at most 4.5\u00a0MB (14.0\u00a0% over)"
    held = summarise_budget(read_record(make_shrunk_run(tmp_path / "other")))
    assert held.count(" of at ") == 4
    assert "over" not in held


def test_limits_of_a_search_that_is_not_finished_come_from_its_front(tmp_path):
    run = make_shrunk_run(tmp_path / "run", without=())
    change_run(run, "run.json", lambda value: value.update(budget=None, met=None))
    assert list(list_limits(read_record(run))) == ["max_mb", "max_ms", "keep", "time"]


def test_a_run_without_a_budget_has_none(run):
    assert show_budget(read_record(run)) == {}
    assert summarise_budget(read_record(make_run(run.parent / "other"))) == ""


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ({}, ""),
        ({"value": 0.99}, "99.0\u00a0% of the reference score is kept on the test rows."),
        ({"value": 0.99, "low": 0.98, "high": 1.0}, "(paired bootstrap: 95\u00a0% interval 98.0\u00a0% – 100.0\u00a0%)."),
        ({"value": 0.99, "low": 0.98, "high": 1.0, "p": 0.0213}, "below the limit in 2.1\u00a0% of the resamples)."),
    ],
)
def test_what_is_kept_is_told_with_its_test(kept, said):
    assert tell_kept(kept).endswith(said)
    assert bool(tell_kept(kept)) == bool(said)
