import json

import pytest
from made_runs import TEXTS, change_run, make_generating_run, make_run
from test_page import HOSTILE, Page, check_page

from lightune.reports import write_report
from lightune.reports.exported import place_file, tabulate_files
from lightune.reports.generated import STAGES, list_answers, list_asking, list_samples
from lightune.reports.material import list_losses, tabulate_ledger
from lightune.reports.records import read_record
from lightune.reports.sections import choose_metric, select_metric


@pytest.fixture
def written(tmp_path):
    return make_generating_run(tmp_path / "commands")


def test_the_page_tells_what_was_learned_and_nothing_of_labels(written):
    page = Page(write_report([written]))
    check_page(page)
    assert page.sections == ["done", "scores", "files", "use", "curves", "samples", "answers", "data", "repeat"]
    for text in (
        "text generation",
        "137,530 of 525,850 (26.2\u00a0%)",
        "200 of 556 different ones",
        "194 by an end token",
        "2 times, counted as empty answers",
        "18.619 before training",
        "3.200",
        "3.100 – 3.300",
        "train: 3 rows were too long and lost 210 tokens, 50 of them of answers.",
        "7 of 606 prompts of test also stand in train.",
        "(nothing)",
        "1 more that are right as well",
    ):
        assert text in page.text
    for text in ("confus", "calibration", "F1 of", "latency"):
        assert text not in page.text


def test_how_to_use_names_the_run_and_what_suits_each_file(written):
    text = Page(write_report([written])).text
    for line in (
        "lightune chat commands\n",
        "lightune serve commands\n",
        'lightune predict commands "a question"',
        "load_gguf('commands/artifacts/gguf')",
        "llama-cli -m commands/artifacts/gguf/model.gguf",
        "AutoModelForCausalLM.from_pretrained('commands/artifacts/hf')",
    ):
        assert line in text
    assert text.count("load_gguf(") == text.count("AutoTokenizer.from_pretrained(") == 1


def test_the_python_that_is_shown_is_python(written):
    from lightune.reports.usage import show_usage

    codes = [code for use in show_usage(read_record(written)) for code in use["codes"] if code.language == "python"]
    assert len(codes) == 2
    for code in codes:
        compile(code.text, code.title, "exec")


def test_curves_begin_before_training(written):
    record = read_record(written)
    assert choose_metric(record) == "perplexity"
    (step, before), *after = select_metric(record, "perplexity")
    assert step == 0
    assert before == pytest.approx(18.619, abs=1e-3)
    assert len(after) == 12
    assert before > after[0][1] > after[-1][1]
    change_run(written, "run.json", lambda value: value.update(loss_before=None))
    assert len(select_metric(read_record(written), "perplexity")) == 12


def test_samples_show_how_answers_change_and_say_what_is_left_out(written):
    changing, settled = list_samples(read_record(written))
    expected, *stages = changing["lines"]
    assert (expected["name"], expected["text"]) == ("expected", "chmod +x it")
    assert [stages[0]["text"], stages[-1]["text"]] == ["chmod 4", "chmod 48"]
    assert len(stages) == STAGES
    assert sum(int(line["before"] or 0) for line in stages) == 12 - STAGES
    assert [(line["name"], line["text"]) for line in settled["lines"][1:]] == [("steps 4 to 8", ""), ("steps 12 to 48", "wc -l f")]


def test_one_evaluation_is_one_answer(tmp_path):
    (_, answer), _ = (entry["lines"] for entry in list_samples(read_record(make_generating_run(tmp_path / "run", evaluations=1))))
    assert (answer["name"], answer["text"], answer["kind"]) == ("step 4", "chmod 4", "got")


def test_every_right_answer_is_shown_up_to_a_few(written):
    worst = list_answers(read_record(written))["worst"]
    assert [line["name"] for line in worst[0]["lines"]] == ["expected", "or", "or", "or", "answered"]
    assert worst[0]["notes"][0] == "the question left no room"
    assert worst[1]["texts"][0]["text"] == TEXTS[3]
    assert worst[1]["notes"] == ["ended at the limit of tokens", "command match 0.100", "chrF 0.100", "row 38"]


def test_where_every_answer_is_right_the_page_says_so(written):
    assert "scored in full" not in Page(write_report([written])).text
    change_run(written, "evaluation.json", lambda value: value.update(worst=[]))
    assert "None: every answer that was asked for scored in full." in Page(write_report([written])).text


def test_files_stand_side_by_side_by_what_generators_are_judged_by(written):
    record = read_record(written)
    table = tabulate_files(record)
    assert [row["target"] for row in table["rows"]] == ["gguf", "hf"]
    cells = dict(zip(table["columns"], table["rows"][0]["cells"], strict=True))
    assert cells["answer"] == ("125\u00a0tokens/s", "")
    assert cells["perplexity change"] == ("+0.21\u00a0%", "47.000 → 47.099")
    assert cells["same answers"] == ("72.0\u00a0%", "of 50")
    megabytes, milliseconds, perplexity = place_file(record, record.artifacts[0])
    assert (megabytes, milliseconds) == (146.0, 8.0)
    assert perplexity == pytest.approx(47.0987)


def test_the_ledger_counts_what_was_lost(written):
    record = read_record(written)
    train, dev, _ = tabulate_ledger(record)
    assert (train["cut"], train["cut_tokens"], train["left_out"], train["share"]) == ("3", "210 tokens", "2", "26.2\u00a0%")
    assert (dev["cut"], dev["cut_tokens"], dev["left_out"]) == ("0", "", "0")
    assert [sentence.partition(":")[0] for sentence in list_losses(record)[:2]] == ["train", "train"]
    assert list_losses(read_record(make_run(written.parent / "labels"))) == []


def test_plain_text_without_questions_still_has_its_page(written):
    def strip(value):
        for name in ("finishes", "available", "too_long", "tokens", "empty"):
            value.pop(name)
        value |= {"worst": [], "samples": [], "rows": 606}
        value["scores"] = {"primary": "perplexity", "perplexity": value["scores"]["perplexity"]}

    change_run(written, "evaluation.json", strip)
    change_run(
        written, "run.json", lambda value: value.update(scores={"primary": "perplexity", "perplexity": value["scores"]["perplexity"]})
    )
    (written / "samples.jsonl").unlink()
    page = Page(write_report([written]))
    check_page(page)
    assert not {"samples", "answers", "worst"} & set(page.sections)
    assert list_asking(read_record(written)) == [("perplexity over", "10,302 learned tokens of 606 test rows")]


@pytest.mark.parametrize(
    "missing", [("run.json",), ("evaluation.json",), ("data.json",), ("steps.jsonl", "samples.jsonl"), ("run.json", "evaluation.json")]
)
def test_missing_files_leave_their_parts_out(tmp_path, missing):
    page = Page(write_report([make_generating_run(tmp_path / "run", without=missing)]))
    check_page(page)
    gone = {"run.json": "files", "evaluation.json": "answers", "data.json": "data", "samples.jsonl": "samples"}
    for file, section in gone.items():
        assert (section in page.sections) == (file not in missing)


def test_empty_and_null_values_are_no_error(written):
    for file in ("run.json", "evaluation.json", "data.json"):
        change_run(written, file, lambda value: value.update({name: None for name in value if name != "task"}))
    page = Page(write_report([written]))
    check_page(page)


def test_text_of_the_user_is_shown_and_never_run(written):
    lines = [json.loads(line) for line in (written / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    lines[0]["rows"][0] |= {"question": HOSTILE, "answer": HOSTILE, "reference": HOSTILE}
    (written / "samples.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    change_run(written, "evaluation.json", lambda value: value["worst"][0].update(text=HOSTILE, target=[HOSTILE], answer=HOSTILE))
    page = Page(write_report([written]))
    check_page(page)
    assert page.text.count(HOSTILE) >= 6


def test_a_long_answer_is_cut_and_the_page_says_by_how_much(written):
    change_run(written, "evaluation.json", lambda value: value["worst"][0].update(answer="word " * 10_000))
    assert "49,400 more characters" in Page(write_report([written])).text


def test_runs_that_generate_stand_side_by_side(tmp_path):
    runs = [make_generating_run(tmp_path / name, name=name, seed=seed) for seed, name in enumerate(("small", "large"))]
    page = Page(write_report(runs))
    check_page(page)
    side = page.text[: page.text.index("Each run")]
    for text in (
        "tokens learned from",
        "its answers",
        "its perplexity change",
        "perplexity per byte",
        "Dev perplexity per token",
        "ms a token",
    ):
        assert text in side
    for text in ("PyTorch latency", "its latency", "score kept", "PyTorch fp32", "different bases"):
        assert text not in side
    row = page.html[page.html.index(">perplexity per token</th>") :]
    assert row.index('class="best"') < row.index("3.200") < row.index("4.200")
    change_run(runs[1], "run.json", lambda value: value.update(base_sha256="00" * 32))
    assert "compare perplexity per byte" in Page(write_report(runs)).text


def test_a_run_that_generates_beside_one_that_classifies(tmp_path):
    page = Page(write_report([make_run(tmp_path / "a"), make_generating_run(tmp_path / "b")]))
    check_page(page)
    assert "their scores cannot be ranked" in page.text


def test_a_graph_is_called_from_python_without_torch(written):
    change_run(written, "run.json", lambda value: value["artifacts"][0].update(target="onnx:bits=32", path="artifacts/onnx-bits-32"))
    text = Page(write_report([written])).text
    assert "from lightune.runtime.onnx_generation import load_onnx" in text
    assert "load_onnx('commands/artifacts/onnx-bits-32')" in text
