import json

import pytest
from made_runs import LABELS_77, change_run, make_generating_run, make_run

from lightune.errors import InputError
from lightune.reports import write_card
from lightune.reports.markup import plain, quoted

yaml = pytest.importorskip("yaml", reason="the front matter is checked with PyYAML")


def read_card(run):
    text = write_card(run).read_text(encoding="utf-8")
    start, front, body = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front), body


def test_front_matter_is_what_hubs_read(run):
    front, _ = read_card(run)
    assert front["license"] == "unknown"
    assert front["base_model"] == "minilm"
    assert front["library_name"] == "lightune"
    assert front["pipeline_tag"] == "text-classification"
    assert front["tags"] == ["lightune", "classify", "full", "onnx", "fp32", "int8"]
    assert front["metrics"][:2] == ["accuracy", "f1"]
    assert "language" not in front
    result = front["model-index"][0]["results"][0]["metrics"][0]
    assert result["type"] == "accuracy"
    assert 0.5 < result["value"] < 1


def test_licence_and_language_are_told_where_known(run):
    change_run(run, "run.json", lambda value: value.update(license="apache-2.0", language="en"))
    front, body = read_card(run)
    assert (front["license"], front["language"]) == ("apache-2.0", "en")
    assert "were not checked" not in body


def test_body_tells_scores_use_and_limits(tmp_path):
    _, body = read_card(make_run(tmp_path / "bank", LABELS_77, accuracy=0.8))
    for text in (
        "## Data",
        "## Scores",
        "## How to use it",
        "## Limits",
        "| onnx-int8 | 23.5\u00a0MB (3.9× smaller) |",
        "load('bank/artifacts/onnx-int8')",
    ):
        assert text in body
    limits = body[body.index("## Limits") :]
    for text in ("41 tokens", "F1 below 0.7", "most frequent confusion", "leak, 27 rows", "on other texts"):
        assert text in limits


def test_no_row_of_the_data_is_published(run):
    _, body = read_card(run)
    assert "card payment turned down" not in body
    assert "banking/" not in body


@pytest.mark.parametrize("text", ["a: b\n- c", '"quoted" \\ #x', "名前 😀", "---", "<b>|`x`|</b>", "\x7f\u2028"])
def test_names_cannot_break_the_card(tmp_path, text):
    folder = make_run(tmp_path / "run", (text, "plain", "other"), name=text, accuracy=0.5)
    front, body = read_card(folder)
    assert front["model-index"][0]["name"] == text.replace("\x7f", "\ufffd")
    assert "<b>" not in body
    assert body.count("\n# ") == 1


def test_missing_parts_are_left_out_but_run_json_is_needed(tmp_path):
    _, body = read_card(make_run(tmp_path / "a", without=("evaluation.json", "data.json", "steps.jsonl", "recipe.toml")))
    assert "## Data" not in body
    with pytest.raises(InputError, match=r"run\.json"):
        write_card(make_run(tmp_path / "b", without=("run.json",)))


def test_the_card_says_what_it_is_for_and_how_it_reads_and_runs(tmp_path):
    front, body = read_card(make_generating_run(tmp_path / "commands"))
    assert front["pipeline_tag"] == "text-generation"
    assert "lora" in front["tags"]
    assert "gguf" in front["tags"]
    for text in (
        "## Intended use",
        "the questions are nl, the answers bash",
        "```jinja\n{% for message in messages %}",
        "| perplexity per byte | 1.600 | 1.580 – 1.620 |",
        "questions answered: 200 of 556",
        "| gguf | 146\u00a0MB | 875\u00a0tokens/s | 125\u00a0tokens/s |",
        "lightune chat commands",
        "| licence of the base | Apache-2.0 |",
        "train: 2 rows were too long and were left out.",
        "may be wrong",
    ):
        assert text in body
    for row in ("Make it executable", "chmod", "rm -r", "Where am I"):
        assert row not in body


def test_no_template_breaks_out_of_its_block(tmp_path):
    written = make_generating_run(tmp_path / "commands")
    model = written / "model" / "model.json"
    model.write_text(json.dumps({"chat": {"template": "a\n````\n# broken\n"}}), encoding="utf-8")
    _, body = read_card(written)
    assert "`````jinja\na\n````\n# broken" in body


def test_scalars():
    assert quoted(0.9644444444) == "0.964444"
    assert quoted('say "hi"') == '"say \\"hi\\""'
    assert plain("a|b\n<c> *d*") == "a\\|b &lt;c&gt; \\*d\\*"
