import csv
import json
import re

import pytest
from made_runs import change_run, make_run, make_shrunk_run
from test_page import HOSTILE, Page, check_page

from lightune.errors import InputError
from lightune.reports import write_card, write_front_csv, write_report
from lightune.reports.front import draw_fronts, list_points, show_front
from lightune.reports.records import read_record


@pytest.fixture
def shrunk(tmp_path):
    """A run whose search tried 24 models."""
    return make_shrunk_run(tmp_path / "trec")


def read_front(run):
    return json.loads((run / "front.json").read_text(encoding="utf-8"))


def test_the_page_tells_limits_plots_and_every_point(shrunk):
    page = Page(write_report([shrunk]))
    check_page(page)
    assert page.sections[:3] == ["done", "budget", "scores"]
    part = page.text[page.text.index("at most 4.5\u00a0MB") :]
    for text in (
        "held",
        "6.4\u00a0% below",
        "0.5 points above",
        "in 2.1\u00a0% of the resamples",
        "24 models tried in 13\u00a0min 0\u00a0s",
        "Score against size",
        "take it",
    ):
        assert text in part
    front = read_front(shrunk)
    taken = re.findall(r"lightune shrink trec --take (\d+)", part)
    assert sorted(map(int, taken)) == [point["id"] for point in front["points"]]
    drawings = [drawing for drawing in page.drawings if "Score against" in drawing]
    assert len(drawings) == 2
    for drawing in drawings:
        assert drawing.count('class="ring') == 1
        assert drawing.count('class="limit"') == 2
        assert drawing.count("<circle") == len(front["points"]) + 2  # the reference and the ring
        assert ">reference<" in drawing


def test_the_chosen_point_is_marked_in_its_table(shrunk):
    front = show_front(read_record(shrunk))
    (chosen,) = [row for row in front["rows"] + front["dominated"] if row["chosen"]]
    point = next(point for point in read_front(shrunk)["points"] if str(point["id"]) == chosen["id"])
    assert all(point["holds"].values())
    assert chosen["missed"] == ""
    assert chosen["smaller"] == f"{91_341_112 / point['bytes']:.1f}×"
    assert chosen["faster"] == f"{11.9 / point['milliseconds']:.1f}×"
    assert chosen["detail"] == " → ".join(point["steps"])
    assert {row["missed"] for row in front["rows"]} > {"", "score kept", "size, latency"}


def test_what_a_point_itself_says_of_the_share_counts_before_its_score(shrunk):
    change_run(shrunk, "front.json", lambda value: [point["holds"].update(keep=False) for point in value["points"]])
    front = show_front(read_record(shrunk))
    assert all("score kept" in row["missed"] for row in front["rows"] + front["dominated"])
    assert "None held every limit" in front["cost"]


def test_points_are_told_from_the_smallest_and_each_once(shrunk):
    record = read_record(shrunk)
    sizes = [point["bytes"] for point in list_points(record)]
    assert sizes == sorted(sizes)
    front = show_front(record)
    assert len(front["rows"]) + len(front["dominated"]) == len(sizes)
    assert front["dominated"]


def test_a_front_without_a_budget_is_shown_too(shrunk):
    change_run(shrunk, "front.json", lambda value: value.update(limits=None, chosen=None))
    change_run(shrunk, "run.json", lambda value: value.update(budget=None, met=None))
    page = Page(write_report([shrunk]))
    check_page(page)
    assert "budget" in page.sections
    assert "held every limit" not in page.text
    assert not any('class="ring' in drawing for drawing in page.drawings if "Score against" in drawing)


def test_missing_and_broken_values_of_points_leave_only_themselves_out(shrunk):
    def spoil(value):
        for point, key in zip(value["points"], ("score", "bytes", "milliseconds", "shape", "steps", "holds", "name", "id"), strict=False):
            point[key] = None
        value["points"][8]["score"] = float("nan")
        value["points"].append(None)
        value["reference"] = None

    change_run(shrunk, "front.json", spoil)
    page = Page(write_report([shrunk]))
    check_page(page)
    assert "24 models tried" in page.text
    assert not any("nan" in drawing for drawing in page.drawings)
    assert "reference" not in show_front(read_record(shrunk))["figures"][0].svg


@pytest.mark.parametrize("value", [{}, {"points": None}, {"points": [], "reference": None}, {"points": [{}]}])
def test_an_empty_front_is_no_error(run, value):
    (run / "front.json").write_text(json.dumps(value), encoding="utf-8")
    check_page(Page(write_report([run])))


def test_names_of_points_are_shown_and_never_run(shrunk):
    change_run(shrunk, "front.json", lambda value: value["points"][0].update(name=HOSTILE, steps=[HOSTILE], holds={HOSTILE: False}))
    page = Page(write_report([shrunk]))
    check_page(page)
    assert HOSTILE in page.text


def test_where_less_is_better_no_line_of_the_share_is_drawn(shrunk):
    change_run(shrunk, "front.json", lambda value: value.update(metric="mse"))
    drawing = show_front(read_record(shrunk))["figures"][0].svg
    assert drawing.count('class="limit"') == 1
    assert "dev MSE" in drawing


def test_runs_with_and_without_a_front_stand_side_by_side(tmp_path):
    runs = [
        make_shrunk_run(tmp_path / "a", name="a"),
        make_run(tmp_path / "b", name="b"),
        make_shrunk_run(tmp_path / "c", met=False, name="c", seed=2),
    ]
    page = Page(write_report(runs))
    check_page(page)
    side = page.text[: page.text.index("Each run")]
    assert "not held" in side
    assert side.count("everything tried") == 2
    assert {"r1-budget", "r3-budget"} <= set(page.sections)
    assert "r2-budget" not in page.sections
    plain = Page(write_report([runs[1], make_run(tmp_path / "d", name="d")], tmp_path / "plain.html"))
    assert "everything tried" not in plain.text
    assert "budget" not in plain.text


def test_fronts_of_different_metrics_are_not_drawn_together(tmp_path):
    runs = [make_shrunk_run(tmp_path / name) for name in "ab"]
    change_run(runs[1], "front.json", lambda value: value.update(metric="macro_f1"))
    assert draw_fronts([read_record(run) for run in runs], ["a", "b"]) == []


def test_the_spreadsheet_has_a_row_for_each_point(shrunk):
    path = write_front_csv(shrunk)
    assert path == shrunk.resolve() / "front.csv"
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    points = read_front(shrunk)["points"]
    assert [row["id"] for row in rows] == [str(point["id"]) for point in points]
    for row, point in zip(rows, points, strict=True):
        assert int(row["bytes"]) == point["bytes"]
        assert float(row["score"]) == point["score"]
        assert float(row["smaller"]) == pytest.approx(91_341_112 / point["bytes"], abs=1e-3)
        assert row["holds_mb"] == str(point["holds"]["mb"])
        assert row["steps"] == " ".join(point["steps"])
    assert [row["chosen"] for row in rows].count("True") == 1


def test_a_run_without_a_front_has_no_spreadsheet(run):
    with pytest.raises(InputError, match=r"front\.json.*lightune shrink"):
        write_front_csv(run)


def test_the_card_tells_how_the_budget_was_held(tmp_path):
    card = write_card(make_shrunk_run(tmp_path / "held")).read_text(encoding="utf-8")
    assert "| size | at most 4.5\u00a0MB | 4.21\u00a0MB | held (6.4\u00a0% below) |" in card
    assert "99.5\u00a0% of the reference score is kept" in card
    missed = write_card(make_shrunk_run(tmp_path / "missed", met=False)).read_text(encoding="utf-8")
    assert "does not hold the budget that it was made for: size 5.13 MB of at most" in missed[missed.index("## Limits") :]
    assert "## Budget" not in write_card(make_run(tmp_path / "plain")).read_text(encoding="utf-8")


def test_long_options_of_a_step_are_told_by_their_length(run):
    changes = [{"merged": ["lora:rank=8"]}, {"name": "vocab", "options": {"keep": 8000, "tokens": list(range(8000))}}]
    change_run(run, "run.json", lambda value: value.update(changes=changes))
    page = Page(write_report([run]))
    assert "merged lora:rank=8 → vocab(keep=8000, tokens=8,000 values)" in page.text
