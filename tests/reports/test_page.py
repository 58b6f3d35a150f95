import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from made_runs import LABELS_77, change_run, make_run

from lightune.errors import InputError
from lightune.reports import write_report

VOID = {"meta", "br", "hr", "img", "input", "link", "area", "base", "col", "embed", "source", "track", "wbr"}
LOADING = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href"}
FILES = ("run.json", "evaluation.json", "data.json", "steps.jsonl", "environment.json", "recipe.toml")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """The parts of a page that tests ask for; an element that is closed wrongly fails at once."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.html = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    @property
    def drawings(self) -> list[str]:
        return re.findall(r"<svg.*?</svg>", self.html, re.DOTALL)

    @property
    def sections(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "section" and attributes.get("id")]


def check_page(page: Page) -> None:
    """What holds for every page: it loads nothing, its drawings are XML, its parts can be reached, its ids are one of a kind."""
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "img", "object", "embed")
        for name in LOADING & attributes.keys():
            assert attributes[name].startswith("#")
            assert attributes[name][1:] in ids
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in page.html
    assert "@import" not in page.html
    assert "default-src 'none'" in page.html
    for drawing in page.drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("aria-label")
        assert root[0].tag.endswith("title")
    assert len(page.html.encode()) < 1_500_000


def test_one_run_tells_everything(run):
    path = write_report([run])
    assert path == run / "report.html"
    page = Page(path)
    check_page(page)
    assert page.sections == ["done", "scores", "files", "use", "curves", "labels", "trust", "worst", "data", "doctor", "repeat"]
    assert page.html.index("<h1") < page.html.index("onnx-int8") < page.html.index("27 texts of the test part")
    for text in (
        "trec-full",
        "23.5\u00a0MB",
        "2.21\u00a0ms",
        "99.8\u00a0%",
        "5.4× faster",
        "9,121 tokens/s",
        "41 in training, 3 in scoring",
    ):
        assert text in page.text
    for text in ('lightune predict trec/artifacts/onnx-int8 "some text"', "from lightune.runtime import load", "Xeon", "epochs = 3"):
        assert text in page.text


def test_page_can_be_used_from_the_keyboard(run):
    page = Page(write_report([run]))
    details = [tag for tag, _ in page.tags if tag == "details"]
    assert len(details) == len([tag for tag, _ in page.tags if tag == "summary"]) >= 6
    boxes = [attributes for tag, attributes in page.tags if tag == "div" and (attributes.get("class") or "").startswith("box")]
    assert len(boxes) >= 4
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_seventy_seven_labels_stay_small_and_name_the_most_confused(tmp_path):
    page = Page(write_report([make_run(tmp_path / "bank", LABELS_77)]))
    check_page(page)
    assert "The pairs of labels that are confused most" in page.text
    assert all(label in page.text for label in LABELS_77)
    counts = json.loads((tmp_path / "bank" / "evaluation.json").read_text(encoding="utf-8"))["confusion"]["counts"]
    most = max((count, -row, -column) for row, line in enumerate(counts) for column, count in enumerate(line) if row != column)
    table = page.text[page.text.index("confused most") :]
    assert table.index(LABELS_77[-most[1]]) < table.index(LABELS_77[-most[2]])


def test_a_matrix_of_very_many_labels_is_left_out_with_a_word(tmp_path):
    labels = [f"label {index}" for index in range(400)]
    page = Page(write_report([make_run(tmp_path / "run", labels)]))
    check_page(page)
    assert "A matrix of 400 labels is too large to draw" in page.text
    assert "100 easier labels are left out" in page.text


@pytest.mark.parametrize("task", ["pair", "multilabel", "regress"])
def test_every_task_has_its_page(tmp_path, task):
    page = Page(write_report([make_run(tmp_path / task, task=task)]))
    check_page(page)
    assert ("Target and answer" in page.text) == (task == "regress")
    assert ("threshold" in page.text) == (task == "multilabel")
    assert ("first text" in page.text) == (task == "pair")


@pytest.mark.parametrize("missing", [*[(file,) for file in FILES], FILES[:-1], FILES[1:], ("run.json", "evaluation.json")])
def test_missing_files_leave_their_parts_out(tmp_path, missing):
    page = Page(write_report([make_run(tmp_path / "run", without=missing)]))
    check_page(page)
    gone = {"run.json": "done", "evaluation.json": "worst", "data.json": "data", "steps.jsonl": "curves"}
    for file, section in gone.items():
        assert (section in page.sections) == (file not in missing)
    assert ("recipe.toml" in page.text) == ("recipe.toml" not in missing)


def test_empty_and_null_values_are_no_error(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for file in ("run.json", "evaluation.json", "data.json"):
        known = json.loads((make_run(tmp_path / "whole") / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps(dict.fromkeys(known)), encoding="utf-8")
    check_page(Page(write_report([folder])))


def test_not_a_number_is_left_out_of_curves_and_tables(run):
    lines = [{"kind": "step", "step": step, "loss": float("nan") if step > 2 else 1.0, "rate": 0.1} for step in range(1, 6)]
    (run / "steps.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    change_run(run, "run.json", lambda value: value["scores"]["accuracy"].update(value=float("nan"), low=None, high=None))
    page = Page(write_report([run]))
    check_page(page)
    assert not any("nan" in drawing for drawing in page.drawings)


@pytest.mark.parametrize("text", [HOSTILE, '" onmouseover="x', "{{ 7 * 7 }}", "שלום <b>", "👩‍👩‍👧 & 标签", "a\x00b\x1b[0m"])
def test_text_of_the_user_is_shown_and_never_run(tmp_path, text):
    folder = make_run(tmp_path / "run", (text, "plain", "other"), name=text, method=text)

    def put(value):
        value["worst"][0] |= {"text": text, "pair": text, "target": text}

    change_run(folder, "evaluation.json", put)
    change_run(folder, "data.json", lambda value: (value["told"].append(text), value["findings"][0].update(message=text, cure=text)))
    change_run(folder, "run.json", lambda value: value.update(alarms=[text], base=text))
    change_run(folder, "environment.json", lambda value: value.update(cpu=text))
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    page = Page(write_report([folder]))
    check_page(page)
    shown = text.replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    assert page.text.count(shown) >= 10


def test_a_huge_text_is_cut_and_the_page_says_by_how_much(run):
    change_run(run, "evaluation.json", lambda value: value["worst"][0].update(text="long " * 20_000, target="label" * 1000))
    change_run(run, "data.json", lambda value: value["findings"][0].update(rows=list(range(10_000)), message="m" * 50_000))
    path = write_report([run])
    assert "99,400 more characters" in Page(path).text
    assert "9980 more (data.json has them)" in Page(path).text
    assert path.stat().st_size < 200_000


def test_lengths_are_a_histogram_where_the_data_tells_one(run):
    def put(value):
        for part in value["parts"].values():
            part["tokens"]["histogram"] = {"edges": [0, 10, 20, 200], "counts": [5, 9, 1]}

    change_run(run, "data.json", put)
    page = Page(write_report([run]))
    check_page(page)
    assert "Length in tokens, train" in page.text
    assert "10 to 20: 9 rows" in page.text


def test_alerts_come_before_the_figures(run):
    budget = {"limits": {"max_mb": 8}, "held": {"max_mb": {"limit": 8, "value": 9.5, "met": False}}}
    change_run(run, "run.json", lambda value: value.update(learned=False, met=False, budget=budget, alarms=["Loss rose."]))
    page = Page(write_report([run]))
    for text in ("The run did not learn", "The budget is not held: size 9.50\u00a0MB of at most 8\u00a0MB", "Loss rose."):
        assert page.text.index(text) < page.text.index("trained parameters")


def test_runs_stand_side_by_side(tmp_path):
    runs = [make_run(tmp_path / name, LABELS_77, name=name, method=name, seed=seed) for seed, name in enumerate(("full", "lora", "head"))]
    path = write_report(runs)
    assert path == tmp_path / "comparison.html"
    page = Page(path)
    check_page(page)
    assert page.html.index("Runs side by side") < page.html.index("What was done")
    assert page.sections[:3] == ["side", "settings", "r1-done"]
    assert "train.epochs" in page.text
    assert page.text.index("accuracy") < page.text.index("smallest file")
    assert len([tag for tag, attributes in page.tags if tag == "details" and attributes.get("class") == "whole"]) == 3


def test_runs_of_different_tasks_are_compared_with_a_caution(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", task="regress"), make_run(tmp_path / "c", without=FILES[:-1])]
    page = Page(write_report(runs))
    check_page(page)
    assert "their scores cannot be ranked" in page.text
    assert "not scored on the same test rows" in page.text


def test_overlapping_intervals_are_said(tmp_path):
    runs = [make_run(tmp_path / name, name="same") for name in ("a", "b")]
    page = Page(write_report(runs))
    assert "The intervals of same (b) and same (a) overlap" in page.text
    assert "settings" not in page.sections
    assert 'class="best"' not in page.html


def test_the_better_run_is_marked_also_where_less_is_better(tmp_path):
    worse, better = (make_run(tmp_path / name, name=name, task="regress") for name in ("worse", "better"))
    change_run(better, "run.json", lambda value: value["scores"]["mse"].update(value=0.1))
    row = re.search(r'<th scope="row">MSE</th>.*?</tr>', write_report([worse, better]).read_text(encoding="utf-8"), re.DOTALL)[0]
    assert re.search(r'class="best"[^>]*>0\.100', row)


def test_the_page_goes_where_it_is_asked(run, tmp_path):
    assert write_report([run], tmp_path / "here.html") == tmp_path / "here.html"
    assert not (run / "report.html").exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["here.html"]


def test_a_place_that_cannot_be_written_is_told_and_nothing_is_lost(run, tmp_path):
    (tmp_path / "taken").write_text("kept", encoding="utf-8")
    with pytest.raises(InputError, match="--out"):
        write_report([run], tmp_path / "taken" / "report.html")
    assert (tmp_path / "taken").read_text(encoding="utf-8") == "kept"


def test_no_run_is_refused():
    with pytest.raises(InputError, match="at least one"):
        write_report([])


def test_the_same_run_gives_the_same_page(run):
    first = write_report([run]).read_bytes()
    assert write_report([run]).read_bytes() == first


def test_methods_on_the_same_data_go_by_their_methods_and_are_drawn_against_what_they_cost(tmp_path):
    runs = [make_run(tmp_path / method, name="trec", method=method, seed=seed) for seed, method in enumerate(("full", "lora:rank=4"))]
    change_run(runs[0], "run.json", lambda value: value.update(seconds=900.0, trainable_parameters=22_000_000, weights_bytes=90_000_000))
    change_run(runs[1], "run.json", lambda value: value.update(seconds=300.0, trainable_parameters=300_000, weights_bytes=1_200_000))
    page = Page(write_report(runs))
    check_page(page)
    assert "Test accuracy and seconds of training" in page.text
    assert "Test accuracy and trained parameters" in page.text
    assert "lora:rank=4" in page.text
    assert "1.20\u00a0MB" in page.text
    change_run(runs[1], "run.json", lambda value: value.update(seconds=900.0))
    assert "Test accuracy and seconds of training" not in Page(write_report(runs)).text
